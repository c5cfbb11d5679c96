//! Waiting for a condition with a deadline, and saying what was awaited when it did not come.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

const INTERVAL: Duration = Duration::from_millis(40);

/// Polls `condition` until it gives a value. An error means "not yet" and is quoted when the time is over.
pub fn until<T>(what: &str, patience: Duration, mut condition: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > patience => {
                return Err(anyhow!("waited {patience:?} for this: {what}\n  but: {error:#}"));
            }
            Err(_) => sleep(INTERVAL),
        }
    }
}
