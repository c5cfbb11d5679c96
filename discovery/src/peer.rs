//! One remote node: what was asked, what was heard, and the verdict that follows.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use hawser_model::{ClusterHealth, ClusterId, HealthWord, NodeIndex, Time};

use crate::damping::{Damped, DampingConfig};
use crate::grey::Grey;
use crate::liveness::{Hint, Large};
use crate::path::{Path, multiplier};

/// A node of the mesh by numbers, as health words name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId {
    pub cluster: ClusterId,
    pub index: NodeIndex,
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cluster {} node {}", self.cluster, self.index)
    }
}

/// Where a node answers, and the largest packet that it takes out of the tunnel, as far as it says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reflector {
    pub address: Ipv4Addr,
    pub mtu: Option<u16>,
}

impl From<Ipv4Addr> for Reflector {
    fn from(address: Ipv4Addr) -> Self {
        Self { address, mtu: None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LivenessConfig {
    /// Between two probes of one watched node.
    pub interval: Duration,
    /// Silence of this many intervals is Down; and at least this many unanswered probes.
    pub multiplier: u32,
    /// This many replies to consecutive probes end a Down.
    pub up_after: u32,
    pub damping: DampingConfig,
    /// The largest packet that users can send through the tunnels; with it, probes of that size.
    pub mtu: Option<u16>,
}

impl Default for LivenessConfig {
    fn default() -> Self {
        Self::detecting_in(Duration::from_secs(1), 3)
    }
}

impl LivenessConfig {
    /// A silence of `detection` is Down; meanwhile `multiplier` probes go unanswered, or as many more as the path's loss asks
    /// for.
    pub fn detecting_in(detection: Duration, multiplier: u32) -> Self {
        let interval = detection / multiplier.max(1);
        Self { interval, multiplier, up_after: 3, damping: DampingConfig::default(), mtu: None }
    }

    /// Between two looks at users' connections.
    pub fn sampling(&self) -> Duration {
        self.interval / 2
    }

    /// The silence that is Down, for a watched node whose place in the budget is not stretched.
    pub fn detection(&self) -> Duration {
        self.interval * self.multiplier
    }

    /// A node that owes an answer, or that answers again, is asked this many times as often.
    pub const HASTE: u32 = 4;

    pub(crate) fn hasty(&self) -> Duration {
        self.interval / Self::HASTE
    }

    /// Silence after the probe that was not answered.
    fn grace(&self) -> Duration {
        self.interval * self.multiplier.saturating_sub(1)
    }

    /// The longest that an answer is waited for.
    fn most_patience(&self) -> Duration {
        self.interval * self.multiplier.max(2)
    }
}

/// A node that never answered is given this long at least: its tunnel's first handshake may have to wait for the other end.
const FIRST_ANSWER: Duration = Duration::from_secs(3);

/// Why a verdict changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    FirstReply,
    Replies(u32),
    NeverAnswered(Duration),
    Silent(Duration),
    /// It answered again before, and was held down until it had done so for this long.
    Steady(Duration),
    AllNodesDown,
    NodeUp(NodeIndex),
    NoNodes,
    /// An earlier run said so.
    Left,
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstReply => f.write_str("first reply to a probe"),
            Self::Replies(n) => write!(f, "{n} consecutive replies to probes"),
            Self::NeverAnswered(d) => write!(f, "no reply in {} ms since probing began", d.as_millis()),
            Self::Silent(d) => write!(f, "nothing heard for {} ms", d.as_millis()),
            Self::Steady(d) => write!(f, "steady for {} ms", d.as_millis()),
            Self::AllNodesDown => f.write_str("all its nodes are down"),
            Self::NodeUp(index) => write!(f, "its node {index} is up"),
            Self::NoNodes => f.write_str("it has no nodes left"),
            Self::Left => f.write_str("the agent's last run found it so"),
        }
    }
}

/// A node's liveness as status shows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PeerSnapshot {
    pub verdict: ClusterHealth,
    pub since: Time,
    pub rtt_last: Option<Duration>,
    pub rtt_smoothed: Option<Duration>,
    pub heard: Option<Time>,
    /// Of recent probes, 0.0..=1.0.
    pub loss: f64,
    /// How many unanswered probes make it down, as the path is now.
    pub multiplier: u32,
    /// Said by its reflector: out of service on purpose, so the last verdict is kept for as long as it says so.
    pub admin_down: bool,
    /// In 256ths: less than all of it while users fail or large packets do not arrive.
    pub weight: u16,
    /// Users heard of it since the last look at their connections: it is asked less often.
    pub by_users: bool,
}

/// Of a node that is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) weight: u16,
    /// Its cluster had all of its weight nevertheless.
    pub(crate) apart: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) address: Ipv4Addr,
    /// Of its end of the tunnel.
    pub(crate) mtu: Option<u16>,
    pub(crate) path: Path,
    /// What the probes say at this moment.
    pub(crate) raw: ClusterHealth,
    /// What is said outside.
    pub(crate) damped: Damped,
    began: Time,
    pub(crate) heard: Option<Time>,
    admin_down: bool,
    /// What users' connections to it came to, once there were any.
    pub(crate) grey: Option<Box<Grey>>,
    /// Users heard of it since the last look at their connections.
    pub(crate) by_users: bool,
    pub(crate) large: Large,
    /// In 256ths, as it was last said.
    pub(crate) weight: u16,
    /// What an earlier run left, until the first reply.
    pub(crate) left: Option<Left>,
    /// Its weight says nothing of its cluster's, which an earlier run left alone.
    pub(crate) apart: bool,
    pub(crate) used: Option<Time>,
    /// Asked at the full rate; else as the rest of the budget allows.
    pub(crate) watched: bool,
    /// Asked in this node's part of what its cluster's nodes watch for each other.
    pub(crate) shared: bool,
    /// What the others say of it.
    pub(crate) hint: Hint,
    /// Of the sample that speaks for the unwatched rest of its cluster, since then.
    pub(crate) sampled: Option<Time>,
    /// Owes an answer, or just began to answer again: asked in haste.
    pub(crate) hasty: bool,
    pub(crate) next_probe: Time,
    pub(crate) next_silence: Time,
    /// Its next probe has its place in the budget.
    pub(crate) granted: bool,
}

