//! ICMP errors in place of silence (RFC 792, RFC 4443). A UDP message that nobody is left to take: port unreachable, which a
//! connected socket shows as ECONNREFUSED. A packet that the tunnel cannot carry whole: too big, with the size that it can.

use hawser_ebpf_abi::{Addr, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP, Plain};

use crate::packet::{Ip, Packet};
use crate::reset::{fold, halves, pseudo_header};

/// Of the packet's own datagram so much is quoted: ports, length and checksum of UDP (RFC 792: 64 bits).
const QUOTED: u32 = 8;
/// Of TCP up to the checksum and beyond: the kernel cuts no packet before a checksum that hardware is still to fill in.
const QUOTED_OF_TCP: u32 = 20;

/// What comes before the quoted packet, in network order, and how many octets of it: an IP header and that of ICMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub words: [u32; 12],
    pub len: u32,
    /// Octets of the packet behind its IP header that are quoted.
    pub quoted: u32,
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
    let error = Error { v4: [3, 3], v6: [1, 4], mtu: 0, from: ip.dst };
    if ip.src.is_v4() { error_v4(packet, ip, len, &error) } else { error_v6(packet, ip, len, &error) }
}

/// The answer to a packet of `len` octets that is longer than `mtu`, in the name of `from`: the node is a router here. None also
/// where an IPv4 packet may be cut on its way (no DF): its sender is told nothing (RFC 1191 §4), and the packet is lost, since the
/// tunnel carries no fragments.
#[inline(always)]
pub fn too_big<P: Packet + ?Sized>(packet: &P, ip: &Ip, len: u32, mtu: u32, from: Addr) -> Option<Refusal> {
    const DONT_FRAGMENT: u8 = 0x40;
    let error = Error { v4: [3, 4], v6: [2, 0], mtu: mtu.to_be(), from };
    if !ip.src.is_v4() {
        return error_v6(packet, ip, len, &error);
    }
    let flags: u8 = packet.load(6)?;
    if flags & DONT_FRAGMENT == 0 { None } else { error_v4(packet, ip, len, &error) }
}

/// What an error says beside the packet it quotes.
struct Error {
    v4: [u8; 2],
    v6: [u8; 2],
    /// In network order. What is above 16 bits is unused in IPv4, and zero in any MTU.
    mtu: u32,
    from: Addr,
}

#[inline(always)]
fn error_v4<P: Packet + ?Sized>(packet: &P, ip: &Ip, len: u32, error: &Error) -> Option<Refusal> {
    if ip.l4 != 20 {
        return None;
    }
    let Words(quoted): Words<7> = packet.load(0)?;
    let [a, b, c, d, e, ports, rest] = quoted;
    let header = halves(a) + halves(b) + halves(c) + halves(d) + halves(e);
    let sum = header + halves(error.mtu) + datagram(packet, ip, len, ports, rest)?;
    let icmp = icmp(error.v4, sum);
    let quoted = octets(ip);
    let total = (LEN_V4 + 20 + quoted) as u16;
    let [high, low] = total.to_be_bytes();
    let (first, second) = (word([0x45, 0, high, low]), word([0, 0, 0x40, 0]));
    let (src, dst) = (error.from.v4_word(), ip.src.v4_word());
    let hops = halves(first) + halves(second) + halves(word([64, 1, 0, 0])) + halves(src) + halves(dst);
    let [high, low] = (!fold(hops)).to_ne_bytes();
    let third = word([64, 1, high, low]);
    let words = [first, second, third, src, dst, icmp, error.mtu, 0, 0, 0, 0, 0];
    Some(Refusal { words, len: LEN_V4, quoted })
}

#[inline(always)]
fn error_v6<P: Packet + ?Sized>(packet: &P, ip: &Ip, len: u32, error: &Error) -> Option<Refusal> {
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
    let quoted = octets(ip);
    let payload = 8 + 40 + quoted;
    let pseudo = pseudo_header(&Ip { src: error.from, dst: ip.src, proto: IPPROTO_ICMPV6, ..*ip }, payload);
    let sum = header + pseudo + halves(error.mtu) + datagram(packet, ip, len, ports, rest)?;
    let icmp = icmp(error.v6, sum);
    let [high, low] = (payload as u16).to_be_bytes();
    let (first, second) = (word([0x60, 0, 0, 0]), word([high, low, IPPROTO_ICMPV6, 64]));
    let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (error.from.words(), ip.src.words());
    let words = [first, second, s0, s1, s2, s3, d0, d1, d2, d3, icmp, error.mtu];
    Some(Refusal { words, len: LEN_V6, quoted })
}

#[inline(always)]
const fn octets(ip: &Ip) -> u32 {
    if ip.proto == IPPROTO_TCP { QUOTED_OF_TCP } else { QUOTED }
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

/// The share of the sum that the quoted octets behind the IP header have, of which the first eight are given. A checksum that
/// hardware is still to fill in will make of them the complement of the pseudo-header's sum, which stands there until then.
#[inline(always)]
fn datagram<P: Packet + ?Sized>(packet: &P, ip: &Ip, len: u32, ports: u32, rest: u32) -> Option<u32> {
    let (checksum, sum) = match ip.proto {
        IPPROTO_TCP => {
            let Words([a, b, c]): Words<3> = packet.load(ip.l4 + QUOTED)?;
            let [high, low, _, _] = c.to_ne_bytes();
            ([high, low], halves(a) + halves(b) + halves(c))
        }
        IPPROTO_UDP => {
            let [_, _, high, low] = rest.to_ne_bytes();
            ([high, low], 0)
        }
        _ => return Some(halves(ports) + halves(rest)),
    };
    let checksum = u16::from_ne_bytes(checksum);
    if checksum == fold(pseudo_header(ip, len.wrapping_sub(ip.l4))) {
        return Some(!checksum as u32);
    }
    Some(halves(ports) + halves(rest) + sum)
}
