//! What a cluster's nodes find for each other: each watches its part of all remote nodes ([`Sharers`]) and says which of them
//! are Down.
//!
//! What others say is a hint, never a verdict: it has the node asked here, at once and in haste, and the answer counts. So a
//! sharer that is wrong, cut off or hostile costs probes, as many as the budget has for nodes that nobody uses. A cluster that
//! nobody here uses is Down when others find every node Down that did not answer here, and [`SAMPLE`] of them were asked and
//! are silent.
//!
//! Whoever is not heard for [`STALE`] shares nothing: then each node asks for itself, as without colleagues.
//!
//! Costs: other members O(nodes × members), once when they change; a word O(what it names + nodes that are Down).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use hawser_model::{ClusterHealth, ClusterId, Time};

use super::{Liveness, Output, SAMPLE, Timer};
use crate::peer::Peer;
use crate::{NodeId, Sharers};

/// So long without a word, and nobody shares.
pub const STALE: Duration = Duration::from_secs(15);
/// A node says no more than this finds; what is beyond is found by the others themselves, in their time.
pub const MOST_FOUND: usize = 8_192;
/// Hints that are followed at a time: as many as the budget has haste for.
const AT_ONCE: usize = 32;
/// One that is asked and neither answers nor is judged makes room for the next.
const ENOUGH: Duration = Duration::from_secs(15);

/// What the API server hands on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shared {
    pub sharers: Sharers,
    /// Nodes that some node of this cluster finds Down.
    pub down: BTreeSet<NodeId>,
}

/// What others say about one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Hint {
    #[default]
    None,
    /// Somebody finds it Down, and it has not answered here since.
    Open,
    /// And it was asked here, and is silent.
    Confirmed,
}

/// How the sharing stands, for status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SharingCounts {
    /// Nodes of this cluster that divide the watching; none: each asks for itself.
    pub sharers: usize,
    /// Remote nodes that others find Down.
    pub hinted: usize,
    /// Hints that nodes answered to since start.
    pub refuted: u64,
    pub confirmed: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Sharing {
    shared: Shared,
    heard: Option<Time>,
    /// What this node watches for the others.
    mine: BTreeSet<NodeId>,
    /// Hinted, and not asked yet; and those that are asked.
    queue: VecDeque<NodeId>,
    asked: BTreeSet<NodeId>,
    /// As it was last said.
    found: BTreeSet<NodeId>,
    refuted: u64,
    confirmed: u64,
}

impl Sharing {
    pub(super) fn meet(&mut self, node: NodeId) {
        if self.shared.sharers.is_mine(node) {
            self.mine.insert(node);
        }
    }

    pub(super) fn forget(&mut self, node: NodeId) {
        self.mine.remove(&node);
        self.asked.remove(&node);
        self.queue.retain(|queued| *queued != node);
    }

    /// None: each asks for itself.
    pub(super) fn mine(&self) -> Option<&BTreeSet<NodeId>> {
        (!self.shared.sharers.is_empty()).then_some(&self.mine)
    }

    pub(super) fn asks(&self, node: NodeId) -> bool {
        self.asked.contains(&node)
    }
}

impl Liveness {
    /// A word of the colleagues, each the whole of it. It is to come at least every [`STALE`].
    pub fn handle_shared(&mut self, shared: Shared, now: Time) {
        self.sharing.heard = Some(now);
        let before = std::mem::replace(&mut self.sharing.shared, shared);
        if before.sharers != self.sharing.shared.sharers {
            let sharers = &self.sharing.shared.sharers;
            self.sharing.mine = self.peers.keys().filter(|node| sharers.is_mine(**node)).copied().collect();
            self.timers.insert((now, Timer::Budget, None));
        }
        for node in before.down.difference(&self.sharing.shared.down) {
            self.sharing.asked.remove(node);
            if let Some(peer) = self.peers.get_mut(node) {
                peer.hint = Hint::None;
            }
        }
        let new: Vec<_> = self.sharing.shared.down.difference(&before.down).copied().collect();
        self.take_hints(&new);
        self.doubt(now);
        self.follow_hints(now);
    }

    /// What this node finds Down of what it watches, for itself and for the others. Said with [`Output::Found`] when it is
    /// something else than before. Nothing while every cluster is down: then it is usually this node that is cut off.
    pub fn found(&self) -> &BTreeSet<NodeId> {
        &self.sharing.found
    }

    pub fn sharing(&self) -> SharingCounts {
        let Sharing { shared, refuted, confirmed, .. } = &self.sharing;
        SharingCounts {
            sharers: shared.sharers.len(),
            hinted: shared.down.len(),
            refuted: *refuted,
            confirmed: *confirmed,
        }
    }

