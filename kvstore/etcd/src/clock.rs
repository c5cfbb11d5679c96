//! The process's clock: the machine's, which a test may move (`clustermesh-apiserver --test-clock FILE`).
//!
//! Lease deadlines, certificates and tokens go by it. What waits for a duration (a retry, a heartbeat) does not: it
//! sleeps, and no clock is asked. Cost of a look: the system call, and one relaxed load.

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// How far it is off, in milliseconds. One for the process, as the machine's is.
static OFF: AtomicI64 = AtomicI64::new(0);

/// How often a test's file is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// The time of day.
pub fn wall() -> SystemTime {
    let now = SystemTime::now();
    match OFF.load(Ordering::Relaxed) {
        0 => now,
        off if off > 0 => now + Duration::from_millis(off.unsigned_abs()),
        off => now - Duration::from_millis(off.unsigned_abs()),
    }
}

/// Since `start`. A clock that is set back stands before it for a while: that is zero.
pub(crate) fn since(start: Instant) -> Duration {
    let elapsed = start.elapsed();
    match OFF.load(Ordering::Relaxed) {
        0 => elapsed,
        off if off > 0 => elapsed + Duration::from_millis(off.unsigned_abs()),
        off => elapsed.saturating_sub(Duration::from_millis(off.unsigned_abs())),
    }
}

/// For tests of the whole process: from now on the clock is off by as many seconds as `file` says, whenever it says
/// something else. A file that is not there or cannot be understood changes nothing.
pub fn follow_file(file: PathBuf) {
    std::thread::spawn(move || {
        loop {
            let said = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<i64>().ok());
            if let Some(off) = said.map(|seconds| seconds.saturating_mul(1000))
                && OFF.swap(off, Ordering::Relaxed) != off
            {
                tracing::warn!(seconds = off / 1000, "the clock is moved by a test");
            }
            std::thread::sleep(LOOK);
        }
    });
}
