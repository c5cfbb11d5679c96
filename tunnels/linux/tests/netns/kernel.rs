//! What the driver leaves in the kernel, what it leaves alone, and what it takes away.

use hawser_tunnels::Op;
use hawser_tunnels_linux::{Driver, DriverError};

use crate::node::{Node, connected, endpoint, mesh_v4, nets};
use crate::raw::key;
use crate::world::{World, output};

#[test]
fn routes_and_addresses_are_what_ip_shows_and_there_is_no_rule() {
    let world = World::new();
    let (one, _two) = connected(&world.a, &world.b);
    let device = one.device();
    let routes = world.a.run("ip route show");
    for line in [
        format!("240.2.0.1 dev {device} proto 72 scope link src 240.1.0.1 metric 72"),
        "unreachable 240.2.0.1 proto 72 metric 10000".to_owned(),
        "unreachable 240.0.0.0/4 proto 72 metric 10000".to_owned(),
    ] {
        assert!(routes.lines().any(|route| route.trim() == line), "{line} in\n{routes}");
    }
    let routes = world.a.run("ip -6 route show");
    assert!(
        routes.contains(&format!(
            "fd68:6177:7365:2::1 dev {device} proto 72 src fd68:6177:7365:1::1 metric 72"
        ))
    );
    assert!(routes.contains("unreachable fd68:6177:7365::/48 dev lo proto 72 metric 10000"), "{routes}");
    for family in ["-4", "-6"] {
        let rules = world.a.run(&format!("ip {family} rule show"));
        assert!(!rules.contains("fwmark"), "a rule takes every look-up off the short way: {rules}");
    }
    let link = world.a.run(&format!("ip addr show dev {device}"));
    assert!(link.contains("mtu 1420") && link.contains("inet 240.1.0.1/32 scope global"), "{link}");
    assert!(!link.contains("fe80"), "no link-local chatter: {link}");
}

