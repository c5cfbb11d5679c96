//! From a view to maps.

use hawser_ebpf_abi::{
    Addr, CONFIG_LEFT_OUT, CONFIG_OWN_STALE, CONFIG_UPLINKS, ENDPOINT_TRANSLATED, IP_MESH_ADDRESS, IP_REMOTE,
    IpEntry, LeftOut, Port, PrefixKey, ServiceKey as Frontend, ServiceSpec,
};

use super::*;

const TCP: u8 = 6;

fn cart(mesh: &Mesh) -> &ServiceSpec {
    &mesh.agent.plan().datapath.services[&frontend("10.96.0.80", 80)]
}

fn frontend(address: &str, port: u16) -> Frontend {
    Frontend::new(Addr::from(ip(address)), Port::new(port), TCP)
}

fn ipcache(mesh: &Mesh, prefix: &str) -> Option<IpEntry> {
    let net: ipnet::IpNet = prefix.parse().unwrap();
    mesh.agent.plan().datapath.ipcache.get(&PrefixKey::new(net.addr(), net.prefix_len()).unwrap()).copied()
}

fn serving() -> Mesh {
    let mut mesh = Mesh::of_three();
    mesh.say(1, [mk_pod(1, 1, 5), mk_pod(1, 2, 6), mk_service(Affinity::None, &["10.1.1.5", "10.1.2.6"])]);
    mesh.say(2, [mk_pod(2, 1, 7), mk_shared(2, &["10.2.1.7"], 9_090)]);
    mesh.say(3, [mk_pod(3, 2, 8), mk_shared(3, &["10.3.2.8", "10.3.1.9"], 8_080)]);
    mesh.find_interfaces();
    mesh
}

#[test]
fn a_service_has_a_slice_per_cluster_weighed_by_its_backends() {
    let mesh = serving();
    let weights: Vec<_> = cart(&mesh).slices.iter().map(|(of, slice)| (of.0, slice.weight)).collect();
    assert_eq!(weights, [(1, 2), (2, 1), (3, 2)]);
    let remote = cart(&mesh).slices.get(&(2, 0)).unwrap().backends.first().unwrap();
    assert_eq!((remote.addr, remote.port), (ip("10.2.1.7").into(), Port::new(9_090)), "matched by port name");
    let slot = |c: u32, n: u32| {
        let index = NodeIndex::new(n).unwrap();
        mesh.agent.slots().get(hawser_discovery::NodeId { cluster: cluster(c).id, index })
    };
    assert!(slot(3, 1) != 0 && slot(3, 1) != slot(3, 2));
    let of_node_2 = cart(&mesh)
        .slices
        .get(&(3, 0))
        .unwrap()
        .backends
        .iter()
        .find(|b| b.addr == ip("10.3.2.8").into())
        .unwrap();
    assert_eq!(of_node_2.node, slot(3, 2), "by its endpoint's host");
    let unpublished = cart(&mesh)
        .slices
        .get(&(3, 0))
        .unwrap()
        .backends
        .iter()
        .find(|b| b.addr == ip("10.3.1.9").into())
        .unwrap();
    assert_eq!(unpublished.node, slot(3, 1), "by pod CIDR");
    assert!(cart(&mesh).slices.get(&(1, 0)).unwrap().backends.iter().all(|backend| backend.node == 0));
}

#[test]
fn a_port_of_another_name_or_protocol_is_not_a_backend() {
    let mut mesh = serving();
    let Entry::Service(mut shared) = mk_shared(2, &["10.2.1.7"], 9_090) else { unreachable!() };
    for ports in shared.backends.values_mut() {
        *ports =
            BTreeMap::from([(PortName::parse("grpc").unwrap(), ports.values().next().copied().unwrap())]);
    }
    mesh.say(2, [Entry::Service(shared.clone())]);
    mesh.settle();
    assert!(!cart(&mesh).slices.contains_key(&(2, 0)));
}

