//! What is said once: anybody can make us refuse him as often as he likes, but not fill the log with it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A defect that stands is said again after this long.
const AGAIN: Duration = Duration::from_secs(3_600);
/// Sentences told apart; whoever makes up more is not heard until older ones are forgotten.
const KNOWN: usize = 64;

/// What was said, numbers apart: the same sentence with another time in it is no news.
#[derive(Debug, Default)]
pub struct News(Mutex<BTreeMap<String, Instant>>);

impl News {
    /// Whether to say it now. Cost: the length of the sentence.
    pub fn is_new(&self, sentence: &str, now: Instant) -> bool {
        let key: String = sentence.chars().filter(|c| !c.is_ascii_digit()).take(500).collect();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, said| now.saturating_duration_since(*said) < AGAIN);
        if known.len() >= KNOWN || known.contains_key(&key) {
            return false;
        }
        known.insert(key, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_an_hour_whatever_the_clock_in_it_says() {
        let (news, now) = (News::default(), Instant::now());
        assert!(news.is_new("remote-eu-west is refused, and here it is 03:17", now));
        assert!(!news.is_new("remote-eu-west is refused, and here it is 03:18", now));
        assert!(news.is_new("remote-ap-south is refused, and here it is 03:18", now));
        assert!(news.is_new("remote-eu-west is refused, and here it is 04:19", now + AGAIN));
    }

    #[test]
    fn who_makes_up_names_fills_neither_memory_nor_log() {
        let (news, now) = (News::default(), Instant::now());
        let name = |n: u32| format!("remote-{}", "x".repeat(n as usize));
        assert_eq!((0..1_000).filter(|n| news.is_new(&name(*n), now)).count(), KNOWN);
        assert!(news.is_new("later", now + AGAIN));
    }
}
