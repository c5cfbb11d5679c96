//! What speaks about a node besides probes of its liveness: its users' connections, and probes as large as users' packets.
//! Either lowers its weight; neither makes it Down.
//!
//! A node that users hear from is asked [`LivenessConfig::HASTE`] times less often: what came back to them came back. When
//! they fall silent it is asked at once, and its silence counts from what they heard last, so Down comes as soon as without
//! them.
//!
//! Costs: a sample of a node's users is O(1); a large probe to each watched node every [`LARGE_EVERY`].

use std::time::Duration;

use hawser_model::{ClusterHealth, ClusterId, HealthWord, Time};

use super::{About, Liveness, Output};
use crate::bfd::Interval;
use crate::grey::{Grey, Greyness, STEPS, Users, Why};
use crate::path::Path;
use crate::peer::Peer;
use crate::sbfd::{self, Answer, Tag};
use crate::{LivenessConfig, NodeId};

/// Between two large probes of one node.
pub const LARGE_EVERY: Duration = Duration::from_secs(10);
/// When the last one was not answered.
const LARGE_AGAIN: Duration = Duration::from_secs(1);
/// Large probes in a row without an answer, at the least; more on a path that loses some.
const LARGE_LOST: u32 = 4;
/// Answered in a row, they end it.
const LARGE_ANSWERED: u32 = 3;
/// IPv4 and UDP around a probe.
const HEADERS: u16 = 20 + 8;
/// Sets the tags of large probes apart.
const LARGE_SALT: u16 = 0x8000;

/// The large probes of one node.
#[derive(Clone, Debug)]
pub(crate) struct Large {
    path: Path,
    asked: Option<Time>,
    lost: bool,
}

impl Large {
    pub(crate) fn new() -> Self {
        Self { path: Path::new(), asked: None, lost: false }
    }
}

impl Peer {
    /// The weight that follows, and why.
    fn greyness(&self, octets: u16) -> (u16, Why) {
        let by_users =
            self.grey.as_ref().map_or((HealthWord::FULL_WEIGHT, Why::Well), |g| (g.weight(), g.why));
        match self.large.lost {
            true => (STEPS[STEPS.len() - 1], Why::BlackHole { octets }),
            false => by_users,
        }
    }

    /// How much longer than a silent node it may wait for its next probe.
    pub(crate) fn patience_of_users(&self) -> u32 {
        if self.by_users && !self.hasty { LivenessConfig::HASTE } else { 1 }
    }
}

