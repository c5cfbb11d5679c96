//! From the underlay to the TUN: whose datagram is it, does it prove so, and may its inner source speak.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519;
use hawser_model::PublicKey;

use super::counters::Reason;
use super::mmsg::{ReceiveBatch, SendBatch, send_one};
use super::peer::{DATA_TYPE, Noise, Peer, reason};
use super::sockets::Sockets;
use super::state::State;
use super::transmit::LARGEST_DATAGRAM;
use super::{Shared, wait};
use crate::offload::join::Joiner;
use crate::tun::Tun;

/// `REJECT_AFTER_MESSAGES` (whitepaper §6.1). boringtun does not know it, and its replay window would overflow on a
/// counter beyond it: a peer that holds a session could end this process.
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

const SMALLEST_IPV4: usize = 20;
const SMALLEST_IPV6: usize = 40;

pub(crate) fn run(shared: &Shared, wake: &std::io::PipeReader) {
    let mut receiver =
        Receiver { shared, plain: Joiner::new(LARGEST_DATAGRAM), out: SendBatch::new(LARGEST_DATAGRAM) };
    let mut batch = ReceiveBatch::new();
    while shared.running() {
        let (tun, sockets) = (shared.tun(), shared.sockets());
        let fds: Vec<_> = sockets.both().map(AsFd::as_fd).collect();
        let ready = wait(&fds, wake, None);
        for (socket, _) in sockets.both().zip(ready).filter(|(_, ready)| *ready) {
            if let Ok(count @ 1..) = batch.receive(socket) {
                receiver.take(&batch, count, &tun, &sockets);
                receiver.deliver(&tun);
                receiver.out.flush(&sockets, &shared.counters);
            }
        }
    }
}

struct Receiver<'a> {
    shared: &'a Shared,
    /// Decrypted, and on its way to the TUN.
    plain: Joiner,
    out: SendBatch,
}

impl Receiver<'_> {
    /// The configuration is locked for one batch.
    fn take(&mut self, batch: &ReceiveBatch, count: usize, tun: &Tun, sockets: &Sockets) {
        let state = self.shared.state();
        for at in 0..count {
            let Some((datagrams, from)) = batch.datagrams(at) else {
                self.shared.counters.count(Reason::Truncated);
                continue;
            };
            for datagram in datagrams {
                if !self.out.has_room() {
                    self.out.flush(sockets, &self.shared.counters);
                }
                if !self.plain.has_room() {
                    self.deliver(tun);
                }
                if let Err(why) = self.datagram(&state, datagram, from, sockets) {
                    self.shared.counters.count(why);
                }
            }
        }
    }

    fn deliver(&mut self, tun: &Tun) {
        self.plain.drain(|packet| {
            if tun.write(packet).is_err() {
                self.shared.counters.count(Reason::TunFailed);
            }
        });
    }

    fn datagram(
        &mut self,
        state: &State,
        datagram: &[u8],
        from: SocketAddr,
        sockets: &Sockets,
    ) -> Result<(), Reason> {
        if datagram.len() > LARGEST_DATAGRAM {
            return Err(Reason::Truncated);
        }
        let peer = match Tunn::parse_incoming_packet(datagram).map_err(|_| Reason::Malformed)? {
            Packet::PacketData(data) => {
                let counter = datagram[8..16].try_into().map_or(u64::MAX, u64::from_le_bytes);
                if counter > REJECT_AFTER_MESSAGES {
                    return Err(Reason::Replayed);
                }
                by_index(state, data.receiver_idx)?
            }
            Packet::PacketCookieReply(reply) => by_index(state, reply.receiver_idx)?,
            _ => match self.handshake(state, datagram, from, sockets)? {
                Some(peer) => peer,
                None => return Ok(()),
            },
        };
        let mut noise = peer.lock();
        let result = noise.decapsulate(datagram, self.plain.space());
        if let TunnResult::Err(error) = &result {
            return Err(reason(error));
        }
        peer.count_received(datagram.len());
        if datagram[0] != COOKIE_REPLY_TYPE && noise.endpoint != Some(from) {
            // Whoever can write this is the peer, so this is where the peer is (whitepaper §2.1).
            noise.endpoint = Some(from);
        }
        let inner = match result {
            TunnResult::WriteToTunnelV4(packet, source) => Some((packet, IpAddr::V4(source), SMALLEST_IPV4)),
            TunnResult::WriteToTunnelV6(packet, source) => Some((packet, IpAddr::V6(source), SMALLEST_IPV6)),
            TunnResult::WriteToNetwork(message) => {
                self.out.space()[..message.len()].copy_from_slice(message);
                self.out.push(message.len(), from);
                None
            }
            _ => None,
        };
        if let Some((packet, source, smallest)) = inner {
            let length = packet.len();
            admit(state, &peer, length, source, smallest)?;
            self.plain.push(length);
        }
        self.proven(&peer, &mut noise, datagram[0]);
        Ok(())
    }

    /// A session may have come into being: what waited for it goes now.
    fn proven(&mut self, peer: &Peer, noise: &mut Noise, message: u8) {
        if noise.has_queued() {
            peer.send_queued(noise, &mut self.out);
        }
        if message != DATA_TYPE {
            noise.note_handshake();
        }
    }

    /// The peer behind a handshake message; none if a cookie was asked for instead. Costs two curve operations for an
    /// initiation, and only for one whose sender knows our public key.
    fn handshake(
        &self,
        state: &State,
        datagram: &[u8],
        from: SocketAddr,
        sockets: &Sockets,
    ) -> Result<Option<Arc<Peer>>, Reason> {
        let mut cookie = [0; LARGEST_COOKIE];
        match state.limiter.verify_packet(Some(from.ip()), datagram, &mut cookie) {
            Ok(Packet::HandshakeInit(init)) => {
                let public = x25519::PublicKey::from(*state.key.public().as_bytes());
                let half = parse_handshake_anon(state.key.secret(), &public, &init)
                    .map_err(|_| Reason::HandshakeRefused)?;
                let key = PublicKey::new(half.peer_static_public).map_err(|_| Reason::HandshakeRefused)?;
                state.peers.get(&key).map(|peer| Some(Arc::clone(peer))).ok_or(Reason::HandshakeRefused)
            }
            Ok(Packet::HandshakeResponse(response)) => by_index(state, response.receiver_idx).map(Some),
            Err(TunnResult::WriteToNetwork(reply)) => {
                self.shared.counters.count(Reason::RateLimited);
                send_one(sockets, reply, from, &self.shared.counters);
                Ok(None)
            }
            _ => Err(Reason::HandshakeRefused),
        }
    }
}

const COOKIE_REPLY_TYPE: u8 = 3;
const LARGEST_COOKIE: usize = 64;

fn by_index(state: &State, receiver: u32) -> Result<Arc<Peer>, Reason> {
    state.by_index.get(&(receiver >> 8)).cloned().ok_or(Reason::NoSession)
}

/// Cryptokey routing: the longest prefix over the inner source must be this peer's.
fn admit(
    state: &State,
    peer: &Arc<Peer>,
    length: usize,
    source: IpAddr,
    smallest: usize,
) -> Result<(), Reason> {
    if length < smallest {
        return Err(Reason::InnerNotIp);
    }
    match state.owners.lookup(source) {
        Some(owner) if Arc::ptr_eq(owner, peer) => Ok(()),
        _ => Err(Reason::BadSource),
    }
}
