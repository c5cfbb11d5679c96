//! From the underlay to the TUN: whose datagram is it, does it prove so, and may its inner source speak.
//!
//! Datagrams are opened where they were received, many of one session at a time, and go on to the TUN from there.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::{Arc, RwLockReadGuard};

use super::carry::{Opens, Protocol};
use super::counters::Reason;
use super::mmsg::{ReceiveBatch, Received, SendBatch};
use super::path_mtu::Word;
use super::peer::Peer;
use super::sessions::{Entry, Held, Table};
use super::sockets::{Line, Sockets};
use super::state::State;
use super::transmit::LARGEST_DATAGRAM;
use super::waiting::Waiting;
use super::{Shared, handshake, wait};
use crate::PrivateKey;
use crate::clock::Millis;
use crate::esp;
use crate::noise::{Kind, kind, receiver};
use crate::offload::join::Joiner;
use crate::offload::packet::{addresses, flow, inner_length};
use crate::tun::Tun;

/// Datagrams that are opened between two looks at the replay window.
const RUN: usize = 64;
/// Of one batch; what is more is asked again.
const WORDS: usize = 16;
/// WireGuard's: type and receiver.
const LONGEST_NAME: usize = 8;

/// Of one lane.
pub(crate) fn run(shared: &Shared, lane: u8, wake: &std::io::PipeReader) {
    let mut receiver = Receiver {
        shared,
        lane,
        plain: Joiner::default(),
        out: SendBatch::new(LARGEST_DATAGRAM),
        opened: Vec::with_capacity(RUN),
        words: Vec::with_capacity(WORDS),
        heard: None,
    };
    let (mut batch, mut waiting) = (ReceiveBatch::new(), Waiting::default());
    while shared.running() {
        let (tun, sockets) = (shared.tun(), shared.sockets());
        let Some(face) = sockets.lane(lane) else {
            wait(&[], wake, None);
            continue;
        };
        let ready = waiting.wait(&face.fds()[..face.both().count()], wake);
        for (socket, _) in face.both().zip(ready).filter(|(_, ready)| *ready) {
            if let Ok(count @ 1..) = batch.receive(socket) {
                receiver.take(&mut batch, count, &sockets);
                receiver.deliver(&mut batch, &tun);
                receiver.out.flush(&sockets, &shared.counters);
                waiting.carried(count, batch.received(), &shared.streams);
            }
        }
    }
}

