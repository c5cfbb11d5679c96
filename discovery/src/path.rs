//! The path to one node as probes saw it: which of them were answered, how fast, how many were lost.

use std::time::Duration;

use hawser_model::Time;

/// Probes that a reply may still answer, and that silence is counted by.
pub(crate) const REMEMBERED: u32 = 16;
/// Round trips of which the shortest counts, after a verdict.
const SETTLING: u32 = 4;
/// Loss is a moving average over about this many probes, in 65,536ths.
const LOSS_OVER: u32 = 64;
const LOSS_ONE: u32 = 1 << 16;

#[derive(Clone, Debug)]
pub(crate) struct Path {
    /// Number of the newest probe.
    sequence: u32,
    sent_at: [Time; REMEMBERED as usize],
    /// Bit `n % 16`: probe `n` still waits for its reply.
    waiting: u16,
    /// Since the last answer, those that so many later ones have taken the place of: whatever time they had, it was long.
    pushed_out: u32,
    /// Probes up to this one were counted for the loss.
    counted: u32,
    last_answered: Option<u32>,
    pub(crate) streak: u32,
    pub(crate) rtt_last: Option<Duration>,
    pub(crate) rtt_smoothed: Option<Duration>,
    rtt_variation: Duration,
    rtt_samples: u32,
    loss: u32,
}

impl Path {
    pub(crate) fn new() -> Self {
        Self {
            sequence: 0,
            sent_at: [Time::ZERO; REMEMBERED as usize],
            waiting: 0,
            pushed_out: 0,
            counted: 0,
            last_answered: None,
            streak: 0,
            rtt_last: None,
            rtt_smoothed: None,
            rtt_variation: Duration::ZERO,
            rtt_samples: 0,
            loss: 0,
        }
    }

    /// The next probe's number.
    pub(crate) fn ask(&mut self, now: Time) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        if self.waiting & Self::bit(self.sequence) != 0 && self.newer() > REMEMBERED {
            self.pushed_out = self.pushed_out.saturating_add(1);
        }
        self.waiting |= Self::bit(self.sequence);
        self.sent_at[Self::slot(self.sequence)] = now;
        self.sequence
    }

    /// The probe really left at `now`, which makes the round trip exact.
    pub(crate) fn sent(&mut self, low: u16, now: Time) {
        if let Some(sequence) = self.awaited(low) {
            self.sent_at[Self::slot(sequence)] = now;
        }
    }

    /// A reply. False when it answers no probe that is still waiting: late, repeated or forged. O(probes remembered).
    pub(crate) fn answered(&mut self, low: u16, now: Time) -> bool {
        let Some(sequence) = self.awaited(low) else { return false };
        self.waiting &= !Self::bit(sequence);
        let consecutive = self.last_answered.is_some_and(|last| last.wrapping_add(1) == sequence);
        self.streak = if consecutive { self.streak.saturating_add(1) } else { 1 };
        self.last_answered = Some(sequence);
        self.pushed_out = 0;
        self.count_loss(sequence);
        self.measure(now.since(self.sent_at[Self::slot(sequence)]));
        true
    }

    /// Every probe up to this one is either answered or, as later ones are, lost.
    fn count_loss(&mut self, sequence: u32) {
        let ahead = sequence.wrapping_sub(self.counted);
        // An answer that was overtaken was counted as lost by the one that overtook it.
        if ahead > u32::MAX / 2 {
            return;
        }
        for back in (0..ahead.min(REMEMBERED)).rev() {
            let lost = self.waiting & Self::bit(sequence.wrapping_sub(back)) != 0;
            self.loss = self.loss - self.loss / LOSS_OVER + if lost { LOSS_ONE / LOSS_OVER } else { 0 };
        }
        self.counted = sequence;
    }

    /// RFC 6298 §2.
    fn measure(&mut self, rtt: Duration) {
        self.rtt_last = Some(rtt);
        self.rtt_smoothed = Some(match self.rtt_smoothed {
            // The first probe of a tunnel waits for its handshake, and those behind it in the queue: not the path's time.
            Some(smoothed) if self.rtt_samples < SETTLING => {
                self.rtt_variation = rtt.min(smoothed) / 2;
                smoothed.min(rtt)
            }
            Some(smoothed) => {
                self.rtt_variation = (self.rtt_variation * 3 + smoothed.abs_diff(rtt)) / 4;
                (smoothed * 7 + rtt) / 8
            }
            None => {
                self.rtt_variation = rtt / 2;
                rtt
            }
        });
        self.rtt_samples = self.rtt_samples.saturating_add(1);
    }

    /// A probe is given this long for its answer: RFC 6298's timeout, within the bounds. It grows with jitter.
    pub(crate) fn patience(&self, least: Duration, most: Duration) -> Duration {
        let timeout = self.rtt_smoothed.map_or(least, |smoothed| smoothed + self.rtt_variation * 4);
        timeout.clamp(least, most.max(least))
    }

    /// Probes since the last answer.
    fn newer(&self) -> u32 {
        self.last_answered.map_or(self.sequence, |last| self.sequence.wrapping_sub(last))
    }

    /// Probes since the last answer that had their time and were not answered.
    pub(crate) fn unanswered(&self, patience: Duration, now: Time) -> u32 {
        let had_time = |back: &u32| {
            let sequence = self.sequence.wrapping_sub(*back);
            self.waiting & Self::bit(sequence) != 0 && self.sent_at[Self::slot(sequence)] + patience <= now
        };
        let unanswered = (0..self.newer().min(REMEMBERED)).filter(had_time).count();
        u32::try_from(unanswered).unwrap_or(u32::MAX).saturating_add(self.pushed_out)
    }

    /// In 0.0..=1.0.
    pub(crate) fn loss(&self) -> f64 {
        f64::from(self.loss) / f64::from(LOSS_ONE)
    }

    pub(crate) fn begin_streak(&mut self) {
        self.streak = 0;
        self.rtt_samples = 0;
    }

    fn awaited(&self, low: u16) -> Option<u32> {
        let back = (self.sequence as u16).wrapping_sub(low);
        let sequence = self.sequence.wrapping_sub(u32::from(back));
        (u32::from(back) < REMEMBERED && self.waiting & Self::bit(sequence) != 0).then_some(sequence)
    }

    fn slot(sequence: u32) -> usize {
        (sequence % REMEMBERED) as usize
    }

    fn bit(sequence: u32) -> u16 {
        1 << (sequence % REMEMBERED)
    }
}

/// So improbable is it that this many probes in a row are lost by chance.
const ODDS: f64 = 1e-10;
/// No more are asked for, whatever the loss: at a third lost, one chance in half a million.
const MOST: u32 = 12;

/// How many unanswered probes make a silence, at this loss: never fewer than `least`.
///
/// The smallest n with loss^n <= 1e-10: 4 at 0.1 % or less, 5 at 1 %, 10 at 10 %, 12 at most.
pub fn multiplier(loss: f64, least: u32) -> u32 {
    let (loss, mut odds, mut needed) = (loss.clamp(0.001, 1.0), 1.0, 0);
    // A hair more than the bound: 0.01^5 is not quite 1e-10 in binary.
    while odds > ODDS * 1.001 && needed < MOST {
        odds *= loss;
        needed += 1;
    }
    needed.max(least.min(MOST))
}
