//! One remote node: what was asked, what was heard, and the verdict that follows.

use std::fmt;
use std::time::Duration;

use hawser_model::{ClusterHealth, ClusterId, NodeIndex, Time};

/// A node of the mesh by numbers, as probes and health words name it.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LivenessConfig {
    /// Between two probes of one node.
    pub interval: Duration,
    /// Nothing heard for this long is Down.
    pub timeout: Duration,
    /// This many replies to consecutive probes end a Down.
    pub up_after: u32,
}

impl Default for LivenessConfig {
    fn default() -> Self {
        Self { interval: Duration::from_millis(500), timeout: Duration::from_secs(3), up_after: 3 }
    }
}

impl LivenessConfig {
    /// Silence counts only when at least this many probes went unanswered: an agent that was stopped, or a machine that
    /// slept, must ask before it judges.
    pub(crate) const ASKED: u32 = 3;
}

/// Why a verdict changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    FirstReply,
    Replies(u32),
    NeverAnswered(Duration),
    Silent(Duration),
    AllNodesDown,
    NodeUp(NodeIndex),
    NoNodes,
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstReply => f.write_str("first echo reply"),
            Self::Replies(n) => write!(f, "{n} consecutive echo replies"),
            Self::NeverAnswered(d) => write!(f, "no echo reply in {} ms since probing began", d.as_millis()),
            Self::Silent(d) => write!(f, "nothing heard for {} ms", d.as_millis()),
            Self::AllNodesDown => f.write_str("all its nodes are down"),
            Self::NodeUp(index) => write!(f, "its node {index} is up"),
            Self::NoNodes => f.write_str("it has no nodes left"),
        }
    }
}

/// A node's liveness as status shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerSnapshot {
    pub verdict: ClusterHealth,
    pub since: Time,
    pub rtt_last: Option<Duration>,
    pub rtt_smoothed: Option<Duration>,
    pub heard: Option<Time>,
}

/// Probes that a reply may still answer: at 500 ms this covers round trips of 8 s.
const REMEMBERED: u32 = 16;

/// Round trips of which the shortest counts, after a verdict.
const SETTLING: u32 = 4;

#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) verdict: ClusterHealth,
    since: Time,
    began: Time,
    heard: Option<Time>,
    /// Number of the newest probe; the low half of its nonce.
    sequence: u32,
    sent_at: [Time; REMEMBERED as usize],
    /// Bit `n % 16`: probe `n` still waits for its reply.
    waiting: u16,
    asked_since_heard: u32,
    last_answered: Option<u32>,
    streak: u32,
    rtt_last: Option<Duration>,
    rtt_smoothed: Option<Duration>,
    rtt_samples: u32,
}

impl Peer {
    pub(crate) fn new(now: Time) -> Self {
        Self {
            verdict: ClusterHealth::Unknown,
            since: now,
            began: now,
            heard: None,
            sequence: 0,
            sent_at: [Time::ZERO; REMEMBERED as usize],
            waiting: 0,
            asked_since_heard: 0,
            last_answered: None,
            streak: 0,
            rtt_last: None,
            rtt_smoothed: None,
            rtt_samples: 0,
        }
    }

    /// The next probe's number.
    pub(crate) fn ask(&mut self, now: Time) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.asked_since_heard = self.asked_since_heard.saturating_add(1);
        self.waiting |= Self::bit(self.sequence);
        self.sent_at[Self::slot(self.sequence)] = now;
        self.sequence
    }

    /// The probe really left at `now`, which makes the round trip exact.
    pub(crate) fn sent(&mut self, sequence: u32, now: Time) {
        if self.awaits(sequence) {
            self.sent_at[Self::slot(sequence)] = now;
        }
    }

    /// A request from it, by a sender that does not hold us down.
    pub(crate) fn heard(&mut self, now: Time) {
        self.heard = Some(now);
        self.asked_since_heard = 0;
    }

    /// A reply. False when it answers no probe that is still waiting: late, repeated or forged.
    pub(crate) fn replied(&mut self, sequence: u32, now: Time) -> bool {
        if !self.awaits(sequence) {
            return false;
        }
        self.waiting &= !Self::bit(sequence);
        self.heard(now);
        let consecutive = self.last_answered.is_some_and(|last| last.wrapping_add(1) == sequence);
        self.streak = if consecutive { self.streak.saturating_add(1) } else { 1 };
        self.last_answered = Some(sequence);
        let rtt = now.since(self.sent_at[Self::slot(sequence)]);
        self.rtt_last = Some(rtt);
        self.rtt_smoothed = Some(match self.rtt_smoothed {
            // The first probe of a tunnel waits for its handshake, and those behind it in the queue: not the path's time.
            Some(smoothed) if self.rtt_samples < SETTLING => smoothed.min(rtt),
            // RFC 6298 §2.3 with alpha = 1/8.
            Some(smoothed) => (smoothed * 7 + rtt) / 8,
            None => rtt,
        });
        self.rtt_samples = self.rtt_samples.saturating_add(1);
        true
    }

    /// The verdict that a reply brings, if it changes anything.
    pub(crate) fn verdict_after_reply(&self, config: &LivenessConfig) -> Option<(ClusterHealth, Because)> {
        match self.verdict {
            ClusterHealth::Unknown => Some((ClusterHealth::Up, Because::FirstReply)),
            ClusterHealth::Down if self.streak >= config.up_after => {
                Some((ClusterHealth::Up, Because::Replies(self.streak)))
            }
            ClusterHealth::Down | ClusterHealth::Up => None,
        }
    }

    /// When silence is to be judged next.
    pub(crate) fn silent_at(&self, config: &LivenessConfig) -> Time {
        self.heard.unwrap_or(self.began) + config.timeout
    }

    /// The verdict that silence brings, if it is long enough and we asked meanwhile.
    pub(crate) fn verdict_of_silence(
        &self,
        config: &LivenessConfig,
        now: Time,
    ) -> Option<(ClusterHealth, Because)> {
        let too_early = now < self.silent_at(config) || self.asked_since_heard < LivenessConfig::ASKED;
        if too_early || self.verdict == ClusterHealth::Down {
            return None;
        }
        let because = match self.heard {
            Some(heard) => Because::Silent(now.since(heard)),
            None => Because::NeverAnswered(now.since(self.began)),
        };
        Some((ClusterHealth::Down, because))
    }

    pub(crate) fn set(&mut self, verdict: ClusterHealth, now: Time) {
        self.verdict = verdict;
        self.since = now;
        self.streak = 0;
        self.rtt_samples = 0;
    }

    pub(crate) fn snapshot(&self) -> PeerSnapshot {
        PeerSnapshot {
            verdict: self.verdict,
            since: self.since,
            rtt_last: self.rtt_last,
            rtt_smoothed: self.rtt_smoothed,
            heard: self.heard,
        }
    }

    fn awaits(&self, sequence: u32) -> bool {
        self.sequence.wrapping_sub(sequence) < REMEMBERED && self.waiting & Self::bit(sequence) != 0
    }

    fn slot(sequence: u32) -> usize {
        (sequence % REMEMBERED) as usize
    }

    fn bit(sequence: u32) -> u16 {
        1 << (sequence % REMEMBERED)
    }
}
