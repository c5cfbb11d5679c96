//! ESP in UDP (RFC 4303, RFC 4106, RFC 3948): one packet in, one datagram out, in place; without IO, clock or peers.
//!
//! ```text
//!  0       4       8              16                                      -16
//!  ├ SPI ──┼ low ──┼ IV ──────────┼ packet ┼ 1 2 3 ┼ length ┼ 4 or 41 ┼ tag ┤
//!                                  └──────────── AES-GCM ─────────────┘
//! ```
//! Sequence numbers have 64 bits (ESN): the upper half is authenticated and not sent (§2.2.1). The IV is the whole number,
//! so no nonce comes twice under one key as long as no number does (RFC 4106 §3.1). Tunnel mode alone.

mod association;
#[cfg(test)]
mod tests;

pub(crate) use association::{Inbound, Outbound, Unopened};

/// Before the packet: SPI, the lower half of the sequence number, IV.
pub(crate) const HEADER: usize = 16;
pub(crate) const TAG: usize = 16;
/// Behind it, the padding's length and the next header; with them it ends on four octets (§2.4).
const TRAILER: usize = 2;
const ALIGNMENT: usize = 4;
/// Around a packet at the most, where this end makes it.
pub(crate) const OVERHEAD: usize = HEADER + ALIGNMENT - 1 + TRAILER + TAG;

/// Next headers (§2.6): a packet of either family, or nothing at all.
const IPV4: u8 = 4;
const IPV6: u8 = 41;
const DUMMY: u8 = 59;

/// What a datagram on the port says that it is (RFC 3948 §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// For the association of this SPI.
    Esp(u32),
    /// Four zeros: key exchange, which nobody here speaks.
    Ike,
    /// One octet, so that a NAT does not forget.
    Keepalive,
}

/// The keepalive's octet (RFC 3948 §2.3).
pub(crate) const KEEPALIVE: u8 = 0xff;

/// None for what no honest peer sends.
pub(crate) fn kind(datagram: &[u8]) -> Option<Kind> {
    match datagram {
        [KEEPALIVE] => Some(Kind::Keepalive),
        [0, 0, 0, 0, ..] => Some(Kind::Ike),
        _ if datagram.len() < HEADER + ALIGNMENT + TAG || !datagram.len().is_multiple_of(ALIGNMENT) => None,
        [a, b, c, d, ..] => Some(Kind::Esp(u32::from_be_bytes([*a, *b, *c, *d]))),
        _ => None,
    }
}
