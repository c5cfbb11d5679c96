//! Backends that end: by the conditions of their endpoints, by their withdrawal, by a cluster that cannot be read.

use std::time::Duration;

use hawser_ebpf_abi::{EXPORTED_CLOSING, Port, ServiceKey as Frontend};
use hawser_model::{OnLoss, Routing};

use super::*;

fn service(routing: Routing, pods: &[&str]) -> Entry {
    let Entry::LocalService(service) = mk_service(Affinity::None, pods) else { unreachable!() };
    Entry::LocalService(GlobalService { routing, ..service })
}

fn serving(routing: Routing) -> Mesh {
    let mut mesh = Mesh::of_three();
    mesh.say(1, [mk_pod(1, 1, 5), service(routing, &["10.1.1.5"])]);
    mesh.say(2, [mk_pod(2, 1, 7), mk_pod(2, 1, 8), mk_shared(2, &["10.2.1.7", "10.2.1.8"], 9_090)]);
    mesh.find_interfaces();
    mesh.settle();
    mesh
}

fn cart(mesh: &Mesh) -> Vec<String> {
    let spec = mesh.agent.plan().datapath.services.values().next().unwrap();
    let of = |((cluster, group), slice): (&(u16, u8), &hawser_ebpf_abi::SliceSpec)| {
        let drains = slice.backends.iter().filter(|backend| backend.draining).count();
        format!("{cluster}.{group} tier {} {}/{drains}", slice.tier, slice.backends.len())
    };
    spec.slices.iter().map(of).collect()
}

/// How 10.1.1.5:8080 may be reached from the mesh.
fn exported(mesh: &Mesh) -> Option<u32> {
    let key = Frontend::new(ip("10.1.1.5").into(), Port::new(8_080), 6);
    mesh.agent.plan().datapath.exported.get(&key).map(|exported| exported.flags)
}

#[test]
fn a_backend_that_is_about_to_end_is_in_a_slice_of_its_own_behind_the_others() {
    let mut mesh = serving(Routing::default());
    let Entry::Service(shared) = mk_shared(2, &["10.2.1.7", "10.2.1.8"], 9_090) else { unreachable!() };
    mesh.say(2, [Entry::Service(SharedService { draining: [ip("10.2.1.8")].into(), ..shared })]);
    mesh.settle();
    assert_eq!(cart(&mesh), ["1.0 tier 0 1/0", "2.0 tier 0 1/0", "2.2 tier 1 1/1"]);
    let status = mesh.agent.services();
    let eligible: Vec<_> = status[0].backends[0].iter().map(|backend| backend.eligible).collect();
    assert_eq!(eligible, [true, false, true], "eu-west's two, then us-east's");
    assert_eq!(exported(&mesh), Some(0));
}

#[test]
fn an_own_backend_that_is_about_to_end_is_still_exported_for_it_may_be_the_last() {
    let mut mesh = serving(Routing::default());
    let Entry::LocalService(own) = mk_service(Affinity::None, &["10.1.1.5"]) else { unreachable!() };
    mesh.say(1, [Entry::LocalService(GlobalService { draining: [ip("10.1.1.5")].into(), ..own })]);
    mesh.settle();
    assert_eq!(cart(&mesh), ["1.2 tier 1 1/1", "2.0 tier 0 2/0"]);
    assert_eq!(exported(&mesh), Some(0));
}

#[test]
fn a_withdrawn_backend_is_gone_at_once_unless_its_service_grants_a_grace() {
    let mut mesh = serving(Routing::default());
    mesh.say(2, [mk_shared(2, &["10.2.1.7"], 9_090)]);
    mesh.settle();
    assert_eq!(cart(&mesh), ["1.0 tier 0 1/0", "2.0 tier 0 1/0"]);

    let mut mesh = serving(Routing { drain_grace_seconds: 10, ..Routing::default() });
    mesh.say(2, [mk_shared(2, &["10.2.1.7"], 9_090)]);
    mesh.settle();
    let drains = ["1.0 tier 0 1/0", "2.0 tier 0 1/0", "2.2 tier 1 1/1"];
    assert_eq!(cart(&mesh), drains);
    mesh.pass(9_000);
    assert_eq!(cart(&mesh), drains);
    mesh.pass(2_000);
    assert_eq!(cart(&mesh), drains[..2]);
    mesh.pass(60_000);
    assert_eq!(cart(&mesh), drains[..2], "and it does not begin again");
}

