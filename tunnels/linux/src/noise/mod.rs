//! The WireGuard protocol (<https://www.wireguard.com/papers/wireguard.pdf>): messages, keys and counters, without IO,
//! clock or peers. Section numbers in this module are the paper's.
//!
//! ```text
//! cookie     mac1, mac2, cookies, how often a source may ask
//! handshake  Noise_IKpsk2: four functions, two for each end
//! session    what a handshake leaves: two keys, a counter, a replay window
//! ```
//! Own and not boringtun's, whose sessions sit behind one lock per peer, copy every packet, take a preshared key only when
//! made and remember 1,024 counters. The primitives are others' (`primitives`), and the tests hold this end against
//! boringtun's and wireguard-go's.

pub(crate) mod cookie;
pub(crate) mod handshake;
pub(crate) mod primitives;
pub(crate) mod session;
#[cfg(test)]
mod tests;
pub(crate) mod window;

use std::time::Duration;

/// Message types (§5.4); three zeros follow.
pub(crate) const INITIATION: u8 = 1;
pub(crate) const RESPONSE: u8 = 2;
pub(crate) const COOKIE: u8 = 3;
pub(crate) const DATA: u8 = 4;

pub(crate) const INITIATION_LENGTH: usize = 148;
pub(crate) const RESPONSE_LENGTH: usize = 92;
pub(crate) const COOKIE_LENGTH: usize = 64;
/// mac1 and mac2, at the end of both handshake messages.
const MACS: usize = 32;

/// Before the packet in a data message: type, receiver, counter.
pub(crate) const DATA_HEADER: usize = 16;
pub(crate) const TAG: usize = 16;
/// Around the packet in a data message.
pub(crate) const DATA_OVERHEAD: usize = DATA_HEADER + TAG;

// §6.1
pub(crate) const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// The 2^13 in reserve are more than there are threads that may be past the check at once.
pub(crate) const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
pub(crate) const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
pub(crate) const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
pub(crate) const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
pub(crate) const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a datagram says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Initiation,
    Response,
    Cookie,
    Data,
}

/// None for what no honest peer sends.
pub(crate) fn kind(datagram: &[u8]) -> Option<Kind> {
    match (datagram.first_chunk()?, datagram.len()) {
        ([INITIATION, 0, 0, 0], INITIATION_LENGTH) => Some(Kind::Initiation),
        ([RESPONSE, 0, 0, 0], RESPONSE_LENGTH) => Some(Kind::Response),
        ([COOKIE, 0, 0, 0], COOKIE_LENGTH) => Some(Kind::Cookie),
        ([DATA, 0, 0, 0], DATA_OVERHEAD..) => Some(Kind::Data),
        _ => None,
    }
}

/// Whom a data message is for: the session's index at our end. Of a response and a cookie the handshake's.
pub(crate) fn receiver(datagram: &[u8], kind: Kind) -> u32 {
    let at = if kind == Kind::Response { 8 } else { 4 };
    datagram.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}
