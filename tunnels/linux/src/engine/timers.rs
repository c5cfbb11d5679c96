//! What happens without a packet: handshakes again, keepalives, sessions that end.

use std::sync::Arc;
use std::time::Duration;

use hawser_tunnels::DEFAULT_MTU;

use super::carry::Protocol;
use super::mmsg::SendBatch;
use super::peer::Peer;
use super::sockets::Sockets;
use super::transmit::LARGEST_DATAGRAM;
use super::{Shared, wait};
use crate::clock::Millis;

/// WireGuard's shortest timer has 333 ms of jitter.
const TICK: Duration = Duration::from_millis(250);

pub(crate) fn run(shared: &Shared, wake: &std::io::PipeReader) {
    let mut out = SendBatch::new(LARGEST_DATAGRAM);
    // Sockets whose datagrams are never cut: what a path carries is known by probes.
    let mut whole: Option<Arc<Sockets>> = None;
    while shared.running() {
        wait(&[], wake, Some(TICK));
        let (own, peers): (_, Vec<_>) = {
            let state = shared.state();
            (state.key.clone(), state.peers.values().cloned().collect())
        };
        let (now, sockets) = (Millis::now(), shared.sockets());
        let mtu = u16::try_from(shared.mtu()).unwrap_or(u16::MAX);
        let wide = mtu > DEFAULT_MTU && shared.protocol == Protocol::Wireguard;
        if wide && !whole.as_ref().is_some_and(|known| Arc::ptr_eq(known, &sockets)) {
            sockets.never_fragment();
            whole = Some(Arc::clone(&sockets));
        }
        for lane in peers.iter().flat_map(Peer::all) {
            let mut context = shared.context(&own, &mut out, &sockets, now);
            lane.tick(&mut context);
            if wide {
                lane.probe_path(&mut context, mtu);
            }
        }
        out.flush(&sockets, &shared.counters);
    }
}
