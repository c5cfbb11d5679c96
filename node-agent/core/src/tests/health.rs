//! Verdicts to words: one write per node and one per cluster.

use hawser_discovery::{About, Because, Greyness, NodeId, Transition, Why};
use hawser_model::{ClusterHealth, HealthWord};

use super::*;
use crate::{Standing, WordPlace};

pub(crate) fn judge(mesh: &mut Mesh, about: About, to: ClusterHealth) {
    let transition = Transition {
        about,
        from: ClusterHealth::Unknown,
        to,
        because: Because::FirstReply,
        weight: HealthWord::FULL_WEIGHT,
        at: mesh.now,
    };
    mesh.agent.handle_transition(transition);
    mesh.drain(true);
}

pub(crate) fn node(c: u32, n: u32) -> NodeId {
    NodeId { cluster: cluster(c).id, index: NodeIndex::new(n).unwrap() }
}

#[test]
fn a_cluster_that_dies_costs_one_word_per_node_and_one_for_itself() {
    let mut mesh = Mesh::of_three();
    for c in [2, 3] {
        for n in [1, 2] {
            judge(&mut mesh, About::Node(node(c, n)), ClusterHealth::Up);
        }
        judge(&mut mesh, About::Cluster(cluster(c).id), ClusterHealth::Up);
    }
    let before = mesh.agent.word_counts();
    mesh.words.clear();
    judge(&mut mesh, About::Node(node(2, 1)), ClusterHealth::Down);
    judge(&mut mesh, About::Node(node(2, 2)), ClusterHealth::Down);
    judge(&mut mesh, About::Cluster(cluster(2).id), ClusterHealth::Down);
    let after = mesh.agent.word_counts();
    assert_eq!((after.nodes - before.nodes, after.clusters - before.clusters), (2, 1));
    assert!(mesh.words.iter().all(|write| write.word == HealthWord::DOWN));
    assert_eq!(mesh.words[2].place, WordPlace::Cluster(cluster(2).id));
    judge(&mut mesh, About::Node(node(2, 1)), ClusterHealth::Up);
    assert_eq!(mesh.agent.word_counts().nodes - after.nodes, 1);
    assert_eq!(mesh.agent.transitions().count(), 10);
}

#[test]
fn the_same_verdict_twice_is_one_write() {
    let mut mesh = Mesh::of_three();
    judge(&mut mesh, About::Cluster(cluster(2).id), ClusterHealth::Down);
    judge(&mut mesh, About::Cluster(cluster(2).id), ClusterHealth::Down);
    assert_eq!(mesh.words.len(), 1);
}

#[test]
fn a_restarted_agent_lets_the_last_verdict_hold_until_it_knows_better() {
    let first = Mesh::of_three();
    let slot = first.agent.slots().get(node(2, 1));
    let found = [WordPlace::Node(slot), WordPlace::Cluster(cluster(2).id)]
        .map(|place| WordWrite { place, word: HealthWord::DOWN });
    let slots = NodeSlots::restore(65_536, first.agent.slots().iter());
    let mut mesh = Mesh::restarted(slots, HealthWords::adopt(found));
    mesh.say(1, [mk_node(1, 1), vec![mk_peer(2)]].concat());
    mesh.complete(1);
    mesh.say(2, mk_node(2, 1));
    mesh.complete(2);
    mesh.settle();
    assert_eq!(mesh.words, []);
    assert_eq!(mesh.agent.slots().get(node(2, 1)), slot, "the slot keeps its meaning");
    let left = mesh.agent.words_of([node(2, 1)]);
    let down =
        [About::Cluster(cluster(2).id), About::Node(node(2, 1))].map(|about| (about, HealthWord::DOWN));
    assert_eq!(left, down.into(), "which probing begins with");
    judge(&mut mesh, About::Node(node(2, 1)), ClusterHealth::Up);
    assert_eq!(mesh.words, [WordWrite { place: WordPlace::Node(slot), word: HealthWord::UP }]);
}

#[test]
fn a_word_that_could_not_be_written_is_written_again() {
    let mut mesh = Mesh::of_three();
    let about = About::Cluster(cluster(2).id);
    let to = ClusterHealth::Down;
    let (from, because) = (ClusterHealth::Up, Because::AllNodesDown);
    mesh.agent.handle_transition(Transition { about, from, to, because, weight: 256, at: mesh.now });
    let Some(Output::Word(write)) = mesh.agent.poll_output() else { panic!("the word comes first") };
    mesh.agent.handle_word_failed(write, mesh.now);
    mesh.pass(3_000);
    assert_eq!(mesh.words, [write]);
}

