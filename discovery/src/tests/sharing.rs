//! The nodes of a cluster watch for each other: what it costs, what it brings, and that a colleague's word decides nothing.

use hawser_model::NodeName;

use super::*;
use crate::{About, MOST_PACKETS, MOST_SHARERS, SHARING_STALE, Shared, Sharers};

fn mesh(clusters: u32, nodes: u32) -> Vec<NodeId> {
    (0..clusters).flat_map(|cluster| (1..=nodes).map(move |index| node(cluster + 2, index))).collect()
}

fn names(count: usize) -> Vec<NodeName> {
    (1..=count).map(|n| NodeName::parse(&format!("node-{n}")).unwrap()).collect()
}

/// Some nodes of one cluster, each with its own tunnels, and the API server that hands their words around.
struct Colleagues {
    names: Vec<NodeName>,
    worlds: Vec<World>,
    /// Of those whose word the API server has.
    connected: BTreeSet<usize>,
}

impl Colleagues {
    fn new(count: usize, nodes: &[NodeId]) -> Self {
        let worlds = (0..count).map(|_| World::new(nodes).answered_by(nodes)).collect();
        Self { names: names(count), worlds, connected: (0..count).collect() }
    }

    /// What each finds is everybody's a second later.
    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds {
            let members: Vec<_> = self.connected.iter().map(|at| self.names[*at].clone()).collect();
            let found = self.connected.iter().flat_map(|at| self.worlds[*at].liveness.found().clone());
            let down: BTreeSet<_> = found.collect();
            for at in &self.connected {
                let shared = Shared { sharers: Sharers::new(&self.names[*at], &members), down: down.clone() };
                let world = &mut self.worlds[*at];
                world.liveness.handle_shared(shared, world.now);
            }
            self.worlds.iter_mut().for_each(|world| world.run(SECOND));
        }
    }

    fn silence(&mut self, gone: impl Fn(&NodeId) -> bool) {
        for world in &mut self.worlds {
            world.answers.retain(|node| !gone(node));
            world.in_flight.clear();
        }
    }
}

#[test]
fn every_node_of_the_mesh_is_watched_by_one_of_the_sharers_and_one_that_leaves_moves_only_its_part() {
    let (all, nodes) = (names(10), mesh(50, 20));
    let owner = |members: &[NodeName], node: NodeId| {
        let mine = |name: &&NodeName| Sharers::new(name, members).is_mine(node);
        let owners: Vec<_> = members.iter().filter(mine).cloned().collect();
        assert_eq!(owners.len(), 1, "{node}");
        owners[0].clone()
    };
    let mut parts = BTreeMap::<NodeName, usize>::new();
    for node in &nodes {
        let before = owner(&all, *node);
        let after = owner(&all[1..], *node);
        assert!(before == all[0] || before == after, "{node} moved from {before} to {after}");
        *parts.entry(before).or_default() += 1;
    }
    assert!(parts.values().all(|part| (60..140).contains(part)), "even parts of 1,000: {parts:?}");
    let stranger = Sharers::new(&NodeName::parse("elsewhere").unwrap(), &all);
    assert!(!nodes.iter().any(|node| stranger.is_mine(*node)), "who is no member listens only");
    assert_eq!(Sharers::new(&all[0], &names(MOST_SHARERS + 9)).len(), MOST_SHARERS);
}

#[test]
fn in_a_mesh_of_254_clusters_of_100_nodes_sharing_costs_no_packet_more_and_asks_eighty_times_as_often() {
    let nodes = mesh(254, 100);
    for sharers in [0, 100] {
        let mut world = World::with(LivenessConfig::default(), &nodes).answered_by(&nodes);
        // 200 nodes of ten clusters are in use.
        for used in nodes.iter().filter(|node| node.cluster.get() < 12 && node.index.get() <= 20) {
            world.liveness.handle_used(*used, world.now);
        }
        let shared = Shared { sharers: Sharers::new(&names(1)[0], &names(sharers)), down: BTreeSet::new() };
        let mut most = 0;
        for _ in 0..12 {
            world.liveness.handle_shared(shared.clone(), world.now);
            let before = world.sent;
            world.run(SECOND);
            most = most.max(world.sent - before);
        }
        let budget = world.liveness.budget().clone();
        let at_rest = budget.packets_per_second();
        assert!((at_rest - 800.0).abs() < 2.0, "{at_rest} with {sharers} sharers");
        // It still learns whom it has, twice as fast as it will ask them, and intervals are shortened by a quarter at most.
        assert!(most <= (MOST_PACKETS / 3) as usize, "{most} in a second with {sharers} sharers");
        match sharers {
            0 => assert_eq!((budget.shared.len(), budget.interval_of_others.as_secs()), (0, 126)),
            _ => {
                assert!((180..330).contains(&budget.shared.len()), "{}", budget.shared.len());
                assert!(budget.interval_of_shared < Duration::from_millis(2_100));
                assert!((620..626).contains(&budget.interval_of_others.as_secs()));
            }
        }
    }
}

