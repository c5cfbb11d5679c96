//! From the TUN to the underlay: read until there is nothing left, encrypt into one batch, send it with one call.

use std::os::fd::AsFd;

use boringtun::noise::Tunn;
use nix::errno::Errno;

use super::counters::Reason;
use super::mmsg::SendBatch;
use super::peer::{DATA_OVERHEAD, LARGEST_HANDSHAKE};
use super::{MAX_MTU, Shared, wait};
use crate::tun::Tun;

/// WireGuard pads packets to multiples of this, so that lengths tell less (whitepaper §5.4.6).
const PADDING: usize = 16;

pub(crate) const LARGEST_DATAGRAM: usize = MAX_MTU as usize + PADDING + DATA_OVERHEAD;
const _: () = assert!(LARGEST_DATAGRAM > LARGEST_HANDSHAKE);

pub(crate) fn run(shared: &Shared, wake: &std::io::PipeReader) {
    let mut packet = vec![0; LARGEST_DATAGRAM];
    let mut out = SendBatch::new(LARGEST_DATAGRAM);
    while shared.running() {
        let (tun, sockets) = (shared.tun(), shared.sockets());
        if wait(&[tun.as_fd()], wake, None)[0] {
            fill(shared, &tun, &mut packet, &mut out);
            out.flush(&sockets, &shared.counters);
        }
    }
}

/// Until the TUN is empty or the batch is full. The configuration is locked for one batch, and not while sending.
fn fill(shared: &Shared, tun: &Tun, packet: &mut [u8], out: &mut SendBatch) {
    let state = shared.state();
    let mtu = shared.mtu();
    while out.has_room() {
        let length = match tun.read(&mut packet[..MAX_MTU as usize]) {
            Ok(0) | Err(Errno::EAGAIN) => return,
            Ok(length) => length,
            Err(Errno::EINTR) => continue,
            Err(_) => {
                // The device was deleted under us (EBADFD): rest until the driver opens another.
                shared.counters.count(Reason::TunFailed);
                drop(state);
                return shared.rest();
            }
        };
        let Some(destination) = Tunn::dst_address(&packet[..length]) else {
            shared.counters.count(Reason::NotIp);
            continue;
        };
        let Some(peer) = state.owners.lookup(destination) else {
            shared.counters.count(Reason::NoPeerForDestination);
            continue;
        };
        let padded = padded(length, mtu);
        packet[length..padded].fill(0);
        peer.send(&packet[..padded], out, &shared.counters);
    }
}

/// Never past the MTU, so that padding never makes a datagram too long for its path.
fn padded(length: usize, mtu: usize) -> usize {
    length.next_multiple_of(PADDING).min(mtu.max(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_reaches_the_next_sixteen_but_not_past_the_mtu() {
        assert_eq!(padded(40, 1420), 48);
        assert_eq!(padded(48, 1420), 48);
        assert_eq!(padded(1409, 1420), 1420);
        assert_eq!(padded(1420, 1420), 1420);
        assert_eq!(padded(1500, 1420), 1500);
    }
}
