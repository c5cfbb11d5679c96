//! The Internet checksum (RFC 1071), in the machine's own byte order, which the sum does not depend on (§2(B)).

use super::packet::Layout;

/// Adds `bytes` to a running sum. Eight bytes a step: the compiler makes vectors of it.
pub(super) fn add(sum: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let sum = words.iter().fold(sum, |sum, word| sum + u64::from(u32::from_ne_bytes(*word)));
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_ne_bytes(last))
}

/// Two bytes as they stand in a packet.
pub(super) fn fold(mut sum: u64) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (sum as u16).to_ne_bytes()
}

pub(super) fn finish(sum: u64) -> [u8; 2] {
    fold(sum).map(|byte| !byte)
}

/// The pseudo header of RFC 9293 §3.1 and RFC 8200 §8.1 for `length` bytes of transport header and data.
pub(super) fn pseudo(layout: &Layout, header: &[u8], length: usize) -> u64 {
    let addresses = if layout.v6 { &header[8..40] } else { &header[12..20] };
    // A superpacket's length fits 17 bits; each of the two halves is a word of its own.
    let length = (length as u32).to_be_bytes();
    let protocol = [0, 0, 0, layout.transport as u8];
    add(add(add(0, addresses), &length), &protocol)
}

/// Of an IPv4 header, in place.
pub(super) fn set_ipv4(header: &mut [u8]) {
    header[10..12].fill(0);
    let sum = finish(add(0, header));
    header[10..12].copy_from_slice(&sum);
}