#[test]
fn a_service_that_is_no_longer_shared_is_gone() {
    let mut mesh = serving();
    let Entry::Service(mut shared) = mk_shared(2, &["10.2.1.7"], 9_090) else { unreachable!() };
    shared.shared = false;
    mesh.say(2, [Entry::Service(shared)]);
    mesh.settle();
    assert!(!cart(&mesh).slices.contains_key(&(2, 0)));
}

#[test]
fn a_service_that_only_others_have_is_not_programmed() {
    let mut mesh = Mesh::of_three();
    mesh.say(2, [mk_shared(2, &["10.2.1.7"], 80)]);
    mesh.settle();
    assert!(mesh.agent.plan().datapath.services.is_empty());
}

#[test]
fn a_backend_that_is_neither_a_pod_nor_a_node_of_its_cluster_is_left_out() {
    let mut mesh = serving();
    mesh.say(2, [mk_shared(2, &["10.2.1.7", "172.16.2.9"], 9_090)]);
    mesh.settle();
    assert_eq!(cart(&mesh).slices.get(&(2, 0)).unwrap().backends.len(), 1, "no tunnel leads there");
}

#[test]
fn a_backend_of_the_host_network_is_reached_and_exported_at_its_nodes_mesh_address() {
    let mut mesh = serving();
    mesh.say(1, [mk_service(Affinity::None, &["172.16.1.101", "172.16.1.102"])]);
    mesh.say(2, [mk_shared(2, &["172.16.2.102"], 9_090)]);
    mesh.settle();
    let theirs: Vec<_> = cart(&mesh).slices.get(&(2, 0)).unwrap().backends.iter().collect();
    assert_eq!(
        (theirs.len(), theirs[0].addr),
        (1, ip("240.2.0.2").into()),
        "no tunnel leads to a node's own address"
    );
    let slot =
        mesh.agent.slots().iter().find(|(node, _)| node.cluster == cluster(2).id && node.index.get() == 2);
    assert_eq!(Some(theirs[0].node), slot.map(|(_, slot)| slot));
    // Here, clients of the own cluster use the node's address, as ever. Of the two, one is on this node.
    let own: Vec<_> =
        cart(&mesh).slices.get(&(1, 0)).unwrap().backends.iter().map(|backend| backend.addr).collect();
    assert_eq!(own, [ip("172.16.1.101").into(), ip("172.16.1.102").into()]);
    let mut exported: Vec<_> = mesh.agent.plan().datapath.exported.keys().copied().collect();
    exported.retain(|key| *key != frontend("10.1.1.5", 8_080));
    assert_eq!(exported, [frontend("240.1.0.1", 8_080)], "but for what was withdrawn and is closing");
}

#[test]
fn affinity_and_its_change_reach_the_map() {
    let mut mesh = serving();
    mesh.say(1, [mk_service(Affinity::Local, &["10.1.1.5"])]);
    mesh.settle();
    let tiers: Vec<_> = cart(&mesh).slices.iter().map(|(of, slice)| (of.0, slice.tier)).collect();
    assert_eq!(tiers, [(1, 0), (2, 1), (3, 1)]);
}

#[test]
fn what_a_cluster_was_admitted_with_is_behind_the_tunnel_complete_or_not() {
    let mut mesh = serving();
    mesh.say(1, [mk_peer(4)]);
    mesh.settle();
    for prefix in ["10.2.0.0/16", "10.2.1.0/24", "240.3.0.0/16", "fd68:6177:7365:3::/64", "10.4.0.0/16"] {
        assert!(ipcache(&mesh, prefix).is_some_and(|entry| entry.is_remote()), "{prefix}");
    }
    let pod = ipcache(&mesh, "10.2.1.7/32").unwrap();
    assert_eq!((pod.identity, pod.cluster, pod.flags), (2 << 16 | 7, 2, IP_REMOTE));
    assert_eq!(pod.node, mesh.agent.slots().iter().find(|(n, _)| n.cluster == cluster(2).id).unwrap().1);
    let mesh_address = ipcache(&mesh, "240.2.0.1/32").unwrap();
    assert_eq!((mesh_address.identity, mesh_address.flags), (6, IP_REMOTE | IP_MESH_ADDRESS));
    let own = ipcache(&mesh, "10.1.2.6/32").unwrap();
    assert!(!own.is_remote() && own.cluster == 1);
}