#[test]
fn a_cluster_that_returns_after_disconnect_does_not_inherit_its_old_word() {
    let mut mesh = Mesh::of_three();
    judge(&mut mesh, About::Cluster(cluster(2).id), ClusterHealth::Down);
    mesh.withdraw(1, &mk_peer(2));
    mesh.pass(6_000);
    mesh.words.clear();
    mesh.say(1, [mk_peer(2)]);
    mesh.say(2, mk_node(2, 1));
    mesh.complete(2);
    mesh.settle();
    let up = WordWrite { place: WordPlace::Cluster(cluster(2).id), word: HealthWord::UP };
    assert!(mesh.words.contains(&up), "{:?}", mesh.words);
}

#[test]
fn a_cluster_on_its_slow_way_back_takes_little_first_and_a_step_after_it_died_again_counts_for_nothing() {
    let mut mesh = Mesh::of_three();
    let about = About::Cluster(cluster(2).id);
    judge(&mut mesh, about, ClusterHealth::Down);
    let back = Transition {
        about,
        from: ClusterHealth::Down,
        to: ClusterHealth::Up,
        because: Because::Replies(3),
        weight: 64,
        at: mesh.now,
    };
    mesh.words.clear();
    mesh.agent.handle_transition(back);
    mesh.drain(true);
    for weight in [128, 256] {
        mesh.agent.handle_weight(about, weight);
        mesh.drain(true);
    }
    judge(&mut mesh, about, ClusterHealth::Down);
    mesh.agent.handle_weight(about, 256);
    mesh.drain(true);
    let words: Vec<_> = mesh.words.iter().map(|write| write.word).collect();
    assert_eq!(words, [HealthWord::up(64), HealthWord::up(128), HealthWord::UP, HealthWord::DOWN]);
}

#[test]
fn a_control_plane_that_cannot_be_read_is_a_verdict_of_its_own_and_moves_no_word() {
    let mut mesh = Mesh::of_three();
    let name = cluster(2).name;
    judge(&mut mesh, About::Cluster(cluster(2).id), ClusterHealth::Up);
    mesh.words.clear();
    let said = |mesh: &Mesh, now| {
        let all = mesh.agent.clusters(now);
        let status = all.into_iter().find(|status| status.cluster == cluster(2)).unwrap();
        assert_eq!(status.data_plane, ClusterHealth::Up);
        (status.control_plane.verdict, status.control_plane.since, status.control_plane.reason)
    };
    assert_eq!(said(&mesh, mesh.now).0, ClusterHealth::Up);
    mesh.agent.handle_interrupted(&name, "connection refused".into(), mesh.now);
    let (verdict, since, reason) = said(&mesh, mesh.now);
    assert!(
        verdict == ClusterHealth::Down && since.is_some() && reason.contains("connection refused"),
        "{reason}"
    );
    mesh.agent.handle_heard(&name, None, mesh.now);
    assert_eq!(said(&mesh, mesh.now), (ClusterHealth::Up, Some(mesh.now), String::new()));
    let later = mesh.now + std::time::Duration::from_secs(15);
    let (verdict, since, reason) = said(&mesh, later);
    assert!(verdict == ClusterHealth::Down && since == Some(later), "{reason}");
    assert_eq!(mesh.words, []);
}

#[test]
fn a_grey_node_is_one_word_with_a_reason_and_down_is_more_than_grey() {
    let mut mesh = Mesh::of_three();
    judge(&mut mesh, About::Node(node(2, 1)), ClusterHealth::Up);
    judge(&mut mesh, About::Cluster(cluster(2).id), ClusterHealth::Up);
    mesh.words.clear();
    let place = WordPlace::Node(mesh.agent.slots().get(node(2, 1)));
    let why = Why::UsersFail { failed: 12, of: 15 };
    let grey = |weight, at| Greyness { node: node(2, 1), weight, why, at };
    mesh.agent.handle_grey(grey(64, mesh.now));
    mesh.drain(true);
    assert_eq!(mesh.words, [WordWrite { place, word: HealthWord::up(64) }]);
    let text = "users' connections time out (12 of 15 in 5 s), probes are answered";
    assert_eq!(mesh.agent.node_grey(node(2, 1)).unwrap().why.to_string(), text);
    let standing = |mesh: &Mesh| {
        let clusters = mesh.agent.clusters(mesh.now);
        clusters.iter().find(|status| status.cluster == cluster(2)).unwrap().standing
    };
    assert!(matches!(standing(&mesh), Standing::Grey { grey: 1, of: 1 } | Standing::Unknown));
    judge(&mut mesh, About::Node(node(2, 1)), ClusterHealth::Down);
    assert_eq!(mesh.agent.node_grey(node(2, 1)), None);
    // What was under way when it died raises nobody.
    mesh.agent.handle_grey(grey(16, mesh.now));
    mesh.drain(true);
    assert_eq!(mesh.words.last().unwrap().word, HealthWord::DOWN);
}
