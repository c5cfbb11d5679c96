//! Engine to engine, and what the engine refuses.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use hawser_tunnels::DeviceName;
use hawser_tunnels_linux::{ConfigError, DriverError, EngineError, WireguardDriver};

use crate::node::{Node, PORT, config, connected, endpoint, mesh_v4, mesh_v6, nets};
use crate::raw::{Raw, ipv4_udp, key, socket};
use crate::world::{Capture, World, echo_by_tcp, eventually, send_udp, unique};

#[test]
fn two_engines_carry_tcp_and_pings_of_both_families() {
    let world = World::new();
    let (one, two) = connected(&world.a, &world.b);
    let capture = Capture::on(&world.router);
    assert!(world.a.pings(mesh_v4(2)), "the first packet waits for the handshake and arrives");
    assert!(world.b.pings(mesh_v6(1)));
    echo_by_tcp(&world.a, &world.b, mesh_v4(2), 8 << 20);
    echo_by_tcp(&world.b, &world.a, mesh_v6(1), 1 << 20);
    let ports = capture.ipv4_ports();
    assert!(!ports.is_empty() && ports.iter().all(|port| *port == PORT), "only WireGuard crosses: {ports:?}");
    let stats = one.stats();
    let peer = &stats.peers[&two.driver.public_key()];
    assert!(peer.rx_bytes > 8 << 20 && peer.tx_bytes > 8 << 20 && peer.last_handshake.is_some());
}

#[test]
fn an_underlay_of_ipv6_serves_as_well() {
    let world = World::new();
    let (mut one, mut two) = (Node::start(&world.a, 1), Node::start(&world.b, 2));
    let at = |n: u8| endpoint(format!("fd31:{n}::2").parse::<std::net::IpAddr>().unwrap());
    one.add_peer(2, two.driver.public_key(), at(2), &[]);
    two.add_peer(1, one.driver.public_key(), at(1), &[]);
    one.reconcile();
    two.reconcile();
    assert_eq!(one.reconcile(), []);
    echo_by_tcp(&world.a, &world.b, mesh_v4(2), 1 << 20);
}

#[test]
fn a_peer_may_not_speak_with_an_address_that_a_longer_prefix_gives_to_another() {
    let world = World::new();
    let mut node = Node::start(&world.a, 1);
    let ((secret, liar), (_, victim)) = (key(1), key(2));
    node.add_peer(2, liar, endpoint([172, 31, 2, 2]), &["10.2.0.0/16"]);
    node.add_peer(2, victim, endpoint([172, 31, 2, 3]), &["10.2.5.0/24"]);
    // Both are of one cluster, where prefixes may nest; their mesh addresses would collide.
    node.desired.peers[1].allowed = nets(&["10.2.5.0/24"]);
    node.desired.peers[1].name.node = hawser_model::NodeName::parse("node-2").unwrap();
    node.reconcile();

    let own = Ipv4Addr::new(240, 1, 0, 1);
    let inner = world.a.inside(|| UdpSocket::bind(SocketAddr::from((own, 0))).unwrap());
    inner.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let port = inner.local_addr().unwrap().port();
    let mut peer = Raw::new(&world.b, secret, node.driver.public_key(), endpoint([172, 31, 1, 2]));
    peer.handshake();

    peer.send(&ipv4_udp([10, 2, 5, 1].into(), own, port, b"forged"));
    peer.send(&ipv4_udp([192, 0, 2, 1].into(), own, port, b"forged"));
    peer.send(&ipv4_udp([10, 2, 6, 1].into(), own, port, b"honest"));
    let mut data = [0; 64];
    let (length, from) = inner.recv_from(&mut data).unwrap();
    assert_eq!((&data[..length], from.ip()), (&b"honest"[..], [10, 2, 6, 1].into()));
    assert_eq!(node.dropped("bad-source"), 2);
}

#[test]
fn every_refusal_has_a_name() {
    let world = World::new();
    let mut node = Node::start(&world.a, 1);
    let (secret, public) = key(3);
    node.add_peer(2, public, endpoint([172, 31, 2, 2]), &[]);
    node.reconcile();
    let mut peer = Raw::new(&world.b, secret, node.driver.public_key(), endpoint([172, 31, 1, 2]));
    peer.handshake();
    let message = peer.encrypted(&[0; 20]);
    let send = |message: &[u8]| assert!(peer.socket.send_to(message, peer.to).is_ok());
    let counted = |reason: &str| eventually(reason, || node.dropped(reason) == 1);

    send(b"hello");
    counted("malformed");
    send(&vec![4; 9500]);
    counted("truncated");
    let mut bad = message.clone();
    bad[20] ^= 1;
    send(&bad);
    counted("bad-tag");
    bad = message.clone();
    bad[7] ^= 0x80;
    send(&bad);
    counted("no-session");
    send(&message);
    counted("inner-not-ip");
    send(&message);
    counted("replayed");
    let stranger = Raw::new(&world.b, key(9).0, node.driver.public_key(), peer.to);
    let mut tunn = stranger.tunn;
    let mut buffer = [0; 256];
    let boringtun::noise::TunnResult::WriteToNetwork(initiation) =
        tunn.format_handshake_initiation(&mut buffer, true)
    else {
        panic!("no initiation");
    };
    send(initiation);
    counted("handshake-refused");

    world.a.run(&format!("ip route add 198.51.100.0/24 dev {}", node.device()));
    let _ = send_udp(&world.a, "198.51.100.1:9", b"nobody owns this");
    counted("no-peer-for-destination");
}

