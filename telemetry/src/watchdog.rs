//! Whether tasks turn: a task is stuck when one turn of it takes longer than it ever should. A task that waits for work is idle, however long it waits, so a quiet process raises no alarm.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::probes::Check;

/// The tasks that are watched. Cloning it counts a reference.
#[derive(Clone, Debug)]
pub struct Watchdog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: Instant,
    tasks: Mutex<Vec<Arc<Task>>>,
}

#[derive(Debug)]
struct Task {
    name: &'static str,
    limit: Duration,
    started: Instant,
    /// Milliseconds after `started` plus one since when it works without a sign of progress; 0: idle.
    busy_since: AtomicU64,
}

/// A task's own handle.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<Task>);

impl Default for Watchdog {
    fn default() -> Self {
        Self(Arc::new(Inner { started: Instant::now(), tasks: Mutex::default() }))
    }
}

impl Watchdog {
    /// `limit` is what a turn may take between two signs of progress before the process is better begun anew.
    pub fn task(&self, name: &'static str, limit: Duration) -> Pulse {
        let task = Arc::new(Task { name, limit, started: self.0.started, busy_since: AtomicU64::new(0) });
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&task));
        Pulse(task)
    }

    /// One check a task.
    pub fn checks(&self, now: Instant) -> Vec<Check> {
        let tasks = self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut checks: Vec<_> = tasks.iter().map(|task| task.check(now)).collect();
        // In the order of names: tasks begin in any.
        checks.sort_by_key(|check| check.name);
        checks
    }
}

impl Task {
    fn millis(&self, at: Instant) -> u64 {
        let passed = at.saturating_duration_since(self.started).as_millis();
        u64::try_from(passed).unwrap_or(u64::MAX - 1) + 1
    }

    fn check(&self, now: Instant) -> Check {
        let since = self.busy_since.load(Ordering::Relaxed);
        if since == 0 {
            return Check::ok(self.name, "");
        }
        let busy = Duration::from_millis(self.millis(now).saturating_sub(since));
        if busy <= self.limit {
            return Check::ok(self.name, "");
        }
        let (busy, limit) = (busy.as_secs(), self.limit.as_secs());
        Check::bad(self.name, format!("stuck: no progress in {busy} s, {limit} s are allowed"))
    }
}

impl Pulse {
    /// Works from now on, or gets on with a long turn. Cost: one look at the clock and one store.
    pub fn busy(&self) {
        self.0.busy_since.store(self.0.millis(Instant::now()), Ordering::Relaxed);
    }

    /// Waits from now on, for work or for somebody whom a new start would not hurry.
    pub fn idle(&self) {
        self.0.busy_since.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    #[test]
    fn a_task_that_waits_is_well_however_long_it_waits() {
        let watchdog = Watchdog::default();
        let pulse = watchdog.task("exporter", LIMIT);
        pulse.busy();
        pulse.idle();
        let later = Instant::now() + Duration::from_secs(1_000_000);
        assert_eq!(watchdog.checks(later), [Check::ok("exporter", "")]);
    }

    #[test]
    fn a_turn_that_does_not_end_is_told_after_its_limit_and_not_before() {
        let watchdog = Watchdog::default();
        let pulse = watchdog.task("exporter", LIMIT);
        pulse.busy();
        assert!(watchdog.checks(Instant::now() + LIMIT - Duration::from_secs(1))[0].is_ok());
        let stuck = watchdog.checks(Instant::now() + LIMIT + Duration::from_secs(5));
        let why = stuck[0].state.as_ref().unwrap_err();
        assert!(why.starts_with("stuck: no progress in 3") && why.ends_with("30 s are allowed"), "{why}");
        pulse.idle();
        assert!(watchdog.checks(Instant::now() + LIMIT * 2)[0].is_ok(), "it got on after all");
    }
}
