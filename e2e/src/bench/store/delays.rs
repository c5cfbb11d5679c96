//! From "written" to "seen": the writer's clock is in the value, the reader's is read when it sees it.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::origins::clock;

/// Collects until as many as were announced have come.
#[derive(Debug)]
pub(super) struct Delays {
    wanted: usize,
    nanos: Vec<u64>,
    last: u64,
    began: Instant,
}

/// In milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Seen {
    pub(super) count: usize,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    /// When the last one was seen, on the writer's clock.
    pub(super) last_ns: u64,
}

impl Delays {
    pub(super) fn of(wanted: usize) -> Self {
        Self { wanted, nanos: Vec::with_capacity(wanted), last: 0, began: Instant::now() }
    }

    /// A value was seen. Those without a time in them are not counted.
    pub(super) fn see(&mut self, value: &[u8]) {
        const MARK: &[u8] = b"\"K8sPodName\":\"t";
        let Some(at) = value.windows(MARK.len()).position(|window| window == MARK) else { return };
        let digits = value[at + MARK.len()..].iter().take_while(|byte| byte.is_ascii_digit());
        let written = digits.fold(0_u64, |number, digit| number * 10 + u64::from(digit - b'0'));
        self.last = clock();
        self.nanos.push(self.last.saturating_sub(written));
    }

    pub(super) fn is_complete(&self) -> bool {
        self.nanos.len() >= self.wanted || self.began.elapsed() > Duration::from_secs(60)
    }

    pub(super) fn seen(mut self) -> Seen {
        self.nanos.sort_unstable();
        let at = |share: usize| {
            let place = (self.nanos.len() * share / 100).min(self.nanos.len().saturating_sub(1));
            self.nanos.get(place).map_or(0.0, |nanos| *nanos as f64 / 1e6)
        };
        Seen { count: self.nanos.len(), p50_ms: at(50), p99_ms: at(99), last_ns: self.last }
    }
}
