//! Whatever comes, in whatever order and at whatever time: no panic, and verdicts that follow from the nodes'.

use hawser_model::ClusterHealth::{Down, Unknown, Up};
use proptest::prelude::*;

use super::*;
use crate::About;

#[derive(Clone, Debug)]
enum Event {
    Peer(NodeId),
    Gone(NodeId),
    Request(NodeId, bool),
    ReplyToNewest(NodeId),
    Forged(NodeId, u64),
    Time,
}

fn any_node() -> impl Strategy<Value = NodeId> {
    (1_u32..4, 1_u32..4).prop_map(|(cluster, index)| node(cluster, index))
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        any_node().prop_map(Event::Peer),
        any_node().prop_map(Event::Gone),
        (any_node(), any::<bool>()).prop_map(|(n, hears)| Event::Request(n, hears)),
        any_node().prop_map(Event::ReplyToNewest),
        (any_node(), any::<u64>()).prop_map(|(n, nonce)| Event::Forged(n, nonce)),
        Just(Event::Time),
        Just(Event::Time),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn cluster_verdicts_follow_their_nodes(
        // Steps of time, some backwards: -500..=4000 ms.
        events in prop::collection::vec((event(), 0_u64..4_500), 0..200),
    ) {
        let mut liveness = Liveness::new(LivenessConfig::default(), 9);
        let mut newest = std::collections::BTreeMap::new();
        let mut now_ms: u64 = 100_000;
        let mut last = std::collections::BTreeMap::new();
        for (event, step) in events {
            now_ms = (now_ms + step).saturating_sub(500);
            let now = ms(now_ms);
            match event {
                Event::Peer(n) => liveness.handle_peer(n, now),
                Event::Gone(n) => liveness.handle_peer_gone(n, now),
                Event::Request(n, hears) => { liveness.handle_request(n, hears, now); }
                Event::ReplyToNewest(n) => {
                    if let Some(nonce) = newest.get(&n) { liveness.handle_reply(n, *nonce, now); }
                }
                Event::Forged(n, nonce) => { liveness.handle_reply(n, nonce, now); }
                Event::Time => liveness.handle_time(now),
            }
            while let Some(output) = liveness.poll_output() {
                match output {
                    Output::Send { to, nonce, .. } => { newest.insert(to, nonce); }
                    Output::Changed(t) => {
                        prop_assert_ne!(t.from, t.to);
                        let of_life = last.insert(t.about, t.to).unwrap_or(Unknown);
                        if let About::Cluster(_) = t.about { prop_assert_eq!(of_life, t.from); }
                    }
                }
            }
            for (cluster, verdict, _) in liveness.clusters() {
                let nodes: Vec<_> =
                    liveness.nodes().filter(|(n, _)| n.cluster == cluster).map(|(_, s)| s.verdict).collect();
                prop_assert!(!nodes.is_empty());
                if nodes.contains(&Up) { prop_assert_eq!(verdict, Up); }
                if nodes.iter().all(|v| *v == Down) { prop_assert_eq!(verdict, Down); }
            }
            // Every node has one probe and one silence timer: nothing leaks, nothing is forgotten.
            prop_assert_eq!(liveness.poll_deadline().is_some(), liveness.nodes().next().is_some());
        }
    }
}