struct Receiver<'a> {
    shared: &'a Shared,
    lane: u8,
    /// On its way to the TUN, in the batch.
    plain: Joiner,
    out: SendBatch,
    opened: Vec<Opened>,
    /// What engines said to this one, of the batch.
    words: Vec<(Arc<Peer>, Word)>,
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
        drop(table);
        let most = u16::try_from(shared.mtu()).unwrap_or(u16::MAX);
        for (peer, word) in self.words.drain(..) {
            peer.hear(&mut shared.context(frame.own, &mut self.out, sockets, frame.now), word, most);
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

    /// What begins at `start`: as many data messages of one session as follow each other, or one of anything else. Returns
    /// where to go on.
    fn datagrams(
        &mut self,
        frame: &Frame<'_>,
        bytes: &mut [u8],
        start: usize,
        message: &Received,
        table: RwLockReadGuard<'a, Table>,
    ) -> (usize, RwLockReadGuard<'a, Table>) {
        let end = message.end.min(start.saturating_add(message.size));
        if end - start > LARGEST_DATAGRAM {
            self.shared.counters.count(Reason::Truncated);
            return (end, table);
        }
        match self.shared.protocol {
            Protocol::Wireguard => self.wireguard(frame, bytes, start..end, message, table),
            Protocol::Esp => self.esp(frame, bytes, start..end, message, table),
        }
    }

    fn wireguard(
        &mut self,
        frame: &Frame<'_>,
        bytes: &mut [u8],
        Range { start, end }: Range<usize>,
        message: &Received,
        table: RwLockReadGuard<'a, Table>,
    ) -> (usize, RwLockReadGuard<'a, Table>) {
        let datagram = &bytes[start..end];
        let shared = self.shared;
        let counters = &shared.counters;
        match kind(datagram) {
            None => counters.count(Reason::Malformed),
            Some(kind @ Kind::Data) => {
                let Some(Entry { peer, held: Held::Wireguard(session) }) =
                    table.get(&receiver(datagram, kind))
                else {
                    counters.count(Reason::NoSession);
                    return (end, table);
                };
                let (end, any) = self.run(frame, bytes, start, message, peer, &**session);
                let known = session.is_confirmed() && self.heard == Some((session.local, message.from));
                if !any || known {
                    return (end, table);
                }
                let (peer, session) = (Arc::clone(peer), Arc::clone(session));
                drop(table);
                self.heard = Some((session.local, message.from));
                let mut context = shared.context(frame.own, &mut self.out, frame.sockets, frame.now);
                peer.heard(&mut context, &session, message.from);
                return (end, shared.sessions.read());
            }
            Some(kind) => {
                drop(table);
                let mut context = shared.context(frame.own, &mut self.out, frame.sockets, frame.now);
                let from = Line { lane: self.lane, at: message.from };
                let received = handshake::receive(frame.state, &mut context, kind, datagram, from);
                if let Err(why) = received {
                    counters.count(why);
                }
                return (end, shared.sessions.read());
            }
        }
        (end, table)
    }

    fn esp(
        &mut self,
        frame: &Frame<'_>,
        bytes: &mut [u8],
        Range { start, end }: Range<usize>,
        message: &Received,
        table: RwLockReadGuard<'a, Table>,
    ) -> (usize, RwLockReadGuard<'a, Table>) {
        let counters = &self.shared.counters;
        let spi = match esp::kind(&bytes[start..end]) {
            Some(esp::Kind::Esp(spi)) => spi,
            // It was for the NATs on its way.
            Some(esp::Kind::Keepalive) => return (end, table),
            Some(esp::Kind::Ike) | None => {
                counters.count(Reason::Malformed);
                return (end, table);
            }
        };
        let Some(Entry { peer, held: Held::Esp(inbound) }) = table.get(&spi) else {
            counters.count(Reason::NoSession);
            return (end, table);
        };
        let (end, any) = self.run(frame, bytes, start, message, peer, &**inbound);
        if !any || self.heard == Some((spi, message.from)) {
            return (end, table);
        }
        let peer = Arc::clone(peer);
        drop(table);
        self.heard = Some((spi, message.from));
        peer.heard_by_esp(message.from);
        (end, self.shared.sessions.read())
    }

    /// Opens what follows from `start` on for one session. Returns where to go on, and how much was opened.
    fn open<S: Opens>(
        &mut self,
        frame: &Frame<'_>,
        bytes: &mut [u8],
        start: usize,
        message: &Received,
        session: &S,
    ) -> (usize, usize) {
        let counters = &self.shared.counters;
        let over = session.is_over(frame.now);
        self.opened.clear();
        let mut name = [0; LONGEST_NAME];
        name[..S::NAME].copy_from_slice(&bytes[start..start + S::NAME]);
        let (mut at, mut total) = (start, 0);
        while at < message.end && self.opened.len() < RUN {
            let end = message.end.min(at.saturating_add(message.size));
            let datagram = &mut bytes[at..end];
            let same = S::knows(datagram) && datagram[..S::NAME] == name[..S::NAME];
            if datagram.len() > LARGEST_DATAGRAM || !same {
                break;
            }
            if over {
                counters.count(Reason::NoSession);
            } else {
                match session.open_datagram(datagram) {
                    Ok((counter, packet)) => {
                        total += datagram.len();
                        let (start, end) = (at + packet.start, at + packet.end);
                        self.opened.push(Opened { counter, start, end });
                    }
                    Err(why) => counters.count(why),
                }
            }
            at = end;
        }
        (at, total)
    }

    /// Opens what follows from `start` on for one session, looks at the counters under one lock, and passes on what may
    /// pass. Returns where to go on, and whether any of it was authentic and new.
    fn run<S: Opens>(
        &mut self,
        frame: &Frame<'_>,
        bytes: &mut [u8],
        start: usize,
        message: &Received,
        peer: &Arc<Peer>,
        session: &S,
    ) -> (usize, bool) {
        let (at, total) = self.open(frame, bytes, start, message, session);
        let counters = &self.shared.counters;
        let (mut any, mut data) = (false, false);
        let (plain, words, state) = (&mut self.plain, &mut self.words, frame.state);
        let mut spoke = None;
        session.admit_all(
            &self.opened,
            |opened| opened.counter,
            |opened, fresh| {
                if !fresh {
                    return counters.count(Reason::Replayed);
                }
                any = true;
                // A keepalive, or a dummy.
                if opened.start == opened.end {
                    return;
                }
                match admit(state, peer, &bytes[opened.start..opened.end], &mut spoke) {
                    Ok(length) => {
                        data = true;
                        plain.push(bytes, opened.start..opened.start + length);
                    }
                    Err(why) => match Word::read(&bytes[opened.start..opened.end]) {
                        Some(word) if words.len() < WORDS => words.push((Arc::clone(peer), word)),
                        _ => {
                            data = true;
                            counters.count(why);
                        }
                    },
                }
            },
        );
        if any {
            peer.note_received(total, data, frame.now);
        }
        (at, any)
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
            // Not the same one in every lane.
            Some(owner) if owner.key == peer.key => *spoke = Some(source),
            _ => return Err(Reason::BadSource),
        }
    }
    Ok(length)
}
