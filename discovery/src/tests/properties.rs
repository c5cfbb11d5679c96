//! Whatever comes, in whatever order and at whatever time: no panic, and verdicts that follow from the nodes'.

use hawser_model::ClusterHealth::{Down, Unknown};
use proptest::prelude::*;

use super::*;
use crate::{About, Shared, Sharers};

#[derive(Clone, Debug)]
enum Event {
    Peer(NodeId),
    Gone(NodeId),
    Used(NodeId),
    ReplyToNewest(NodeId, bool),
    Forged(NodeId, u32),
    /// Colleagues: how many, and what they find.
    Shared(u32, BTreeSet<NodeId>),
    Time,
}

fn any_node() -> impl Strategy<Value = NodeId> {
    (1_u32..4, 1_u32..4).prop_map(|(cluster, index)| node(cluster, index))
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        any_node().prop_map(Event::Peer),
        any_node().prop_map(Event::Gone),
        any_node().prop_map(Event::Used),
        (any_node(), prop::bool::weighted(0.1)).prop_map(|(n, down)| Event::ReplyToNewest(n, down)),
        (any_node(), any::<u32>()).prop_map(|(n, tag)| Event::Forged(n, tag)),
        (0_u32..4, prop::collection::btree_set(any_node(), 0..9))
            .prop_map(|(n, down)| Event::Shared(n, down)),
        Just(Event::Time),
        Just(Event::Time),
        Just(Event::Time),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn verdicts_follow_one_another_and_clusters_their_nodes(
        // Steps of time, some backwards: -500..=4000 ms.
        events in prop::collection::vec((event(), 0_u64..4_500), 0..200),
    ) {
        let mut liveness = Liveness::new(slow(), 9);
        let mut newest = BTreeMap::new();
        let mut now_ms: u64 = 100_000;
        let mut last = BTreeMap::new();
        let mut died = BTreeSet::new();
        for (event, step) in events {
            now_ms = (now_ms + step).saturating_sub(500);
            let now = ms(now_ms);
            match event {
                Event::Peer(n) => liveness.handle_peer(n, address(n), now),
                Event::Gone(n) => {
                    liveness.handle_peer_gone(n, now);
                    newest.remove(&n);
                    last.remove(&About::Node(n));
                }
                Event::Used(n) => liveness.handle_used(n, now),
                Event::ReplyToNewest(n, down) => {
                    let state = if down { State::AdminDown } else { State::Up };
                    if let Some(probe) = newest.get(&n) { liveness.handle_packet(n, &reflected(probe, state), now); }
                }
                Event::Forged(n, tag) => {
                    if let Some(probe) = newest.get(&n) {
                        let forged = ControlPacket { your_discriminator: tag, ..reflected(probe, State::Up) };
                        liveness.handle_packet(n, &forged, now);
                    }
                }
                Event::Shared(members, down) => {
                    let names: Vec<_> = (0..members)
                        .map(|n| hawser_model::NodeName::parse(&format!("node-{n}")).unwrap())
                        .collect();
                    let own = hawser_model::NodeName::parse("node-0").unwrap();
                    liveness.handle_shared(Shared { sharers: Sharers::new(&own, &names), down }, now);
                }
                Event::Time => liveness.handle_time(now),
            }
            while let Some(output) = liveness.poll_output() {
                match output {
                    Output::Send { to, probe, .. } => { newest.insert(to, probe); }
                    Output::Weight { weight, .. } => prop_assert!(weight <= 256),
                    Output::Found => prop_assert!(liveness.found().len() <= 9),
                    Output::Grey(grey) => prop_assert!((16..=256).contains(&grey.weight)),
                    Output::Changed(t) => {
                        prop_assert_ne!(t.from, t.to);
                        let before = last.insert(t.about, t.to).unwrap_or(Unknown);
                        prop_assert_eq!(before, t.from);
                        match (t.about, t.to) {
                            (About::Node(n), Down) => drop(died.insert(n.cluster)),
                            // Not before one of its nodes.
                            (About::Cluster(id), Down) => prop_assert!(died.contains(&id)),
                            _ => {}
                        }
                    }
                }
            }
            let present: BTreeSet<_> = liveness.nodes().map(|(n, _)| n.cluster).collect();
            let judged: BTreeSet<_> = liveness.clusters().map(|(id, ..)| id).collect();
            prop_assert_eq!(&present, &judged);
            last.retain(|about, _| match about { About::Cluster(id) => present.contains(id), About::Node(_) => true });
            prop_assert!(liveness.poll_deadline().is_some() || liveness.nodes().next().is_none());
        }
    }
}
