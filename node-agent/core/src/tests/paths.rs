//! Where tunnels go, and what stays guarded when they go no longer.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use hawser_discovery::{About, Because, NodeId, PATIENCE, PeerSeen, Transition};
use hawser_model::ClusterHealth;

use super::*;
use crate::GUARD_REST;

fn with_addresses(c: u32, n: u32, addresses: &[(AddressKind, &str)]) -> Vec<Entry> {
    let mut entries = mk_node(c, n);
    let Entry::Node(node) = &mut entries[0] else { unreachable!() };
    node.addresses = addresses.iter().map(|(kind, at)| NodeAddress { kind: *kind, ip: ip(at) }).collect();
    entries
}

/// eu-west is admitted with IPv6 node addresses too.
fn mk_wide_peer() -> Entry {
    let Entry::LocalPeer(mut peer) = mk_peer(2) else { unreachable!() };
    peer.node_cidrs.push("2001:db8:2::/64".parse().unwrap());
    Entry::LocalPeer(peer)
}

impl Mesh {
    fn peer(&self, name: &str) -> &hawser_tunnels::Peer {
        self.tunnels().peers.iter().find(|peer| peer.name.to_string() == name).unwrap()
    }

    fn seen(&mut self, node: u8, endpoint: &str, received: u64) {
        let endpoint = Some(endpoint.parse::<SocketAddr>().unwrap());
        let seen = PeerSeen { endpoint, received, session: true };
        self.agent.handle_seen(&BTreeMap::from([(key(0x20 + node), seen)]), self.now);
        self.settle();
    }

    fn judge(&mut self, n: u32, to: ClusterHealth) {
        let node = NodeId { cluster: cluster(2).id, index: NodeIndex::new(n).unwrap() };
        let transition = Transition {
            about: About::Node(node),
            from: ClusterHealth::Unknown,
            to,
            because: Because::FirstReply,
            at: self.now,
            weight: 256,
        };
        self.agent.handle_transition(transition);
        self.settle();
    }
}

#[test]
fn the_best_of_a_nodes_addresses_is_taken_and_the_next_one_when_it_is_silent() {
    use AddressKind::{ExternalIp, InternalIp};
    let mut mesh = Mesh::of_three();
    let all = [
        (ExternalIp, "172.16.2.9"),
        (InternalIp, "2001:db8:2::1"),
        (InternalIp, "172.16.2.101"),
        (ExternalIp, "8.8.8.8"),
    ];
    mesh.say(1, [mk_wide_peer()]);
    mesh.complete(2);
    mesh.say(2, mk_node(2, 2));
    mesh.say(2, with_addresses(2, 1, &all));
    mesh.complete(2);
    mesh.settle();
    assert_eq!(mesh.peer("eu-west/node-1").endpoint, "172.16.2.101:51871".parse().unwrap());
    let mut tried = Vec::new();
    for _ in 0..3 {
        mesh.pass(PATIENCE.as_millis() as u64 + 100);
        assert!(mesh.looks > 0, "nobody is left without a look at the engine");
        mesh.seen(1, "172.16.2.101:51871", 0);
        tried.push(mesh.peer("eu-west/node-1").endpoint.to_string());
    }
    // This node has no IPv6 underlay, so that family comes last; and 8.8.8.8 is not eu-west's to state.
    assert_eq!(tried, ["172.16.2.9:51871", "[2001:db8:2::1]:51871", "172.16.2.101:51871"]);
}

#[test]
fn a_node_that_answers_from_behind_a_nat_is_left_there_and_gets_a_keepalive() {
    let mut mesh = Mesh::of_three();
    assert_eq!(mesh.peer("eu-west/node-1").keepalive, None);
    mesh.judge(1, ClusterHealth::Up);
    mesh.seen(1, "198.51.100.7:40001", 148);
    let peer = mesh.peer("eu-west/node-1");
    assert_eq!((peer.endpoint, peer.keepalive), ("198.51.100.7:40001".parse().unwrap(), Some(25)));
    assert_eq!(mesh.peer("eu-west/node-2").keepalive, None, "only where needed");

    // The next run begins where this one was.
    let last = mesh.tunnels().clone();
    let mut next = Mesh::new();
    next.agent.remember(&last);
    next.say(1, [mk_node(1, 1), vec![mk_peer(2)]].concat());
    next.complete(1);
    next.say(2, [mk_node(2, 1), mk_node(2, 2)].concat());
    next.complete(2);
    next.settle();
    assert_eq!(next.peer("eu-west/node-1").endpoint, "198.51.100.7:40001".parse().unwrap());
    assert_eq!(next.peer("eu-west/node-2").endpoint, "172.16.2.102:51871".parse().unwrap());

    // Silent there, it is looked for where it is stated.
    next.pass(PATIENCE.as_millis() as u64 + 100);
    next.seen(1, "198.51.100.7:40001", 0);
    let peer = next.peer("eu-west/node-1");
    assert_eq!((peer.endpoint, peer.keepalive), ("172.16.2.101:51871".parse().unwrap(), None));
}

#[test]
fn what_was_the_meshs_is_guarded_for_a_while_after_it_is_gone() {
    let prefix = "10.2.0.0/16".parse().unwrap();
    let mut mesh = Mesh::of_three();
    mesh.withdraw(1, &mk_peer(2));
    mesh.pass(60_000);
    assert!(!mesh.tunnels().routes.contains(&prefix) && mesh.tunnels().guards.contains(&prefix));

    // Over a restart, too.
    let mut next = Mesh::new();
    next.agent.remember(mesh.tunnels());
    next.say(1, [mk_node(1, 1), vec![mk_peer(3)]].concat());
    next.complete(1);
    next.say(3, mk_node(3, 1));
    next.complete(3);
    next.settle();
    assert!(next.tunnels().guards.contains(&prefix));

    let rest = GUARD_REST.as_millis() as u64;
    for mesh in [&mut mesh, &mut next] {
        mesh.pass(rest);
        assert!(!mesh.tunnels().guards.contains(&prefix), "it is the CNI's again");
        assert!(mesh.tunnels().guards.contains(&"10.3.0.0/16".parse().unwrap()));
    }
}

#[test]
fn a_cluster_is_guarded_as_soon_as_it_is_known_and_long_before_there_is_a_plan() {
    let mut mesh = Mesh::new();
    mesh.say(1, [mk_node(1, 1), vec![mk_peer(2)]].concat());
    mesh.drain(true);
    assert!(!mesh.agent.has_plan());
    let guarded = mesh.guarded.last().unwrap();
    assert!(guarded.guards.contains(&"10.2.0.0/16".parse().unwrap()));
    assert!(guarded.guards.contains(&"240.0.0.0/4".parse().unwrap()));
    assert!(guarded.peers.is_empty() && guarded.routes.is_empty());
    mesh.complete(1);
    mesh.say(2, mk_node(2, 1));
    mesh.complete(2);
    mesh.settle();
    let before = mesh.guarded.len();
    mesh.say(1, [mk_peer(3)]);
    mesh.settle();
    assert_eq!(mesh.guarded.len(), before, "from the first plan on, plans guard");
}
