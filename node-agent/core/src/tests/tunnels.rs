//! From a view to tunnels.

use std::collections::BTreeSet;

use hawser_model::{EspEnd, Generation};

use super::*;

fn texts<T: ToString>(set: impl IntoIterator<Item = T>) -> BTreeSet<String> {
    set.into_iter().map(|item| item.to_string()).collect()
}

fn set(items: &[&str]) -> BTreeSet<String> {
    texts(items)
}

#[test]
fn every_remote_node_is_a_peer_and_no_own_one_is() {
    let mesh = Mesh::of_three();
    assert_eq!(
        mesh.peer_names(),
        set(&["ap-south/node-1", "ap-south/node-2", "eu-west/node-1", "eu-west/node-2"])
    );
    let peer = mesh.tunnels().peers.iter().find(|peer| peer.name.to_string() == "eu-west/node-2").unwrap();
    assert_eq!(peer.endpoint, "172.16.2.102:51871".parse().unwrap());
    assert_eq!(peer.public_key, key(0x22));
    assert_eq!(peer.more_ports, [51_882], "for parallel sessions");
    let v6 = MeshPlan::default().ipv6_of(cluster(2).id, &peer.name.node);
    assert_eq!(texts(&peer.allowed), set(&["10.2.2.0/24", "240.2.0.2/32", &format!("{v6}/128")]));
}

#[test]
fn routes_are_what_a_cluster_was_admitted_with_and_guards_are_wider() {
    let mesh = Mesh::of_three();
    let desired = mesh.tunnels();
    let expected = [
        "10.2.0.0/16",
        "240.2.0.0/16",
        "fd68:6177:7365:2::/64",
        "10.3.0.0/16",
        "240.3.0.0/16",
        "fd68:6177:7365:3::/64",
    ];
    assert_eq!(texts(&desired.routes), set(&expected));
    assert!(desired.guards.contains(&"240.0.0.0/4".parse().unwrap()));
    assert!(desired.guards.contains(&"fd68:6177:7365::/48".parse().unwrap()));
    assert_eq!(texts(&desired.addresses).len(), 2);
    assert!(desired.addresses.contains(&ip("240.1.0.1")));
}

#[test]
fn the_plan_stands_up_to_the_tunnels_own_check() {
    let mesh = Mesh::of_three();
    let observed = hawser_tunnels::Observed::default();
    let plan = hawser_tunnels::plan(mesh.tunnels(), &observed);
    assert_eq!(plan.problems, []);
    hawser_tunnels::check(&plan.ops, &observed, mesh.tunnels()).unwrap();
}

#[test]
fn a_pod_outside_of_its_nodes_cidrs_is_allowed_by_itself() {
    let mut mesh = Mesh::of_three();
    mesh.say(2, [mk_pod(2, 1, 5), mk_pod_at(2, "10.2.77.9", 1)]);
    mesh.settle();
    let peer = mesh.tunnels().peers.iter().find(|peer| peer.name.to_string() == "eu-west/node-1").unwrap();
    assert!(peer.allowed.contains(&"10.2.77.9/32".parse().unwrap()));
    assert!(!peer.allowed.contains(&"10.2.1.5/32".parse().unwrap()), "covered by 10.2.1.0/24");
}

#[test]
fn a_node_without_a_key_or_an_address_gets_no_tunnel() {
    let mut mesh = Mesh::of_three();
    let mut keyless = mk_node(2, 3);
    let Entry::TunnelNode(node) = &mut keyless[1] else { unreachable!() };
    node.wireguard = None;
    let mut homeless = mk_node(2, 4);
    let Entry::Node(node) = &mut homeless[0] else { unreachable!() };
    node.addresses.clear();
    mesh.say(2, [keyless, homeless].concat());
    mesh.settle();
    assert_eq!(mesh.peer_names().len(), 4);
    assert!(mesh.agent.problems().iter().any(|p| p.contains("eu-west/node-4 states no InternalIP")));
}

