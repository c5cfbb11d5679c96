//! When plans are made, and what comes before what.

use super::*;

#[test]
fn the_first_plan_waits_for_the_own_cluster_and_all_peers() {
    let mut mesh = Mesh::new();
    mesh.say(1, [mk_node(1, 1), vec![mk_peer(2), mk_peer(3)]].concat());
    mesh.pass(5_000);
    mesh.complete(1);
    mesh.complete(2);
    mesh.pass(5_000);
    assert_eq!((mesh.reconciles, mesh.agent.has_plan()), (0, false), "ap-south is missing");
    mesh.complete(3);
    mesh.settle();
    assert_eq!((mesh.reconciles, mesh.agent.has_plan()), (1, true));
}

#[test]
fn a_peer_that_never_completes_holds_the_first_plan_up_for_thirty_seconds_only() {
    let mut mesh = Mesh::new();
    mesh.say(1, [mk_node(1, 1), vec![mk_peer(2), mk_peer(3)]].concat());
    mesh.complete(1);
    mesh.say(2, mk_node(2, 1));
    mesh.complete(2);
    mesh.pass(29_000);
    assert_eq!(mesh.reconciles, 0);
    mesh.pass(1_100);
    assert_eq!(mesh.reconciles, 1);
    assert_eq!(mesh.peer_names(), ["eu-west/node-1".to_owned()].into());
}

#[test]
fn nothing_is_planned_without_the_own_cluster_however_long_it_takes() {
    let mut mesh = Mesh::new();
    mesh.say(1, [mk_peer(2)]);
    mesh.complete(2);
    mesh.pass(600_000);
    assert_eq!(mesh.reconciles, 0);
}

#[test]
fn many_changes_are_one_plan() {
    let mut mesh = Mesh::of_three();
    let before = mesh.reconciles;
    mesh.say(2, (1..200).map(|pod| mk_pod(2, 1, pod)));
    mesh.settle();
    assert_eq!(mesh.reconciles - before, 1);
}

#[test]
fn changes_without_end_do_not_put_a_plan_off() {
    let mut mesh = Mesh::of_three();
    let before = mesh.reconciles;
    for pod in 1..100 {
        mesh.say(1, [mk_pod(1, 2, pod)]);
        mesh.pass(10);
    }
    assert!(mesh.reconciles - before >= 15, "{} plans in a second", mesh.reconciles - before);
}

#[test]
fn peers_are_followed_as_they_are_admitted_and_left_when_they_are_not() {
    let mut mesh = Mesh::of_three();
    let follow = |c| Output::Follow(name(c));
    assert_eq!(mesh.follows, [follow(1), follow(2), follow(3)]);
    mesh.follows.clear();
    mesh.say(1, [mk_peer(2)]);
    assert_eq!(mesh.follows, [], "admitted as before");
    mesh.withdraw(1, &mk_peer(2));
    mesh.settle();
    assert_eq!(mesh.follows, [Output::Unfollow(name(2))]);
    mesh.pass(6_000);
    assert_eq!(mesh.peer_names().len(), 2);
    assert_eq!(mesh.agent.slots().iter().count(), 2, "slots go after what points at them");
}

#[test]
fn a_disconnected_cluster_loses_its_services_at_once_and_its_tunnels_a_little_later() {
    let mut mesh = Mesh::of_three();
    mesh.say(1, [mk_service(Affinity::None, &["10.1.1.5"])]);
    mesh.say(2, [mk_shared(2, &["10.2.1.7"], 80)]);
    mesh.settle();
    let slices = |mesh: &Mesh| mesh.agent.plan().datapath.services.values().next().unwrap().slices.len();
    let tunnels = |mesh: &Mesh| mesh.peer_names().iter().filter(|name| name.starts_with("eu-west")).count();
    let behind = |mesh: &Mesh| {
        let entries = mesh.agent.plan().datapath.ipcache.values();
        entries.filter(|entry| entry.cluster == 2).count()
    };
    assert_eq!((slices(&mesh), tunnels(&mesh)), (2, 2));
    mesh.withdraw(1, &mk_peer(2));
    mesh.settle();
    assert_eq!((slices(&mesh), tunnels(&mesh)), (1, 2), "what is under way may end");
    assert!(behind(&mesh) > 0);
    assert_eq!(mesh.agent.clusters(mesh.now).len(), 2);
    mesh.pass(6_000);
    assert_eq!((slices(&mesh), tunnels(&mesh), behind(&mesh)), (1, 0, 0));
    assert!(!mesh.tunnels().routes.contains(&"10.2.0.0/16".parse().unwrap()));
}

