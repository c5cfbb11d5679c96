//! The kernel's WireGuard under our driver: the same plan, the same peers, and no packet lost when the process goes.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use hawser_model::PublicKey;
use hawser_tunnels::{Desired, Op};
use hawser_tunnels_linux::{Choice, Driver, DriverError, Kind, WireguardConfig, WireguardDriver};

use crate::node::{Node, connected_as, endpoint, mesh_v4, mesh_v6, nets, reconcile};
use crate::world::{Netns, World, echo_by_tcp, output};

const KERNEL: [Choice; 2] = [Choice::Kernel; 2];

fn restart(netns: &Netns, config: &WireguardConfig, desired: &Desired) -> (WireguardDriver, Vec<Op>) {
    netns.inside(|| {
        let driver = WireguardDriver::start(config.clone()).unwrap();
        let ops = reconcile(&driver, desired);
        (driver, ops)
    })
}

/// A key that nobody else has, from a byte.
fn key(byte: u8) -> PublicKey {
    let dir = tempfile::tempdir().unwrap();
    hawser_tunnels_linux::PrivateKey::load_or_create(&dir.path().join(byte.to_string())).unwrap().public()
}

/// Pings one after the other while `body` runs; returns how many of them were lost.
pub(crate) fn lost_while(netns: &Netns, to: std::net::IpAddr, body: impl FnOnce()) -> usize {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pings = scope.spawn(|| {
            let mut lost = 0;
            while !stop.load(Ordering::Relaxed) {
                lost += usize::from(!netns.pings(to));
            }
            lost
        });
        let done = catch_unwind(AssertUnwindSafe(body));
        stop.store(true, Ordering::Relaxed);
        let lost = pings.join().unwrap();
        done.unwrap_or_else(|panic| resume_unwind(panic));
        lost
    })
}

#[test]
fn two_kernels_talk_and_the_second_plan_is_empty() {
    let world = World::new();
    let (one, _two) = connected_as(KERNEL, &world.a, &world.b);
    assert!(world.a.pings(mesh_v4(2)));
    assert!(world.b.pings(mesh_v6(1)));
    echo_by_tcp(&world.a, &world.b, mesh_v4(2), 1 << 20);
    let stats = world.a.inside(|| one.driver.stats()).unwrap();
    assert!(stats.in_kernel);
    assert!(stats.peers.values().all(|peer| peer.last_handshake.is_some() && peer.rx_bytes > 1 << 20));
    assert!(world.a.run(&format!("wg show {} fwmark", one.device())).contains("0x480000"));
}

#[test]
fn our_engine_and_the_kernel_shake_hands_whoever_begins() {
    for first in [0, 1] {
        let world = World::new();
        let (_one, _two) = connected_as([Choice::Kernel, Choice::Userspace], &world.a, &world.b);
        let nodes = [(&world.a, 2), (&world.b, 1)];
        let (netns, peer) = nodes[first];
        assert!(netns.pings(mesh_v4(peer)), "node {first} begins");
        echo_by_tcp(&world.a, &world.b, mesh_v4(2), 1 << 20);
        echo_by_tcp(&world.b, &world.a, mesh_v6(1), 1 << 20);
    }
}

#[test]
fn auto_takes_the_kernel_where_it_can_and_keeps_what_is_there() {
    let world = World::new();
    let node = Node::start_as(Choice::Auto, &world.a, 1);
    node.reconcile();
    assert!(world.a.inside(|| node.driver.stats()).unwrap().in_kernel);

    let asked = WireguardConfig { choice: Choice::Userspace, ..node.config.clone() };
    let refused = world.a.inside(|| WireguardDriver::start(asked)).unwrap_err();
    assert!(matches!(refused, DriverError::OtherKind { found: Kind::Wireguard, .. }), "{refused}");

    let keys = tempfile::tempdir().unwrap();
    let private_key = keys.path().join("wireguard.key");
    let config = WireguardConfig { choice: Choice::Userspace, private_key, ..node.config.clone() };
    drop(world.b.inside(|| WireguardDriver::start(config.clone())).unwrap());
    let asked = WireguardConfig { choice: Choice::Auto, ..config };
    let adopted = world.b.inside(|| WireguardDriver::start(asked)).unwrap();
    assert!(!world.b.inside(|| adopted.stats()).unwrap().in_kernel, "its device is a TUN already");
}

