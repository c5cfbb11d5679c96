//! Waiting for a condition with a deadline, and saying what was awaited when it did not come.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// By how much this machine is slower than one that is not emulated.
const SLOWER: &str = "HAWSER_LAB_PATIENCE";
const INTERVAL: Duration = Duration::from_millis(40);

/// Polls `condition` until it gives a value. An error means "not yet" and is quoted when the time is over.
pub fn until<T>(what: &str, patience: Duration, mut condition: impl FnMut() -> Result<T>) -> Result<T> {
    let patience = scaled(patience);
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

/// A patience of a usual machine, as one of this machine.
pub fn scaled(patience: Duration) -> Duration {
    let factor = std::env::var(SLOWER).ok().and_then(|factor| factor.parse().ok());
    patience * factor.unwrap_or(1)
}
