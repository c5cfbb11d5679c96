//! All remote nodes and what follows for their clusters.
//!
//! Costs: a packet is O(log n) to find its peer and moves no timer; a timer is O(log n). Silence is judged lazily, when
//! its timer fires, against what was heard meanwhile.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use hawser_model::{ClusterHealth, ClusterId, Time};

use crate::peer::Peer;
use crate::{Because, LivenessConfig, NodeId, PeerSnapshot};

/// What a verdict is about. A node comes before its cluster when both change at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    Node(NodeId),
    Cluster(ClusterId),
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => node.fmt(f),
            Self::Cluster(cluster) => write!(f, "cluster {cluster}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    pub about: About,
    pub from: ClusterHealth,
    pub to: ClusterHealth,
    pub because: Because,
    pub at: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a request with this nonce, then say so with [`Liveness::handle_sent`].
    Send {
        to: NodeId,
        nonce: u64,
        hears_you: bool,
    },
    Changed(Transition),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    Probe,
    Silence,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    pub at: Time,
    pub timer: Timer,
    pub node: NodeId,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cluster {
    nodes: u32,
    up: u32,
    down: u32,
    unknown: u32,
    verdict: ClusterHealth,
    since: Time,
}

/// The liveness of every remote node this one has a tunnel to.
#[derive(Debug)]
pub struct Liveness {
    config: LivenessConfig,
    /// High half of every nonce: replies to an earlier run of this process answer nothing.
    salt: u32,
    peers: BTreeMap<NodeId, Peer>,
    clusters: BTreeMap<ClusterId, Cluster>,
    timers: BTreeSet<(Time, Timer, NodeId)>,
    outputs: VecDeque<Output>,
}

impl Liveness {
    pub fn new(config: LivenessConfig, salt: u32) -> Self {
        Self {
            config,
            salt,
            peers: BTreeMap::new(),
            clusters: BTreeMap::new(),
            timers: BTreeSet::new(),
            outputs: VecDeque::new(),
        }
    }

    /// A tunnel to this node exists: probing begins. Known nodes keep their state.
    pub fn handle_peer(&mut self, node: NodeId, now: Time) {
        if self.peers.contains_key(&node) {
            return;
        }
        let peer = Peer::new(now);
        self.timers.insert((now, Timer::Probe, node));
        self.timers.insert((peer.silent_at(&self.config), Timer::Silence, node));
        self.peers.insert(node, peer);
        let new = || Cluster { since: now, ..Cluster::default() };
        let cluster = self.clusters.entry(node.cluster).or_insert_with(new);
        cluster.nodes += 1;
        cluster.unknown += 1;
        self.handle_time(now);
    }

    /// The tunnel is gone, and with it the verdict.
    pub fn handle_peer_gone(&mut self, node: NodeId, now: Time) {
        let Some(peer) = self.peers.remove(&node) else { return };
        self.timers.retain(|(_, _, of)| *of != node);
        self.outputs.retain(|output| !matches!(output, Output::Send { to, .. } if *to == node));
        if let Some(cluster) = self.clusters.get_mut(&node.cluster) {
            cluster.nodes -= 1;
            *cluster.count(peer.verdict) -= 1;
        }
        self.judge_cluster(node, now);
        if self.clusters.get(&node.cluster).is_some_and(|cluster| cluster.nodes == 0) {
            self.clusters.remove(&node.cluster);
        }
    }

    /// The probe that [`Output::Send`] asked for left at `now`.
    pub fn handle_sent(&mut self, to: NodeId, nonce: u64, now: Time) {
        if let (Some(sequence), Some(peer)) = (self.sequence(nonce), self.peers.get_mut(&to)) {
            peer.sent(sequence, now);
        }
    }

    /// A request came from `from`. Whether it is to be answered: only nodes with a tunnel are.
    pub fn handle_request(&mut self, from: NodeId, hears_us: bool, now: Time) -> bool {
        let Some(peer) = self.peers.get_mut(&from) else { return false };
        if hears_us {
            peer.heard(now);
        }
        true
    }

    /// A reply came from `from`. False when it answers nothing that was asked.
    pub fn handle_reply(&mut self, from: NodeId, nonce: u64, now: Time) -> bool {
        let Some(sequence) = self.sequence(nonce) else { return false };
        let Some(peer) = self.peers.get_mut(&from) else { return false };
        if !peer.replied(sequence, now) {
            return false;
        }
        if let Some((to, because)) = peer.verdict_after_reply(&self.config) {
            self.change(from, to, because, now);
        }
        true
    }

    /// Fires every timer that is due. Intervals that were slept through are not made up for.
    pub fn handle_time(&mut self, now: Time) {
        while let Some((at, timer, node)) = self.timers.first().copied().filter(|(at, ..)| *at <= now) {
            self.timers.remove(&(at, timer, node));
            match timer {
                Timer::Probe => self.probe(node, at, now),
                Timer::Silence => self.judge_silence(node, now),
            }
        }
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn poll_deadline(&self) -> Option<Deadline> {
        self.timers.first().map(|(at, timer, node)| Deadline { at: *at, timer: *timer, node: *node })
    }

    pub fn node(&self, node: NodeId) -> Option<PeerSnapshot> {
        self.peers.get(&node).map(Peer::snapshot)
    }

    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, PeerSnapshot)> {
        self.peers.iter().map(|(node, peer)| (*node, peer.snapshot()))
    }

    /// A cluster's verdict and since when it holds.
    pub fn cluster(&self, cluster: ClusterId) -> (ClusterHealth, Option<Time>) {
        self.clusters.get(&cluster).map_or((ClusterHealth::Unknown, None), |c| (c.verdict, Some(c.since)))
    }

    pub fn clusters(&self) -> impl Iterator<Item = (ClusterId, ClusterHealth, Time)> {
        self.clusters.iter().map(|(id, cluster)| (*id, cluster.verdict, cluster.since))
    }

    fn probe(&mut self, node: NodeId, due: Time, now: Time) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let hears_you = peer.verdict != ClusterHealth::Down;
        let first = due == now && peer.snapshot().heard.is_none();
        let sequence = peer.ask(now);
        let nonce = u64::from(self.salt) << 32 | u64::from(sequence);
        self.outputs.push_back(Output::Send { to: node, nonce, hears_you });
        // Nodes that came together part ways after their first probe, so that a large mesh is not asked in bursts.
        let step = match first {
            true => self.config.interval / 2 + self.config.interval / 2 * (spread(node) + 1) / 257,
            false => self.config.interval,
        };
        let on_beat = due + step;
        let next = if on_beat > now { on_beat } else { now + step };
        self.timers.insert((next, Timer::Probe, node));
    }

    fn judge_silence(&mut self, node: NodeId, now: Time) {
        let Some(peer) = self.peers.get(&node) else { return };
        let verdict = peer.verdict_of_silence(&self.config, now);
        let silent_at = peer.silent_at(&self.config);
        if let Some((to, because)) = verdict {
            self.change(node, to, because, now);
        }
        // Not silent yet: look again when it would be. Silent, down or not asked often enough: after the next probe.
        let next = if silent_at > now { silent_at } else { now + self.config.interval };
        self.timers.insert((next, Timer::Silence, node));
    }

    fn change(&mut self, node: NodeId, to: ClusterHealth, because: Because, now: Time) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let from = peer.verdict;
        peer.set(to, now);
        self.outputs.push_back(Output::Changed(Transition {
            about: About::Node(node),
            from,
            to,
            because,
            at: now,
        }));
        if let Some(cluster) = self.clusters.get_mut(&node.cluster) {
            *cluster.count(from) -= 1;
            *cluster.count(to) += 1;
        }
        self.judge_cluster(node, now);
    }

    /// `node` is the one whose change made this necessary.
    fn judge_cluster(&mut self, node: NodeId, now: Time) {
        let Some(cluster) = self.clusters.get_mut(&node.cluster) else { return };
        let (to, because) = match *cluster {
            Cluster { nodes: 0, .. } => (ClusterHealth::Unknown, Because::NoNodes),
            Cluster { up: 1.., .. } => (ClusterHealth::Up, Because::NodeUp(node.index)),
            Cluster { nodes, down, .. } if nodes == down => (ClusterHealth::Down, Because::AllNodesDown),
            // Some have not answered yet: no ground for another verdict than the last one.
            Cluster { verdict, .. } => (verdict, Because::AllNodesDown),
        };
        let from = cluster.verdict;
        if from == to {
            return;
        }
        cluster.verdict = to;
        cluster.since = now;
        let about = About::Cluster(node.cluster);
        self.outputs.push_back(Output::Changed(Transition { about, from, to, because, at: now }));
    }

    fn sequence(&self, nonce: u64) -> Option<u32> {
        ((nonce >> 32) as u32 == self.salt).then_some(nonce as u32)
    }
}

impl Cluster {
    fn count(&mut self, verdict: ClusterHealth) -> &mut u32 {
        match verdict {
            ClusterHealth::Up => &mut self.up,
            ClusterHealth::Down => &mut self.down,
            ClusterHealth::Unknown => &mut self.unknown,
        }
    }
}

/// 0..=255, different for neighbours: Fibonacci hashing of the numbers.
fn spread(node: NodeId) -> u32 {
    let key = u32::from(node.cluster.get()) << 16 | u32::from(node.index.get());
    key.wrapping_mul(0x9e37_79b1) >> 24
}
