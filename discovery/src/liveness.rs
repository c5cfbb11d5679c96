//! All remote nodes and what follows for their clusters.
//!
//! Costs: a packet is O(log n) to find its peer and usually moves no timer; a timer is O(log n); a cluster is judged anew,
//! in O(its nodes), when one of its nodes begins to owe an answer or changes. Silence is judged lazily, when its timer
//! fires, against what was heard meanwhile.

mod evidence;
mod left;
mod sharing;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use hawser_model::{ClusterHealth, ClusterId, NodeIndex, Time};

use crate::bfd::{ControlPacket, Interval, Random};
use crate::budget::{Budget, FOR_OTHERS, FOR_WATCHED, Pacer, budget};
use crate::damping::{Damped, DampingConfig, Said};
use crate::grey::Greyness;
use crate::peer::Peer;
use crate::sbfd::{self, Answer, Tag};
use crate::{Because, LivenessConfig, NodeId, PeerSnapshot, Reflector};

pub use evidence::LARGE_EVERY;
pub(crate) use evidence::Large;
pub(crate) use sharing::Hint;
use sharing::Sharing;
pub use sharing::{MOST_FOUND, STALE as SHARING_STALE, Shared, SharingCounts};

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
    /// In 256ths: what is back begins with little.
    pub weight: u16,
    pub at: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this probe to the reflector there, then say so with [`Liveness::handle_sent`].
    Send {
        to: NodeId,
        address: Ipv4Addr,
        probe: ControlPacket,
        /// Octets behind it: as large as users' packets.
        padding: u16,
    },
    Changed(Transition),
    /// Up, and a step further on its slow way back.
    Weight {
        about: About,
        weight: u16,
    },
    /// Up, but what is known besides makes it weigh more or less.
    Grey(Greyness),
    /// [`Liveness::found`] is another one: the colleagues want to know.
    Found,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    Budget,
    Probe,
    Silence,
    Damping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    pub at: Time,
    pub timer: Timer,
    /// None: all of them.
    pub about: Option<About>,
}

/// How many of a cluster's unwatched nodes are asked before it is given up: its verdict rests on a fresh sample.
pub const SAMPLE: usize = 8;
/// Between two looks at who is used.
const LOOK: Duration = Duration::from_secs(1);

/// The liveness of every remote node this one has a tunnel to.
#[derive(Debug)]
pub struct Liveness {
    config: LivenessConfig,
    /// In every probe's discriminator: replies to an earlier run of this process answer nothing.
    salt: u16,
    random: Random,
    peers: BTreeMap<NodeId, Peer>,
    clusters: BTreeMap<ClusterId, Damped>,
    /// Clusters all of whose nodes that anything is known of weigh less than they could.
    lowered: BTreeMap<ClusterId, u16>,
    timers: BTreeSet<(Time, Timer, Option<About>)>,
    budget: Budget,
    for_watched: Pacer,
    for_others: Pacer,
    sharing: Sharing,
    outputs: VecDeque<Output>,
}

impl Liveness {
    /// `seed` is a random number: of jitter, and of what makes this run's probes its own.
    pub fn new(config: LivenessConfig, seed: u64) -> Self {
        let mut random = Random::seeded(seed);
        Self {
            config,
            salt: random.draw() as u16,
            random,
            peers: BTreeMap::new(),
            clusters: BTreeMap::new(),
            lowered: BTreeMap::new(),
            timers: BTreeSet::new(),
            budget: budget(std::iter::empty(), None, &config, Time::ZERO),
            for_watched: Pacer::new(FOR_WATCHED),
            for_others: Pacer::new(FOR_OTHERS),
            sharing: Sharing::default(),
            outputs: VecDeque::new(),
        }
    }

