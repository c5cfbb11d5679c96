//! Randomness that the shell seeds: jitter is drawn from it, so that a test can repeat a run.

/// SplitMix64: enough to keep senders from falling into step (RFC 5880 §6.8.7), not for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub const fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// In `low..=high`; `low` when they are the wrong way round.
    pub fn between(&mut self, low: u32, high: u32) -> u32 {
        let span = u64::from(high.saturating_sub(low)) + 1;
        // Fits: less than `span`, which is at most 2^32.
        low.saturating_add((self.draw() % span) as u32)
    }
}
