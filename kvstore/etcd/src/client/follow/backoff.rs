//! How long to wait after the nth failure in a row: doubled, bounded, and spread by chance.

use std::time::Duration;

use super::Pace;

#[derive(Debug)]
pub(super) struct Backoff {
    failures: u32,
    random: u64,
}

impl Backoff {
    pub(super) fn new(seed: u64) -> Self {
        Self { failures: 0, random: seed }
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Between half of the doubled wait and all of it.
    pub(super) fn next(&mut self, pace: &Pace) -> Duration {
        let doubled = pace.retry_first.saturating_mul(1 << self.failures.min(16));
        self.failures += 1;
        doubled.min(pace.retry_most).mul_f64(1.0 - 0.5 * self.chance())
    }

    /// Uniform in 0..1 (splitmix64): spreads clients that lost the same server.
    fn chance(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
