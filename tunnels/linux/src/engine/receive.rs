//! From the underlay to the TUN: whose datagram is it, does it prove so, and may its inner source speak.
//!
//! Datagrams are opened where they were received, many of one session at a time, and go on to the TUN from there.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, RwLockReadGuard};

use super::counters::Reason;
use super::mmsg::{ReceiveBatch, Received, SendBatch};
use super::peer::Peer;
use super::sessions::{Entry, Table};
use super::sockets::Sockets;
use super::state::State;
use super::transmit::LARGEST_DATAGRAM;
use super::{Shared, handshake, wait};
use crate::PrivateKey;
use crate::clock::Millis;
use crate::noise::session::Session;
use crate::noise::{DATA_HEADER, Kind, TAG, kind, receiver};
use crate::offload::join::Joiner;
use crate::offload::packet::{addresses, flow, inner_length};
use crate::tun::Tun;

/// Datagrams that are opened between two looks at the replay window.
const RUN: usize = 64;

pub(crate) fn run(shared: &Shared, wake: &std::io::PipeReader) {
    let mut receiver = Receiver {
        shared,
        plain: Joiner::default(),
        out: SendBatch::new(LARGEST_DATAGRAM),
        opened: Vec::with_capacity(RUN),
        heard: None,
    };
    let mut batch = ReceiveBatch::new();
    while shared.running() {
        let (tun, sockets) = (shared.tun(), shared.sockets());
        let ready = wait(&sockets.fds()[..sockets.both().count()], wake, None);
        for (socket, _) in sockets.both().zip(ready).filter(|(_, ready)| *ready) {
            if let Ok(count @ 1..) = batch.receive(socket) {
                receiver.take(&mut batch, count, &sockets);
                receiver.deliver(&mut batch, &tun);
                receiver.out.flush(&sockets, &shared.counters);
            }
        }
    }
}

struct Receiver<'a> {
    shared: &'a Shared,
    /// On its way to the TUN, in the batch.
    plain: Joiner,
    out: SendBatch,
    opened: Vec<Opened>,
    /// The session that was last heard of in this batch, and from where: its peer needs no second telling.
    heard: Option<(u32, SocketAddr)>,
}

/// A datagram that has proved authentic.
struct Opened {
    counter: u64,
    /// The packet and its padding.
    start: usize,
    end: usize,
}

/// What a run of datagrams leaves to be done while no table is locked.
struct Heard {
    peer: Arc<Peer>,
    session: Arc<Session>,
    from: SocketAddr,
}

/// What stays as it is for one batch.
struct Frame<'a> {
    state: &'a State,
    own: &'a PrivateKey,
    sockets: &'a Sockets,
    now: Millis,
}

impl<'a> Receiver<'a> {
    /// The configuration and the table of sessions are locked for one batch; the table not during a handshake.
    fn take(&mut self, batch: &mut ReceiveBatch, count: usize, sockets: &Sockets) {
        let state = self.shared.state();
        let frame = Frame { state: &state, own: &state.key, sockets, now: Millis::now() };
        self.heard = None;
        let shared = self.shared;
        let mut table = shared.sessions.read();
        for at in 0..count {
            let Some(message) = batch.message(at) else {
                self.shared.counters.count(Reason::Truncated);
                continue;
            };
            let mut start = message.start;
            while start < message.end {
                (start, table) = self.datagrams(&frame, batch.bytes(), start, &message, table);
            }
        }
    }

    fn deliver(&mut self, batch: &mut ReceiveBatch, tun: &Tun) {
        self.plain.drain(batch.bytes(), |packet| {
            let queue = packet.get(1).map_or(0, |packet| flow(packet));
            if tun.write(queue, packet).is_err() {
                self.shared.counters.count(Reason::TunFailed);
            }
        });
    }

