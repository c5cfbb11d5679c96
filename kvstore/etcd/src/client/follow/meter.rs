//! What was read of one server, by however many followers one after the other: one that begins anew has no new burst.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hawser_model::Time;

use super::valve::{HeldBy, IntakeRate, Valve};

/// A rate that followers share. Clones are the same one. All O(1).
#[derive(Clone, Debug)]
pub struct Meter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: Instant,
    valve: Mutex<Valve>,
}

impl Meter {
    pub fn new(rate: IntakeRate) -> Self {
        let valve = Mutex::new(Valve::new(rate, Time::ZERO));
        Self(Arc::new(Inner { started: Instant::now(), valve }))
    }

    /// Since when the server has been too fast, if it is.
    pub fn held_since(&self) -> Option<(Instant, HeldBy)> {
        let (valve, now) = self.valve();
        let (since, by) = valve.held_since(now)?;
        Some((self.at(since), by))
    }

    /// All the time that nothing was read for.
    pub fn held_for(&self) -> Duration {
        self.valve().0.shut_for()
    }

    pub(super) fn handle_read(&self, events: usize, bytes: usize) {
        let (mut valve, now) = self.valve();
        valve.handle_read(events, bytes, now);
    }

    /// Until when nothing may be read. The caller does wait.
    pub(super) fn shut_until(&self) -> Option<Instant> {
        let (mut valve, now) = self.valve();
        Some(self.at(valve.shut_until(now)?))
    }

    fn valve(&self) -> (MutexGuard<'_, Valve>, Time) {
        let valve = self.0.valve.lock().unwrap_or_else(PoisonError::into_inner);
        (valve, Time::from_duration(self.0.started.elapsed()))
    }

    fn at(&self, time: Time) -> Instant {
        self.0.started + time.since_start()
    }
}