#[test]
fn every_change_ends_in_an_empty_plan() {
    let world = World::new();
    let mut node = Node::start(&world.a, 1);
    let ((_, one), (_, two)) = (key(1), key(2));
    node.add_peer(2, one, endpoint([172, 31, 2, 2]), &["10.2.0.0/16", "10.2.1.0/24", "fd00:2::/64"]);
    node.add_peer(3, two, endpoint([172, 31, 2, 3]), &["10.3.0.0/16"]);
    let steps: [&dyn Fn(&mut Node<'_>); 8] = [
        &|_| {},
        &|node| node.desired.device.mtu = 1400,
        &|node| node.desired.device.port = 51999,
        &|node| node.desired.peers[0].keepalive = Some(25),
        &|node| node.desired.peers[1].endpoint = endpoint([172, 31, 2, 4]),
        &|node| {
            let moved = nets(&["10.2.1.0/24"]);
            node.desired.peers[0].allowed.retain(|prefix| !moved.contains(prefix));
            node.desired.routes.retain(|prefix| !moved.contains(prefix));
        },
        &|node| {
            node.desired.addresses =
                ["240.1.0.9".parse().unwrap(), "fd68:6177:7365:1::9".parse().unwrap()].into();
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
fn what_others_put_beside_ours_is_neither_seen_nor_removed() {
    let world = World::new();
    for foreign in [
        "ip route add 10.77.0.0/16 dev lo",
        "ip route add unreachable 10.78.0.0/16 metric 20000",
        "ip route add unreachable 10.79.0.0/16 metric 72",
        "ip -6 route add unreachable fd77::/64",
        "ip route add 10.77.0.0/16 dev lo table 18551",
        "ip rule add priority 90 fwmark 7 lookup 18551",
        "ip rule add not fwmark 0x480000/0xff0000 lookup 18552 priority 89",
    ] {
        world.a.run(foreign);
    }
    let list = || {
        ["ip route show table all", "ip -6 route show table all", "ip rule", "ip -6 rule"]
            .map(|command| world.a.run(command))
    };
    let before = list();
    let mut node = Node::start(&world.a, 1);
    node.add_peer(2, key(1).1, endpoint([172, 31, 2, 2]), &["10.78.0.0/16"]);
    node.reconcile();
    assert_eq!(node.reconcile(), []);
    node.desired.peers.clear();
    node.desired.routes.clear();
    node.reconcile();
    assert!(world.a.run("ip route show").contains("10.77.0.0/16"));

    node.netns.inside(|| node.driver.remove()).unwrap();
    assert_eq!(list(), before);
    assert!(!output(&format!("ip -n {} link show {}", world.a.name, node.device())).status.success());
    assert!(matches!(node.driver.observe(), Err(DriverError::Removed { .. })));
    assert!(node.driver.remove().is_ok(), "removing twice does no harm");
}

#[test]
fn a_route_of_somebody_else_in_our_very_place_is_not_replaced() {
    let world = World::new();
    let mut node = Node::start(&world.a, 1);
    node.add_peer(2, key(1).1, endpoint([172, 31, 2, 2]), &[]);
    node.reconcile();
    world.a.run("ip route add 10.79.0.0/16 dev lo metric 72");
    let set = Op::SetRoute { prefix: "10.79.0.0/16".parse().unwrap(), source: "240.1.0.1".parse().unwrap() };
    node.netns.inside(|| node.driver.apply(&set)).unwrap_err();
    assert!(world.a.run("ip route show 10.79.0.0/16").contains("dev lo"));
}

/// Until all of the new is in, the old leads there; then it goes, and others' things beside it stay.
#[test]
fn the_rule_and_table_of_an_earlier_version_go_after_the_new_routes_are_in() {
    let world = World::new();
    for old in [
        "ip route add unreachable 240.0.0.0/4 metric 10000 proto 72 table 18551",
        "ip route add unreachable 10.2.0.0/16 metric 10000 proto 72 table 18551",
        "ip -6 route add unreachable fd68:6177:7365::/48 metric 10000 proto 72 table 18551",
        "ip rule add not fwmark 0x480000/0xff0000 lookup 18551 priority 90 protocol 72",
        "ip -6 rule add not fwmark 0x480000/0xff0000 lookup 18551 priority 90 protocol 72",
        "ip route add 10.77.0.0/16 dev lo table 18551",
    ] {
        world.a.run(old);
    }
    let mut node = Node::start(&world.a, 1);
    node.add_peer(2, key(1).1, endpoint([172, 31, 2, 2]), &["10.2.0.0/16"]);
    let ops = node.reconcile();
    let last_route = ops.iter().rposition(|op| matches!(op, Op::SetRoute { .. })).unwrap();
    let rules: Vec<_> = (0..ops.len()).filter(|at| matches!(ops[*at], Op::RemoveRule { .. })).collect();
    assert!(rules.len() == 2 && rules[0] > last_route, "{ops:?}");
    assert_eq!(node.reconcile(), []);
    let left = world.a.run("ip route show table 18551");
    assert_eq!(left.trim(), "10.77.0.0/16 dev lo scope link");
    assert!(!world.a.run("ip rule").contains("18551") && !world.a.run("ip -6 rule").contains("18551"));
    assert!(world.a.run("ip route show").contains("10.2.0.0/16"));
}

#[test]
fn a_device_that_somebody_deleted_comes_back_whole() {
    let world = World::new();
    let (one, _two) = connected(&world.a, &world.b);
    assert!(world.a.pings(mesh_v4(2)));
    world.a.run(&format!("ip link del {}", one.device()));
    assert!(!world.a.pings(mesh_v4(2)), "the guard answers");
    let ops = one.reconcile();
    assert!(matches!(ops[0], Op::CreateDevice { .. }));
    assert!(!ops.iter().any(|op| matches!(op, Op::AddPeer { .. })), "the engine still knows its peers");
    assert_eq!(one.reconcile(), []);
    assert!(world.a.pings(mesh_v4(2)));
}

#[test]
fn a_key_that_the_driver_does_not_hold_is_refused_by_name() {
    let world = World::new();
    let node = Node::start(&world.a, 1);
    let mut desired = node.desired.clone();
    desired.device.public_key = key(5).1;
    let plan = hawser_tunnels::plan(&desired, &node.driver.observe().unwrap());
    let configure = plan.ops.iter().find(|op| matches!(op, Op::Configure { .. })).unwrap();
    assert!(matches!(node.driver.apply(configure), Err(DriverError::ForeignKey { .. })));
}
