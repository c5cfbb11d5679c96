//! In a mesh too large to watch everybody: a cluster is given up on fresh evidence, and nobody is forgotten.

use super::*;

/// 600 nodes in three clusters, of which one node of cluster 2 is used.
fn world() -> (World, Vec<NodeId>) {
    let nodes: Vec<_> = (0..600).map(|n| node(2 + n % 3, 1 + n / 3)).collect();
    let mut world = World::new(&nodes).answered_by(&nodes);
    world.liveness.handle_used(node(2, 1), world.now);
    world.run(SECOND * 10);
    assert_eq!(world.liveness.budget().watched.len(), 1);
    assert!(world.liveness.budget().interval_of_others > SECOND);
    world.changes();
    (world, nodes)
}

#[test]
fn the_death_of_the_only_watched_node_is_not_taken_for_its_clusters() {
    let (mut world, _) = world();
    world.answers.remove(&node(2, 1));
    for _ in 0..10 {
        world.liveness.handle_used(node(2, 1), world.now);
        world.run(SECOND);
    }
    assert_eq!(world.changes(), ["2/1 up -> down"]);
}

#[test]
fn a_dead_cluster_is_found_as_soon_as_its_watched_node_and_a_sample_are() {
    let (mut world, nodes) = world();
    world.answers.retain(|node| node.cluster.get() != 2);
    world.in_flight.clear();
    world.run(SECOND * 4);
    let changes = world.changes();
    assert!(
        changes.contains(&"2/1 up -> down".into()) && changes.contains(&"2 up -> down".into()),
        "{changes:?}"
    );
    let dead = changes.iter().filter(|change| change.starts_with("2/")).count();
    assert!((9..200).contains(&dead), "the others were not waited for: {dead}");
    world.answers = nodes.iter().copied().collect();
    world.run(SECOND * 10);
    assert!(world.changes().contains(&"2 down -> up".into()));
}

#[test]
fn a_cluster_that_nobody_uses_is_judged_by_all_its_nodes_in_their_time() {
    let (mut world, _) = world();
    world.answers.retain(|node| node.cluster.get() != 3);
    world.run(SECOND * 30);
    let changes = world.changes();
    assert_eq!(changes.last().map(String::as_str), Some("3 up -> down"), "{changes:?}");
    assert_eq!(changes.len(), 201);
}
