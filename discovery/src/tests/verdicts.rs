//! The transition table, and what a mesh is promised.

use std::time::Duration;

use hawser_model::ClusterHealth::Unknown;

use super::*;
use crate::{Because, Timer};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_first_reply_brings_a_node_and_its_cluster_up() {
    let mut world = World::new(&[node(2, 1)]);
    assert_eq!(world.liveness.node(node(2, 1)).unwrap().verdict, Unknown);
    world.answers = vec![node(2, 1)];
    world.run(SECOND);
    assert_eq!(world.changes(), ["2/1 unknown -> up", "2 unknown -> up"]);
    let snapshot = world.liveness.node(node(2, 1)).unwrap();
    assert_eq!(snapshot.rtt_last, Some(Duration::from_millis(40)));
    assert_eq!(snapshot.rtt_smoothed, Some(Duration::from_millis(40)));
}

#[test]
fn a_node_that_never_answered_is_down_three_seconds_after_probing_began() {
    let mut world = World::new(&[node(2, 1)]);
    world.run(SECOND * 3 - Duration::from_millis(1));
    assert_eq!(world.changes(), [""; 0]);
    world.run(Duration::from_millis(1));
    assert_eq!(world.changes(), ["2/1 unknown -> down", "2 unknown -> down"]);
}

#[test]
fn a_cluster_is_down_when_all_its_nodes_are_and_up_when_one_is() {
    let mut world = World::new(&[node(2, 1), node(2, 2), node(3, 1)]);
    world.answers = vec![node(2, 1), node(2, 2), node(3, 1)];
    world.run(SECOND * 2);
    world.changes();
    world.answers = vec![node(2, 2), node(3, 1)];
    world.run(SECOND * 4);
    assert_eq!(world.changes(), ["2/1 up -> down"]);
    world.answers = vec![node(3, 1)];
    world.run(SECOND * 4);
    assert_eq!(world.changes(), ["2/2 up -> down", "2 up -> down"]);
    world.answers = vec![node(2, 1), node(2, 2), node(3, 1)];
    world.run(SECOND * 4);
    let changes = world.changes();
    assert_eq!(changes.len(), 3, "{changes:?}");
    assert!(changes[1] == "2 down -> up", "the cluster with its first node: {changes:?}");
}

#[test]
fn down_ends_after_three_consecutive_replies_not_after_one() {
    let mut world = World::new(&[node(2, 1)]);
    world.run(SECOND * 4);
    assert_eq!(world.changes(), ["2/1 unknown -> down", "2 unknown -> down"]);
    // Every second probe is answered: heard, but never three in a row.
    for _ in 0..20 {
        world.answers = vec![node(2, 1)];
        world.run(Duration::from_millis(500));
        world.answers.clear();
        world.run(Duration::from_millis(500));
    }
    assert_eq!(world.changes(), [""; 0]);
    world.answers = vec![node(2, 1)];
    world.run(SECOND * 2);
    assert_eq!(world.changes.first().map(|t| t.because), Some(Because::Replies(3)));
    assert_eq!(world.changes(), ["2/1 down -> up", "2 down -> up"]);
}

#[test]
fn a_round_trip_longer_than_the_interval_still_comes_up_again() {
    let mut world = World::new(&[node(2, 1)]);
    world.run(SECOND * 4);
    world.changes();
    world.round_trip = Duration::from_millis(1_700);
    world.answers = vec![node(2, 1)];
    world.run(SECOND * 5);
    assert_eq!(world.changes(), ["2/1 down -> up", "2 down -> up"]);
}

#[test]
fn requests_of_the_other_side_keep_a_node_up_unless_it_holds_us_down() {
    for (hears_us, expected) in [(true, 0), (false, 2)] {
        let mut world = World::new(&[node(2, 1)]);
        world.answers = vec![node(2, 1)];
        world.run(SECOND);
        world.changes();
        world.answers.clear();
        for _ in 0..20 {
            world.run(Duration::from_millis(500));
            let now = world.now;
            assert!(world.liveness.handle_request(node(2, 1), hears_us, now), "it has a tunnel: answered");
        }
        assert_eq!(world.changes().len(), expected, "hears_us: {hears_us}");
    }
}

