//! The budget: its formula, and that no mesh makes a node send more.

use super::*;
use crate::{FOR_OTHERS, MOST_PACKETS, RECENTLY, WATCHED_CLUSTERS, budget};

fn mesh(clusters: u32, nodes: u32) -> Vec<NodeId> {
    (1..=clusters).flat_map(|cluster| (1..=nodes).map(move |index| node(cluster + 1, index))).collect()
}

#[test]
fn a_small_mesh_is_asked_at_the_configured_interval_used_or_not() {
    let config = slow();
    let budget = budget(mesh(10, 20).into_iter().map(|node| (node, None)), None, &config, ms(0));
    assert_eq!((budget.interval, budget.interval_of_others), (config.interval, config.interval));
    assert!((budget.packets_per_second() - 200.0).abs() < 1e-6);
}

#[test]
fn in_a_large_mesh_the_used_are_watched_and_the_rest_share_what_is_left() {
    let now = ms(1_000_000);
    let recently = |node: NodeId| (node.index.get() <= 10 && node.cluster.get() <= 21).then_some(now);
    let all = mesh(254, 100).into_iter().map(|node| (node, recently(node)));
    let budget = budget(all, None, &slow(), now);
    assert_eq!((budget.watched.len(), budget.others), (200, 25_200));
    assert_eq!(budget.interval, SECOND);
    assert_eq!(budget.interval_of_others, Duration::from_secs(126));
    assert!((budget.packets_per_second() - 400.0).abs() < 1e-6);
}

#[test]
fn at_most_64_clusters_are_watched_the_most_recently_used_ones() {
    let now = ms(100_000);
    let used = |node: NodeId| Some(ms(90_000 + u64::from(node.cluster.get())));
    let budget = budget(mesh(200, 2).into_iter().map(|node| (node, used(node))), None, &slow(), now);
    let clusters: BTreeSet<_> = budget.watched.iter().map(|node| node.cluster.get()).collect();
    assert_eq!((clusters.len(), clusters.first().copied()), (WATCHED_CLUSTERS, Some(201 - 63)));
}

#[test]
fn what_was_not_used_for_a_minute_is_not_watched() {
    let used = ms(10_000);
    for (now, watched) in [(used, 1), (used + (RECENTLY - Duration::from_millis(1)), 1), (used + RECENTLY, 0)]
    {
        let budget = budget([(node(2, 1), Some(used))].into_iter(), None, &slow(), now);
        assert_eq!(budget.watched.len(), watched);
    }
}

#[test]
fn with_all_of_254_clusters_silent_no_more_than_4000_probes_leave_in_any_second() {
    let nodes = mesh(254, 40);
    for interval in [1_000, 50] {
        let config = LivenessConfig { interval: Duration::from_millis(interval), ..Default::default() };
        let mut world = World::with(config, &nodes);
        for used in nodes.iter().filter(|node| node.cluster.get() < 100) {
            world.liveness.handle_used(*used, world.now);
        }
        for second in 0..6 {
            let before = world.sent;
            world.run(SECOND);
            let sent = world.sent - before;
            // A tenth of a second's worth may leave at once.
            let most = (MOST_PACKETS + MOST_PACKETS / 10) as usize;
            assert!(sent <= most, "{sent} in second {second} at {interval} ms");
        }
    }
    assert_eq!(FOR_OTHERS, 400);
}
