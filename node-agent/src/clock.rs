//! The only place where this program reads a clock.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hawser_model::{Time, Timestamp};

/// Time since the process began, for the cores; cheap to copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now() }
    }

    pub(crate) fn now(self) -> Time {
        Time::from_duration(self.started.elapsed())
    }

    /// As the probing task wants it.
    pub(crate) fn shared(self) -> Arc<dyn Fn() -> Time + Send + Sync> {
        Arc::new(move || self.now())
    }

    /// When a moment of the cores was, by the wall clock as it is now.
    pub(crate) fn unix_ms(self, at: Time) -> i64 {
        let ago = self.now().since(at);
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        millis(unix.saturating_sub(ago))
    }
}

/// For certificates.
pub(crate) fn wall() -> Timestamp {
    Timestamp::from_system(SystemTime::now())
}

/// How long ago; zero for what lies ahead.
pub(crate) fn ago(at: SystemTime) -> Duration {
    SystemTime::now().duration_since(at).unwrap_or_default()
}

pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
