//! Where the headers of a packet end, and what they say.

use std::net::IpAddr;

/// IP protocol numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Transport {
    Tcp = 6,
    Udp = 17,
}

/// A whole packet: no fragment, no IPv6 extension header, as long as it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) v6: bool,
    pub(super) transport: Transport,
    /// Of the IP header.
    pub(super) ip: usize,
    /// Of both headers.
    pub(super) headers: usize,
}

/// None for everything else: such a packet is carried as it is.
pub(super) fn layout(packet: &[u8]) -> Option<Layout> {
    let at = |index: usize| packet.get(index).copied();
    let word = |index: usize| Some(u16::from_be_bytes([at(index)?, at(index + 1)?]));
    let (v6, ip, protocol, length) = match at(0)? >> 4 {
        4 => {
            // More fragments, or not the first one (RFC 791 §3.1).
            if word(6)? & 0x3fff != 0 {
                return None;
            }
            (false, usize::from(at(0)? & 0xf) * 4, at(9)?, usize::from(word(2)?))
        }
        6 => (true, 40, at(6)?, 40 + usize::from(word(4)?)),
        _ => return None,
    };
    if ip < 20 || length != packet.len() {
        return None;
    }
    let (transport, header) = match protocol {
        6 => (Transport::Tcp, usize::from(at(ip + 12)? >> 4) * 4),
        17 => (Transport::Udp, 8),
        _ => return None,
    };
    let least = if transport == Transport::Tcp { 20 } else { 8 };
    let headers = ip + header;
    (header >= least && headers <= packet.len()).then_some(Layout { v6, transport, ip, headers })
}

impl Layout {
    /// Where the transport's checksum stands in its header.
    pub(super) fn checksum_offset(&self) -> usize {
        match self.transport {
            Transport::Tcp => 16,
            Transport::Udp => 6,
        }
    }

    /// Writes the IP length fields (and IPv4's checksum) of a packet of `length` bytes.
    pub(super) fn set_length(&self, header: &mut [u8], length: usize) {
        if self.v6 {
            header[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
        } else {
            header[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            super::checksum::set_ipv4(&mut header[..self.ip]);
        }
    }
}

const IPV4: usize = 20;
const IPV6: usize = 40;

/// Source and destination of an IP packet that has a whole header.
pub(crate) fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => {
            let address = |at| Some(IpAddr::V4((*packet.get(at..)?.first_chunk::<4>()?).into()));
            Some((address(12)?, address(16)?))
        }
        6 => {
            let address = |at| Some(IpAddr::V6((*packet.get(at..)?.first_chunk::<16>()?).into()));
            Some((address(8)?, address(24)?))
        }
        _ => None,
    }
}

/// How long a packet is that may have padding behind it; none if it says that it is longer, or not even a header.
pub(crate) fn inner_length(packet: &[u8]) -> Option<usize> {
    let word = |at: usize| Some(usize::from(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?])));
    let (length, least) = match packet.first()? >> 4 {
        4 => (word(2)?, IPV4),
        6 => (IPV6 + word(4)?, IPV6),
        _ => return None,
    };
    (least..=packet.len()).contains(&length).then_some(length)
}

/// A number that is the same for all packets of a flow. Addresses and ports stand in the same place in all of them.
pub(crate) fn flow(packet: &[u8]) -> usize {
    let end = if packet.first().is_some_and(|first| first >> 4 == 6) { 44 } else { 24 };
    let fields = packet.get(8..end).map(|fields| &fields[4 * usize::from(end == 24)..]).unwrap_or_default();
    let words = fields.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    // A multiplication carries low bits up; the upper ones of the product depend on all.
    let mixed = words.fold(0u32, |sum, word| (sum ^ word).wrapping_mul(0x9e37_79b1).rotate_left(15));
    mixed as usize
}
