//! What an earlier run of the agent left in the kernel goes on until something newer is seen: a restart changes no verdict.
//!
//! What was Down comes back as from any Down, by replies to consecutive probes and the hold-down. A weight that was lowered goes as
//! any other: by rest. Not known any more are how often a path flapped, users' counts of the last seconds, and a slow start's steps.

use std::collections::BTreeMap;

use hawser_model::{ClusterHealth, HealthWord, Time};

use super::{About, Liveness, Output, Transition};
use crate::damping::Damped;
use crate::grey::{Grey, Greyness, Why};
use crate::peer::Left;
use crate::{Because, NodeId};

impl Liveness {
    /// The words that say something of nodes and clusters which have just been met. What was heard of since then is not changed.
    /// O(words × log n).
    pub fn handle_left(&mut self, words: &BTreeMap<About, HealthWord>, now: Time) {
        for (about, word) in words {
            match about {
                About::Node(node) => {
                    let cluster = words.get(&About::Cluster(node.cluster));
                    let apart = cluster.is_none_or(|word| word.weight() == HealthWord::FULL_WEIGHT);
                    self.take_node_over(*node, *word, apart, now);
                }
                About::Cluster(id) if !word.takes_new() => {
                    let known = self.clusters.get_mut(id);
                    if let Some(cluster) = known.filter(|known| known.verdict() == ClusterHealth::Unknown) {
                        *cluster = Damped::left_down(now);
                        self.say_left_down(*about, now);
                    }
                }
                About::Cluster(_) => {}
            }
        }
    }

    fn take_node_over(&mut self, node: NodeId, word: HealthWord, apart: bool, now: Time) {
        let known = self.peers.get_mut(&node);
        let Some(peer) = known.filter(|peer| peer.raw == ClusterHealth::Unknown) else { return };
        if !word.takes_new() {
            (peer.raw, peer.damped) = (ClusterHealth::Down, Damped::left_down(now));
            self.say_left_down(About::Node(node), now);
        } else if word.weight() < HealthWord::FULL_WEIGHT {
            peer.left = Some(Left { weight: word.weight(), apart });
        }
    }

    fn say_left_down(&mut self, about: About, at: Time) {
        let weight = self.weight(about, at);
        let (from, to) = (ClusterHealth::Unknown, ClusterHealth::Down);
        self.outputs.push_back(Output::Changed(Transition {
            about,
            from,
            to,
            because: Because::Left,
            weight,
            at,
        }));
    }

    /// Before it is said to be up: with this weight.
    pub(super) fn take_weight_over(&mut self, node: NodeId, left: Left, now: Time) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let grey = Grey::left(left.weight, now);
        (peer.weight, peer.apart) = (grey.weight(), left.apart);
        peer.grey = Some(Box::new(grey));
    }

    /// And afterwards, as a weight of its own. Its cluster has it before it is said to be up.
    pub(super) fn say_left_weight(&mut self, node: NodeId, at: Time) {
        let Some(peer) = self.peers.get(&node) else { return };
        self.outputs.push_back(Output::Grey(Greyness { node, weight: peer.weight, why: Why::Left, at }));
        self.weigh_cluster(node, at);
    }
}
