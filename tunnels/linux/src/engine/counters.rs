//! A name and a count for every packet that was not carried.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a packet went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Reason {
    /// From the TUN: neither IPv4 nor IPv6.
    NotIp,
    /// From the TUN: longer than the tunnel carries, and nothing that could be cut.
    TooBig,
    /// From the TUN: no peer owns the destination.
    NoPeerForDestination,
    /// From the TUN: the peer's endpoint is not known yet.
    NoEndpoint,
    /// From the TUN: the peer's queue is full, no handshake has succeeded yet.
    QueueFull,
    /// From the TUN: waited for a handshake that the peer has not answered in 90 seconds.
    Unanswered,
    /// The underlay did not take a datagram.
    SendFailed,
    /// From the underlay: not a WireGuard message.
    Malformed,
    /// From the underlay: longer than any datagram of this engine.
    Truncated,
    /// From the underlay: a handshake of nobody we know, or a forged one.
    HandshakeRefused,
    /// From the underlay: a handshake without a cookie while too many arrive.
    RateLimited,
    /// From the underlay: for a session that is not, or no longer, here.
    NoSession,
    /// From the underlay: does not decrypt.
    BadTag,
    /// From the underlay: seen before, or too old to tell.
    Replayed,
    /// Decrypted, but its source belongs to another peer or to nobody.
    BadSource,
    /// Decrypted, but neither IPv4 nor IPv6, or shorter than it says.
    InnerNotIp,
    /// The TUN did not take a packet.
    TunFailed,
    /// A defect of ours: the thread that met this packet panicked and was started again.
    Panicked,
}

const NAMES: [&str; 18] = [
    "not-ip",
    "too-big",
    "no-peer-for-destination",
    "no-endpoint",
    "queue-full",
    "unanswered",
    "send-failed",
    "malformed",
    "truncated",
    "handshake-refused",
    "rate-limited",
    "no-session",
    "bad-tag",
    "replayed",
    "bad-source",
    "inner-not-ip",
    "tun-failed",
    "panicked",
];

const _: () = assert!(NAMES.len() == Reason::Panicked as usize + 1);

#[derive(Debug, Default)]
pub(crate) struct Counters([AtomicU64; NAMES.len()]);

impl Counters {
    pub(crate) fn count(&self, reason: Reason) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn list(&self) -> Vec<(&'static str, u64)> {
        NAMES.iter().zip(&self.0).map(|(name, count)| (*name, count.load(Ordering::Relaxed))).collect()
    }
}
