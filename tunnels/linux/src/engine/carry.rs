//! What the packet paths need of a session, whichever protocol it is of. Chosen once for a run of packets, so a packet pays
//! for no choice.

use std::ops::Range;
use std::sync::Arc;

use super::counters::Reason;
use crate::clock::Millis;
use crate::esp;
use crate::noise::primitives::Forged;
use crate::noise::session::Session;
use crate::noise::{self, DATA_HEADER, TAG};

/// What an engine speaks: one protocol on its port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    #[default]
    Wireguard,
    /// In UDP; its keys come from outside ([`super::Engine::associate`]).
    Esp,
}

/// Room before a packet that is to be sealed, the same for both protocols.
pub(super) const HEADER: usize = DATA_HEADER;
const _: () = assert!(HEADER == esp::HEADER);

/// What a peer is sent by.
pub(crate) enum Way {
    Wireguard(Arc<Session>),
    Esp(Arc<esp::Outbound>),
}

impl Way {
    pub(super) fn is_over(&self, now: Millis) -> bool {
        match self {
            Self::Wireguard(session) => session.is_over(now),
            Self::Esp(outbound) => outbound.is_over(),
        }
    }
}

pub(super) trait Seals {
    /// Seals in place the packet of `length` behind [`HEADER`], padded; returns the datagram's length. Fails when its
    /// counters are used up. There is room behind the packet.
    fn seal_packet(&self, message: &mut [u8], length: usize, mtu: usize) -> Result<usize, Forged>;
}

impl Seals for Session {
    fn seal_packet(&self, message: &mut [u8], length: usize, mtu: usize) -> Result<usize, Forged> {
        let length = pad(&mut message[HEADER..], length, mtu) + HEADER + TAG;
        self.seal(&mut message[..length])?;
        Ok(length)
    }
}

impl Seals for esp::Outbound {
    fn seal_packet(&self, message: &mut [u8], length: usize, _: usize) -> Result<usize, Forged> {
        self.seal(message, length)
    }
}

/// WireGuard pads packets to multiples of this, so that lengths tell less (whitepaper §5.4.6).
pub(super) const PADDING: usize = 16;

/// Zeros behind a packet of `length`, to the next sixteen. Never past the MTU, so that padding never makes a datagram too
/// long for its path.
pub(super) fn pad(packet: &mut [u8], length: usize, mtu: usize) -> usize {
    let padded = length.next_multiple_of(PADDING).min(mtu.max(length));
    packet[length..padded].fill(0);
    padded
}

pub(super) trait Opens {
    /// How many of a datagram's first bytes say whose it is.
    const NAME: usize;

    /// Whether a datagram has the form of those that can be opened.
    fn knows(datagram: &[u8]) -> bool;

    fn is_over(&self, now: Millis) -> bool;

    /// Opens in place; the counter, which [`Opens::admit_all`] has yet to see, and where the packet and its padding stand.
    fn open_datagram(&self, datagram: &mut [u8]) -> Result<(u64, Range<usize>), Reason>;

    /// Says of each, in order, whether its counter is here for the first time.
    fn admit_all<T>(&self, items: &[T], counter: impl Fn(&T) -> u64, each: impl FnMut(&T, bool));
}

impl Opens for Session {
    /// Type and receiver.
    const NAME: usize = 8;

    fn knows(datagram: &[u8]) -> bool {
        noise::kind(datagram) == Some(noise::Kind::Data)
    }

    fn is_over(&self, now: Millis) -> bool {
        self.is_over(now)
    }

    fn open_datagram(&self, datagram: &mut [u8]) -> Result<(u64, Range<usize>), Reason> {
        let counter = self.open(datagram).map_err(|Forged| Reason::BadTag)?;
        Ok((counter, HEADER..datagram.len() - TAG))
    }

    fn admit_all<T>(&self, items: &[T], counter: impl Fn(&T) -> u64, each: impl FnMut(&T, bool)) {
        self.admit(items, counter, each);
    }
}

impl Opens for esp::Inbound {
    /// The SPI.
    const NAME: usize = 4;

    fn knows(datagram: &[u8]) -> bool {
        matches!(esp::kind(datagram), Some(esp::Kind::Esp(_)))
    }

    fn is_over(&self, _: Millis) -> bool {
        false
    }

    fn open_datagram(&self, datagram: &mut [u8]) -> Result<(u64, Range<usize>), Reason> {
        self.open(datagram).map_err(|unopened| match unopened {
            esp::Unopened::Forged => Reason::BadTag,
            esp::Unopened::Malformed => Reason::Malformed,
        })
    }

    fn admit_all<T>(&self, items: &[T], counter: impl Fn(&T) -> u64, each: impl FnMut(&T, bool)) {
        self.admit(items, counter, each);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_reaches_the_next_sixteen_but_not_past_the_mtu() {
        let mut packet = [7; 2000];
        let mut padded = |length, mtu| pad(&mut packet, length, mtu);
        assert_eq!(padded(40, 1420), 48);
        assert_eq!(padded(48, 1420), 48);
        assert_eq!(padded(1409, 1420), 1420);
        assert_eq!(padded(1420, 1420), 1420);
        assert_eq!(padded(1500, 1420), 1500);
        assert_eq!(packet[40..49], [0, 0, 0, 0, 0, 0, 0, 0, 7]);
    }
}