#[test]
fn the_pods_of_this_node_are_endpoints_once_their_interface_is_found() {
    let mut mesh = serving();
    let ends = |mesh: &Mesh| -> Vec<_> {
        let ends = &mesh.agent.plan().datapath.endpoints;
        ends.iter().map(|(addr, end)| (addr.to_string(), end.ifindex)).collect()
    };
    assert_eq!(ends(&mesh), [("10.1.1.5".to_owned(), 5)]);
    mesh.say(1, [mk_pod(1, 1, 50)]);
    mesh.settle();
    assert_eq!(ends(&mesh).len(), 1, "its interface is not known yet");
    assert!(mesh.agent.local_pods().contains(&ip("10.1.1.50")));
    mesh.find_interfaces();
    assert_eq!(ends(&mesh).len(), 2);
}

#[test]
fn only_backends_here_of_shared_services_are_open_to_the_mesh() {
    let mut mesh = serving();
    let exported: Vec<_> = mesh.agent.plan().datapath.exported.keys().copied().collect();
    assert_eq!(exported, [frontend("10.1.1.5", 8_080)]);
    let Entry::LocalService(mut unshared) = mk_service(Affinity::None, &["10.1.1.5"]) else { unreachable!() };
    unshared.shared = false;
    mesh.say(1, [Entry::LocalService(unshared)]);
    mesh.settle();
    assert!(mesh.agent.plan().datapath.exported.is_empty());
    assert!(!mesh.agent.plan().datapath.services.is_empty(), "it is still served from the others");
}

#[test]
fn an_agent_that_begins_without_its_api_server_says_that_what_was_left_is_stale_and_has_no_plan() {
    let mut mesh = Mesh::new();
    mesh.agent.handle_interrupted(&name(1), "connection refused".into(), mesh.now);
    mesh.pass(900);
    assert!(!mesh.follows.contains(&Output::OwnStale));
    mesh.pass(200);
    assert!(mesh.follows.contains(&Output::OwnStale) && !mesh.agent.has_plan());
}

#[test]
fn a_stale_own_keyspace_is_flagged_and_heals() {
    let mut mesh = serving();
    let stale = |mesh: &Mesh| mesh.agent.plan().datapath.config.flags & CONFIG_OWN_STALE != 0;
    for _ in 0..10 {
        mesh.pass(5_000);
        mesh.agent.handle_heard(&name(1), None, mesh.now);
    }
    assert!(!stale(&mesh));
    mesh.pass(16_000);
    assert!(stale(&mesh));
    assert!(!cart(&mesh).slices.is_empty(), "state is kept");
    mesh.agent.handle_heard(&name(1), Some(11), mesh.now);
    mesh.settle();
    assert!(!stale(&mesh));
    // An API server that is gone in so many words is not waited for so long.
    mesh.agent.handle_interrupted(&name(1), "connection refused".into(), mesh.now);
    mesh.pass(900);
    assert!(!stale(&mesh), "it may be another replica's turn");
    mesh.agent.handle_interrupted(&name(1), "connection refused".into(), mesh.now);
    mesh.pass(200);
    assert!(stale(&mesh));
    mesh.agent.handle_heard(&name(1), None, mesh.now);
    mesh.settle();
    assert!(!stale(&mesh));
}

#[test]
fn the_header_says_who_we_are() {
    let mesh = serving();
    let config = mesh.agent.plan().datapath.config;
    assert_eq!((config.own_cluster, config.tunnel_ifindex, config.tunnel_mtu), (1, 9, 1_420));
    assert_eq!(config.own_mesh_v4, ip("240.1.0.1").into());
    assert_eq!(config.probe_port, Port::new(51_872));
}