#[test]
fn an_idle_mesh_flips_nothing_in_an_hour() {
    let nodes: Vec<_> = (1..=40).map(|index| node(2 + index % 3, index)).collect();
    let mut world = World::new(&nodes);
    world.answers = nodes.clone();
    world.run(SECOND);
    assert_eq!(world.changes().len(), 40 + 3);
    world.run(SECOND * 3_600);
    assert_eq!(world.changes(), [""; 0]);
    let expected = 40 * (3_601 * 2 + 1);
    assert!(world.sent.abs_diff(expected) <= 80, "two probes a second and node, {} sent", world.sent);
}

#[test]
fn a_process_that_slept_asks_before_it_judges() {
    let mut world = World::new(&[node(2, 1)]);
    world.answers = vec![node(2, 1)];
    world.run(SECOND * 5);
    world.changes();
    world.now = world.now + SECOND * 3_600;
    let now = world.now;
    world.liveness.handle_time(now);
    world.drain();
    world.run(SECOND * 10);
    assert_eq!(world.changes(), [""; 0]);
}

#[test]
fn a_clock_that_steps_back_changes_nothing() {
    let mut world = World::new(&[node(2, 1)]);
    world.answers = vec![node(2, 1)];
    world.run(SECOND * 5);
    world.changes();
    world.liveness.handle_time(ms(0));
    world.liveness.handle_request(node(2, 1), true, ms(0));
    world.drain();
    world.run(SECOND * 5);
    assert_eq!(world.changes(), [""; 0]);
}

#[test]
fn a_late_a_repeated_and_a_forged_reply_count_for_nothing() {
    let mut liveness = Liveness::new(LivenessConfig::default(), 7);
    liveness.handle_peer(node(2, 1), ms(0));
    let Some(Output::Send { nonce, .. }) = liveness.poll_output() else {
        panic!("a new node is asked at once")
    };
    assert!(!liveness.handle_reply(node(2, 1), nonce ^ 1 << 40, ms(10)), "another process' salt");
    assert!(!liveness.handle_reply(node(2, 1), nonce + 1, ms(10)), "not asked yet");
    assert!(!liveness.handle_reply(node(3, 1), nonce, ms(10)), "nobody we know");
    assert!(liveness.handle_reply(node(2, 1), nonce, ms(10)));
    assert!(!liveness.handle_reply(node(2, 1), nonce, ms(11)), "twice");
}

#[test]
fn a_node_that_leaves_takes_its_verdict_along() {
    let mut world = World::new(&[node(2, 1), node(2, 2)]);
    world.answers = vec![node(2, 2)];
    world.run(SECOND * 4);
    world.changes();
    world.liveness.handle_peer_gone(node(2, 2), world.now);
    world.drain();
    assert_eq!(world.changes(), ["2 up -> down"], "only the dead node is left");
    world.liveness.handle_peer_gone(node(2, 1), world.now);
    world.drain();
    assert_eq!(world.changes(), ["2 down -> unknown"]);
    assert_eq!(world.liveness.poll_deadline(), None);
}

#[test]
fn deadlines_are_named() {
    let world = World::new(&[node(2, 1)]);
    let deadline = world.liveness.poll_deadline().unwrap();
    assert_eq!((deadline.timer, deadline.node), (Timer::Probe, node(2, 1)));
}

#[test]
fn a_new_node_in_a_dead_cluster_does_not_raise_it_before_it_answers() {
    let mut world = World::new(&[node(2, 1)]);
    world.run(SECOND * 4);
    world.changes();
    world.liveness.handle_peer(node(2, 2), world.now);
    world.run(SECOND);
    assert_eq!(world.changes(), [""; 0]);
    world.answers = vec![node(2, 2)];
    world.run(SECOND);
    assert_eq!(world.changes(), ["2/2 unknown -> up", "2 down -> up"]);
}

#[test]
fn a_first_round_trip_that_waited_for_a_handshake_is_soon_forgotten() {
    let mut world = World::new(&[node(2, 1)]);
    world.round_trip = Duration::from_millis(900);
    world.answers = vec![node(2, 1)];
    let now = world.now;
    world.liveness.handle_time(now);
    world.run(Duration::from_millis(200));
    world.round_trip = Duration::from_millis(80);
    world.run(SECOND * 3);
    let snapshot = world.liveness.node(node(2, 1)).unwrap();
    assert_eq!(snapshot.rtt_smoothed, Some(Duration::from_millis(80)));
}
