//! From the TUN to the underlay: read until there is nothing left, cut to the MTU right behind the room for a header, seal
//! in place, send with one call.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::errno::Errno;

use super::carry::{HEADER, PADDING, Seals, Way, pad};
use super::counters::Reason;
use super::mmsg::SendBatch;
use super::peer::{Path, Peer};
use super::sockets::Sockets;
use super::state::State;
use super::{MAX_MTU, Shared, wait};
use crate::clock::Millis;
use crate::esp;
use crate::noise::{DATA_OVERHEAD, INITIATION_LENGTH};
use crate::offload::packet::addresses;
use crate::offload::split::{Split, Unsplit, split};
use crate::offload::vnet::Header;
use crate::tun::{LARGEST_READ, Tun};

pub(crate) const LARGEST_DATAGRAM: usize = MAX_MTU as usize + PADDING + DATA_OVERHEAD;
const _: () = assert!(LARGEST_DATAGRAM > INITIATION_LENGTH && PADDING + DATA_OVERHEAD >= esp::OVERHEAD);

pub(crate) fn run(shared: &Shared, queue: usize, wake: &std::io::PipeReader) {
    let mut read = Box::new([0; LARGEST_READ]);
    let mut sender = Sender { shared, out: SendBatch::new(LARGEST_DATAGRAM), last: None };
    while shared.running() {
        let (tun, sockets) = (shared.tun(), shared.sockets());
        // A device that is adopted may have fewer queues than this machine has cores.
        let Some(ready) = tun.queue(queue) else {
            wait(&[], wake, None);
            continue;
        };
        if wait(&[ready.as_fd()], wake, None)[0] {
            sender.fill(&tun, queue, &mut read, &sockets);
            sender.out.flush(&sockets, &shared.counters);
        }
    }
}

struct Sender<'a> {
    shared: &'a Shared,
    out: SendBatch,
    /// Of the batch: the last peer, and the way to it.
    last: Option<(Arc<Peer>, Arc<Path>)>,
}

impl Sender<'_> {
    /// Until the TUN is empty or the batch is full. The configuration is locked for one batch, and not while sending.
    fn fill(&mut self, tun: &Tun, queue: usize, read: &mut [u8; LARGEST_READ], sockets: &Sockets) {
        let state = self.shared.state();
        let (mtu, now) = (self.shared.mtu(), Millis::now());
        // Looked up again: it may have been renewed, or be over.
        self.last = None;
        while self.out.has_room_for_message() {
            match tun.read(queue, read) {
                Ok((_, [])) | Err(Errno::EAGAIN) => return,
                Ok((header, packet)) => {
                    if let Err(why) = self.send(&state, &header, packet, mtu, sockets, now) {
                        self.shared.counters.count(why);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(_) => {
                    // The device was deleted under us (EBADFD): rest until the driver opens another.
                    self.shared.counters.count(Reason::TunFailed);
                    drop(state);
                    return self.shared.rest();
                }
            }
        }
    }

    /// One packet of the TUN, cut to the MTU and padded, for the peer that owns its destination.
    fn send(
        &mut self,
        state: &State,
        header: &Header,
        packet: &mut [u8],
        mtu: usize,
        sockets: &Sockets,
        now: Millis,
    ) -> Result<(), Reason> {
        let (_, destination): (IpAddr, IpAddr) = addresses(packet).ok_or(Reason::NotIp)?;
        let peer = state.owners.lookup(destination).ok_or(Reason::NoPeerForDestination)?;
        let segments = split(header, packet, mtu).map_err(|unsplit| match unsplit {
            Unsplit::Malformed => Reason::NotIp,
            Unsplit::TooBig => Reason::TooBig,
        })?;
        if self.last.as_ref().is_none_or(|(last, _)| !Arc::ptr_eq(last, peer)) {
            self.last = peer.path(now).map(|path| (Arc::clone(peer), path));
        }
        match &self.last {
            Some((_, path)) => {
                let path = Arc::clone(path);
                let batch = Batch { peer, to: path.to, mtu, sockets, now };
                match &path.way {
                    Way::Wireguard(session) => self.seal(&batch, &**session, segments),
                    Way::Esp(outbound) => self.seal(&batch, &**outbound, segments),
                }
            }
            None => {
                let mut context = self.shared.context(&state.key, &mut self.out, sockets, now);
                hold(&mut context, peer, segments, mtu);
            }
        }
        Ok(())
    }

    fn seal(&mut self, batch: &Batch<'_>, by: &impl Seals, mut segments: Split<'_>) {
        let mut bytes = 0;
        loop {
            if !self.out.has_room() {
                self.out.flush(batch.sockets, &self.shared.counters);
            }
            let space = self.out.space();
            let Some(length) = segments.next(&mut space[HEADER..]) else { break };
            // Only without counters: the timers have asked for another session long before.
            let Ok(length) = by.seal_packet(space, length, batch.mtu) else {
                self.shared.counters.count(Reason::NoSession);
                continue;
            };
            self.out.push(length, batch.to);
            bytes += length;
        }
        batch.peer.note_sent(bytes, true, batch.now);
    }
}

/// The segments of one superpacket: whose they are, and where they go.
struct Batch<'a> {
    peer: &'a Peer,
    to: SocketAddr,
    mtu: usize,
    sockets: &'a Sockets,
    now: Millis,
}

/// Without a session each segment waits, and the first asks for one.
fn hold(context: &mut super::peer::Context<'_>, peer: &Arc<Peer>, mut segments: Split<'_>, mtu: usize) {
    let mut segment = [0; LARGEST_DATAGRAM];
    while let Some(length) = segments.next(&mut segment) {
        let padded = pad(&mut segment, length, mtu);
        peer.enqueue(context, &segment[..padded]);
    }
}
