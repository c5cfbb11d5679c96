//! A restart changes no verdict: what the run before left goes on until something newer is seen.

use std::collections::BTreeMap;

use hawser_model::HealthWord;

use super::*;
use crate::{About, Because, REST, Why};

/// A run that begins with these words, about two nodes of cluster 2.
fn resumed(words: &[(About, HealthWord)], answering: &[NodeId]) -> World {
    let mut world = World::with(LivenessConfig::default(), &[]).answered_by(answering);
    for node in [node(2, 1), node(2, 2)] {
        world.liveness.handle_peer(node, address(node), world.now);
    }
    let words: BTreeMap<_, _> = words.iter().copied().collect();
    world.liveness.handle_left(&words, world.now);
    world.drain();
    world
}

fn cluster() -> About {
    About::Cluster(node(2, 1).cluster)
}

#[test]
fn what_is_down_stays_down_while_it_is_silent_and_nobody_is_told_twice() {
    let both = [node(2, 1), node(2, 2)];
    let words = both.map(About::Node).into_iter().chain([cluster()]).map(|about| (about, HealthWord::DOWN));
    let mut world = resumed(&words.collect::<Vec<_>>(), &[]);
    assert!(world.changes.iter().all(|change| change.because == Because::Left));
    assert_eq!(world.changes(), ["2/1 unknown -> down", "2/2 unknown -> down", "2 unknown -> down"]);
    world.run(SECOND * 60);
    assert_eq!(world.changes(), [""; 0]);
}

#[test]
fn what_is_down_comes_back_as_from_any_down() {
    let words = [(About::Node(node(2, 1)), HealthWord::DOWN), (cluster(), HealthWord::DOWN)];
    let mut world = resumed(&words, &[node(2, 1)]);
    world.changes();
    // One reply is no ground, and several are held down for a second.
    world.run(SECOND);
    assert_eq!(world.changes(), [""; 0]);
    world.run(SECOND * 2);
    assert_eq!(world.changes(), ["2/1 down -> up", "2 down -> up", "2/2 unknown -> down"]);
    world.run(SECOND * 20);
    assert_eq!(world.weights, [128, 192, 256], "the cluster in a slow start");
}

#[test]
fn a_lowered_weight_stays_until_users_have_had_their_rest_and_its_cluster_keeps_what_it_had() {
    let words = [(About::Node(node(2, 1)), HealthWord::up(64)), (cluster(), HealthWord::UP)];
    let mut world = resumed(&words, &[node(2, 1), node(2, 2)]);
    world.run(REST / 2);
    let up = world.changes.iter().map(|change| (change.about, change.weight)).collect::<Vec<_>>();
    let expected = [(About::Node(node(2, 1)), 64), (cluster(), 256), (About::Node(node(2, 2)), 256)];
    assert!(up.len() == 3 && expected.iter().all(|said| up.contains(said)), "{up:?}");
    let said: Vec<_> = world.greys.drain(..).map(|grey| (grey.weight, grey.why)).collect();
    assert_eq!(said, [(64, Why::Left)]);
    world.run(REST);
    let said: Vec<_> = world.greys.drain(..).map(|grey| (grey.weight, grey.why)).collect();
    assert_eq!(said, [(256, Why::Well)]);
    assert_eq!(world.weights, [0; 0], "of the cluster nothing was said");
}

#[test]
fn a_cluster_that_was_lowered_with_its_node_is_up_with_that_weight() {
    let words = [(About::Node(node(2, 1)), HealthWord::up(16)), (cluster(), HealthWord::up(16))];
    let mut world = resumed(&words, &[node(2, 1), node(2, 2)]);
    world.run(SECOND);
    let of_cluster: Vec<_> = world.changes.iter().filter(|change| change.about == cluster()).collect();
    assert!(matches!(of_cluster[..], [said] if said.weight == 16), "{of_cluster:?}");
    assert_eq!(world.weights, [0; 0]);
}

#[test]
fn what_users_came_to_before_the_restart_speaks_for_nothing_now() {
    let words = [(About::Node(node(2, 1)), HealthWord::up(64)), (cluster(), HealthWord::UP)];
    let mut world = resumed(&words, &[node(2, 1), node(2, 2)]);
    world.run(SECOND);
    let users = crate::Users { late: 1_000, late_clients: 9, ..crate::Users::default() };
    for _ in 0..3 {
        world.liveness.handle_users(node(2, 1), users, world.now);
        world.run(SECOND);
    }
    let said: Vec<_> = world.greys.drain(..).map(|grey| grey.weight).collect();
    assert_eq!(said, [64], "counters of the kernel go on from before");
}

#[test]
fn what_is_known_already_is_not_changed_by_what_was_left() {
    let mut world = resumed(&[], &[node(2, 1), node(2, 2)]);
    world.run(SECOND);
    world.changes();
    let words = [(About::Node(node(2, 1)), HealthWord::DOWN), (cluster(), HealthWord::DOWN)];
    world.liveness.handle_left(&words.into(), world.now);
    world.drain();
    assert_eq!(world.changes(), [""; 0]);
}
