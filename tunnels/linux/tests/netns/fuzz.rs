//! Ten seconds of nonsense: mutated datagrams at a live engine, mutated text at the UAPI.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hawser_tunnels_linux::parse_set;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::node::{Node, connected, endpoint, mesh_v4};
use crate::raw::{Raw, ipv4_udp, key};
use crate::world::{Netns, World};

const FOR: Duration = Duration::from_secs(5);
const SEED: u64 = 0x4877;

fn mutate(rng: &mut StdRng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus.choose(rng).unwrap().clone();
    for _ in 0..rng.random_range(0..4) {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes.truncate(at),
            2 => bytes.insert(at, rng.random()),
            3 => {
                let other = corpus.choose(rng).unwrap();
                bytes.extend_from_slice(&other[rng.random_range(0..=other.len())..]);
            }
            _ => {
                let until = (at + 8).min(bytes.len());
                bytes[at..until].fill([0, 0xff, 0x7f, 0x80][rng.random_range(0..4)]);
            }
        }
    }
    bytes.truncate(8192);
    bytes
}

#[test]
fn no_datagram_brings_an_engine_down() {
    let world = World::new();
    let (mut one, _two) = connected(&world.a, &world.b);
    let (secret, public) = key(1);
    one.add_peer(3, public, endpoint([172, 31, 2, 9]), &["10.3.0.0/16"]);
    one.reconcile();
    let mut peer = Raw::new(&world.b, secret, one.driver.public_key(), endpoint([172, 31, 1, 2]));
    peer.handshake();
    let packet = ipv4_udp([10, 3, 0, 1].into(), Ipv4Addr::new(240, 1, 0, 1), 9, &[7; 100]);
    let inner = [packet, vec![0x60; 60], vec![0x45; 20], Vec::new()];
    let mut corpus = vec![peer.initiation.clone(), peer.response.clone(), vec![3; 64]];
    let mut rng = StdRng::seed_from_u64(SEED);
    let until = Instant::now() + FOR;
    let mut sent = 0u64;
    while Instant::now() < until {
        // Half of it authentic around a mutated inside, so that it gets past the seal.
        let datagram = if rng.random() {
            let inside = mutate(&mut rng, &inner);
            peer.encrypted(&inside)
        } else {
            mutate(&mut rng, &corpus)
        };
        if corpus.len() < 64 {
            corpus.push(datagram.clone());
        }
        let _ = peer.socket.send_to(&datagram, peer.to);
        sent += 1;
    }
    assert!(sent > 0);
    // The engine has megabytes of nonsense in its socket still, which has no room for an answer until they are read.
    let pings = |from: &Netns, to| (0..5).any(|_| from.pings(to));
    assert!(pings(&world.a, mesh_v4(2)) && pings(&world.b, mesh_v4(1)), "both threads live, seed {SEED:#x}");
    assert_eq!(one.reconcile(), []);
}

#[test]
fn no_text_brings_the_uapi_down() {
    let world = World::new();
    let node = Node::start(&world.a, 1);
    let k = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";
    let peer = format!(
        "public_key={k}\nendpoint=[fd00::1]:51820\nreplace_allowed_ips=true\nallowed_ip=192.168.4.4/32\n"
    );
    let corpus: Vec<Vec<u8>> = [
        format!("set=1\nfwmark=0\nreplace_peers=true\n{peer}persistent_keepalive_interval=111\n\n"),
        format!("set=1\n{peer}remove=true\n\n"),
        format!(
            "set=1\n{peer}preshared_key={k}\nallowed_ip=-10.0.0.0/8\nupdate_only=true\nprotocol_version=1\n\n"
        ),
        "get=1\n\n".to_owned(),
    ]
    .map(String::into_bytes)
    .to_vec();
    let mut rng = StdRng::seed_from_u64(SEED);
    let until = Instant::now() + FOR;
    let mut parsed = 0u64;
    while Instant::now() < until {
        for _ in 0..500 {
            let text = mutate(&mut rng, &corpus);
            let _ = parse_set(&String::from_utf8_lossy(&text));
            parsed += 1;
        }
        let mut stream = UnixStream::connect(format!("/var/run/wireguard/{}.sock", node.device())).unwrap();
        let _ = stream.write_all(&mutate(&mut rng, &corpus));
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert!(parsed > 0);
    // Still in its senses.
    node.reconcile();
    assert_eq!(node.reconcile(), []);
}