#[test]
fn a_cluster_that_is_admitted_again_while_it_drains_is_read_anew() {
    let mut mesh = Mesh::of_three();
    mesh.withdraw(1, &mk_peer(2));
    mesh.pass(1_000);
    mesh.say(1, [mk_peer(2)]);
    mesh.say(2, mk_node(2, 1));
    mesh.complete(2);
    mesh.pass(20_000);
    assert_eq!(mesh.peer_names().iter().filter(|name| name.starts_with("eu-west")).count(), 1);
}

#[test]
fn the_first_plan_waits_for_a_look_at_the_pods_interfaces() {
    let mut mesh = Mesh::new();
    mesh.say(1, [mk_node(1, 1), vec![mk_pod(1, 1, 5)]].concat());
    mesh.complete(1);
    mesh.now = mesh.now + crate::FIRST_PLAN;
    mesh.agent.handle_time(mesh.now);
    mesh.drain(true);
    assert!(mesh.agent.wants_interfaces() && !mesh.agent.has_plan());
    let pods = mesh.agent.local_pods().iter().map(|pod| (*pod, 5)).collect();
    mesh.agent.handle_interfaces(Interfaces { tunnel: 9, pods, ..Interfaces::default() }, mesh.now);
    mesh.settle();
    assert_eq!(mesh.agent.plan().datapath.endpoints.len(), 1);
    assert_eq!(mesh.reconciles, 1, "not one without the pod before");
}

#[test]
fn a_peer_admitted_with_other_ranges_is_read_again_and_keeps_serving_meanwhile() {
    let mut mesh = Mesh::of_three();
    mesh.follows.clear();
    let Entry::LocalPeer(mut peer) = mk_peer(2) else { unreachable!() };
    peer.pod_cidrs = vec!["10.2.1.0/24".parse().unwrap()];
    mesh.say(1, [Entry::LocalPeer(peer)]);
    mesh.settle();
    assert_eq!(mesh.follows, [Output::Follow(name(2))]);
    assert_eq!(mesh.peer_names().len(), 4);
    mesh.say(2, [mk_node(2, 1), mk_node(2, 2)].concat());
    mesh.complete(2);
    mesh.settle();
    assert!(!mesh.peer_names().contains("eu-west/node-2"), "its pods are no longer admitted");
}

#[test]
fn a_peer_whose_ca_changed_is_not_read_again() {
    let mut mesh = Mesh::of_three();
    mesh.follows.clear();
    let Entry::LocalPeer(mut peer) = mk_peer(2) else { unreachable!() };
    peer.ca.push_str("another");
    mesh.say(1, [Entry::LocalPeer(peer)]);
    mesh.settle();
    assert_eq!(mesh.follows, [], "its tunnels and services are what they were");
    assert_eq!(mesh.peer_names().len(), 4);
}

#[test]
fn the_slots_of_what_is_gone_are_kept_until_a_reconcile_succeeds() {
    let mut mesh = Mesh::of_three();
    mesh.withdraw(1, &mk_peer(2));
    mesh.now = mesh.now + crate::DEBOUNCE;
    mesh.agent.handle_time(mesh.now);
    mesh.drain(true);
    mesh.now = mesh.now + crate::DRAIN;
    for _ in 0..2 {
        mesh.agent.handle_time(mesh.now);
        mesh.now = mesh.now + crate::DEBOUNCE;
    }
    mesh.drain(false);
    assert_eq!(mesh.agent.slots().iter().count(), 4);
    mesh.pass(2_000);
    assert_eq!(mesh.agent.slots().iter().count(), 2, "the retry succeeded");
}

#[test]
fn what_is_there_is_looked_at_again_even_when_nothing_changes() {
    let mut mesh = Mesh::of_three();
    let before = mesh.reconciles;
    for _ in 0..60 {
        mesh.pass(5_000);
        mesh.agent.handle_heard(&name(1), None, mesh.now);
    }
    assert_eq!(mesh.reconciles - before, 10, "every thirty seconds");
}

#[test]
fn a_remote_keyspace_that_falls_silent_changes_nothing() {
    let mut mesh = Mesh::of_three();
    let before = mesh.agent.plan().clone();
    mesh.agent.handle_interrupted(&name(2), "connection refused".into(), mesh.now);
    for _ in 0..60 {
        mesh.pass(5_000);
        mesh.agent.handle_heard(&name(1), None, mesh.now);
    }
    assert_eq!(*mesh.agent.plan(), before);
    let status = mesh.agent.clusters(mesh.now);
    assert!(status[0].own && status[2].reason.contains("connection refused"), "{status:?}");
}

#[test]
fn the_same_view_gives_the_same_plan() {
    let (one, two) = (Mesh::of_three(), Mesh::of_three());
    assert_eq!(one.agent.plan(), two.agent.plan());
}
