//! Runs of consecutive slots in an array map: first fit, and a freed run rests before anyone gets it again, because a
//! program may still be reading it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hawser_model::Time;

/// `[at, at + len)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    pub at: u32,
    pub len: u32,
}

/// A program run lasts microseconds; this is forever to it.
const REST: Duration = Duration::from_secs(2);

/// Allocation looks through the free runs in address order: O(free runs). Freeing is O(log free runs).
#[derive(Debug)]
pub struct RunAllocator {
    free: BTreeMap<u32, u32>,
    resting: VecDeque<(Time, Run)>,
    size: u32,
}

impl RunAllocator {
    pub fn new(size: u32) -> Self {
        let free = if size == 0 { BTreeMap::new() } else { BTreeMap::from([(0, size)]) };
        Self { free, resting: VecDeque::new(), size }
    }

    pub fn size(&self) -> u32 {
        self.size
    }

    /// A run of `len` slots, or none when no gap is that long. An empty run is always at 0 and costs nothing.
    pub fn take(&mut self, len: u32, now: Time) -> Option<Run> {
        if len == 0 {
            return Some(Run { at: 0, len: 0 });
        }
        self.wake(now);
        let (&at, &gap) = self.free.iter().find(|(_, gap)| **gap >= len)?;
        self.free.remove(&at);
        if gap > len {
            self.free.insert(at + len, gap - len);
        }
        Some(Run { at, len })
    }

    /// Takes exactly these slots: what an earlier agent left in the maps. Slots that are taken stay taken.
    pub fn reserve(&mut self, run: Run) {
        let end = run.at.saturating_add(run.len).min(self.size);
        let overlapping: Vec<(u32, u32)> = self
            .free
            .range(..end)
            .filter(|(at, gap)| **at + **gap > run.at)
            .map(|(at, gap)| (*at, *gap))
            .collect();
        for (at, gap) in overlapping {
            self.free.remove(&at);
            if at < run.at {
                self.free.insert(at, run.at - at);
            }
            if at + gap > end {
                self.free.insert(end, at + gap - end);
            }
        }
    }

    /// Given back; free after it rested.
    pub fn free(&mut self, run: Run, now: Time) {
        if run.len > 0 {
            self.resting.push_back((now + REST, run));
        }
    }

    fn wake(&mut self, now: Time) {
        while let Some((until, run)) = self.resting.front().copied() {
            if until > now {
                return;
            }
            self.resting.pop_front();
            self.join(run);
        }
    }

    /// Neighbouring gaps become one.
    fn join(&mut self, run: Run) {
        let mut at = run.at;
        let mut len = run.len;
        if let Some((&before, &gap)) = self.free.range(..at).next_back()
            && before + gap == at
        {
            self.free.remove(&before);
            at = before;
            len += gap;
        }
        if let Some(gap) = self.free.remove(&(at + len)) {
            len += gap;
        }
        self.free.insert(at, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Time = Time::from_millis(1_999);
    const LATER: Time = Time::from_millis(2_000);

    #[test]
    fn a_freed_run_rests_before_it_is_taken_again() {
        let mut runs = RunAllocator::new(4);
        let first = runs.take(4, Time::ZERO).unwrap();
        runs.free(first, Time::ZERO);
        assert_eq!(runs.take(1, SOON), None);
        assert_eq!(runs.take(4, LATER), Some(first));
    }

    #[test]
    fn gaps_that_touch_become_one() {
        let mut runs = RunAllocator::new(6);
        let taken: Vec<_> = (0..3).map(|_| runs.take(2, Time::ZERO).unwrap()).collect();
        for at in [0, 2, 1] {
            runs.free(taken[at], Time::ZERO);
        }
        assert_eq!(runs.take(6, LATER), Some(Run { at: 0, len: 6 }));
    }

    #[test]
    fn what_an_earlier_agent_left_is_not_given_away() {
        let mut runs = RunAllocator::new(10);
        runs.reserve(Run { at: 3, len: 4 });
        runs.reserve(Run { at: 5, len: 1 });
        runs.reserve(Run { at: 9, len: 50 });
        assert_eq!(runs.take(3, Time::ZERO), Some(Run { at: 0, len: 3 }));
        assert_eq!(runs.take(3, Time::ZERO), None);
        assert_eq!(runs.take(2, Time::ZERO), Some(Run { at: 7, len: 2 }));
    }

    #[test]
    fn an_empty_run_costs_nothing() {
        let mut runs = RunAllocator::new(0);
        assert_eq!(runs.take(0, Time::ZERO), Some(Run { at: 0, len: 0 }));
        assert_eq!(runs.take(1, Time::ZERO), None);
    }
}
