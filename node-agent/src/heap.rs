//! The allocator's habits: what a large view takes for a moment does not stay with the process.

use std::time::{Duration, Instant};

#[cfg(target_env = "gnu")]
use nix::libc;

/// A change that took this long to carry out was a large one.
const LARGE: Duration = Duration::from_millis(50);
/// Looking through the heap holds the allocator's lock for some milliseconds.
const REST: Duration = Duration::from_secs(30);

/// Memory that one thread lets go is of use to the others only within an arena, and glibc makes eight of them for each core. To be
/// called before there are threads.
pub fn share_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets one number in the allocator, under the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// When memory was given back last.
#[derive(Debug, Default)]
pub(crate) struct Heap(Option<Instant>);

impl Heap {
    /// After a reconcile that began then: gives what is free to the kernel, when it may be much.
    pub(crate) fn after(&mut self, began: Option<Instant>) {
        let large = began.is_some_and(|began| began.elapsed() >= LARGE);
        if large && self.0.is_none_or(|last| last.elapsed() >= REST) {
            self.0 = Some(Instant::now());
            tokio::task::spawn_blocking(give_back);
        }
    }
}

fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks, and gives back what nobody holds.
    unsafe {
        libc::malloc_trim(0);
    }
}