    /// A tunnel to this node exists: probing begins. Known nodes keep their state.
    pub fn handle_peer(&mut self, node: NodeId, at: impl Into<Reflector>, now: Time) {
        let at = at.into();
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.address = at.address;
            if std::mem::replace(&mut peer.mtu, at.mtu) != at.mtu {
                // What was lost was as large as something else.
                peer.large = Large::new();
            }
            return;
        }
        self.peers.insert(node, Peer::new(at, now));
        self.sharing.meet(node);
        self.clusters.entry(node.cluster).or_insert_with(|| Damped::new(now));
        self.probe_at(node, now);
        self.arm_silence(node, now);
        // Once for many that come together.
        self.timers.insert((now, Timer::Budget, None));
    }

    /// The tunnel is gone, and with it the verdict.
    pub fn handle_peer_gone(&mut self, node: NodeId, now: Time) {
        if self.peers.remove(&node).is_none() {
            return;
        }
        self.sharing.forget(node);
        self.timers.retain(|(_, _, of)| *of != Some(About::Node(node)));
        self.outputs.retain(|output| !matches!(output, Output::Send { to, .. } if *to == node));
        self.judge_cluster(node, now);
        if self.of_cluster(node).next().is_none() {
            self.clusters.remove(&node.cluster);
            self.lowered.remove(&node.cluster);
            self.timers.retain(|(_, _, of)| *of != Some(About::Cluster(node.cluster)));
        }
    }

    /// Users' traffic went there: it is watched for a minute (see [`mod@crate::budget`]).
    pub fn handle_used(&mut self, node: NodeId, now: Time) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.used = Some(now);
        }
    }

    /// The probe that [`Output::Send`] asked for left at `now`.
    pub fn handle_sent(&mut self, to: NodeId, probe: &ControlPacket, now: Time) {
        let tag = Tag::parse(probe.my_discriminator.get(), self.salt);
        if let (Some(tag), Some(peer)) = (tag, self.peers.get_mut(&to)) {
            peer.path.sent(tag.low, now);
        }
    }

    /// A packet came from `from`'s reflector. False when it answers nothing that was asked.
    pub fn handle_packet(&mut self, from: NodeId, packet: &ControlPacket, now: Time) -> bool {
        let Some(peer) = self.peers.get_mut(&from) else { return false };
        let (tag, admin_down) = match sbfd::answer(packet, peer.address, self.salt) {
            Some(Answer::Up(tag)) => (tag, false),
            Some(Answer::AdminDown(tag)) => (tag, true),
            None => return self.answers_large(from, packet, now),
        };
        if !peer.path.answered(tag.low, now) {
            return false;
        }
        let was_down = peer.raw == ClusterHealth::Down;
        let verdict = peer.replied(admin_down, &self.config, now);
        if let Some((to, because)) = verdict {
            self.see(from, to, because, now);
        } else if was_down && !admin_down {
            self.hurry(from, now + self.config.hasty());
        }
        if was_down && verdict.is_some() {
            self.arm_silence(from, now);
        }
        self.refute(from, now);
        self.raise(from, now);
        true
    }

    /// Fires every timer that is due. Intervals that were slept through are not made up for.
    pub fn handle_time(&mut self, now: Time) {
        while let Some((at, timer, about)) = self.timers.first().copied().filter(|(at, ..)| *at <= now) {
            self.timers.remove(&(at, timer, about));
            match (timer, about) {
                (Timer::Probe, Some(About::Node(node))) => self.probe(node, now),
                (Timer::Silence, Some(About::Node(node))) => self.judge_silence(node, now),
                (Timer::Damping, Some(about)) => self.settle(about, now),
                (Timer::Budget, _) => self.look(now),
                (Timer::Probe | Timer::Silence | Timer::Damping, _) => {}
            }
        }
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn poll_deadline(&self) -> Option<Deadline> {
        self.timers.first().map(|(at, timer, about)| Deadline { at: *at, timer: *timer, about: *about })
    }

    pub fn node(&self, node: NodeId) -> Option<PeerSnapshot> {
        self.peers.get(&node).map(|peer| peer.snapshot(&self.config))
    }

    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, PeerSnapshot)> {
        self.peers.iter().map(|(node, peer)| (*node, peer.snapshot(&self.config)))
    }

    pub fn clusters(&self) -> impl Iterator<Item = (ClusterId, ClusterHealth, Time)> {
        self.clusters.iter().map(|(id, cluster)| (*id, cluster.verdict(), cluster.since()))
    }

    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    fn base(&self, peer: &Peer) -> Duration {
        match peer.counts() {
            true => self.budget.interval,
            false if peer.shared => self.budget.interval_of_shared,
            false => self.budget.interval_of_others,
        }
    }

    /// The nodes of this one's cluster, itself among them.
    fn of_cluster(&self, node: NodeId) -> impl Iterator<Item = (NodeId, &Peer)> {
        // Nodes are in the order of their clusters, and no index is lower than 1.
        let first = NodeIndex::new(1).map_or(node, |index| NodeId { index, ..node });
        let nodes = self.peers.range(first..).take_while(move |(id, _)| id.cluster == node.cluster);
        nodes.map(|(id, peer)| (*id, peer))
    }

    fn damping(&self, about: About) -> DampingConfig {
        match about {
            // Backends are chosen by cluster weight; a node takes its part of them or nothing.
            About::Node(_) => DampingConfig { slow_start: Duration::ZERO, ..self.config.damping },
            About::Cluster(_) => self.config.damping,
        }
    }

    fn damped(&mut self, about: About) -> Option<&mut Damped> {
        match about {
            About::Node(node) => self.peers.get_mut(&node).map(|peer| &mut peer.damped),
            About::Cluster(cluster) => self.clusters.get_mut(&cluster),
        }
    }

    /// Sends, or waits for the place that the budget has for it.
    fn probe(&mut self, node: NodeId, now: Time) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if !std::mem::take(&mut peer.granted) {
            let counts = peer.counts() && !self.sharing.asks(node);
            let pacer = if counts { &mut self.for_watched } else { &mut self.for_others };
            let place = pacer.reserve(now);
            if place > now {
                self.probe_at(node, place);
                self.grant(node);
                return;
            }
        }
        let Some(peer) = self.peers.get(&node) else { return };
        let (base, hasty, new) = (self.base(peer), peer.hasty, peer.is_new());
        let interval = if hasty { self.config.hasty() } else { base * peer.patience_of_users() };
        let micros = u32::try_from(interval.as_micros()).unwrap_or(u32::MAX);
        // RFC 5880 §6.8.7. Nodes that came together part ways after their first probe, so that no mesh is asked in bursts.
        let least = if new { 500 } else { 750 };
        let next = now + interval * self.random.between(least, 1_000) / 1_000;
        let next = if hasty { next } else { self.together(next, now + interval * least / 1_000) };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let tag = Tag::new(self.salt, peer.path.ask(now));
        let up = peer.raw == ClusterHealth::Up;
        let probe = sbfd::probe(tag, peer.address, up, Interval::from_micros(micros), self.config.multiplier);
        self.outputs.push_back(Output::Send { to: node, address: peer.address, probe, padding: 0 });
        self.probe_at(node, next);
        self.ask_large(node, now);
    }

    /// What is in no hurry leaves at common moments, a sixteenth of an interval apart: each time that this process is woken, the
    /// engine and the process at the other end, serves several probes. Rather earlier than later, but not before `least`.
    fn together(&self, at: Time, least: Time) -> Time {
        let apart = self.config.interval / 16;
        let past = at.since_start().as_nanos() % apart.as_nanos().max(1);
        let past = Duration::from_nanos(u64::try_from(past).unwrap_or_default());
        let moment = Time::from_duration(at.since_start() - past);
        if moment >= least { moment } else { moment + apart }
    }

    fn probe_at(&mut self, node: NodeId, at: Time) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let about = Some(About::Node(node));
        self.timers.remove(&(peer.next_probe, Timer::Probe, about));
        peer.next_probe = at;
        self.timers.insert((at, Timer::Probe, about));
    }

    fn grant(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.granted = true;
        }
    }

    /// The next probe comes no later than this, unless its place in the budget is later.
    fn hurry(&mut self, node: NodeId, by: Time) {
        if self.peers.get(&node).is_some_and(|peer| peer.next_probe > by && !peer.granted) {
            self.probe_at(node, by);
        }
    }

    fn arm_silence(&mut self, node: NodeId, now: Time) {
        if let Some(peer) = self.peers.get(&node) {
            let at = peer.suspect_at(self.base(peer), &self.config).max(now);
            self.silence_at(node, at);
        }
    }

    fn silence_at(&mut self, node: NodeId, at: Time) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let about = Some(About::Node(node));
        self.timers.remove(&(peer.next_silence, Timer::Silence, about));
        peer.next_silence = at;
        self.timers.insert((at, Timer::Silence, about));
    }

    /// A node that is down is not judged again before it is up.
    fn judge_silence(&mut self, node: NodeId, now: Time) {
        let Some(peer) = self.peers.get(&node).filter(|peer| peer.raw != ClusterHealth::Down) else { return };
        let base = self.base(peer);
        if let Some((to, because)) = peer.silent(base, &self.config, now) {
            self.see(node, to, because, now);
            return;
        }
        let suspect_at = peer.suspect_at(base, &self.config);
        if suspect_at > now {
            self.silence_at(node, suspect_at);
            return;
        }
        let silent_at = peer.silent_at(base, &self.config);
        let owed = peer.hasty;
        // Long enough, but not asked often enough: after the next probe.
        self.silence_at(node, if silent_at > now { silent_at } else { now + self.config.hasty() / 2 });
        if !owed {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.hasty = true;
            }
            self.hurry(node, now);
            self.sample(node, now);
        }
    }

    /// Once every watched node of a cluster owes an answer, some of the others are asked: they speak for the rest.
    fn sample(&mut self, node: NodeId, now: Time) {
        let (mut watched, mut sampled, mut others) = (0, 0, Vec::new());
        for (id, peer) in self.of_cluster(node) {
            if peer.watched && !peer.hasty && peer.raw != ClusterHealth::Down {
                return;
            }
            watched += usize::from(peer.watched);
            sampled += usize::from(peer.sampled.is_some());
            if !peer.counts() && peer.raw != ClusterHealth::Down {
                others.push(id);
            }
        }
        while watched > 0 && sampled < SAMPLE && !others.is_empty() {
            let last = u32::try_from(others.len() - 1).unwrap_or(u32::MAX);
            let drawn = others.swap_remove(self.random.between(0, last) as usize);
            sampled += 1;
            if let Some(peer) = self.peers.get_mut(&drawn) {
                peer.sampled = Some(now);
            }
            self.silence_at(drawn, now);
        }
    }

    /// The raw verdict about a node is another one.
    fn see(&mut self, node: NodeId, to: ClusterHealth, because: Because, now: Time) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let from = std::mem::replace(&mut peer.raw, to);
        peer.hasty = false;
        peer.path.begin_streak();
        let left = peer.left.take().filter(|_| (from, to) == (ClusterHealth::Unknown, ClusterHealth::Up));
        self.forget_evidence(node);
        if let Some(left) = left {
            self.take_weight_over(node, left, now);
        }
        if to == ClusterHealth::Down {
            self.confirm(node);
            self.end_question(node, now);
        }
        self.say(About::Node(node), Some(to), because, now);
        if left.is_some() {
            self.say_left_weight(node, now);
        }
        self.judge_cluster(node, now);
        self.weigh_cluster(node, now);
    }

    /// A node outside of the sample answered while its cluster is down: now it speaks too.
    fn raise(&mut self, node: NodeId, now: Time) {
        let down = self.clusters.get(&node.cluster).is_some_and(|c| c.verdict() == ClusterHealth::Down);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if down && !peer.counts() && peer.raw == ClusterHealth::Up {
            peer.sampled = Some(now);
            self.judge_cluster(node, now);
        }
    }

    /// `node` is the one whose change made this necessary.
    fn judge_cluster(&mut self, node: NodeId, now: Time) {
        // A cluster of which nothing is watched is judged by all its nodes.
        let all = !self.of_cluster(node).any(|(_, peer)| peer.watched);
        let (mut nodes, mut up, mut open) = (0, None, false);
        let (mut sampled, mut others) = (0, 0);
        let (mut doubtful, mut confirmed) = (0, 0);
        for (id, peer) in self.of_cluster(node) {
            nodes += 1;
            confirmed += usize::from(peer.hint == Hint::Confirmed);
            others +=
                usize::from(peer.sampled.is_some() || (!peer.watched && peer.raw != ClusterHealth::Down));
            // What others find Down speaks for nothing until it answers here.
            if peer.is_doubtful() {
                doubtful += 1;
                continue;
            }
            sampled += usize::from(peer.sampled.is_some());
            if all || peer.counts() {
                open |= peer.raw == ClusterHealth::Unknown;
                // The newest is the reason, where it is one.
                let this = (peer.raw == ClusterHealth::Up).then_some(id.index);
                up = if id == node { this.or(up) } else { up.or(this) };
            }
        }
        let enough = match all {
            true => doubtful == 0 || confirmed >= SAMPLE.min(doubtful + confirmed),
            // Beyond the watched, some were asked as well.
            false => sampled >= SAMPLE.min(others),
        };
        let (to, because) = match up {
            _ if nodes == 0 => (ClusterHealth::Unknown, Because::NoNodes),
            Some(index) => (ClusterHealth::Up, Because::NodeUp(index)),
            None if !open && enough => (ClusterHealth::Down, Because::AllNodesDown),
            // Some have not answered yet: no ground for another verdict than the last one.
            None => return,
        };
        self.say(About::Cluster(node.cluster), Some(to), because, now);
    }

    /// What was held back is due, or the next step of a slow start.
    fn settle(&mut self, about: About, now: Time) {
        let before = self.damped(about).map(|damped| damped.verdict());
        self.say(about, None, Because::Steady(Duration::ZERO), now);
        let Some(damped) = self.damped(about) else { return };
        if before == Some(ClusterHealth::Up) && damped.verdict() == ClusterHealth::Up {
            let weight = self.weight(about, now);
            self.outputs.push_back(Output::Weight { about, weight });
        }
    }

    /// Something was seen, or time has passed: says what follows, and comes back when more will.
    fn say(&mut self, about: About, seen: Option<ClusterHealth>, because: Because, now: Time) {
        let damping = self.damping(about);
        let Some(damped) = self.damped(about) else { return };
        let said = match seen {
            Some(seen) => damped.handle_seen(seen, &damping, now),
            None => damped.handle_time(&damping, now),
        };
        let next = damped.poll_deadline(&damping, now);
        let weight = self.weight(about, now);
        if let Some(Said { from, to, after }) = said {
            let because = if seen.is_none() { Because::Steady(after) } else { because };
            self.outputs.push_back(Output::Changed(Transition { about, from, to, because, weight, at: now }));
        }
        if let Some(at) = next {
            // Later by a little when it should have been: no timer fires twice at one moment.
            self.timers.insert((at.max(now + Duration::from_millis(1)), Timer::Damping, Some(about)));
        }
    }

    /// Who is watched, and how often everybody is asked. O(nodes), once a second.
    fn look(&mut self, now: Time) {
        self.look_at_sharing(now);
        // In one walk: each is a miss of the cache for every node there is.
        let (mut nodes, mut well, mut sampled) = (Vec::new(), BTreeSet::new(), Vec::new());
        for (node, peer) in &self.peers {
            nodes.push((*node, peer.used));
            if peer.watched && !peer.hasty && peer.raw == ClusterHealth::Up {
                well.insert(node.cluster);
            }
            if self.is_idle_sample(*node, peer, now) {
                sampled.push(*node);
            }
        }
        self.budget = budget(nodes.into_iter(), self.sharing.mine(), &self.config, now);
        // In a small mesh all are asked alike, and each verdict is as fresh as the next.
        let alike = self.budget.interval_of_others <= self.budget.interval;
        let used: BTreeSet<_> = self.budget.watched.iter().map(|node| node.cluster).collect();
        let idle: BTreeSet<_> = sampled.into_iter().filter(|node| !used.contains(&node.cluster)).collect();
        let mut sooner = Vec::new();
        for (node, peer) in &mut self.peers {
            let watched = alike || self.budget.watched.contains(node);
            let shared = !watched && self.budget.shared.contains(node);
            if (watched && !peer.watched) || (shared && !peer.shared) {
                sooner.push((
                    *node,
                    if watched { self.budget.interval } else { self.budget.interval_of_shared },
                ));
            }
            (peer.watched, peer.shared) = (watched, shared);
            if watched {
                peer.hint = Hint::None;
            }
            // The watched speak for it again, or it was asked for long enough.
            if watched || well.contains(&node.cluster) || idle.contains(node) {
                peer.sampled = None;
            }
        }
        for (node, interval) in sooner {
            let within = interval * self.random.between(0, 1_000) / 1_000;
            self.hurry(node, now + within);
        }
        self.look_at_greys(now);
        self.find();
        self.timers.retain(|(_, timer, _)| *timer != Timer::Budget);
        if !self.peers.is_empty() {
            self.timers.insert((now + LOOK, Timer::Budget, None));
        }
    }
}
