//! From the TUN to the underlay: read until there is nothing left, cut to the MTU right behind the room for a header, seal
//! in place, send with one call.

use std::io::IoSlice;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::errno::Errno;

use super::carry::{HEADER, PADDING, Seals, Way, pad};
use super::counters::Reason;
use super::mmsg::SendBatch;
use super::peer::{Path, Peer};
use super::sockets::{Line, Sockets};
use super::state::State;
use super::waiting::Waiting;
use super::{MAX_MTU, Shared, wait};
use crate::clock::Millis;
use crate::esp;
use crate::noise::{DATA_OVERHEAD, INITIATION_LENGTH};
use crate::offload::packet::{addresses, flow};
use crate::offload::split::{Split, Unsplit, split};
use crate::offload::too_big;
use crate::offload::vnet::{self, Header};
use crate::tun::{LARGEST_READ, Tun};

pub(crate) const LARGEST_DATAGRAM: usize = MAX_MTU as usize + PADDING + DATA_OVERHEAD;
const _: () = assert!(LARGEST_DATAGRAM > INITIATION_LENGTH && PADDING + DATA_OVERHEAD >= esp::OVERHEAD);

pub(crate) fn run(shared: &Shared, queue: usize, wake: &std::io::PipeReader) {
    let mut read = Box::new([0; LARGEST_READ]);
    let mut sender = Sender::new(shared);
    let mut waiting = Waiting::default();
    while shared.running() {
        let (tun, sockets) = (shared.tun(), shared.sockets());
        // A device that is adopted may have fewer queues than this machine has cores.
        let Some(ready) = tun.queue(queue) else {
            wait(&[], wake, None);
            continue;
        };
        if waiting.wait(&[ready.as_fd()], wake)[0] {
            (sender.packets, sender.bytes) = (0, 0);
            let mut more = true;
            while more && shared.running() {
                more = sender.fill(&tun, queue, &mut read, &sockets);
                sender.out.flush(&sockets, &shared.counters);
            }
            sender.alone = sender.packets == 1;
            waiting.carried(sender.packets, sender.bytes, &shared.streams);
        }
    }
}

struct Sender<'a> {
    shared: &'a Shared,
    out: SendBatch,
    /// Of the batch: the last peer, and the way to it.
    last: Option<(Arc<Peer>, Arc<Path>)>,
    /// By the path of the packet that was too big.
    carried: usize,
    /// Read since the TUN was last empty.
    packets: usize,
    bytes: usize,
    /// Before that it was one packet: this one is not kept either until it is known whether others follow.
    alone: bool,
}

impl<'a> Sender<'a> {
    fn new(shared: &'a Shared) -> Self {
        let out = SendBatch::new(LARGEST_DATAGRAM);
        Self { shared, out, last: None, carried: 0, packets: 0, bytes: 0, alone: false }
    }

    /// Until the TUN is empty or the batch is full; whether there may be more. The configuration is locked for one batch,
    /// and not while sending.
    fn fill(&mut self, tun: &Tun, queue: usize, read: &mut [u8; LARGEST_READ], sockets: &Sockets) -> bool {
        let state = self.shared.state();
        let (mtu, now) = (self.shared.mtu(), Millis::now());
        // Looked up again: it may have been renewed, or be over.
        self.last = None;
        while self.out.has_room_for_message() {
            match tun.read(queue, read) {
                Ok((_, [])) | Err(Errno::EAGAIN) => return false,
                Ok((header, packet)) => {
                    self.packets += 1;
                    self.bytes += packet.len();
                    if let Err(why) = self.send(&state, &header, packet, mtu, sockets, now) {
                        self.shared.counters.count(why);
                        if why == Reason::TooBig {
                            self.tell_too_big(tun, queue, packet);
                        }
                    }
                    if self.alone && self.packets == 1 {
                        return true;
                    }
                }
                Err(Errno::EINTR) => {}
                Err(_) => {
                    // The device was deleted under us (EBADFD): rest until the driver opens another.
                    self.shared.counters.count(Reason::TunFailed);
                    drop(state);
                    self.shared.rest();
                    return false;
                }
            }
        }
        true
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
        let owner = state.owners.lookup(destination).ok_or(Reason::NoPeerForDestination)?;
        let lane = owner.lane_of(|| flow(packet));
        if self.last.as_ref().is_none_or(|(last, _)| !Arc::ptr_eq(last, lane)) {
            self.last = self.path(state, owner, lane, sockets, now);
        }
        let mtu = self.last.as_ref().map_or(owner, |(peer, _)| peer).mtu(mtu);
        let segments = split(header, packet, mtu).map_err(|unsplit| {
            self.carried = mtu;
            match unsplit {
                Unsplit::Malformed => Reason::NotIp,
                Unsplit::TooBig => Reason::TooBig,
            }
        })?;
        match &self.last {
            Some((peer, path)) => {
                let (peer, path) = (Arc::clone(peer), Arc::clone(path));
                let batch = Batch { peer: &peer, to: path.to, mtu, sockets, now };
                match &path.way {
                    Way::Wireguard(session) => self.seal(&batch, &**session, segments),
                    Way::Esp(outbound) => self.seal(&batch, &**outbound, segments),
                }
            }
            None => {
                let mut context = self.shared.context(&state.key, &mut self.out, sockets, now);
                hold(&mut context, owner, segments, mtu);
            }
        }
        Ok(())
    }

    /// Its sender learns what the path carries: the device lets more through than this peer's path does.
    fn tell_too_big(&self, tun: &Tun, queue: usize, packet: &[u8]) {
        let mut answer = [0; too_big::LONGEST];
        let mtu = u16::try_from(self.carried).unwrap_or(u16::MAX);
        if let Some(length) = too_big::too_big(packet, mtu, &mut answer) {
            let pieces = [IoSlice::new(&[0; vnet::LENGTH]), IoSlice::new(&answer[..length])];
            // Told or not, it was counted.
            let _ = tun.write(queue, &pieces);
        }
    }

    /// By the lane of a flow, or, until there is a session in that, by the first.
    fn path(
        &mut self,
        state: &State,
        owner: &Arc<Peer>,
        lane: &Arc<Peer>,
        sockets: &Sockets,
        now: Millis,
    ) -> Option<(Arc<Peer>, Arc<Path>)> {
        let of = |peer: &Arc<Peer>| peer.path(now).map(|path| (Arc::clone(peer), path));
        let first = || of(owner);
        if Arc::ptr_eq(owner, lane) {
            return first();
        }
        of(lane).or_else(|| {
            // Where not even the first one leads, there is nobody to ask.
            let first = first()?;
            lane.ask(&mut self.shared.context(&state.key, &mut self.out, sockets, now));
            Some(first)
        })
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
    to: Line,
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