#[test]
fn every_change_ends_in_an_empty_plan() {
    let world = World::new();
    let mut node = Node::start_as(Choice::Kernel, &world.a, 1);
    let many: Vec<String> = (0..200).map(|n| format!("10.9.{n}.0/24")).collect();
    let mut prefixes: Vec<&str> = many.iter().map(String::as_str).collect();
    prefixes.extend(["10.2.0.0/16", "10.2.1.0/24", "fd00:2::/64"]);
    node.add_peer(2, key(1), endpoint([172, 31, 2, 2]), &prefixes);
    node.add_peer(3, key(2), endpoint([172, 31, 2, 3]), &["10.3.0.0/16"]);
    let steps: [&dyn Fn(&mut Node<'_>); 7] = [
        &|_| {},
        &|node| node.desired.device.mtu = 1400,
        &|node| node.desired.device.port = 51999,
        &|node| node.desired.peers[0].keepalive = Some(25),
        &|node| node.desired.peers[1].endpoint = endpoint([172, 31, 2, 4]),
        &|node| {
            let lost = nets(&["10.9.0.0/16"]);
            let is_lost = |prefix: &ipnet::IpNet| lost.iter().any(|outer| outer.contains(prefix));
            node.desired.peers[0].allowed.retain(|prefix| !is_lost(prefix));
            node.desired.routes.retain(|prefix| !is_lost(prefix));
        },
        &|node| {
            node.desired.peers.clear();
            node.desired.routes.clear();
        },
    ];
    for (at, step) in steps.iter().enumerate() {
        step(&mut node);
        assert_ne!(node.reconcile(), [], "step {at} changes something");
        assert_eq!(node.reconcile(), [], "step {at} is complete");
    }
}

#[test]
fn a_restart_finds_everything_as_it_was_and_loses_no_packet() {
    let world = World::new();
    let (one, _two) = connected_as(KERNEL, &world.a, &world.b);
    assert!(world.a.pings(mesh_v4(2)));
    let Node { driver, desired, config, .. } = &one;
    let lost = lost_while(&world.b, mesh_v4(1), || {
        for _ in 0..5 {
            let (_driver, ops) = restart(&world.a, config, desired);
            assert_eq!(ops, [], "what the last process left is what is wanted");
        }
    });
    assert_eq!(lost, 0);
    assert!(world.a.inside(|| driver.stats()).unwrap().in_kernel);
}

#[test]
fn taking_prefixes_from_a_peer_never_touches_those_it_keeps() {
    let world = World::new();
    let (mut one, _two) = connected_as(KERNEL, &world.a, &world.b);
    assert!(world.a.pings(mesh_v4(2)));
    let more: Vec<String> = (0..100).map(|n| format!("10.50.{n}.0/24")).collect();
    let more = nets(&more.iter().map(String::as_str).collect::<Vec<_>>());
    let lost = lost_while(&world.a, mesh_v4(2), || {
        for _ in 0..10 {
            one.desired.peers[0].allowed.extend(&more);
            one.desired.routes.extend(&more);
            one.reconcile();
            one.desired.peers[0].allowed.retain(|prefix| !more.contains(prefix));
            one.desired.routes.retain(|prefix| !more.contains(prefix));
            let ops = one.reconcile();
            assert!(ops.iter().any(|op| matches!(op, Op::Restrict { .. })), "{ops:?}");
        }
    });
    assert_eq!(lost, 0);
    let shown = world.a.run(&format!("wg show {} allowed-ips", one.device()));
    assert!(!shown.contains("10.50."), "{shown}");
    assert_eq!(shown.lines().count(), 1, "the peer that took them is gone: {shown}");
}

#[test]
fn a_device_that_somebody_deleted_comes_back_whole() {
    let world = World::new();
    let (one, _two) = connected_as(KERNEL, &world.a, &world.b);
    world.a.run(&format!("ip link del {}", one.device()));
    assert!(!world.a.pings(mesh_v4(2)), "the guard answers");
    let ops = one.reconcile();
    assert!(matches!(ops[0], Op::CreateDevice { .. }));
    assert_eq!(one.reconcile(), []);
    assert!(world.a.pings(mesh_v4(2)));
}

#[test]
fn remove_leaves_nothing() {
    let world = World::new();
    let (one, _two) = connected_as(KERNEL, &world.a, &world.b);
    world.a.inside(|| one.driver.remove()).unwrap();
    assert!(!output(&format!("ip -n {} link show {}", world.a.name, one.device())).status.success());
    assert!(!world.a.run("ip rule").contains("18551"));
    assert!(world.a.inside(|| one.driver.remove()).is_ok(), "removing twice does no harm");
}
