//! Two clusters behind NATs: who is a peer of whom, by which gateway a pair goes, and what a gateway carries.

use std::net::SocketAddr;

use hawser_discovery::{About, Because, NodeId, Transition};
use hawser_ebpf_abi::{CONFIG_GATEWAY, IP_CARRIED, IpEntry, PrefixKey};
use hawser_model::{ClusterConfig, ClusterHealth, ExportMode, NodePath};

use super::*;

fn said(c: u32, path: NodePath) -> Entry {
    Entry::ClusterConfig(ClusterConfig {
        cluster: cluster(c),
        width: WIDTH,
        synced_canaries: true,
        cached: false,
        service_exports: Some(false),
        endpoint_slices: ExportMode::ServicesOnly,
        path,
    })
}

/// Node `n` of cluster `c`, reached from outside at 172.16.c.20n:4500.
fn mk_gateway(c: u32, n: u32) -> Vec<Entry> {
    let mut entries = mk_node(c, n);
    let Entry::TunnelNode(node) = &mut entries[1] else { unreachable!() };
    node.public_endpoint = Some(public(c, n));
    node.gateway = true;
    entries
}

fn public(c: u32, n: u32) -> SocketAddr {
    format!("172.16.{c}.20{n}:4500").parse().unwrap()
}

/// us-east (this is its node-1) and eu-west say `path: gateways`, ap-south is direct. Gateways: us-east's node-3, eu-west's node-3 and 4.
fn behind_nats() -> Mesh {
    let mut mesh = Mesh::new();
    let own = [mk_node(1, 1), mk_node(1, 2), mk_gateway(1, 3), vec![mk_peer(2), mk_peer(3)]].concat();
    mesh.say(1, own);
    mesh.say(1, [said(1, NodePath::Gateways)]);
    mesh.complete(1);
    mesh.say(2, [mk_node(2, 1), mk_node(2, 2), mk_gateway(2, 3), mk_gateway(2, 4)].concat());
    mesh.say(2, [said(2, NodePath::Gateways)]);
    mesh.complete(2);
    mesh.say(3, mk_node(3, 1));
    mesh.say(3, [said(3, NodePath::Direct)]);
    mesh.complete(3);
    mesh.settle();
    mesh
}

/// The same at a gateway, which is node-1 here.
fn at_the_gateway() -> Mesh {
    let mut mesh = Mesh::new();
    mesh.say(1, [mk_gateway(1, 1), mk_node(1, 2), mk_gateway(1, 3), vec![mk_peer(2), mk_peer(3)]].concat());
    mesh.say(
        1,
        [said(1, NodePath::Gateways), mk_pod(1, 2, 5), mk_pod_at(1, "10.1.99.7", 2), mk_pod(1, 1, 5)],
    );
    mesh.complete(1);
    mesh.say(2, [mk_node(2, 1), mk_gateway(2, 3)].concat());
    mesh.say(2, [said(2, NodePath::Gateways), mk_pod(2, 1, 9)]);
    mesh.complete(2);
    mesh.say(3, mk_node(3, 1));
    mesh.say(3, [said(3, NodePath::Direct)]);
    mesh.complete(3);
    mesh.settle();
    mesh
}

impl Mesh {
    fn by_name(&self, name: &str) -> &hawser_tunnels::Peer {
        self.tunnels().peers.iter().find(|peer| peer.name.to_string() == name).unwrap()
    }

    fn via(&self, name: &str) -> Option<PublicKey> {
        self.by_name(name).via
    }

    fn verdict(&mut self, n: u32, to: ClusterHealth) {
        let node = NodeId { cluster: cluster(2).id, index: NodeIndex::new(n).unwrap() };
        let (about, from) = (About::Node(node), ClusterHealth::Unknown);
        let because = Because::FirstReply;
        self.agent.handle_transition(Transition { about, from, to, because, at: self.now, weight: 256 });
        self.settle();
    }

    fn heard(&mut self, n: u32) {
        let node = NodeId { cluster: cluster(2).id, index: NodeIndex::new(n).unwrap() };
        self.agent.handle_nodes_heard(&BTreeMap::from([(node, self.now)]), self.now);
        self.settle();
    }

    fn entry(&self, prefix: &str) -> IpEntry {
        let net: hawser_model::IpNet = prefix.parse().unwrap();
        self.agent.plan().datapath.ipcache[&PrefixKey::new(net.addr(), net.prefix_len()).unwrap()]
    }
}

#[test]
fn a_node_behind_a_nat_has_tunnels_to_the_gateways_of_both_clusters_and_one_of_them_carries_each_pair() {
    let mesh = behind_nats();
    let gateways = [key(0x13), key(0x23), key(0x24)];
    for node in ["eu-west/node-1", "eu-west/node-2"] {
        assert!(gateways.contains(&mesh.via(node).unwrap()), "{node}");
    }
    for (n, name) in [(3, "eu-west/node-3"), (4, "eu-west/node-4")] {
        let gateway = mesh.by_name(name);
        assert_eq!((gateway.via, gateway.endpoint), (None, public(2, n)), "dialled where it is reached");
        assert_eq!(gateway.keepalive, Some(25), "our NAT has to hear from us");
    }
    let own = mesh.by_name("us-east/node-3");
    assert_eq!((own.via, own.endpoint), (None, "172.16.1.103:51871".parse().unwrap()), "inside");
    assert!(own.allowed.is_empty(), "the CNI carries inside the cluster");
    assert!(!mesh.peer_names().contains("us-east/node-2"));
    let direct = mesh.by_name("ap-south/node-1");
    assert_eq!((direct.via, direct.keepalive), (None, None));
    assert_eq!(mesh.agent.plan().datapath.config.flags & CONFIG_GATEWAY, 0);
    assert_eq!(mesh.agent.plan().notes, [""; 0]);
}

