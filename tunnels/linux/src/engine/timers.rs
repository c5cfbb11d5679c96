//! What happens without a packet: handshakes again, keepalives, sessions that end.

use std::time::Duration;

use super::mmsg::SendBatch;
use super::transmit::LARGEST_DATAGRAM;
use super::{Shared, wait};
use crate::clock::Millis;

/// WireGuard's shortest timer has 333 ms of jitter.
const TICK: Duration = Duration::from_millis(250);

pub(crate) fn run(shared: &Shared, wake: &std::io::PipeReader) {
    let mut out = SendBatch::new(LARGEST_DATAGRAM);
    while shared.running() {
        wait(&[], wake, Some(TICK));
        let (own, peers): (_, Vec<_>) = {
            let state = shared.state();
            (state.key.clone(), state.peers.values().cloned().collect())
        };
        let (now, sockets) = (Millis::now(), shared.sockets());
        for peer in peers {
            peer.tick(&mut shared.context(&own, &mut out, &sockets, now));
        }
        out.flush(&sockets, &shared.counters);
    }
}
