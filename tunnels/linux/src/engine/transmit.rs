//! From the TUN to the underlay: read until there is nothing left, cut to the MTU, encrypt into one batch, send it with
//! one call.

use std::os::fd::AsFd;

use boringtun::noise::Tunn;
use nix::errno::Errno;

use super::counters::Reason;
use super::mmsg::SendBatch;
use super::peer::{DATA_OVERHEAD, LARGEST_HANDSHAKE, Peer};
use super::sockets::Sockets;
use super::state::State;
use super::{MAX_MTU, Shared, wait};
use crate::offload::split::{Unsplit, split};
use crate::offload::vnet::Header;
use crate::tun::{LARGEST_READ, Tun};

/// WireGuard pads packets to multiples of this, so that lengths tell less (whitepaper §5.4.6).
const PADDING: usize = 16;

pub(crate) const LARGEST_DATAGRAM: usize = MAX_MTU as usize + PADDING + DATA_OVERHEAD;
const _: () = assert!(LARGEST_DATAGRAM > LARGEST_HANDSHAKE);

pub(crate) fn run(shared: &Shared, wake: &std::io::PipeReader) {
    let mut sender = Sender {
        shared,
        read: Box::new([0; LARGEST_READ]),
        segment: vec![0; LARGEST_DATAGRAM],
        out: SendBatch::new(LARGEST_DATAGRAM),
    };
    while shared.running() {
        let (tun, sockets) = (shared.tun(), shared.sockets());
        if wait(&[tun.as_fd()], wake, None)[0] {
            sender.fill(&tun, &sockets);
            sender.out.flush(&sockets, &shared.counters);
        }
    }
}

struct Sender<'a> {
    shared: &'a Shared,
    read: Box<[u8; LARGEST_READ]>,
    segment: Vec<u8>,
    out: SendBatch,
}

impl Sender<'_> {
    /// Until the TUN is empty or the batch is full. The configuration is locked for one batch, and not while sending;
    /// but a superpacket that does not fit into what is left of a batch is sent in two.
    fn fill(&mut self, tun: &Tun, sockets: &Sockets) {
        let state = self.shared.state();
        let mtu = self.shared.mtu();
        while self.out.has_room() {
            let (header, packet) = match tun.read(&mut self.read) {
                Ok((_, [])) | Err(Errno::EAGAIN) => return,
                Ok(read) => read,
                Err(Errno::EINTR) => continue,
                Err(_) => {
                    // The device was deleted under us (EBADFD): rest until the driver opens another.
                    self.shared.counters.count(Reason::TunFailed);
                    drop(state);
                    return self.shared.rest();
                }
            };
            let sent = send(&state, &header, packet, mtu, &mut self.segment, |peer, segment| {
                if !self.out.has_room() {
                    self.out.flush(sockets, &self.shared.counters);
                }
                peer.send(segment, &mut self.out, &self.shared.counters);
            });
            if let Err(why) = sent {
                self.shared.counters.count(why);
            }
        }
    }
}

/// One packet of the TUN, cut to the MTU and padded, for the peer that owns its destination.
fn send(
    state: &State,
    header: &Header,
    packet: &mut [u8],
    mtu: usize,
    segment: &mut [u8],
    mut each: impl FnMut(&Peer, &[u8]),
) -> Result<(), Reason> {
    let destination = Tunn::dst_address(packet).ok_or(Reason::NotIp)?;
    let peer = state.owners.lookup(destination).ok_or(Reason::NoPeerForDestination)?;
    let mut segments = split(header, packet, mtu).map_err(|unsplit| match unsplit {
        Unsplit::Malformed => Reason::NotIp,
        Unsplit::TooBig => Reason::TooBig,
    })?;
    while let Some(length) = segments.next(segment) {
        let padded = padded(length, mtu);
        segment[length..padded].fill(0);
        each(peer, &segment[..padded]);
    }
    Ok(())
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