#[test]
fn a_pod_that_is_left_out_is_translated_at_its_interface_and_its_sockets_are_left_alone() {
    let mut mesh = serving();
    assert_eq!(mesh.agent.plan().datapath.config.flags & CONFIG_LEFT_OUT, 0, "nobody is looked for");
    let left_out = |entry| {
        let Entry::Endpoint(endpoint) = entry else { unreachable!() };
        Entry::Endpoint(Endpoint { left_out: true, ..endpoint })
    };
    // One of this node, one of this cluster's other node, and one of another cluster.
    mesh.say(1, [left_out(mk_pod(1, 1, 5)), left_out(mk_pod(1, 2, 6))]);
    mesh.say(2, [left_out(mk_pod(2, 1, 7))]);
    mesh.settle();
    assert_eq!(*mesh.agent.left_out_pods(), [ip("10.1.1.5")].into());
    let datapath = |mesh: &Mesh| mesh.agent.plan().datapath.clone();
    let endpoint = datapath(&mesh).endpoints[&ip("10.1.1.5").into()];
    assert_eq!(endpoint.flags, ENDPOINT_TRANSLATED);
    assert!(datapath(&mesh).left_out.is_empty(), "its namespace is not found yet");
    let pods = [(ip("10.1.1.5"), 5)].into();
    let namespaces = [(ip("10.1.1.5"), 77)].into();
    mesh.agent
        .handle_interfaces(Interfaces { tunnel: 9, pods, namespaces, ..Interfaces::default() }, mesh.now);
    mesh.settle();
    assert_eq!(datapath(&mesh).left_out, [(77, LeftOut::default())].into());
    assert_ne!(datapath(&mesh).config.flags & CONFIG_LEFT_OUT, 0);
    // Never alone without an interface that translates.
    let namespaces = [(ip("10.1.1.5"), 77)].into();
    mesh.agent.handle_interfaces(Interfaces { tunnel: 9, namespaces, ..Interfaces::default() }, mesh.now);
    mesh.settle();
    assert!(datapath(&mesh).left_out.is_empty() && datapath(&mesh).config.flags & CONFIG_LEFT_OUT == 0);
}

#[test]
fn a_service_is_entered_from_outside_where_kubernetes_says_once_the_node_has_an_uplink_for_it() {
    let mut mesh = serving();
    let Entry::LocalService(own) = mk_service(Affinity::None, &["10.1.1.5"]) else { unreachable!() };
    let http = own.ports.keys().next().unwrap().clone();
    let outside = Outside {
        // A family that the service has no ClusterIP of leads nowhere.
        ips: [ip("198.51.100.7"), ip("2001:db8::7")].into(),
        node_ports: [(http, 30_080)].into(),
    };
    mesh.say(1, [Entry::LocalService(GlobalService { outside, ..own })]);
    mesh.settle();
    let datapath = |mesh: &Mesh| mesh.agent.plan().datapath.clone();
    assert!(datapath(&mesh).frontends.is_empty() && datapath(&mesh).config.flags & CONFIG_UPLINKS == 0);
    let uplinks = [2].into();
    mesh.agent.handle_interfaces(Interfaces { tunnel: 9, uplinks, ..Interfaces::default() }, mesh.now);
    mesh.settle();
    let to = frontend("10.96.0.80", 80);
    let entrances = [frontend("172.16.1.101", 30_080), frontend("198.51.100.7", 80)];
    assert_eq!(datapath(&mesh).frontends, entrances.map(|entrance| (entrance, to)).into());
    assert_eq!(datapath(&mesh).uplinks, [2].into());
    assert_ne!(datapath(&mesh).config.flags & CONFIG_UPLINKS, 0);
    assert_eq!(datapath(&mesh).config.masquerade_mark, 0x4000);
}
