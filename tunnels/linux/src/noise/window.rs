//! Which counters of a session have been seen (RFC 6479): each one once, and none that is too old to tell. ESP's sequence
//! numbers are such counters, too (RFC 4303 §3.4.3).

use super::REJECT_AFTER_MESSAGES;

/// How far behind the newest a counter may come. At 6 Gb/s of 1,420 bytes it is 15 ms of reordering.
pub(crate) const SIZE: u64 = 8192;
const BITS: u64 = u64::BITS as u64;
/// One word more than the window, so that the word of the newest counter never holds bits of the oldest.
const WORDS: u64 = SIZE / BITS + 1;

pub(crate) struct Window {
    /// One more than the newest counter.
    next: u64,
    words: [u64; WORDS as usize],
}

impl Window {
    pub(crate) fn new() -> Self {
        Self { next: 0, words: [0; WORDS as usize] }
    }

    /// One that takes nothing up to `newest`.
    pub(crate) fn after(newest: u64) -> Self {
        let mut window = Self { next: newest.saturating_add(1), words: [u64::MAX; WORDS as usize] };
        window.words[(newest / BITS % WORDS) as usize] = u64::MAX >> (BITS - 1 - newest % BITS);
        window
    }

    /// For a successor: the next counter, then the words.
    pub(crate) fn export(&self) -> impl Iterator<Item = u64> {
        std::iter::once(self.next).chain(self.words)
    }

    pub(crate) fn import(mut numbers: impl Iterator<Item = u64>) -> Option<Self> {
        let mut window = Self::new();
        window.next = numbers.next()?;
        for word in &mut window.words {
            *word = numbers.next()?;
        }
        Some(window)
    }

    /// Whether this counter is here for the first time; marks it. Only for what has proved authentic. O(1), except that
    /// a jump clears up to the whole window, 1 KiB.
    pub(crate) fn admit(&mut self, counter: u64) -> bool {
        if counter >= REJECT_AFTER_MESSAGES || counter.saturating_add(SIZE) < self.next {
            return false;
        }
        let word = counter / BITS;
        if counter >= self.next {
            // Words between the newest one and this hold what is out of the window now.
            let newest = self.next.checked_sub(1).map_or(0, |newest| newest / BITS);
            for fresh in newest + 1..=word.min(newest + WORDS) {
                self.words[(fresh % WORDS) as usize] = 0;
            }
            self.next = counter + 1;
        }
        let (word, bit) = (&mut self.words[(word % WORDS) as usize], 1 << (counter % BITS));
        let fresh = *word & bit == 0;
        *word |= bit;
        fresh
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use proptest::prelude::*;

    /// The definition, without a ring: every counter ever admitted, and the newest.
    #[derive(Default)]
    struct Model {
        seen: HashSet<u64>,
        next: u64,
    }

    impl Model {
        fn admit(&mut self, counter: u64) -> bool {
            let old = counter + SIZE < self.next;
            if old || !self.seen.insert(counter) {
                return false;
            }
            self.next = self.next.max(counter + 1);
            true
        }
    }

    /// Steps like a network's: mostly on, often back, at times a long jump.
    fn step() -> impl Strategy<Value = i64> {
        prop_oneof![
            4 => Just(1),
            3 => -70..70i64,
            3 => -(SIZE as i64) - 70..SIZE as i64 + 70,
            1 => -3 * (SIZE as i64)..3 * SIZE as i64,
        ]
    }

    proptest! {
        #[test]
        fn a_counter_is_admitted_once_and_only_within_8192_of_the_newest(steps in prop::collection::vec(step(), 1..600)) {
            let (mut window, mut model, mut at) = (Window::new(), Model::default(), 0u64);
            for step in steps {
                at = at.saturating_add_signed(step);
                prop_assert_eq!(window.admit(at), model.admit(at), "counter {}, next {}", at, model.next);
            }
        }
    }

    #[test]
    fn the_window_is_8192_wide_to_the_packet() {
        let mut window = Window::new();
        assert!(window.admit(0) && !window.admit(0));
        assert!(window.admit(SIZE) && window.admit(1));
        assert!(window.admit(SIZE + 2));
        assert!(!window.admit(2), "one behind the oldest");
        assert!(window.admit(3));
        for counter in 4..SIZE {
            assert!(window.admit(counter) && !window.admit(counter));
        }
    }

    #[test]
    fn a_window_that_goes_on_takes_nothing_up_to_where_it_was() {
        for newest in [1, 63, 64, 8191, 8192, 1 << 33] {
            let mut window = Window::after(newest);
            for counter in newest.saturating_sub(2 * SIZE)..=newest {
                assert!(!window.admit(counter), "{counter} after {newest}");
            }
            for counter in (newest + 1..newest + 2 * SIZE).rev() {
                let fresh = counter + SIZE >= newest + 2 * SIZE;
                assert_eq!(window.admit(counter), fresh, "{counter} after {newest}");
            }
        }
    }

    #[test]
    fn the_last_counters_of_a_session_are_retired_and_nothing_overflows() {
        let mut window = Window::new();
        assert!(window.admit(REJECT_AFTER_MESSAGES - 1));
        for counter in [REJECT_AFTER_MESSAGES, u64::MAX - 1, u64::MAX] {
            assert!(!window.admit(counter));
        }
        assert!(window.admit(REJECT_AFTER_MESSAGES - SIZE));
        assert!(!window.admit(REJECT_AFTER_MESSAGES - SIZE - 1));
    }
}