#[test]
fn a_dead_cluster_that_nobody_uses_is_everybodys_knowledge_in_seconds() {
    let nodes = mesh(10, 100);
    let mut colleagues = Colleagues::new(5, &nodes);
    colleagues.run(10);
    colleagues.worlds.iter_mut().for_each(|world| world.changes.clear());
    colleagues.silence(|node| node.cluster.get() == 3);
    colleagues.run(12);
    for world in &mut colleagues.worlds {
        let changes = world.changes();
        assert!(changes.contains(&"3 up -> down".into()));
        let others: Vec<_> = changes.iter().filter(|change| !change.starts_with('3')).collect();
        assert!(others.is_empty(), "{others:?}");
    }
    colleagues.worlds.iter_mut().for_each(|world| world.answers = nodes.iter().copied().collect());
    colleagues.run(15);
    for world in &mut colleagues.worlds {
        let changes = world.changes();
        assert!(changes.contains(&"3 down -> up".into()));
    }
}

#[test]
fn without_colleagues_the_same_takes_as_long_as_everybody_needs_to_ask_them_all() {
    let nodes = mesh(10, 100);
    let mut world = World::new(&nodes).answered_by(&nodes);
    world.run(SECOND * 10);
    world.changes();
    world.answers.retain(|node| node.cluster.get() != 3);
    world.run(SECOND * 5);
    assert!(!world.changes().contains(&"3 up -> down".into()));
    world.run(SECOND * 15);
    assert!(world.changes().contains(&"3 up -> down".into()));
}

#[test]
fn a_colleagues_word_takes_nothing_down_that_answers_here() {
    let nodes = mesh(10, 100);
    let mut world = World::new(&nodes).answered_by(&nodes);
    let all = names(3);
    let word = |down: BTreeSet<NodeId>| Shared { sharers: Sharers::new(&all[0], &all), down };
    world.liveness.handle_shared(word(BTreeSet::new()), world.now);
    world.run(SECOND * 10);
    world.changes();
    let before = world.sent;
    for _ in 0..10 {
        world.liveness.handle_shared(word(nodes.iter().copied().collect()), world.now);
        world.run(SECOND);
    }
    assert_eq!(world.changes(), [""; 0]);
    assert!(world.sent - before < 10 * MOST_PACKETS as usize / 4, "{} probes", world.sent - before);
    let counts = world.liveness.sharing();
    assert!(counts.refuted >= 900 && counts.confirmed == 0, "{counts:?}");
}

#[test]
fn a_cluster_whose_other_nodes_were_long_down_is_not_given_up_on_a_word() {
    let nodes = mesh(10, 100);
    let mut world = World::new(&nodes).answered_by(&nodes);
    let all = names(3);
    // All but ten of them are dead, and known to be.
    world.answers.retain(|node| node.cluster.get() != 3 || node.index.get() > 90);
    world.run(SECOND * 60);
    world.changes();
    let down = nodes.iter().filter(|node| node.cluster.get() == 3).copied().collect();
    world.liveness.handle_shared(Shared { sharers: Sharers::new(&all[0], &all), down }, world.now);
    world.run(SECOND * 10);
    assert_eq!(world.changes(), [""; 0]);
}

#[test]
fn a_sharer_that_is_gone_is_replaced_and_with_nobody_to_share_each_asks_for_itself() {
    let nodes = mesh(10, 100);
    let mut colleagues = Colleagues::new(3, &nodes);
    colleagues.run(5);
    let parts = |colleagues: &Colleagues| -> Vec<usize> {
        colleagues.worlds.iter().map(|world| world.liveness.budget().shared.len()).collect()
    };
    assert_eq!(parts(&colleagues).iter().sum::<usize>(), 1_000, "{:?}", parts(&colleagues));
    colleagues.connected.remove(&2);
    colleagues.run(SHARING_STALE.as_secs() + 2);
    let now = parts(&colleagues);
    assert_eq!((now[0] + now[1], now[2]), (1_000, 0), "{now:?}");
    let alone = colleagues.worlds[2].liveness.budget();
    assert_eq!((alone.others, alone.interval_of_others), (1_000, SECOND * 5));
    assert_eq!(colleagues.worlds[2].liveness.sharing().sharers, 0);
}

#[test]
fn a_node_that_is_cut_off_says_nothing_about_others() {
    let nodes = mesh(10, 100);
    let mut world = World::new(&nodes).answered_by(&nodes);
    let run = |world: &mut World, seconds: u32| {
        for _ in 0..seconds / 4 {
            let sharers = Sharers::new(&names(1)[0], &names(1));
            world.liveness.handle_shared(Shared { sharers, down: BTreeSet::new() }, world.now);
            world.run(SECOND * 4);
        }
    };
    run(&mut world, 12);
    world.answers.remove(&node(2, 1));
    run(&mut world, 20);
    assert_eq!(world.liveness.found(), &BTreeSet::from([node(2, 1)]));
    world.answers.clear();
    run(&mut world, 60);
    let down =
        |t: &&Transition| matches!(t.about, About::Cluster(_)) && t.to == hawser_model::ClusterHealth::Down;
    assert_eq!(world.changes.iter().filter(down).count(), 10);
    assert_eq!(world.liveness.found(), &BTreeSet::new());
}
