//! How a thread waits for its next packet: asleep; or, while packets go back and forth one by one, awake for a moment.
//!
//! To be put to sleep and woken costs more than everything else that is done for a packet, and each is waited for by two
//! threads here and two there. So in a conversation, where an answer comes at once, a thread asks again for [`AWAKE`] before
//! it sleeps, and gives way to whoever else can run each time. It costs nothing elsewhere: who finds nobody there, or
//! packets in numbers, sleeps; and while any thread carries a stream, all do.

use std::io::PipeReader;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::yield_now;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::clock::Millis;

/// The most descriptors that one thread waits for.
const MOST: usize = 2;

/// A round trip through two engines and two kernels, and a little.
const AWAKE: Duration = Duration::from_micros(60);
/// Slept no longer than this: being awake might have met it.
const SHORT: Duration = Duration::from_micros(120);
/// Packets that are slept for after one was waited for in vain: being awake costs at most one part in so many.
const REST: u32 = 50;
/// Beyond this it is no single small packet, but a stream.
const SMALL: usize = 2048;
/// How long a stream keeps all threads from staying awake.
const STREAM: u64 = 3;

/// When any thread last carried more than one small packet at a time.
#[derive(Debug, Default)]
pub(crate) struct Streams(AtomicU64);

impl Streams {
    fn note(&self, now: Millis) {
        // Not written again and again by all threads.
        if self.0.load(Ordering::Relaxed) != now.0 {
            self.0.store(now.0, Ordering::Relaxed);
        }
    }

    fn are_idle(&self, now: Millis) -> bool {
        now.0.saturating_sub(self.0.load(Ordering::Relaxed)) > STREAM
    }
}

/// Of one thread.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    awake: bool,
    rest: u32,
}

impl Waiting {
    /// After what was waited for was carried: so many packets, of so many bytes together.
    pub(crate) fn carried(&mut self, packets: usize, bytes: usize, streams: &Streams) {
        let now = Millis::now();
        if packets > 1 || bytes > SMALL {
            streams.note(now);
        }
        self.rest = self.rest.saturating_sub(1);
        if !streams.are_idle(now) {
            self.awake = false;
        }
    }

    /// As [`wait`], without a timeout.
    pub(crate) fn wait(&mut self, fds: &[BorrowedFd<'_>], wake: &PipeReader) -> [bool; MOST] {
        let began = Instant::now();
        while self.awake {
            if let Some(ready) = look(fds, wake, PollTimeout::ZERO) {
                return ready;
            }
            if began.elapsed() >= AWAKE {
                (self.awake, self.rest) = (false, REST);
            }
            yield_now();
        }
        let began = Instant::now();
        let ready = wait(fds, wake, None);
        self.awake = self.rest == 0 && began.elapsed() < SHORT;
        ready
    }
}

/// Waits until one of `fds` is readable or has an error, and says which. None after a wake, which is taken in, or the
/// timeout.
pub(crate) fn wait(fds: &[BorrowedFd<'_>], wake: &PipeReader, timeout: Option<Duration>) -> [bool; MOST] {
    let timeout =
        timeout.and_then(|timeout| PollTimeout::try_from(timeout).ok()).unwrap_or(PollTimeout::NONE);
    look(fds, wake, timeout).unwrap_or_default()
}

/// None when nothing came.
fn look(fds: &[BorrowedFd<'_>], wake: &PipeReader, timeout: PollTimeout) -> Option<[bool; MOST]> {
    let watch = |fd| PollFd::new(fd, PollFlags::POLLIN);
    let mut polled: [PollFd<'_>; MOST + 1] = std::array::from_fn(|_| watch(wake.as_fd()));
    let count = fds.len().min(MOST);
    for (slot, fd) in polled[1..].iter_mut().zip(fds) {
        *slot = watch(*fd);
    }
    if poll(&mut polled[..=count], timeout).unwrap_or(0) == 0 {
        return None;
    }
    let is_ready = |polled: &PollFd<'_>| polled.any().unwrap_or(false);
    let mut ready = [false; MOST];
    if is_ready(&polled[0]) {
        let _ = nix::unistd::read(wake, &mut [0; 16]);
        return Some(ready);
    }
    for (ready, polled) in ready.iter_mut().zip(&polled[1..=count]) {
        *ready = is_ready(polled);
    }
    Some(ready)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    struct World {
        packets: (PipeReader, std::io::PipeWriter),
        wake: (PipeReader, std::io::PipeWriter),
        waiting: Waiting,
        streams: Streams,
    }

    impl World {
        fn new() -> Self {
            let pipe = || std::io::pipe().unwrap();
            Self { packets: pipe(), wake: pipe(), waiting: Waiting::default(), streams: Streams::default() }
        }

        /// One packet that is there already.
        fn next(&mut self, packets: usize, bytes: usize) {
            self.packets.1.write_all(&[0]).unwrap();
            assert_eq!(self.waiting.wait(&[self.packets.0.as_fd()], &self.wake.0), [true, false]);
            self.packets.0.read_exact(&mut [0]).unwrap();
            self.waiting.carried(packets, bytes, &self.streams);
        }
    }

    #[test]
    fn who_is_spoken_to_again_and_again_stays_awake_and_who_waits_in_vain_sleeps() {
        let mut world = World::new();
        // Whoever is interrupted in the middle of it has slept long; not every time.
        let awake = (0..100).any(|_| {
            world.next(1, 100);
            world.waiting.awake
        });
        assert!(awake);
        world.wake.1.write_all(&[0]).unwrap();
        assert_eq!(world.waiting.wait(&[world.packets.0.as_fd()], &world.wake.0), [false, false], "woken");
        (world.waiting.awake, world.waiting.rest) = (true, 0);
        let mut late = world.packets.1.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            late.write_all(&[0]).unwrap();
        });
        assert_eq!(world.waiting.wait(&[world.packets.0.as_fd()], &world.wake.0), [true, false]);
        sender.join().unwrap();
        world.packets.0.read_exact(&mut [0]).unwrap();
        assert_eq!((world.waiting.awake, world.waiting.rest), (false, REST), "slept in the end");
        for _ in 1..REST {
            world.next(1, 100);
            assert!(!world.waiting.awake, "and does for a while");
        }
    }

    #[test]
    fn nobody_stays_awake_beside_a_stream() {
        for (packets, bytes) in [(2, 200), (1, 60_000)] {
            let mut world = World::new();
            world.waiting.awake = true;
            world.next(packets, bytes);
            assert!(!world.waiting.awake);
            let mut other = Waiting { awake: true, rest: 0 };
            world.streams.note(Millis::now());
            other.carried(1, 100, &world.streams);
            assert!(!other.awake, "nor does another thread");
        }
    }
}