#[test]
fn no_handshake_is_aimed_outside_of_the_node_cidrs_a_cluster_was_admitted_with() {
    let mut mesh = Mesh::of_three();
    let external = |address: &str| NodeAddress { kind: AddressKind::ExternalIp, ip: ip(address) };
    let with = |n: u32, addresses: Vec<NodeAddress>| {
        let mut entries = mk_node(2, n);
        let Entry::Node(node) = &mut entries[0] else { unreachable!() };
        node.addresses = addresses;
        entries
    };
    mesh.say(2, with(3, vec![external("203.0.113.9")]));
    mesh.say(2, with(4, vec![external("203.0.113.9"), external("172.16.2.104")]));
    mesh.settle();
    let of_eu_west = |name: &str| mesh.tunnels().peers.iter().find(|peer| peer.name.to_string() == name);
    assert!(of_eu_west("eu-west/node-3").is_none());
    let said = "eu-west/node-3 states no InternalIP, ExternalIP or public endpoint inside the node CIDRs";
    assert!(mesh.agent.problems().iter().any(|problem| problem.contains(said)));
    let fourth = of_eu_west("eu-west/node-4").unwrap();
    assert_eq!(fourth.endpoint, "172.16.2.104:51871".parse().unwrap());
}

#[test]
fn a_cluster_that_changed_its_encryption_since_it_was_admitted_is_named_with_both_sides() {
    let mut mesh = Mesh::of_three();
    let mut changed = mk_node(2, 1);
    let Entry::TunnelNode(node) = &mut changed[1] else { unreachable!() };
    let generation = Generation { epoch: Epoch::FIRST, turn: 1 };
    node.wireguard.as_mut().unwrap().esp = EspEnd::new([generation], false);
    mesh.say(2, changed);
    mesh.settle();
    let problems = mesh.agent.problems();
    let said: Vec<_> = problems.iter().filter(|problem| problem.contains("encrypt with")).collect();
    assert_eq!(said.len(), 1, "{problems:?}");
    for part in [
        "1 nodes of eu-west",
        "encrypt with ipsec, the first is node-1",
        "us-east",
        "with wireguard: no tunnel",
    ] {
        assert!(said[0].contains(part), "{part:?} is not in {}", said[0]);
    }
}

#[test]
fn a_cluster_that_is_not_complete_is_guarded_and_not_used() {
    let mut mesh = Mesh::of_three();
    mesh.say(1, [mk_peer(4)]);
    mesh.say(4, mk_node(4, 1));
    mesh.settle();
    assert!(!mesh.peer_names().contains("sa-east/node-1"));
    assert!(mesh.tunnels().guards.contains(&"10.4.0.0/16".parse().unwrap()));
    assert!(!mesh.tunnels().routes.contains(&"10.4.0.0/16".parse().unwrap()));
    mesh.complete(4);
    mesh.settle();
    assert!(mesh.peer_names().contains("sa-east/node-1"));
}

#[test]
fn a_cluster_that_states_nodes_without_end_gets_its_share_of_tunnels_and_no_more() {
    let mut mesh = Mesh::of_three();
    let crowd = (10..=crate::topology::MOST_NODES as u32 + 10).flat_map(|n| {
        let mut entries = mk_node(2, 1);
        let named = NodeName::parse(&format!("zz-{n:05}")).unwrap();
        let number = NodeIndex::new(n).unwrap();
        for entry in &mut entries {
            match entry {
                Entry::Node(node) => (node.name, node.pod_cidrs) = (named.clone(), Vec::new()),
                Entry::TunnelNode(node) => {
                    (node.name, node.index) = (named.clone(), number);
                    node.mesh = MeshPlan::default().addresses(cluster(2).id, number, &named);
                    let mut bytes = [0x77; 32];
                    bytes[..4].copy_from_slice(&n.to_le_bytes());
                    node.wireguard.as_mut().unwrap().public_key = PublicKey::new(bytes).unwrap();
                }
                _ => unreachable!(),
            }
        }
        entries
    });
    mesh.say(2, crowd);
    mesh.settle();
    let names = mesh.peer_names();
    assert_eq!(names.iter().filter(|name| name.starts_with("eu-west/")).count(), crate::topology::MOST_NODES);
    assert!(names.contains("ap-south/node-1") && names.contains("eu-west/node-1"));
    assert!(mesh.agent.problems().iter().any(|p| p.contains("eu-west states more than 5000 nodes")));
}
