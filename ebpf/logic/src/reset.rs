//! Stuck connections end: when a connection is over, and the segment that says so to its client.
//!
//! The client's own next packet is turned into an answer to it. Its sequence number is exactly what the client expects next,
//! so no challenge follows (RFC 5961 §3.2), and it carries no data and no acknowledgement (RFC 9293 §3.10.7.1).

use hawser_ebpf_abi::{
    Addr, Config, HEALTH_RESET, HEALTH_SINCE_SHIFT, IpEntry, Plain, ServiceKey, TICKS_MASK,
};

use crate::mss::update_checksum;
use crate::packet::{Ip, Kind, Packet, TCP_ACK, TCP_RST, TCP_SYN, Transport};
use crate::verdict::{Hook, flow};

/// Ticks since a word with [`HEALTH_RESET`] was written; too few once the word's own ticks have come round.
#[inline(always)]
pub const fn elapsed(word: u32, now: u32) -> u32 {
    now.wrapping_sub(word >> HEALTH_SINCE_SHIFT) & TICKS_MASK
}

/// Whether a connection that began at tick `began` is over at tick `now`, by this word and this many ticks of grace. What
/// began after the verdict was begun in spite of it (nothing healthier was left) and is let be.
#[inline(always)]
pub const fn is_over(word: u32, after: u32, began: u32, now: u32) -> bool {
    let elapsed = elapsed(word, now);
    word & HEALTH_RESET != 0 && elapsed >= after && now.wrapping_sub(began) >= elapsed
}

/// Whether a SYN repeats the one of tick `began`: its connection is as old as that. They are repeated for 63 s (Linux'
/// `tcp_syn_retries`, doubled from a second on).
#[inline(always)]
pub const fn is_repetition(began: u32, now: u32) -> bool {
    const TICKS: u32 = 240;
    began != 0 && now.wrapping_sub(began) < TICKS
}

/// Whether this packet's connection is over. Two array look-ups for a packet to a healthy place, no more.
#[inline(always)]
pub fn ends<H: Hook + ?Sized>(hook: &H, config: &Config, to: &IpEntry, ip: &Ip, tcp: &Transport) -> bool {
    let (cluster, node) = (hook.cluster_word(to.cluster), hook.node_word(to.node));
    // A connection that is only being made is left to its maker: it may be the last resort, with health ignored.
    let is_tcp = tcp.kind == Kind::Tcp;
    let being_made = is_tcp && tcp.flags & (TCP_SYN | TCP_RST | TCP_ACK) != TCP_ACK;
    if (cluster | node) & HEALTH_RESET == 0 || being_made {
        return false;
    }
    let began = match hook.flow_began(&flow(ip.src, ip.dst, tcp.src, tcp.dst, ip.proto)) {
        Some(began) => began,
        // Not the client's, but an exported backend's answer.
        None if hook.is_exported(&ServiceKey::new(ip.src, tcp.src, ip.proto)) => return false,
        // A first message is let go: it may be the last resort as well.
        None if !is_tcp => return false,
        None => 0,
    };
    let wish = hook.reset_wish(&ServiceKey::new(ip.dst, tcp.dst, ip.proto));
    let (after, now) = (wish.unwrap_or(config.reset_after as u32), hook.ticks());
    is_over(cluster, after, began, now) || is_over(node, after, began, now)
}

/// A TCP header without options (RFC 9293 §3.1), in network order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpHeader {
    pub src: u16,
    pub dst: u16,
    pub seq: u32,
    pub ack: u32,
    pub data_offset: u8,
    pub flags: u8,
    pub window: u16,
    pub checksum: u16,
    pub urgent: u16,
}
// SAFETY: repr(C), integers only, sizes add up to 20 without padding.
unsafe impl Plain for TcpHeader {}
const _: () = assert!(size_of::<TcpHeader>() == 20);

/// What a packet becomes. Addresses change places besides, and everything behind the header is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    pub tcp: TcpHeader,
    /// Of the IP header, in network order: its length field and where that is; its checksum, which IPv6 has not.
    pub ip_len: u16,
    pub ip_len_at: u32,
    pub ip_checksum: u16,
}

/// The answer to a segment that acknowledges something; `len` is the packet's from its IP header on.
#[inline(always)]
pub fn reset<P: Packet + ?Sized>(packet: &P, ip: &Ip, len: u32) -> Option<Reset> {
    let asked: TcpHeader = packet.load(ip.l4)?;
    let mut tcp = TcpHeader {
        src: asked.dst,
        dst: asked.src,
        seq: asked.ack,
        ack: 0,
        data_offset: 5 << 4,
        flags: TCP_RST,
        window: 0,
        checksum: 0,
        urgent: 0,
    };
    // A checksum that hardware is still to fill in is the pseudo-header's sum so far, and stays that.
    let (before, after) = (pseudo_header(ip, len.wrapping_sub(ip.l4)), pseudo_header(ip, TCP_LEN));
    let unfinished = asked.checksum == fold(before);
    let head = u16::from_ne_bytes([tcp.data_offset, tcp.flags]) as u32;
    let header = tcp.src as u32 + tcp.dst as u32 + halves(tcp.seq) + head;
    tcp.checksum = if unfinished { fold(after) } else { !fold(after + header) };
    if ip.src.is_v4() {
        let old: u16 = packet.load(2)?;
        let checksum: u16 = packet.load(10)?;
        let ip_len = ((ip.l4 + TCP_LEN) as u16).to_be();
        return Some(Reset {
            tcp,
            ip_len,
            ip_len_at: 2,
            ip_checksum: update_checksum(checksum, old, ip_len),
        });
    }
    // RFC 8200 §3: without the fixed header's 40 octets.
    let ip_len = ((ip.l4 + TCP_LEN - 40) as u16).to_be();
    Some(Reset { tcp, ip_len, ip_len_at: 4, ip_checksum: 0 })
}

/// Octets of a TCP header without options.
pub const TCP_LEN: u32 = size_of::<TcpHeader>() as u32;

/// RFC 9293 §3.1, RFC 8200 §8.1: the sum over addresses, protocol and length; the same both ways.
#[inline(always)]
pub(crate) fn pseudo_header(ip: &Ip, len: u32) -> u32 {
    address(&ip.src) + address(&ip.dst) + (ip.proto as u16).to_be() as u32 + halves(len.to_be())
}

#[inline(always)]
fn address(addr: &Addr) -> u32 {
    if addr.is_v4() {
        return halves(addr.v4_word());
    }
    let [a, b, c, d] = addr.words();
    halves(a) + halves(b) + halves(c) + halves(d)
}

#[inline(always)]
pub(crate) const fn halves(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

/// One's complement sums do not mind the order of octets (RFC 1071 §2(B)).
#[inline(always)]
pub(crate) const fn fold(sum: u32) -> u16 {
    let once = halves(sum);
    halves(once) as u16
}
