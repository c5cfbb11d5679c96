//! Which gateway two nodes meet at, where neither can be reached itself: both rank them alike, and look for each other until they
//! meet.
//!
//! A prefix has one owner, so both ends of a pair must give each other's prefixes to the same gateway; nobody tells them which.

use std::time::Duration;

use hawser_model::{ClusterId, NodeIndex, Time};

/// So many gateways are tried for a pair, those that rank highest for it.
pub const MOST_CANDIDATES: usize = 4;
/// At a gateway where the other end does not answer: what the slowest reconcile takes, and the first probes.
pub const DWELL: Duration = Duration::from_secs(3);
/// More at the first one: a handshake that comes before its tunnel's other end knows us is lost, and WireGuard asks again after 5 s.
const HEAD_START: Duration = Duration::from_secs(6);
/// As long when it answers nowhere.
pub const DWELL_MOST: Duration = Duration::from_secs(12);

/// A node by numbers, which everybody knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PairEnd {
    pub cluster: ClusterId,
    pub index: NodeIndex,
}

impl PairEnd {
    fn number(self) -> u64 {
        u64::from(self.cluster.get()) << 16 | u64::from(self.index.get())
    }
}

/// The gateways of a pair, best first: the same from both ends, and every pair draws its own (rendezvous hashing). Without one of
/// them the others stay in their order. O(gateways), times a logarithm.
pub fn rank(one: PairEnd, other: PairEnd, gateways: impl IntoIterator<Item = PairEnd>) -> Vec<PairEnd> {
    let pair = mix(one.min(other).number() << 32 | one.max(other).number());
    let mut ranked: Vec<_> =
        gateways.into_iter().map(|gateway| (mix(pair ^ mix(gateway.number())), gateway)).collect();
    ranked.sort_unstable();
    ranked.dedup();
    ranked.truncate(MOST_CANDIDATES);
    ranked.into_iter().map(|(_, gateway)| gateway).collect()
}

/// The last steps of SplitMix64: every bit of the result depends on every bit of the number.
fn mix(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

/// The choice of one end of a pair. Each call is O(candidates).
///
/// A gateway that answers is kept. When the other end falls silent it is left at once for the next one, by both ends, for both hear
/// the same. If they do not meet there, one of them, the patient one, stays at each for as long as the other needs to try them all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayChoice {
    own: PairEnd,
    other: PairEnd,
    /// Best first; one at least.
    candidates: Vec<PairEnd>,
    at: PairEnd,
    up: bool,
    /// When it was chosen, or the other end was heard last; the first one as if it were chosen later.
    since: Time,
    /// Gateways that were left since something was heard.
    left: u32,
}

impl GatewayChoice {
    /// `remembered` is where an earlier run met. None where there is no gateway.
    pub fn new(
        own: PairEnd,
        other: PairEnd,
        gateways: impl IntoIterator<Item = PairEnd>,
        remembered: Option<PairEnd>,
        now: Time,
    ) -> Option<Self> {
        let candidates = rank(own, other, gateways);
        let first = *candidates.first()?;
        let at = remembered.filter(|gateway| candidates.contains(gateway)).unwrap_or(first);
        Some(Self { own, other, candidates, at, up: false, since: now + HEAD_START, left: 0 })
    }

    pub fn gateway(&self) -> PairEnd {
        self.at
    }

    /// Others than before: one that is none any more is left at once. False when none is left.
    pub fn handle_gateways(&mut self, gateways: impl IntoIterator<Item = PairEnd>, now: Time) -> bool {
        let candidates = rank(self.own, self.other, gateways);
        let Some(first) = candidates.first().copied() else { return false };
        if !candidates.contains(&self.at) {
            (self.at, self.since, self.left) = (first, now, 0);
        }
        self.candidates = candidates;
        true
    }

    /// Liveness: whether probes of the other end are answered. True when another gateway is chosen.
    pub fn handle_verdict(&mut self, up: bool, now: Time) -> bool {
        let fell_silent = self.up && !up;
        if self.up != up {
            (self.up, self.since, self.left) = (up, now, 0);
        }
        fell_silent && self.leave(now)
    }

    /// When the other end was heard last: one that liveness holds down because it flaps is not silent.
    pub fn handle_heard(&mut self, at: Time) {
        if at > self.since {
            (self.since, self.left) = (at, 0);
        }
    }

    /// True when another gateway is chosen.
    pub fn handle_time(&mut self, now: Time) -> bool {
        self.poll_deadline().is_some_and(|at| at <= now) && self.leave(now)
    }

    /// When it is left unless something is heard.
    pub fn poll_deadline(&self) -> Option<Time> {
        (!self.up && self.candidates.len() > 1).then(|| self.since + self.dwell())
    }

    fn dwell(&self) -> Duration {
        let all = u32::try_from(self.candidates.len()).unwrap_or(1);
        let one = (DWELL * 2u32.saturating_pow((self.left / all).min(8))).min(DWELL_MOST);
        if self.own < self.other { one * all } else { one }
    }

    fn leave(&mut self, now: Time) -> bool {
        let at = self.candidates.iter().position(|gateway| *gateway == self.at);
        let next = at.map_or(0, |at| (at + 1) % self.candidates.len());
        let moved = self.candidates.get(next).copied().filter(|gateway| *gateway != self.at);
        if let Some(gateway) = moved {
            (self.at, self.since, self.left) = (gateway, now, self.left.saturating_add(1));
        }
        moved.is_some()
    }
}