impl Peer {
    pub(crate) fn new(at: Reflector, now: Time) -> Self {
        Self {
            address: at.address,
            mtu: at.mtu,
            path: Path::new(),
            raw: ClusterHealth::Unknown,
            damped: Damped::new(now),
            began: now,
            heard: None,
            admin_down: false,
            grey: None,
            by_users: false,
            large: Large::new(),
            weight: HealthWord::FULL_WEIGHT,
            left: None,
            apart: false,
            used: None,
            watched: false,
            shared: false,
            hint: Hint::None,
            sampled: None,
            hasty: false,
            next_probe: now,
            next_silence: now,
            granted: false,
        }
    }

    /// Whether its verdict is fresh enough to speak for its cluster.
    pub(crate) fn counts(&self) -> bool {
        self.watched || self.sampled.is_some()
    }

    /// Others find it Down, and it has not answered here since.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.hint == Hint::Open && self.raw == ClusterHealth::Up
    }

    /// As large as users' packets can be: what both ends take.
    pub(crate) fn largest(&self, config: &LivenessConfig) -> Option<u16> {
        config.mtu.map(|own| self.mtu.map_or(own, |theirs| own.min(theirs)))
    }

    pub(crate) fn is_new(&self) -> bool {
        self.heard.is_none() && !self.hasty
    }

    /// The raw verdict that a reply brings, if it changes anything.
    pub(crate) fn replied(
        &mut self,
        admin_down: bool,
        config: &LivenessConfig,
        now: Time,
    ) -> Option<(ClusterHealth, Because)> {
        self.heard = Some(now);
        self.admin_down = admin_down;
        self.hasty = self.raw == ClusterHealth::Down && !admin_down;
        let verdict = match self.raw {
            // Neither a sign of life of the data path's end nor of its death: the last verdict is kept.
            _ if admin_down => None,
            ClusterHealth::Unknown => Some((ClusterHealth::Up, Because::FirstReply)),
            ClusterHealth::Down if self.path.streak >= config.up_after => {
                Some((ClusterHealth::Up, Because::Replies(self.path.streak)))
            }
            ClusterHealth::Down | ClusterHealth::Up => None,
        };
        if verdict.is_some() {
            self.hasty = false;
        }
        verdict
    }

    fn patience(&self, config: &LivenessConfig) -> Duration {
        self.path.patience(config.hasty(), config.most_patience())
    }

    /// When it begins to owe an answer: the probe after the last answer had its time.
    pub(crate) fn suspect_at(&self, base: Duration, config: &LivenessConfig) -> Time {
        let owes = self.heard.unwrap_or(self.began) + base + self.patience(config);
        // A sample is asked now, however long ago its turn was.
        self.sampled.map_or(owes, |since| owes.min(since))
    }

    /// When silence is long enough.
    pub(crate) fn silent_at(&self, base: Duration, config: &LivenessConfig) -> Time {
        let silent = match self.heard {
            Some(heard) => heard + base + config.grace(),
            None => self.began + (base + config.grace()).max(FIRST_ANSWER),
        };
        match self.sampled {
            Some(since) if self.heard.is_none_or(|heard| heard < since) => silent.min(since + config.grace()),
            _ => silent,
        }
    }

    /// The raw verdict that silence brings, if it is long enough and enough was asked meanwhile: an agent that was stopped,
    /// or a machine that slept, asks before it judges.
    pub(crate) fn silent(
        &self,
        base: Duration,
        config: &LivenessConfig,
        now: Time,
    ) -> Option<(ClusterHealth, Because)> {
        let unanswered = self.path.unanswered(self.patience(config), now);
        if self.raw == ClusterHealth::Down
            || now < self.silent_at(base, config)
            || unanswered < self.multiplier(config)
        {
            return None;
        }
        let because = match self.heard {
            Some(heard) => Because::Silent(now.since(heard)),
            None => Because::NeverAnswered(now.since(self.began)),
        };
        Some((ClusterHealth::Down, because))
    }

    pub(crate) fn multiplier(&self, config: &LivenessConfig) -> u32 {
        multiplier(self.path.loss(), config.multiplier)
    }

    pub(crate) fn snapshot(&self, config: &LivenessConfig) -> PeerSnapshot {
        PeerSnapshot {
            verdict: self.damped.verdict(),
            since: self.damped.since(),
            rtt_last: self.path.rtt_last,
            rtt_smoothed: self.path.rtt_smoothed,
            heard: self.heard,
            loss: self.path.loss(),
            multiplier: self.multiplier(config),
            admin_down: self.admin_down,
            weight: self.weight,
            by_users: self.by_users,
        }
    }
}
