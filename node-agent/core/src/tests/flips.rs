//! What is flipped at once, what is left to the plan, and that both come to the same.

use std::collections::BTreeMap;

use hawser_ebpf_abi::{DesiredDatapath, PrefixKey};
use hawser_model::{Affinity, Routing};

use super::*;
use crate::{DEBOUNCE, Flip, GATHER};

/// shop/cart with pods here and in eu-west, planned.
fn cart() -> Mesh {
    let mut mesh = Mesh::of_three();
    mesh.say(1, [mk_pod(1, 1, 5), mk_pod(1, 1, 6), mk_service(Affinity::None, &["10.1.1.5"])]);
    mesh.say(2, [mk_shared(2, &["10.2.1.7"], 80)]);
    mesh.find_interfaces();
    mesh.pass(5_000);
    mesh.follows.clear();
    mesh
}

/// The flips since the last call, without time passing.
fn flips(mesh: &mut Mesh) -> Vec<Flip> {
    mesh.drain(true);
    let outputs = std::mem::take(&mut mesh.follows).into_iter();
    outputs.filter_map(|output| if let Output::Flip(flip) = output { Some(flip) } else { None }).collect()
}

/// The maps as flips and the newest plan leave them.
fn write(maps: &mut DesiredDatapath, flips: Vec<Flip>) {
    for flip in flips {
        maps.services.extend(flip.services);
        maps.exported.extend(flip.exported);
    }
}

#[test]
fn a_backend_that_comes_or_goes_is_flipped_at_once_and_the_plan_says_the_same() {
    let mut mesh = cart();
    let mut maps = mesh.agent.plan().datapath.clone();
    let before = mesh.reconciles;
    let steps: [(u32, Entry); 5] = [
        (2, mk_shared(2, &["10.2.1.7", "10.2.2.8"], 80)),
        (3, mk_shared(3, &["10.3.1.9"], 80)),
        (1, mk_service(Affinity::None, &["10.1.1.5", "10.1.1.6"])),
        (2, mk_shared(2, &["10.2.2.8"], 81)),
        (3, mk_shared(3, &[], 80)),
    ];
    for (c, entry) in steps {
        mesh.say(c, [entry]);
        let flips = flips(&mut mesh);
        assert_eq!((flips.len(), mesh.reconciles), (1, before), "at once, and without a plan");
        write(&mut maps, flips);
    }
    mesh.settle();
    let planned = &mesh.agent.plan().datapath;
    assert_eq!((&maps.services, &maps.exported), (&planned.services, &planned.exported));
    assert_eq!(mesh.reconciles, before + 1, "one plan for all of them");
}

#[test]
fn what_a_flip_cannot_know_waits_for_the_plan() {
    let grace = |entry: Entry| {
        let Entry::LocalService(mut service) = entry else { unreachable!() };
        service.routing = Routing { drain_grace_seconds: 30, ..Default::default() };
        Entry::LocalService(service)
    };
    let ports = |entry: Entry| {
        let Entry::LocalService(mut service) = entry else { unreachable!() };
        service.cluster_ips = vec![ip("10.96.0.81")];
        Entry::LocalService(service)
    };
    let pods = ["10.1.1.5", "10.1.1.6"];
    for entry in [
        grace(mk_service(Affinity::None, &pods)),
        ports(mk_service(Affinity::None, &pods)),
        mk_service(Affinity::Local, &pods),
    ] {
        let mut mesh = cart();
        mesh.say(1, [entry]);
        assert_eq!(flips(&mut mesh), []);
        mesh.now = mesh.now + GATHER;
        mesh.agent.handle_time(mesh.now);
        let before = mesh.reconciles;
        mesh.drain(true);
        assert_eq!(mesh.reconciles, before + 1, "the first change after a quiet while is planned at once");
    }
}

#[test]
fn a_flip_waits_for_the_plan_when_nodes_or_own_pods_changed_as_well() {
    let mut mesh = cart();
    mesh.say(2, mk_node(2, 3));
    mesh.say(2, [mk_shared(2, &["10.2.1.7", "10.2.2.8"], 80)]);
    assert_eq!(flips(&mut mesh), []);
    mesh.settle();
    let services = &mesh.agent.plan().datapath.services;
    assert_eq!(services.values().next().unwrap().slices.get(&(2, 0)).unwrap().backends.len(), 2);
}

