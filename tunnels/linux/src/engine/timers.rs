//! What happens without a packet: handshakes again, keepalives, sessions that end, the limiter's second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::mmsg::SendBatch;
use super::transmit::LARGEST_DATAGRAM;
use super::{Shared, wait};

/// boringtun's clock moves only when it is asked; WireGuard's shortest timer has 333 ms of jitter.
const TICK: Duration = Duration::from_millis(250);

pub(crate) fn run(shared: &Shared, wake: &std::io::PipeReader) {
    let mut out = SendBatch::new(LARGEST_DATAGRAM);
    while shared.running() {
        wait(&[], wake, Some(TICK));
        let (limiter, peers): (_, Vec<_>) = {
            let state = shared.state();
            (Arc::clone(&state.limiter), state.peers.values().cloned().collect())
        };
        limiter.reset_count();
        let (now, sockets) = (Instant::now(), shared.sockets());
        for peer in peers {
            if !out.has_room() {
                out.flush(&sockets, &shared.counters);
            }
            peer.tick(now, &mut out, &shared.counters);
        }
        out.flush(&sockets, &shared.counters);
    }
}
