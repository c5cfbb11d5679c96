//! A UDP message that nobody is left to take is answered: port unreachable (RFC 792, RFC 4443 §3.1), which a connected socket
//! shows as ECONNREFUSED, in place of silence.

use hawser_ebpf_abi::{IPPROTO_ICMPV6, Plain};

use crate::packet::{Ip, Packet};
use crate::reset::{fold, halves, pseudo_header};

/// Of the message's own datagram so much is quoted: its ports, length and checksum.
pub const QUOTED: u32 = 8;

/// What comes before the quoted packet, in network order, and how many octets of it: an IP header and that of ICMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub words: [u32; 12],
    pub len: u32,
}

/// [`Refusal::len`] of IPv4.
pub const LEN_V4: u32 = 28;
/// [`Refusal::len`] of IPv6.
pub const LEN_V6: u32 = 48;

#[repr(C)]
#[derive(Clone, Copy)]
struct Words<const N: usize>([u32; N]);
// SAFETY: integers only, without padding.
unsafe impl<const N: usize> Plain for Words<N> {}

/// The answer to a UDP message, in the name of who should have taken it; `len` is the packet's from its IP header on. None with
/// options or extension headers: such a message goes unanswered.
#[inline(always)]
pub fn refuse<P: Packet + ?Sized>(packet: &P, ip: &Ip, len: u32) -> Option<Refusal> {
    if ip.src.is_v4() { refuse_v4(packet, ip, len) } else { refuse_v6(packet, ip, len) }
}

#[inline(always)]
fn refuse_v4<P: Packet + ?Sized>(packet: &P, ip: &Ip, len: u32) -> Option<Refusal> {
    const TYPE_AND_CODE: [u8; 2] = [3, 3];
    if ip.l4 != 20 {
        return None;
    }
    let Words(quoted): Words<7> = packet.load(0)?;
    let [a, b, c, d, e, ports, rest] = quoted;
    let header = halves(a) + halves(b) + halves(c) + halves(d) + halves(e);
    let sum = header + datagram(ip, len, ports, rest);
    let icmp = icmp(TYPE_AND_CODE, sum);
    let total = (LEN_V4 + 20 + QUOTED) as u16;
    let [high, low] = total.to_be_bytes();
    let (first, second) = (word([0x45, 0, high, low]), word([0, 0, 0x40, 0]));
    let (src, dst) = (ip.dst.v4_word(), ip.src.v4_word());
    let hops = halves(first) + halves(second) + halves(word([64, 1, 0, 0])) + halves(src) + halves(dst);
    let [high, low] = (!fold(hops)).to_ne_bytes();
    let third = word([64, 1, high, low]);
    Some(Refusal { words: [first, second, third, src, dst, icmp, 0, 0, 0, 0, 0, 0], len: LEN_V4 })
}

#[inline(always)]
fn refuse_v6<P: Packet + ?Sized>(packet: &P, ip: &Ip, len: u32) -> Option<Refusal> {
    const TYPE_AND_CODE: [u8; 2] = [1, 4];
    if ip.l4 != 40 {
        return None;
    }
    let Words(quoted): Words<12> = packet.load(0)?;
    let [a, b, c, d, e, f, g, h, i, j, ports, rest] = quoted;
    let header = halves(a)
        + halves(b)
        + halves(c)
        + halves(d)
        + halves(e)
        + halves(f)
        + halves(g)
        + halves(h)
        + halves(i)
        + halves(j);
    let payload = 8 + 40 + QUOTED;
    let pseudo = pseudo_header(&Ip { proto: IPPROTO_ICMPV6, ..*ip }, payload);
    let icmp = icmp(TYPE_AND_CODE, header + pseudo + datagram(ip, len, ports, rest));
    let [high, low] = (payload as u16).to_be_bytes();
    let (first, second) = (word([0x60, 0, 0, 0]), word([high, low, IPPROTO_ICMPV6, 64]));
    let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (ip.dst.words(), ip.src.words());
    Some(Refusal { words: [first, second, s0, s1, s2, s3, d0, d1, d2, d3, icmp, 0], len: LEN_V6 })
}

#[inline(always)]
const fn word(octets: [u8; 4]) -> u32 {
    u32::from_ne_bytes(octets)
}

/// Type, code and checksum.
#[inline(always)]
fn icmp([kind, code]: [u8; 2], sum: u32) -> u32 {
    let [high, low] = (!fold(sum + halves(word([kind, code, 0, 0])))).to_ne_bytes();
    word([kind, code, high, low])
}

/// The quoted eight octets' share of the sum. A checksum that hardware is still to fill in will make of them the complement of
/// the pseudo-header's sum, which stands there until then.
#[inline(always)]
fn datagram(ip: &Ip, len: u32, ports: u32, rest: u32) -> u32 {
    let [_, _, high, low] = rest.to_ne_bytes();
    let checksum = u16::from_ne_bytes([high, low]);
    if checksum == fold(pseudo_header(ip, len.wrapping_sub(ip.l4))) {
        return !checksum as u32;
    }
    halves(ports) + halves(rest)
}