    /// Some of each cluster first, drawn at random: they speak for it.
    fn take_hints(&mut self, new: &[NodeId]) {
        let mut clusters: BTreeMap<ClusterId, Vec<NodeId>> = BTreeMap::new();
        for node in new {
            let Some(peer) = self.peers.get_mut(node) else { continue };
            // Its own session says more, and what is Down here needs no hint.
            if !peer.watched && peer.raw != ClusterHealth::Down {
                peer.hint = Hint::Open;
                clusters.entry(node.cluster).or_default().push(*node);
            }
        }
        let (mut first, mut later) = (VecDeque::new(), Vec::new());
        for mut nodes in clusters.into_values() {
            for _ in 0..SAMPLE.min(nodes.len()) {
                let last = u32::try_from(nodes.len() - 1).unwrap_or(u32::MAX);
                first.push_back(nodes.swap_remove(self.random.between(0, last) as usize));
            }
            later.append(&mut nodes);
        }
        first.append(&mut self.sharing.queue);
        first.extend(later);
        self.sharing.queue = first;
    }

    /// What is Down here and nobody else finds so is asked again: it may be back.
    fn doubt(&mut self, now: Time) {
        let Some(mine) = self.sharing.mine() else { return };
        let down = &self.sharing.shared.down;
        let doubted = |(node, peer): (&NodeId, &Peer)| {
            let other = !peer.counts() && !mine.contains(node) && !down.contains(node);
            (other && peer.raw == ClusterHealth::Down).then_some(*node)
        };
        let doubted: Vec<_> = self.peers.iter().filter_map(doubted).collect();
        doubted.into_iter().for_each(|node| self.hurry(node, now));
    }

    /// Asks those whose turn it is.
    pub(super) fn follow_hints(&mut self, now: Time) {
        while self.sharing.asked.len() < AT_ONCE
            && let Some(node) = self.sharing.queue.pop_front()
        {
            let peer = self.peers.get_mut(&node);
            let Some(peer) = peer.filter(|peer| peer.hint == Hint::Open && !peer.watched) else { continue };
            peer.sampled = Some(now);
            self.sharing.asked.insert(node);
            self.silence_at(node, now);
        }
    }

    /// It answered: what others find is not so from here.
    pub(super) fn refute(&mut self, node: NodeId, now: Time) {
        let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.hint != Hint::None) else { return };
        self.sharing.refuted += u64::from(std::mem::take(&mut peer.hint) == Hint::Open);
        self.end_question(node, now);
        self.judge_cluster(node, now);
    }

    /// It is Down here as well.
    pub(super) fn confirm(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.hint == Hint::Open) {
            peer.hint = Hint::Confirmed;
            self.sharing.confirmed += 1;
        }
    }

    /// Whatever came of it: the next one's turn.
    pub(super) fn end_question(&mut self, node: NodeId, now: Time) {
        if !self.sharing.asked.remove(&node) {
            return;
        }
        // Where something is watched, it is part of the sample.
        if !self.of_cluster(node).any(|(_, peer)| peer.watched)
            && let Some(peer) = self.peers.get_mut(&node)
        {
            peer.sampled = None;
        }
        self.follow_hints(now);
    }

    /// Once a second.
    pub(super) fn look_at_sharing(&mut self, now: Time) {
        if self.sharing.heard.is_some_and(|heard| now.since(heard) >= STALE) {
            self.sharing = Sharing { found: std::mem::take(&mut self.sharing.found), ..Sharing::default() };
            self.peers.values_mut().for_each(|peer| peer.hint = Hint::None);
        }
        let enough = |node: &&NodeId| {
            let since = self.peers.get(node).and_then(|peer| peer.sampled);
            since.is_none_or(|since| now.since(since) >= ENOUGH)
        };
        let enough: Vec<_> = self.sharing.asked.iter().filter(enough).copied().collect();
        enough.into_iter().for_each(|node| self.end_question(node, now));
    }

    /// Once a second, after it is known who is watched.
    pub(super) fn find(&mut self) {
        let down = |(node, peer): (&NodeId, &Peer)| {
            (peer.raw == ClusterHealth::Down && (peer.watched || peer.shared)).then_some(*node)
        };
        let cut_off = self.clusters.len() > 1
            && self.clusters.values().all(|cluster| cluster.verdict() == ClusterHealth::Down);
        let found = match cut_off {
            true => BTreeSet::new(),
            false => self.peers.iter().filter_map(down).take(MOST_FOUND).collect(),
        };
        if self.sharing.found != found {
            self.sharing.found = found;
            self.outputs.push_back(Output::Found);
        }
    }

    /// Of a cluster that nobody uses: whether what it was sampled for is long over.
    pub(super) fn is_idle_sample(&self, node: NodeId, peer: &Peer, now: Time) -> bool {
        let since = peer.sampled.is_some_and(|since| now.since(since) >= ENOUGH);
        let judged = || self.clusters.get(&node.cluster).is_some_and(|c| c.verdict() != ClusterHealth::Down);
        since && !peer.hasty && judged() && !self.sharing.asks(node)
    }
}
