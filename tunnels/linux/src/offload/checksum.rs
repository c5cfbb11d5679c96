//! The Internet checksum (RFC 1071), in the machine's own byte order, which the sum does not depend on (§2(B)).

use super::packet::Layout;

/// Adds `bytes` to a running sum. Every packet's payload passes here once.
pub(super) fn add(sum: u64, bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: this machine has AVX2, just asked.
        return unsafe { add_avx2(sum, bytes) };
    }
    add_words(sum, bytes)
}

/// The same, as the compiler writes it for wider registers than all machines of this kind have.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_avx2(sum: u64, bytes: &[u8]) -> u64 {
    add_words(sum, bytes)
}

/// Four bytes a step into eight, so that carries wait for the end: the compiler makes vectors of it.
#[inline(always)]
fn add_words(sum: u64, bytes: &[u8]) -> u64 {
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