#[test]
fn datagrams_longer_than_any_of_ours_alone_or_in_one_message_end_nothing() {
    let world = World::new();
    let (one, _two) = connected(&world.a, &world.b);
    let stranger = socket(&world.b);
    let to = endpoint([172, 31, 1, 2]);
    for length in [9100, 20_000, 65_507] {
        stranger.send_to(&vec![4; length], to).unwrap();
    }
    // 9 by 7,000 bytes and more: cut by the kernel, and joined again where it does.
    nix::sys::socket::setsockopt(&stranger, nix::sys::socket::sockopt::UdpGsoSegment, &1400).unwrap();
    for first in [1, 2, 3, 4, 0xff] {
        let mut message = vec![0; 60_000];
        message.chunks_mut(1400).for_each(|datagram| datagram[0] = first);
        stranger.send_to(&message, to).unwrap();
    }
    eventually("all were refused", || one.dropped("truncated") == 3 && one.dropped("no-session") >= 43);
    assert_eq!(one.dropped("panicked"), 0);
    assert!(world.a.pings(mesh_v4(2)) && world.b.pings(mesh_v4(1)));
}

#[test]
fn a_peer_that_moves_is_followed_and_not_called_back() {
    let world = World::new();
    let mut node = Node::start(&world.a, 1);
    let (secret, public) = key(4);
    node.add_peer(2, public, endpoint([172, 31, 2, 2]), &[]);
    node.reconcile();
    let mut peer = Raw::new(&world.b, secret, node.driver.public_key(), endpoint([172, 31, 1, 2]));
    peer.handshake();
    peer.socket = socket(&world.b);
    let now_at = peer.socket.local_addr().unwrap().port();
    let own = Ipv4Addr::new(240, 1, 0, 1);
    peer.send(&ipv4_udp([240, 2, 0, 1].into(), own, 9, b"from elsewhere"));
    eventually("the engine follows", || {
        node.stats().peers[&public].endpoint == Some(SocketAddr::from(([172, 31, 2, 2], now_at)))
    });
    assert_eq!(node.reconcile(), [], "roaming is not undone");
}

#[test]
fn what_cannot_start_says_why_and_changes_nothing() {
    let world = World::new();
    let node = Node::start(&world.a, 1);
    let keys = tempfile::tempdir().unwrap();
    let start = |config| world.a.inside(|| WireguardDriver::start(config)).unwrap_err();

    let free = config(DeviceName::parse(&unique()).unwrap(), keys.path().join("key"));
    let error = start(free.clone());
    assert!(matches!(error, DriverError::Engine(EngineError::Bind { port: PORT, .. })), "{error}");
    assert!(!world.a.run("ip link").contains(free.device.as_str()), "no device was made");

    let mut taken = free.clone();
    taken.device = DeviceName::parse(node.device()).unwrap();
    let error = start(taken);
    assert!(matches!(error, DriverError::Engine(EngineError::Served { .. })), "{error}");

    let mut other_kind = free.clone();
    other_kind.device = DeviceName::parse("eth0").unwrap();
    other_kind.port = 0;
    let error = start(other_kind);
    assert!(matches!(error, DriverError::OtherKind { .. }), "{error}");
    assert!(error.to_string().contains("name another device"), "{error}");

    for (change, expected) in [
        ((1000, node.desired.device.mark, 1), "mtu 1000"),
        ((1420, hawser_tunnels::Mark { value: 0, mask: 1 }, 1), "mark 0x0"),
        ((1420, node.desired.device.mark, 254), "table 254"),
    ] {
        let mut bad = free.clone();
        (bad.mtu, bad.mark, bad.table) = change;
        let error = start(bad);
        assert!(matches!(
            error,
            DriverError::Config(
                ConfigError::Mtu { .. } | ConfigError::Mark { .. } | ConfigError::Table { .. }
            )
        ));
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}

#[test]
fn a_peer_without_a_session_keeps_trying_while_it_is_spoken_to() {
    let world = World::new();
    let mut one = Node::start(&world.a, 1);
    let mut two = Node::start(&world.b, 2);
    one.add_peer(2, two.driver.public_key(), endpoint([172, 31, 2, 2]), &[]);
    one.reconcile();
    assert!(!world.a.pings(mesh_v4(2)), "the other end does not know us yet");
    two.add_peer(1, one.driver.public_key(), endpoint([172, 31, 1, 2]), &[]);
    two.reconcile();
    eventually("the next try succeeds", || world.a.pings(mesh_v4(2)));
}