    /// One handshake message, or as many data messages of one session as follow each other. Returns where to go on.
    fn datagrams(
        &mut self,
        frame: &Frame<'_>,
        bytes: &mut [u8],
        start: usize,
        message: &Received,
        table: RwLockReadGuard<'a, Table>,
    ) -> (usize, RwLockReadGuard<'a, Table>) {
        let end = message.end.min(start.saturating_add(message.size));
        let datagram = &bytes[start..end];
        let shared = self.shared;
        let counters = &shared.counters;
        match kind(datagram) {
            _ if datagram.len() > LARGEST_DATAGRAM => counters.count(Reason::Truncated),
            None => counters.count(Reason::Malformed),
            Some(kind @ Kind::Data) => {
                let Some(Entry { peer, session: Some(session) }) = table.get(&receiver(datagram, kind))
                else {
                    counters.count(Reason::NoSession);
                    return (end, table);
                };
                let (end, heard) = self.run(frame, bytes, start, message, peer, session);
                let Some(heard) = heard else { return (end, table) };
                drop(table);
                self.heard = Some((heard.session.local, heard.from));
                let mut context = shared.context(frame.own, &mut self.out, frame.sockets, frame.now);
                heard.peer.heard(&mut context, &heard.session, heard.from);
                return (end, shared.sessions.read());
            }
            Some(kind) => {
                drop(table);
                let mut context = shared.context(frame.own, &mut self.out, frame.sockets, frame.now);
                let received = handshake::receive(frame.state, &mut context, kind, datagram, message.from);
                if let Err(why) = received {
                    counters.count(why);
                }
                return (end, shared.sessions.read());
            }
        }
        (end, table)
    }

    /// Opens what follows from `start` on for one session, looks at the counters under one lock, and passes on what may
    /// pass. Returns where to go on, and what to tell the peer.
    fn run(
        &mut self,
        frame: &Frame<'_>,
        bytes: &mut [u8],
        start: usize,
        message: &Received,
        peer: &Arc<Peer>,
        session: &Arc<Session>,
    ) -> (usize, Option<Heard>) {
        let counters = &self.shared.counters;
        let over = session.is_over(frame.now);
        self.opened.clear();
        let mut names = [0; 8];
        names.copy_from_slice(&bytes[start..start + 8]);
        let (mut at, mut total) = (start, 0);
        while at < message.end && self.opened.len() < RUN {
            let end = message.end.min(at.saturating_add(message.size));
            let datagram = &mut bytes[at..end];
            if datagram.len() > LARGEST_DATAGRAM || kind(datagram).is_none() || datagram[..8] != names {
                break;
            }
            if over {
                counters.count(Reason::NoSession);
            } else if let Ok(counter) = session.open(datagram) {
                total += datagram.len();
                self.opened.push(Opened { counter, start: at + DATA_HEADER, end: end - TAG });
            } else {
                counters.count(Reason::BadTag);
            }
            at = end;
        }
        let (mut any, mut data) = (false, false);
        let (plain, state) = (&mut self.plain, frame.state);
        let mut spoke = None;
        session.admit(
            &self.opened,
            |opened| opened.counter,
            |opened, fresh| {
                if !fresh {
                    return counters.count(Reason::Replayed);
                }
                any = true;
                // A keepalive.
                if opened.start == opened.end {
                    return;
                }
                data = true;
                match admit(state, peer, &bytes[opened.start..opened.end], &mut spoke) {
                    Ok(length) => plain.push(bytes, opened.start..opened.start + length),
                    Err(why) => counters.count(why),
                }
            },
        );
        if !any {
            return (at, None);
        }
        peer.note_received(total, data, frame.now);
        let known = session.is_confirmed() && self.heard == Some((session.local, message.from));
        let heard = (!known).then(|| Heard {
            peer: Arc::clone(peer),
            session: Arc::clone(session),
            from: message.from,
        });
        (at, heard)
    }
}

/// Cryptokey routing: the longest prefix over the inner source must be this peer's. Gives the packet's length without its
/// padding. `spoke` is the source that was last found to be this peer's.
fn admit(
    state: &State,
    peer: &Arc<Peer>,
    packet: &[u8],
    spoke: &mut Option<IpAddr>,
) -> Result<usize, Reason> {
    let length = inner_length(packet).ok_or(Reason::InnerNotIp)?;
    let (source, _) = addresses(packet).ok_or(Reason::InnerNotIp)?;
    if *spoke != Some(source) {
        match state.owners.lookup(source) {
            Some(owner) if Arc::ptr_eq(owner, peer) => *spoke = Some(source),
            _ => return Err(Reason::BadSource),
        }
    }
    Ok(length)
}
