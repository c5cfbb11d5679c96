//! A rate with a burst as a bucket of tokens. Pure: time is an argument.

use std::time::Duration;

use hawser_model::Time;

/// So many a second for ever, and so many more at once after a rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub per_second: u64,
    pub burst: u64,
}

/// What is left of a [`Rate`]. It may be overdrawn: a message is counted when it is there, however large, and then
/// nothing more is taken until that is paid back. All O(1).
#[derive(Clone, Debug)]
pub struct Bucket {
    rate: Rate,
    level: f64,
    at: Time,
}

impl Bucket {
    /// A full one.
    pub fn new(rate: Rate, now: Time) -> Self {
        Self { rate, level: rate.burst as f64, at: now }
    }

    pub fn rate(&self) -> Rate {
        self.rate
    }

    pub fn take(&mut self, tokens: u64, now: Time) {
        self.refill(now);
        self.level -= tokens as f64;
    }

    /// Takes if nothing is owed; else says how long it will be until then.
    pub fn try_take(&mut self, tokens: u64, now: Time) -> Result<(), Duration> {
        match self.owes(now) {
            None => {
                self.take(tokens, now);
                Ok(())
            }
            Some(wait) => Err(wait),
        }
    }

    /// How long until nothing is owed, if anything is.
    pub fn owes(&mut self, now: Time) -> Option<Duration> {
        self.refill(now);
        if self.level >= 0.0 {
            return None;
        }
        /// A rate of next to nothing is not for ever.
        const MOST: f64 = 3_600.0;
        let seconds = -self.level / self.rate.per_second.max(1) as f64;
        Some(Duration::from_secs_f64(seconds.clamp(0.001, MOST)))
    }

    fn refill(&mut self, now: Time) {
        let gained = now.since(self.at).as_secs_f64() * self.rate.per_second as f64;
        self.level = (self.level + gained).min(self.rate.burst as f64);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_millis(ms)
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate_holds() {
        let mut bucket = Bucket::new(Rate { per_second: 10, burst: 100 }, at(0));
        assert_eq!(bucket.try_take(100, at(0)), Ok(()));
        assert_eq!(bucket.try_take(20, at(0)), Ok(()), "nothing is owed yet");
        assert_eq!(bucket.try_take(1, at(0)), Err(Duration::from_secs(2)));
        assert_eq!(bucket.try_take(1, at(1000)), Err(Duration::from_secs(1)));
        assert_eq!(bucket.try_take(1, at(2000)), Ok(()));
    }

    #[test]
    fn after_a_rest_there_is_one_burst_and_no_more() {
        let mut bucket = Bucket::new(Rate { per_second: 10, burst: 100 }, at(0));
        bucket.take(100, at(0));
        assert_eq!(bucket.owes(at(3_600_000)), None);
        bucket.take(101, at(3_600_000));
        assert!(bucket.owes(at(3_600_000)).is_some());
    }

    #[test]
    fn a_clock_that_stands_or_goes_back_gives_nothing() {
        let mut bucket = Bucket::new(Rate { per_second: 10, burst: 1 }, at(5000));
        bucket.take(11, at(5000));
        assert_eq!(bucket.owes(at(0)), Some(Duration::from_secs(1)));
        assert_eq!(bucket.owes(at(5000)), Some(Duration::from_secs(1)));
        assert_eq!(bucket.owes(at(6000)), None);
    }
}