impl Liveness {
    /// The counters of the users' connections to a node, as they are now. They are to be sampled twice in an interval
    /// ([`LivenessConfig::sampling`]) while they change, and once more when they do not.
    pub fn handle_users(&mut self, node: NodeId, users: Users, now: Time) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(grey) = &mut peer.grey else {
            peer.grey = Some(Box::new(Grey::new(users, now)));
            return;
        };
        let seen = grey.look(users, now);
        if seen.used {
            peer.used = Some(now);
        }
        let up = peer.raw == ClusterHealth::Up;
        let alive = seen.alive_since.filter(|_| up);
        peer.heard = peer.heard.max(alive);
        let silent = std::mem::replace(&mut peer.by_users, alive.is_some()) && alive.is_none();
        let stepped = up && grey.judge(now);
        if silent {
            self.hurry(node, now);
        }
        if stepped {
            self.weigh(node, now);
        }
    }

    /// Once a second: steps back up, which no sample has to bring.
    pub(super) fn look_at_greys(&mut self, now: Time) {
        let mut lowered = Vec::new();
        for (node, peer) in &mut self.peers {
            let grey = peer.grey.as_mut().filter(|_| peer.raw == ClusterHealth::Up);
            if grey.is_some_and(|grey| grey.judge(now)) || peer.weight < HealthWord::FULL_WEIGHT {
                lowered.push(*node);
            }
        }
        lowered.into_iter().for_each(|node| self.weigh(node, now));
    }

    /// A probe of its liveness leaves, and with it a large one when that is due.
    pub(super) fn ask_large(&mut self, node: NodeId, now: Time) {
        let config = self.config;
        let salt = self.salt ^ LARGE_SALT;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(octets) = peer.largest(&config) else { return };
        if peer.raw != ClusterHealth::Up || peer.hasty || !peer.counts() {
            return;
        }
        let lost = peer.large.path.unanswered(config.interval.max(LARGE_AGAIN / 2), now);
        let every = if lost > 0 || peer.large.lost { LARGE_AGAIN } else { LARGE_EVERY };
        if peer.large.asked.is_some_and(|at| now.since(at) < every) {
            return;
        }
        let judged = lost >= peer.multiplier(&config).max(LARGE_LOST) && !peer.large.lost;
        peer.large.lost |= judged;
        peer.large.asked = Some(now);
        let tag = Tag::new(salt, peer.large.path.ask(now));
        let probe = sbfd::probe(tag, peer.address, true, Interval::from_micros(0), config.multiplier);
        let padding = octets.saturating_sub(HEADERS + crate::bfd::ControlPacket::LEN as u16);
        self.outputs.push_back(Output::Send { to: node, address: peer.address, probe, padding });
        // It has its place in the budget, though it does not wait for it: there are few.
        self.for_watched.reserve(now);
        if judged {
            self.weigh(node, now);
        }
    }

    /// Whether the packet answers a large probe of this node.
    pub(super) fn answers_large(
        &mut self,
        from: NodeId,
        packet: &crate::bfd::ControlPacket,
        now: Time,
    ) -> bool {
        let Some(peer) = self.peers.get_mut(&from) else { return false };
        let Some(Answer::Up(tag) | Answer::AdminDown(tag)) =
            sbfd::answer(packet, peer.address, self.salt ^ LARGE_SALT)
        else {
            return false;
        };
        if !peer.large.path.answered(tag.low, now) {
            return false;
        }
        if peer.large.lost && peer.large.path.streak >= LARGE_ANSWERED {
            peer.large = Large::new();
            self.weigh(from, now);
        }
        true
    }

    /// Its liveness is another one: what was known of its connections and large packets is about another time.
    pub(super) fn forget_evidence(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.large = Large::new();
        (peer.by_users, peer.weight, peer.apart) = (false, HealthWord::FULL_WEIGHT, false);
        if let Some(grey) = &mut peer.grey {
            grey.forget();
        }
    }

    /// Says a node's weight when it is another one, and its cluster's.
    fn weigh(&mut self, node: NodeId, now: Time) {
        let config = self.config;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let octets = peer.largest(&config).unwrap_or_default();
        let (weight, why) = peer.greyness(octets);
        let before = std::mem::replace(&mut peer.weight, weight);
        if before != weight {
            peer.apart &= before < weight && weight < HealthWord::FULL_WEIGHT;
            self.outputs.push_back(Output::Grey(Greyness { node, weight, why, at: now }));
        }
        self.weigh_cluster(node, now);
    }

    /// A cluster weighs as much as the best of its nodes that anything is known of besides that they answer.
    pub(super) fn weigh_cluster(&mut self, node: NodeId, now: Time) {
        let known = |peer: &Peer| {
            let said = peer.grey.as_ref().is_some_and(|grey| grey.is_evidence(now));
            let lowered = peer.weight < HealthWord::FULL_WEIGHT && !peer.apart;
            peer.raw == ClusterHealth::Up && (said || lowered)
        };
        let weights = self.of_cluster(node).filter(|(_, peer)| known(peer)).map(|(_, peer)| peer.weight);
        let weight = weights.max().unwrap_or(HealthWord::FULL_WEIGHT);
        let before = match weight {
            HealthWord::FULL_WEIGHT => self.lowered.remove(&node.cluster),
            weight => self.lowered.insert(node.cluster, weight),
        };
        let up = self.clusters.get(&node.cluster).is_some_and(|c| c.verdict() == ClusterHealth::Up);
        if up && before.unwrap_or(HealthWord::FULL_WEIGHT) != weight {
            let about = About::Cluster(node.cluster);
            let weight = self.weight(about, now);
            self.outputs.push_back(Output::Weight { about, weight });
        }
    }

    /// Of its slow start and of what is known besides its liveness, the lower one.
    pub(super) fn weight(&self, about: About, now: Time) -> u16 {
        let damping = self.damping(about);
        let (damped, lowered) = match about {
            About::Node(node) => {
                (self.peers.get(&node).map(|p| &p.damped), self.peers.get(&node).map(|p| p.weight))
            }
            About::Cluster(id) => (self.clusters.get(&id), self.lowered.get(&id).copied()),
        };
        let full = HealthWord::FULL_WEIGHT;
        damped.map_or(full, |damped| damped.weight(&damping, now)).min(lowered.unwrap_or(full))
    }

    /// Clusters whose weight is lowered, for status.
    pub fn lowered(&self) -> impl Iterator<Item = (ClusterId, u16)> {
        self.lowered.iter().map(|(id, weight)| (*id, *weight))
    }
}