#[test]
fn a_remote_pod_is_welcomed_at_once_and_the_plan_says_the_same() {
    let mut mesh = cart();
    let mut maps = mesh.agent.plan().datapath.clone();
    let before = mesh.reconciles;
    mesh.say(2, [mk_pod(2, 1, 5), mk_pod_at(2, "10.2.77.9", 1)]);
    let mut told = Flip::default();
    flips(&mut mesh).into_iter().for_each(|flip| told.follow(flip));
    assert_eq!(mesh.reconciles, before, "without a plan");
    for (pod, newcomer) in &told.pods {
        maps.ipcache.insert(PrefixKey::host((*pod).into()), newcomer.entry);
        assert_eq!((newcomer.node.to_string().as_str(), newcomer.public_key), ("eu-west/node-1", key(0x21)));
    }
    mesh.settle();
    assert_eq!(mesh.reconciles, before + 1);
    assert_eq!(maps.ipcache, mesh.agent.plan().datapath.ipcache);
    let strays: Vec<_> = told.pods.iter().filter(|(_, pod)| pod.stray).map(|(pod, _)| *pod).collect();
    assert_eq!(strays, [ip("10.2.77.9")], "the other is in its node's 10.2.1.0/24");
    let peer = mesh.tunnels().peers.iter().find(|peer| peer.public_key == key(0x21)).unwrap();
    assert!(peer.allowed.contains(&"10.2.77.9/32".parse().unwrap()));
}

#[test]
fn a_pod_that_is_not_its_clusters_or_of_no_node_is_left_to_the_plan() {
    let mut mesh = cart();
    mesh.say(2, [mk_pod_at(2, "10.2.77.9", 9)]);
    assert_eq!(flips(&mut mesh), [], "nobody knows its node");
    let before = mesh.reconciles;
    mesh.settle();
    assert_eq!(mesh.reconciles, before + 1);
}

#[test]
fn a_service_that_is_not_here_costs_nothing() {
    let mut mesh = Mesh::of_three();
    let before = mesh.reconciles;
    mesh.say(2, [mk_shared(2, &["10.2.1.7"], 80)]);
    assert_eq!(flips(&mut mesh), []);
    mesh.settle();
    assert_eq!(mesh.reconciles, before);
}

#[test]
fn a_storm_of_changes_is_so_many_flips_and_then_plans() {
    let mut mesh = cart();
    let before = mesh.reconciles;
    let mut count = 0;
    for round in 0..10 {
        for pod in 0..100 {
            let pods = [format!("10.2.1.{}", 1 + (round + pod) % 200)];
            mesh.say(2, [mk_shared(2, &pods.each_ref().map(String::as_str), 80)]);
        }
        count += flips(&mut mesh).len();
        mesh.pass(10);
    }
    assert!(count <= 3 * crate::flips::MOST, "{count} flips in a tenth of a second");
    assert!(mesh.reconciles - before <= 3, "{} plans in a tenth of a second", mesh.reconciles - before);
    mesh.settle();
    let services = &mesh.agent.plan().datapath.services;
    let slice = &services.values().next().unwrap().slices.get(&(2, 0)).unwrap();
    assert_eq!(slice.backends.first().unwrap().addr, ip("10.2.1.109").into(), "the last one said");
}

#[test]
fn nothing_is_reconciled_to_a_plan_that_a_flip_has_overtaken() {
    let mut mesh = cart();
    mesh.say(2, [mk_shared(2, &["10.2.2.8"], 80)]);
    let mut maps = mesh.agent.plan().datapath.clone();
    write(&mut maps, flips(&mut mesh));
    mesh.agent.handle_resync(mesh.now);
    mesh.drain(true);
    assert_eq!(mesh.agent.plan().datapath.services, maps.services, "it is planned anew first");
}

#[test]
fn a_flip_that_failed_is_planned() {
    let mut mesh = cart();
    mesh.say(2, [mk_shared(2, &["10.2.2.8"], 80)]);
    assert_eq!(flips(&mut mesh).len(), 1);
    let before = mesh.reconciles;
    mesh.agent.handle_flip_failed(mesh.now);
    mesh.pass(u64::try_from(DEBOUNCE.as_millis()).unwrap());
    assert_eq!(mesh.reconciles, before + 1);
}

#[test]
fn flips_that_come_together_are_one_with_the_newest() {
    let mut mesh = cart();
    let mut both = Flip::default();
    for pods in [["10.2.1.7", "10.2.1.8"], ["10.2.1.8", "10.2.1.9"]] {
        mesh.say(2, [mk_shared(2, &pods, 80)]);
        flips(&mut mesh).into_iter().for_each(|flip| both.follow(flip));
    }
    mesh.settle();
    let planned: BTreeMap<_, _> = mesh.agent.plan().datapath.services.clone();
    assert_eq!(both.services, planned);
}
