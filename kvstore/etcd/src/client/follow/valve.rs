//! How fast a follower reads: what was read is counted, and nothing more is read until that is paid back.
//!
//! A stream that is not read makes HTTP/2's window run out, and then its server waits: nothing is lost, it comes later.

use std::time::Duration;

use hawser_model::Time;

use crate::limits::{Bucket, Rate};

/// How fast is read, lists and watches together. A burst that everything fits in is never slowed by a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntakeRate {
    /// Entries of a list, events of a watch, and messages without either.
    pub events: Rate,
    /// Of keys and values.
    pub bytes: Rate,
}

/// Which of the two holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldBy {
    Events,
    Bytes,
}

#[derive(Debug)]
pub(super) struct Valve {
    events: Bucket,
    bytes: Bucket,
    /// Since when it has been shut again and again, and when that was last.
    held: Option<(Time, Time, HeldBy)>,
    shut: Duration,
}

/// Not shut for so long: the server is no longer too fast.
const OVER: Duration = Duration::from_secs(5);

impl Valve {
    pub(super) fn new(rate: IntakeRate, now: Time) -> Self {
        Self {
            events: Bucket::new(rate.events, now),
            bytes: Bucket::new(rate.bytes, now),
            held: None,
            shut: Duration::ZERO,
        }
    }

    pub(super) fn handle_read(&mut self, events: usize, bytes: usize, now: Time) {
        self.events.take(events as u64, now);
        self.bytes.take(bytes as u64, now);
    }

    /// Until when nothing may be read. Counted as waited: the caller does wait.
    pub(super) fn shut_until(&mut self, now: Time) -> Option<Time> {
        let events = self.events.owes(now).map(|wait| (wait, HeldBy::Events));
        let bytes = self.bytes.owes(now).map(|wait| (wait, HeldBy::Bytes));
        let (wait, by) = events.into_iter().chain(bytes).max_by_key(|(wait, _)| *wait)?;
        // Of several that wait at a time, one counts.
        let counted = self.held.map_or(now, |(_, last, _)| last.max(now));
        self.shut += (now + wait).since(counted);
        let since = self.held_since(now).map_or(now, |(since, _)| since);
        self.held = Some((since, now + wait, by));
        Some(now + wait)
    }

    /// Since when the server has been too fast, if it is.
    pub(super) fn held_since(&self, now: Time) -> Option<(Time, HeldBy)> {
        self.held.filter(|(_, last, _)| now.since(*last) < OVER).map(|(since, _, by)| (since, by))
    }

    /// All the time that nothing was read for.
    pub(super) fn shut_for(&self) -> Duration {
        self.shut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valve() -> Valve {
        let rate = |per_second, burst| Rate { per_second, burst };
        Valve::new(IntakeRate { events: rate(10, 100), bytes: rate(1000, 1000) }, Time::ZERO)
    }

    fn at(ms: u64) -> Time {
        Time::from_millis(ms)
    }

    #[test]
    fn a_list_that_fits_the_burst_is_not_slowed_and_a_flood_is_held_until_it_is_paid_back() {
        let mut valve = valve();
        valve.handle_read(100, 900, at(0));
        assert_eq!((valve.shut_until(at(0)), valve.held_since(at(0))), (None, None));
        valve.handle_read(20, 0, at(0));
        assert_eq!(valve.shut_until(at(0)), Some(at(2000)));
        assert_eq!(valve.shut_until(at(2000)), None);
        assert_eq!(valve.held_since(at(2000)), Some((at(0), HeldBy::Events)));
        assert_eq!(valve.shut_for(), Duration::from_secs(2));
    }

    #[test]
    fn held_since_is_the_begin_of_the_flood_and_ends_with_it() {
        let mut valve = valve();
        for second in 0..10 {
            valve.handle_read(if second == 0 { 110 } else { 10 }, 0, at(second * 1000));
            assert!(valve.shut_until(at(second * 1000)).is_some());
        }
        assert_eq!(valve.held_since(at(9_999)).map(|(since, _)| since), Some(at(0)));
        assert_eq!(valve.held_since(at(16_000)), None);
        valve.handle_read(0, 100_000, at(20_000));
        valve.shut_until(at(20_000));
        assert_eq!(valve.held_since(at(20_000)), Some((at(20_000), HeldBy::Bytes)));
    }
}
