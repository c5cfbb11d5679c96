//! One peer: boringtun's noise state, where the peer is, and what it costs to reach it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use hawser_model::PublicKey;

use super::counters::{Counters, Reason};
use super::mmsg::SendBatch;
use crate::PrivateKey;

/// boringtun holds this many packets for a peer while a handshake runs, and drops the rest in silence.
const QUEUE: u32 = 256;

/// The smallest buffer that boringtun may write any message into.
pub(crate) const LARGEST_HANDSHAKE: usize = 148;

/// Around a packet in a data message.
pub(crate) const DATA_OVERHEAD: usize = 32;

pub(crate) struct Peer {
    pub(crate) key: PublicKey,
    /// The upper 24 bits of every session index this end gives out: a packet names its peer by it.
    pub(crate) index: u32,
    noise: Mutex<Noise>,
    rx_bytes: AtomicU64,
    tx_bytes: AtomicU64,
}

pub(crate) struct Noise {
    tunn: Tunn,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) keepalive: Option<u16>,
    pub(crate) preshared: Option<[u8; 32]>,
    pub(crate) last_handshake: Option<SystemTime>,
    /// Packets that boringtun holds until a session exists.
    queued: u32,
    last_sent: Instant,
}

impl Peer {
    pub(crate) fn new(own: &PrivateKey, key: PublicKey, index: u32) -> Self {
        let noise = Noise {
            tunn: new_tunn(own, key, index, None),
            endpoint: None,
            keepalive: None,
            preshared: None,
            last_handshake: None,
            queued: 0,
            last_sent: Instant::now(),
        };
        Self { key, index, noise: Mutex::new(noise), rx_bytes: 0.into(), tx_bytes: 0.into() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Noise> {
        // A thread that panicked half-way leaves at worst one lost session, which the next handshake replaces.
        self.noise.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// boringtun cannot change a preshared key in place, so the session goes with the old one.
    pub(crate) fn set_preshared(&self, own: &PrivateKey, preshared: Option<[u8; 32]>) {
        let mut noise = self.lock();
        if noise.preshared != preshared {
            noise.preshared = preshared;
            noise.tunn = new_tunn(own, self.key, self.index, preshared);
            noise.queued = 0;
        }
    }

    pub(crate) fn set_own_key(&self, own: &PrivateKey) {
        let mut noise = self.lock();
        noise.tunn = new_tunn(own, self.key, self.index, noise.preshared);
        noise.queued = 0;
    }

    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.rx_bytes.load(Ordering::Relaxed), self.tx_bytes.load(Ordering::Relaxed))
    }

    pub(crate) fn count_received(&self, length: usize) {
        self.rx_bytes.fetch_add(length as u64, Ordering::Relaxed);
    }

    /// Encrypts a packet into the batch, which must have room. Without a session boringtun keeps a copy of the packet and
    /// what goes into the batch is a handshake.
    pub(crate) fn send(&self, packet: &[u8], out: &mut SendBatch, counters: &Counters) {
        self.encrypt(&mut self.lock(), packet, out, counters);
    }

    fn encrypt(&self, noise: &mut Noise, packet: &[u8], out: &mut SendBatch, counters: &Counters) {
        let Some(to) = noise.endpoint else { return counters.count(Reason::NoEndpoint) };
        let (is_data, length) = match noise.tunn.encapsulate(packet, out.space()) {
            TunnResult::WriteToNetwork(message) => (message[0] == DATA_TYPE, message.len()),
            // Queued behind a handshake that is under way.
            _ => (false, 0),
        };
        if !is_data {
            noise.enqueued(counters);
        }
        if length > 0 {
            self.sent(noise, length, to, out);
        }
    }

    /// Sends what waited for a session. Stops when the batch is full; the next authenticated message goes on.
    pub(crate) fn send_queued(&self, noise: &mut Noise, out: &mut SendBatch) {
        let Some(to) = noise.endpoint else { return };
        while noise.queued > 0 && out.has_room() {
            let TunnResult::WriteToNetwork(message) = noise.tunn.decapsulate(None, &[], out.space()) else {
                noise.queued = 0;
                return;
            };
            let (is_data, length) = (message[0] == DATA_TYPE, message.len());
            self.sent(noise, length, to, out);
            if !is_data {
                return;
            }
            noise.queued -= 1;
        }
    }

    /// boringtun's timers, and the persistent keepalive, which boringtun cannot change on a live peer and gives up when
    /// a handshake expires. The batch must have room for two.
    pub(crate) fn tick(&self, now: Instant, out: &mut SendBatch, counters: &Counters) {
        let mut noise = self.lock();
        match (noise.tunn.update_timers(out.space()), noise.endpoint) {
            (TunnResult::WriteToNetwork(message), Some(to)) => {
                let length = message.len();
                self.sent(&mut noise, length, to, out);
            }
            // boringtun threw its queue away.
            (TunnResult::Err(_), _) => noise.queued = 0,
            _ => {}
        }
        if noise.keepalive_due(now) && noise.endpoint.is_some() && out.has_room() {
            noise.last_sent = now;
            self.encrypt(&mut noise, &[], out, counters);
        }
        noise.note_handshake();
    }

    fn sent(&self, noise: &mut Noise, length: usize, to: SocketAddr, out: &mut SendBatch) {
        out.push(length, to);
        noise.last_sent = Instant::now();
        self.tx_bytes.fetch_add(length as u64, Ordering::Relaxed);
    }
}

/// First byte of a data message.
pub(crate) const DATA_TYPE: u8 = 4;

impl Noise {
    pub(crate) fn decapsulate<'a>(&mut self, datagram: &[u8], out: &'a mut [u8]) -> TunnResult<'a> {
        self.tunn.decapsulate(None, datagram, out)
    }

    fn enqueued(&mut self, counters: &Counters) {
        if self.queued < QUEUE {
            self.queued += 1;
        } else {
            counters.count(Reason::QueueFull);
        }
    }

    pub(crate) fn has_queued(&self) -> bool {
        self.queued > 0
    }

    fn keepalive_due(&self, now: Instant) -> bool {
        let idle = now.saturating_duration_since(self.last_sent);
        self.keepalive.is_some_and(|seconds| idle >= Duration::from_secs(seconds.into()))
    }

    /// boringtun forgets the time with the session; `wg show` does not.
    pub(crate) fn note_handshake(&mut self) {
        let Some(ago) = self.tunn.time_since_last_handshake() else { return };
        let Some(at) = SystemTime::now().checked_sub(ago) else { return };
        let newer = |last: SystemTime| at.duration_since(last).is_ok_and(|by| by > Duration::from_secs(1));
        if self.last_handshake.is_none_or(newer) {
            self.last_handshake = Some(at);
        }
    }
}

/// Handshakes are limited once for the whole device, before a peer is known; the limiter that boringtun wants for each
/// peer never says no.
fn new_tunn(own: &PrivateKey, key: PublicKey, index: u32, preshared: Option<[u8; 32]>) -> Tunn {
    let public = x25519::PublicKey::from(*own.public().as_bytes());
    let unlimited = Arc::new(RateLimiter::new(&public, u64::MAX));
    let theirs = x25519::PublicKey::from(*key.as_bytes());
    Tunn::new(own.secret().clone(), theirs, preshared, None, index, Some(unlimited))
}

/// The name under which a refused datagram is counted.
pub(crate) fn reason(error: &WireGuardError) -> Reason {
    match error {
        WireGuardError::InvalidAeadTag => Reason::BadTag,
        WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter => Reason::Replayed,
        WireGuardError::NoCurrentSession | WireGuardError::WrongIndex => Reason::NoSession,
        WireGuardError::InvalidPacket | WireGuardError::IncorrectPacketLength => Reason::InnerNotIp,
        WireGuardError::UnderLoad => Reason::RateLimited,
        _ => Reason::HandshakeRefused,
    }
}