#[test]
fn a_restart_neither_ends_a_grace_nor_begins_it_anew() {
    let routing = Routing { drain_grace_seconds: 10, ..Routing::default() };
    let mut first = serving(routing.clone());
    first.say(2, [mk_shared(2, &["10.2.1.7"], 9_090)]);
    first.settle();
    first.pass(4_000);
    let told: Vec<_> = first.agent.draining(first.now).collect();
    assert_eq!(told.len(), 1);
    assert!(told[0].age >= Duration::from_secs(4), "{:?}", told[0].age);
    let drains = cart(&first);

    let mut second = Mesh::of_three();
    second.agent.remember_draining(told, second.now);
    second.say(1, [mk_pod(1, 1, 5), service(routing, &["10.1.1.5"])]);
    second.say(2, [mk_pod(2, 1, 7), mk_pod(2, 1, 8), mk_shared(2, &["10.2.1.7"], 9_090)]);
    second.find_interfaces();
    second.settle();
    assert_eq!(cart(&second), drains);
    second.pass(4_000);
    assert_eq!(cart(&second), drains);
    second.pass(2_500);
    assert_eq!(cart(&second), drains[..2]);
    assert_eq!(second.agent.draining(second.now).count(), 0);
}

#[test]
fn a_withdrawn_backend_that_comes_back_is_ready() {
    let mut mesh = serving(Routing { drain_grace_seconds: 10, ..Routing::default() });
    let before = cart(&mesh);
    mesh.say(2, [mk_shared(2, &["10.2.1.7"], 9_090)]);
    mesh.settle();
    mesh.say(2, [mk_shared(2, &["10.2.1.7", "10.2.1.8"], 9_090)]);
    mesh.settle();
    assert_eq!(cart(&mesh), before);
}

#[test]
fn the_node_of_a_withdrawn_backend_lets_in_for_a_while_what_is_established_and_not_what_is_unshared() {
    let mut mesh = serving(Routing::default());
    assert_eq!(exported(&mesh), Some(0));
    mesh.say(1, [service(Routing::default(), &[])]);
    mesh.settle();
    assert_eq!(exported(&mesh), Some(EXPORTED_CLOSING));
    assert_eq!(cart(&mesh), ["2.0 tier 0 2/0"], "no client is sent there");
    mesh.pass(31_000);
    assert_eq!(exported(&mesh), None);

    let mut mesh = serving(Routing::default());
    let Entry::LocalService(own) = mk_service(Affinity::None, &[]) else { unreachable!() };
    mesh.say(1, [Entry::LocalService(GlobalService { shared: false, ..own })]);
    mesh.settle();
    assert_eq!(exported(&mesh), None);
}

#[test]
fn a_cluster_that_cannot_be_read_drains_where_a_service_asks_for_it_and_nobody_is_cut_off() {
    let drain = Routing { on_control_plane_loss: OnLoss::Drain, ..Routing::default() };
    for (routing, expected) in [(Routing::default(), "2.0 tier 0 2/0"), (drain.clone(), "2.2 tier 1 2/2")] {
        let mut mesh = serving(routing);
        mesh.silence(&[2], 20);
        assert_eq!(cart(&mesh), ["1.0 tier 0 1/0", expected]);
        mesh.agent.handle_heard(&name(2), None, mesh.now);
        mesh.settle();
        assert_eq!(cart(&mesh), ["1.0 tier 0 1/0", "2.0 tier 0 2/0"]);
    }
    let mut mesh = serving(drain);
    mesh.silence(&[1, 2], 20);
    assert_eq!(cart(&mesh)[1], "2.0 tier 0 2/0", "nobody can be read: that is about us");
}
