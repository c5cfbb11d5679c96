//! One cluster cannot fill the maps that all share.

use crate::budget::{BACKENDS_SHARE, IPCACHE_SHARE};

use super::*;

/// shop/cart-0 to shop/cart-9 of the own cluster, each with a ClusterIP of its own.
fn carts() -> Vec<Entry> {
    let cart = |n: u32| {
        let Entry::LocalService(mut service) = mk_service(Affinity::None, &["10.1.1.5"]) else {
            unreachable!()
        };
        service.key = ServiceKey::new("shop", &format!("cart-{n}")).unwrap();
        service.cluster_ips = vec![ip(&format!("10.96.0.{n}"))];
        Entry::LocalService(service)
    };
    (0..10).map(cart).collect()
}

/// shop/cart-n as cluster `c` shares it, with so many backends.
fn cart_of(c: u32, n: u32, count: u32) -> Entry {
    let Entry::Service(mut service) = mk_shared(c, &[], 80) else { unreachable!() };
    service.key = ServiceKey::new("shop", &format!("cart-{n}")).unwrap();
    service.backends = (0..count).map(|at| (pod(c, at), http(80))).collect();
    Entry::Service(service)
}

fn pod(c: u32, at: u32) -> IpAddr {
    IpAddr::from([10, c as u8, (at >> 8) as u8, at as u8])
}

fn backends_of(mesh: &Mesh, c: u32) -> Vec<usize> {
    let services = mesh.agent.plan().datapath.services.values();
    let slice =
        |id: u16| services.map(move |s| s.slices.get(&(id, 0)).map_or(0, |slice| slice.backends.len()));
    slice(cluster(c).id.get()).collect()
}

fn problem(mesh: &Mesh, part: &str) -> String {
    mesh.agent.problems().into_iter().find(|problem| problem.contains(part)).unwrap_or_default()
}

#[test]
fn a_cluster_with_backends_without_end_gets_its_share_and_leaves_the_others_theirs() {
    let mut mesh = Mesh::of_three();
    mesh.say(1, carts());
    mesh.say(2, (0..10).map(|n| cart_of(2, n, if n == 9 { 5 } else { 9_999 })));
    mesh.say(3, (0..10).map(|n| cart_of(3, n, 2)));
    mesh.settle();
    let given = backends_of(&mesh, 2);
    assert_eq!(given, [9_999, 9_999, 9_999, 0, 0, 0, 0, 0, 0, 5], "whole services, the first ones that fit");
    assert!(given.iter().sum::<usize>() <= BACKENDS_SHARE);
    assert_eq!(backends_of(&mesh, 3), [2; 10]);
    assert_eq!(backends_of(&mesh, 1), [1; 10]);
    let said = problem(&mesh, "share of the map backends");
    assert!(said.contains("eu-west") && said.contains("6 of its services with 59994 backends"), "{said}");
    assert!(said.contains("the first one shop/cart-3"), "{said}");
}

#[test]
fn a_cluster_with_pods_without_end_gets_its_share_and_its_ranges_are_always_in() {
    let mut mesh = Mesh::of_three();
    mesh.say(2, (0..65_536).map(|at| mk_pod_at(2, &pod(2, at).to_string(), 1)));
    mesh.say(3, [mk_pod(3, 1, 7)]);
    mesh.settle();
    let ipcache = &mesh.agent.plan().datapath.ipcache;
    assert_eq!(ipcache.values().filter(|entry| entry.cluster == 2).count(), IPCACHE_SHARE);
    let holds = |prefix: &str| {
        let net: ipnet::IpNet = prefix.parse().unwrap();
        let key = hawser_ebpf_abi::PrefixKey::new(net.addr(), net.prefix_len()).unwrap();
        ipcache.contains_key(&key)
    };
    for prefix in ["10.2.0.0/16", "240.2.0.0/16", "240.2.0.2/32", "10.2.2.0/24", "10.2.0.1/32", "10.3.1.7/32"]
    {
        assert!(holds(prefix), "{prefix}");
    }
    assert!(!holds("10.2.255.255/32"), "the last pods are left out");
    // One admitted range and two of the mesh, two nodes with two mesh addresses and one range each.
    let said = problem(&mesh, "share of the map ipcache");
    assert!(said.contains("eu-west") && said.contains("9 are left out"), "{said}");
}
