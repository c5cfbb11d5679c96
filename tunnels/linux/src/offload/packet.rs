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

/// A number that is the same for all packets of a flow, either way. Of what has no ports in every packet (fragments, and
/// all but TCP, UDP and SCTP) the addresses alone count.
pub(crate) fn flow(packet: &[u8]) -> usize {
    let byte = |at: usize| packet.get(at).copied().unwrap_or(0);
    let (addresses, length, transport, whole, protocol) = if byte(0) >> 4 == 6 {
        (8, 16, IPV6, true, byte(6))
    } else {
        let whole = byte(6) & 0x3f == 0 && byte(7) == 0;
        (12, 4, usize::from(byte(0) & 0xf) * 4, whole, byte(9))
    };
    let has_ports = whole && matches!(protocol, 6 | 17 | 132);
    // Of one end. A multiplication carries low bits up; the upper ones of the product depend on all.
    let end = |n: usize| {
        let address = packet.get(addresses + n * length..addresses + (n + 1) * length).unwrap_or_default();
        let words = address.chunks_exact(4);
        let words = words.map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        let at = transport + 2 * n;
        let port = if has_ports { u32::from(byte(at)) << 8 | u32::from(byte(at + 1)) } else { 0 };
        words.fold(port, |sum, word| (sum ^ word).wrapping_mul(0x9e37_79b1).rotate_left(15))
    };
    // Both ends count alike, so that answers have the number, too; then every bit is given a part in the low ones.
    let sum = end(0).wrapping_add(end(1));
    let mixed = (sum ^ sum >> 16).wrapping_mul(0x85eb_ca6b);
    (mixed ^ mixed >> 13) as usize
}
