//! Stuck connections: what the datapath is told of them, and when the silent ones are looked for.

use hawser_discovery::About;
use hawser_ebpf_abi::{CONFIG_CUT_OFF, Port, RESET_NEVER, ResetWish, ticks_of_millis};
use hawser_model::{ClusterHealth, OnLoss, ResetAfter, Routing};

use super::health::{judge, node};
use super::*;

fn wishing(name: &str, routing: Routing) -> Entry {
    let Entry::LocalService(service) = mk_service(Affinity::None, &["10.1.0.5"]) else { unreachable!() };
    Entry::LocalService(GlobalService { key: ServiceKey::new("shop", name).unwrap(), routing, ..service })
}

fn shared(name: &str) -> Entry {
    let Entry::Service(service) = mk_shared(2, &["10.2.0.9"], 8_080) else { unreachable!() };
    Entry::Service(SharedService { key: ServiceKey::new("shop", name).unwrap(), ..service })
}

/// What is wished for 10.2.0.9:8080, which is behind all of these services.
fn wish_of(routings: &[Routing]) -> Option<u32> {
    let mut mesh = Mesh::of_three();
    for (n, routing) in routings.iter().enumerate() {
        mesh.say(1, [wishing(&format!("cart-{n}"), routing.clone())]);
        mesh.say(2, [shared(&format!("cart-{n}"))]);
    }
    mesh.settle();
    let wishes = &mesh.agent.plan().datapath.reset_wishes;
    assert!(wishes.len() <= 1, "nothing of the own cluster: {wishes:?}");
    let key = hawser_ebpf_abi::ServiceKey::new(ip("10.2.0.9").into(), Port::new(8_080), 6);
    assert_eq!(wishes.get(&key), wishes.values().next());
    wishes.get(&key).map(|ResetWish { ticks }| *ticks)
}

fn after(reset_after: Option<ResetAfter>) -> Routing {
    Routing { reset_after, ..Routing::default() }
}

#[test]
fn the_longest_wish_of_a_backends_services_counts_and_what_is_configured_needs_no_entry() {
    let ticks = |millis| Some(u32::from(ticks_of_millis(millis)));
    let millis = |millis| after(Some(ResetAfter::Millis(millis)));
    let never = Some(u32::from(RESET_NEVER));
    assert_eq!(wish_of(&[after(None)]), None);
    assert_eq!(wish_of(&[millis(2_000)]), None);
    assert_eq!(wish_of(&[millis(500)]), ticks(500));
    assert_eq!(wish_of(&[millis(500), after(None)]), None, "the other one wishes for 2 s");
    assert_eq!(wish_of(&[millis(500), millis(60_000), after(None)]), ticks(60_000));
    assert_eq!(wish_of(&[millis(500), after(Some(ResetAfter::Never))]), never);
    assert_eq!(wish_of(&[Routing { on_data_plane_loss: OnLoss::Keep, ..millis(500) }]), never);
}

#[test]
fn a_verdict_is_followed_by_one_sweep_when_its_time_has_passed_and_by_one_for_each_other_time() {
    let mut mesh = Mesh::of_three();
    let sweeps = |mesh: &Mesh| mesh.follows.iter().filter(|output| **output == Output::Sweep).count();
    for n in [1, 2] {
        judge(&mut mesh, About::Node(node(2, n)), ClusterHealth::Down);
    }
    judge(&mut mesh, About::Cluster(cluster(2).id), ClusterHealth::Down);
    mesh.pass(2_300);
    assert_eq!(sweeps(&mesh), 0, "whoever speaks hears a reset first");
    mesh.pass(1_200);
    assert_eq!(sweeps(&mesh), 1);
    mesh.pass(60_000);
    assert_eq!(sweeps(&mesh), 1);
    mesh.say(1, [wishing("cart", after(Some(ResetAfter::Millis(60_000))))]);
    mesh.say(2, [shared("cart")]);
    mesh.settle();
    judge(&mut mesh, About::Cluster(cluster(2).id), ClusterHealth::Up);
    judge(&mut mesh, About::Cluster(cluster(2).id), ClusterHealth::Down);
    mesh.pass(10_000);
    assert_eq!(sweeps(&mesh), 2);
    mesh.pass(60_000);
    assert_eq!(sweeps(&mesh), 3);
}

#[test]
fn when_every_other_cluster_is_down_nothing_is_ended() {
    let mut mesh = Mesh::of_three();
    let cut_off = |mesh: &Mesh| mesh.agent.plan().datapath.config.flags & CONFIG_CUT_OFF != 0;
    judge(&mut mesh, About::Cluster(cluster(2).id), ClusterHealth::Down);
    mesh.settle();
    assert!(!cut_off(&mesh));
    judge(&mut mesh, About::Cluster(cluster(3).id), ClusterHealth::Down);
    mesh.settle();
    assert!(cut_off(&mesh) && mesh.agent.is_cut_off());
    let standings = mesh.agent.clusters(mesh.now).into_iter().map(|cluster| cluster.standing.name());
    assert_eq!(standings.collect::<Vec<_>>(), ["serving", "cut-off", "cut-off"]);
    judge(&mut mesh, About::Cluster(cluster(3).id), ClusterHealth::Up);
    mesh.settle();
    assert!(cut_off(&mesh), "the other one may be back a moment later");
    mesh.pass(5_000);
    mesh.settle();
    assert!(!cut_off(&mesh));
    let standings = mesh.agent.clusters(mesh.now).into_iter().map(|cluster| cluster.standing.name());
    assert_eq!(
        standings.collect::<Vec<_>>(),
        ["serving", "serving", "down"],
        "by name: ap-south is the third"
    );
    let swept = |mesh: &Mesh| mesh.follows.iter().filter(|output| **output == Output::Sweep).count();
    let before = swept(&mesh);
    mesh.pass(10_000);
    assert!(swept(&mesh) > before, "and what waits there ends");
}

#[test]
fn an_agent_that_begins_while_every_other_cluster_is_down_ends_nothing_either() {
    let first = Mesh::of_three();
    let slots = NodeSlots::restore(65_536, first.agent.slots().iter());
    let mut mesh = Mesh::restarted(slots, HealthWords::default());
    // Before anything is read: what the last run left.
    for c in [2, 3] {
        judge(&mut mesh, About::Cluster(cluster(c).id), ClusterHealth::Down);
    }
    mesh.say(1, [mk_node(1, 1), vec![mk_peer(2), mk_peer(3)]].concat());
    mesh.complete(1);
    for c in [2, 3] {
        mesh.say(c, mk_node(c, 1));
        mesh.complete(c);
    }
    mesh.settle();
    assert!(mesh.agent.plan().datapath.config.flags & CONFIG_CUT_OFF != 0);
}

#[test]
fn a_nodes_verdict_is_shown_with_since_when_and_why_and_makes_its_cluster_degraded() {
    let mut mesh = Mesh::of_three();
    for n in [1, 2] {
        judge(&mut mesh, About::Node(node(2, n)), ClusterHealth::Up);
    }
    judge(&mut mesh, About::Cluster(cluster(2).id), ClusterHealth::Up);
    judge(&mut mesh, About::Node(node(2, 2)), ClusterHealth::Down);
    let verdict = mesh.agent.node_verdict(node(2, 2)).unwrap();
    assert_eq!((verdict.to, verdict.at), (ClusterHealth::Down, mesh.now));
    let status =
        mesh.agent.clusters(mesh.now).into_iter().find(|status| status.cluster == cluster(2)).unwrap();
    assert_eq!(status.standing.to_string(), "1 of its 2 nodes are down, the others serve");
}