#[test]
fn a_pair_that_falls_silent_goes_to_the_next_gateway_at_once_alone_and_stays_where_it_is_answered() {
    let mut mesh = behind_nats();
    let (first, other) = (mesh.via("eu-west/node-1"), mesh.via("eu-west/node-2"));
    for node in [1, 2] {
        mesh.verdict(node, ClusterHealth::Up);
    }
    mesh.verdict(1, ClusterHealth::Down);
    let second = mesh.via("eu-west/node-1");
    assert_ne!(first, second);
    assert_eq!(mesh.via("eu-west/node-2"), other, "whose gateway is well");

    // Held down for flapping, heard all the same.
    let looks = mesh.looks;
    mesh.pass(10_000);
    assert!(mesh.looks > looks, "liveness is asked before a gateway is left");
    mesh.heard(1);
    assert_eq!(mesh.via("eu-west/node-1"), second);
    // Heard no more: this end, with the lower number, waits until the other one has tried all three.
    mesh.pass(8_000);
    mesh.agent.handle_nodes_heard(&BTreeMap::new(), mesh.now);
    mesh.settle();
    assert_eq!(mesh.via("eu-west/node-1"), second);
    mesh.pass(2_000);
    mesh.agent.handle_nodes_heard(&BTreeMap::new(), mesh.now);
    mesh.settle();
    assert_ne!(mesh.via("eu-west/node-1"), second);

    // The next run begins where this one met.
    let (met, last) = (mesh.via("eu-west/node-1"), mesh.tunnels().clone());
    let mut next = Mesh::new();
    next.agent.remember(&last);
    next.say(1, [mk_node(1, 1), mk_node(1, 2), mk_gateway(1, 3), vec![mk_peer(2)]].concat());
    next.say(1, [said(1, NodePath::Gateways)]);
    next.complete(1);
    next.say(2, [mk_node(2, 1), mk_node(2, 2), mk_gateway(2, 3), mk_gateway(2, 4)].concat());
    next.say(2, [said(2, NodePath::Gateways)]);
    next.complete(2);
    next.settle();
    assert_eq!(next.via("eu-west/node-1"), met);
}

#[test]
fn a_gateway_carries_for_its_nodes_and_those_that_come_to_it_and_for_no_gateway_and_no_direct_cluster() {
    let mesh = at_the_gateway();
    let behind = mesh.by_name("us-east/node-2");
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<BTreeSet<_>>();
    let mesh_v6 =
        MeshPlan::default().addresses(cluster(1).id, NodeIndex::new(2).unwrap(), &behind.name.node).ipv6;
    let due = nets(&["10.1.2.0/24", "10.1.99.7/32", "240.1.0.2/32", &format!("{mesh_v6}/128")]);
    assert_eq!((behind.endpoint, &behind.allowed), ("172.16.1.102:51871".parse().unwrap(), &due));
    assert!(!mesh.peer_names().contains("us-east/node-3"), "gateways are reached by everybody");
    for name in ["eu-west/node-1", "eu-west/node-3", "ap-south/node-1"] {
        assert_eq!(mesh.via(name), None, "{name} comes here itself");
    }
    assert!(!mesh.tunnels().routes.iter().any(|route| route.to_string().starts_with("10.1.")), "the CNI's");

    assert_ne!(mesh.agent.plan().datapath.config.flags & CONFIG_GATEWAY, 0);
    let carried = |prefix: &str| mesh.entry(prefix).flags & IP_CARRIED != 0;
    for (prefix, due) in [
        ("10.1.2.0/24", true),
        ("10.1.2.5/32", true),
        ("10.1.99.7/32", true),
        ("240.1.0.2/32", true),
        ("10.1.1.5/32", false),
        ("10.2.1.0/24", true),
        ("10.2.1.9/32", true),
        ("240.2.0.1/32", true),
        ("10.2.3.0/24", false),
        ("240.2.0.3/32", false),
        ("10.2.0.0/16", false),
        ("10.3.1.0/24", false),
    ] {
        assert_eq!(carried(prefix), due, "{prefix}");
        assert_eq!(
            mesh.entry(prefix).is_remote(),
            !prefix.starts_with("10.1.") && !prefix.starts_with("240.1.")
        );
    }
}

#[test]
fn without_a_gateway_nothing_leads_there_and_one_that_comes_is_used() {
    let mut mesh = behind_nats();
    for (c, n) in [(1, 3), (2, 3), (2, 4)] {
        mesh.say(c, mk_node(c, n));
    }
    mesh.settle();
    assert_eq!(mesh.peer_names(), BTreeSet::from(["ap-south/node-1".to_owned()]));
    assert!(mesh.tunnels().routes.contains(&"10.2.0.0/16".parse().unwrap()), "and nothing leaves in clear");
    let notes = &mesh.agent.plan().notes;
    assert!(notes.len() == 1 && notes[0].contains("neither has a gateway"), "{notes:?}");

    mesh.say(2, mk_gateway(2, 4));
    mesh.settle();
    assert_eq!(mesh.via("eu-west/node-1"), Some(key(0x24)));
    // A cluster that can be reached again is.
    mesh.say(2, [said(2, NodePath::Direct)]);
    mesh.settle();
    assert_eq!(mesh.via("eu-west/node-1"), None);
    assert_eq!(mesh.by_name("eu-west/node-1").endpoint, "172.16.2.101:51871".parse().unwrap());
}
