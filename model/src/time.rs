//! Time as the cores see it: a monotonic count that the shell hands in.

use std::ops::Add;
use std::time::Duration;

/// Time since some fixed point of this process or boot. Never wall-clock; never read inside a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(Duration);

impl Time {
    pub const ZERO: Self = Self(Duration::ZERO);

    pub const fn from_duration(since_start: Duration) -> Self {
        Self(since_start)
    }

    pub const fn from_millis(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    pub const fn since_start(self) -> Duration {
        self.0
    }

    /// Zero when `earlier` is later: a clock that stepped back never makes a core panic.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Time {
    type Output = Self;
    fn add(self, after: Duration) -> Self {
        Self(self.0.saturating_add(after))
    }
}
