//! From what is seen to what is said: down at once, up again only after a while, and longer for what flaps (after RFC 2439).
//!
//! Each Down costs a penalty, which halves every [`DampingConfig::half_life`]. Up counts after [`DampingConfig::hold_down`]
//! of it; once the penalty has reached [`SUPPRESS`], not before it has fallen below [`REUSE`]. So whatever the input, in
//! a time T there are at most `3 + 2 * T / half_life` Downs. What is back begins with little weight.

use std::time::Duration;

use hawser_model::{ClusterHealth, HealthWord, Time};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DampingConfig {
    /// So long it must be up before that is believed, after it was down.
    pub hold_down: Duration,
    pub half_life: Duration,
    /// From a quarter of its weight to all of it, after it was down.
    pub slow_start: Duration,
}

impl Default for DampingConfig {
    fn default() -> Self {
        Self {
            hold_down: Duration::from_secs(1),
            half_life: Duration::from_secs(60),
            slow_start: Duration::from_secs(10),
        }
    }
}

/// What one Down costs.
const PENALTY: u32 = 1_000;
const SUPPRESS: u32 = 2_500;
const REUSE: u32 = 1_000;
/// What a penalty cannot exceed: four half-lives of suppression.
const MOST: u32 = REUSE << 4;
/// Steps from a quarter of the weight to all of it.
const STEPS: u16 = 3;

/// What is said outside changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) from: ClusterHealth,
    pub(crate) to: ClusterHealth,
    /// How long it was seen before it was said.
    pub(crate) after: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Damped {
    seen: ClusterHealth,
    seen_since: Time,
    said: ClusterHealth,
    said_since: Time,
    /// Of a slow start.
    returned: Option<Time>,
    penalty: u32,
    penalty_at: Time,
    suppressed: bool,
}

impl Damped {
    pub(crate) fn new(now: Time) -> Self {
        Self {
            seen: ClusterHealth::Unknown,
            seen_since: now,
            said: ClusterHealth::Unknown,
            said_since: now,
            returned: None,
            penalty: 0,
            penalty_at: now,
            suppressed: false,
        }
    }

    /// Down, as an earlier run said; since when, and how often before, is not known.
    pub(crate) fn left_down(now: Time) -> Self {
        let down = ClusterHealth::Down;
        Self { seen: down, said: down, penalty: PENALTY, ..Self::new(now) }
    }

    pub(crate) fn verdict(&self) -> ClusterHealth {
        self.said
    }

    pub(crate) fn since(&self) -> Time {
        self.said_since
    }

    /// What is seen now. The same twice changes nothing.
    pub(crate) fn handle_seen(
        &mut self,
        seen: ClusterHealth,
        config: &DampingConfig,
        now: Time,
    ) -> Option<Said> {
        if seen != self.seen {
            (self.seen, self.seen_since) = (seen, now);
            if seen == ClusterHealth::Down {
                self.penalty = (self.decayed(config, now) + PENALTY).min(MOST);
                self.penalty_at = now;
                self.suppressed |= self.penalty >= SUPPRESS;
            }
        }
        self.handle_time(config, now)
    }

    pub(crate) fn handle_time(&mut self, config: &DampingConfig, now: Time) -> Option<Said> {
        if self.suppressed && self.decayed(config, now) < REUSE {
            self.suppressed = false;
        }
        if self.seen == self.said || self.due(config).is_some_and(|due| now < due) {
            return None;
        }
        let (from, to) = (self.said, self.seen);
        (self.said, self.said_since) = (to, now);
        let back = from == ClusterHealth::Down && to == ClusterHealth::Up && !config.slow_start.is_zero();
        self.returned = back.then_some(now);
        Some(Said { from, to, after: now.since(self.seen_since) })
    }

    /// When something changes by itself: what is seen is said, or a slow start takes its next step.
    pub(crate) fn poll_deadline(&self, config: &DampingConfig, now: Time) -> Option<Time> {
        let said = (self.seen != self.said).then(|| self.due(config)).flatten();
        let step = self.returned.map(|at| {
            let next = (Self::steps(at, config, now) + 1).min(STEPS);
            at + config.slow_start / u32::from(STEPS) * u32::from(next)
        });
        said.into_iter().chain(step.filter(|at| *at > now)).min()
    }

    /// Of what is said; 256 but in a slow start.
    pub(crate) fn weight(&self, config: &DampingConfig, now: Time) -> u16 {
        let full = HealthWord::FULL_WEIGHT;
        self.returned.map_or(full, |at| full / (STEPS + 1) * (Self::steps(at, config, now) + 1))
    }

    /// How many were taken since a slow start began.
    fn steps(began: Time, config: &DampingConfig, now: Time) -> u16 {
        let step = config.slow_start / u32::from(STEPS);
        let taken = now.since(began).as_nanos() / step.as_nanos().max(1);
        u16::try_from(taken).unwrap_or(STEPS).min(STEPS)
    }

    /// Only the way back from Down waits.
    fn due(&self, config: &DampingConfig) -> Option<Time> {
        if self.said != ClusterHealth::Down || self.seen != ClusterHealth::Up {
            return None;
        }
        let held = self.seen_since + config.hold_down;
        Some(if self.suppressed { held.max(self.reusable(config)) } else { held })
    }

    fn decayed(&self, config: &DampingConfig, now: Time) -> u32 {
        // The fraction of a half-life is taken as linear: never more than 6 % off, and always falling.
        let passed = now.since(self.penalty_at).as_nanos();
        let half_life = config.half_life.as_nanos().max(1);
        let halvings = u32::try_from(passed / half_life).unwrap_or(u32::MAX);
        let halved = self.penalty.checked_shr(halvings).unwrap_or(0);
        let rest = u128::from(halved) * (passed % half_life) / (2 * half_life);
        halved.saturating_sub(u32::try_from(rest).unwrap_or(u32::MAX))
    }

    /// The first moment at which the penalty is below [`REUSE`].
    fn reusable(&self, config: &DampingConfig) -> Time {
        let mut at = self.penalty_at;
        let mut left = self.penalty;
        while left >= REUSE * 2 {
            left /= 2;
            at = at + config.half_life;
        }
        // Linear within a half-life: left * (1 - x/2) < REUSE.
        let over = u128::from(left.saturating_sub(REUSE)) + 2;
        let nanos = config.half_life.as_nanos() * 2 * over / u128::from(left.max(1));
        at + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}
