//! Headers, read through a small view: every read is bounds-checked by whoever holds the packet.

use hawser_ebpf_abi::{Addr, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP, Plain, Port};

pub const ETH_P_IP: u16 = 0x0800;
pub const ETH_P_IPV6: u16 = 0x86dd;

pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_ACK: u8 = 0x10;

/// A packet from its network header on.
pub trait Packet {
    /// None when the packet ends before.
    fn load<T: Plain>(&self, offset: u32) -> Option<T>;
}

/// The fixed part of an IPv4 header (RFC 791 §3.1), in network order.
#[repr(C)]
#[derive(Clone, Copy)]
struct Ipv4 {
    version_ihl: u8,
    tos: u8,
    total_len: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    proto: u8,
    checksum: u16,
    src: u32,
    dst: u32,
}
// SAFETY: repr(C), integers only, sizes add up to 20 without padding.
unsafe impl Plain for Ipv4 {}
const _: () = assert!(size_of::<Ipv4>() == 20);

/// An IPv6 header (RFC 8200 §3), in network order.
#[repr(C)]
#[derive(Clone, Copy)]
struct Ipv6 {
    version_class_flow: u32,
    payload_len: u16,
    next: u8,
    hops: u8,
    src: [u32; 4],
    dst: [u32; 4],
}
// SAFETY: repr(C), integers only, sizes add up to 40 without padding.
unsafe impl Plain for Ipv6 {}
const _: () = assert!(size_of::<Ipv6>() == 40);

/// The part of a TCP header (RFC 9293 §3.1) that is looked at.
#[repr(C)]
#[derive(Clone, Copy)]
struct TcpStart {
    src: u16,
    dst: u16,
    seq: u32,
    ack: u32,
    data_offset: u8,
    flags: u8,
    window: u16,
}
// SAFETY: repr(C), integers only, sizes add up to 16 without padding.
unsafe impl Plain for TcpStart {}
const _: () = assert!(size_of::<TcpStart>() == 16);

/// The first eight octets of UDP, of an ICMP echo, of any ICMP message.
#[repr(C)]
#[derive(Clone, Copy)]
struct FirstEight {
    a: u16,
    b: u16,
    c: u16,
    d: u16,
}
// SAFETY: repr(C), four u16, no padding.
unsafe impl Plain for FirstEight {}

/// What the IP header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    pub src: Addr,
    pub dst: Addr,
    pub proto: u8,
    /// Any part of a fragmented packet, the first one too.
    pub fragment: bool,
    /// Offset of the transport header from the network header.
    pub l4: u32,
}

/// What kind of packet a view shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    NotIp,
    Malformed,
    Ip(Ip),
}

/// Reads the IP header. `ethertype` in host order. IPv6 extension headers are not walked: the protocol is then theirs.
#[inline(always)]
pub fn parse<P: Packet + ?Sized>(packet: &P, ethertype: u16) -> Parsed {
    let ip = match ethertype {
        ETH_P_IP => ipv4(packet, 0),
        ETH_P_IPV6 => ipv6(packet, 0),
        _ => return Parsed::NotIp,
    };
    match ip {
        Some(ip) => Parsed::Ip(ip),
        None => Parsed::Malformed,
    }
}

#[inline(always)]
fn ipv4<P: Packet + ?Sized>(packet: &P, at: u32) -> Option<Ip> {
    let header: Ipv4 = packet.load(at)?;
    let words = (header.version_ihl & 0xf) as u32;
    if header.version_ihl >> 4 != 4 || words < 5 {
        return None;
    }
    Some(Ip {
        src: Addr::from_v4_word(header.src),
        dst: Addr::from_v4_word(header.dst),
        proto: header.proto,
        // More fragments, or an offset; reserved and "don't fragment" are the two bits above.
        fragment: header.fragment & 0x3fff_u16.to_be() != 0,
        l4: at + words * 4,
    })
}

#[inline(always)]
fn ipv6<P: Packet + ?Sized>(packet: &P, at: u32) -> Option<Ip> {
    const FRAGMENT_HEADER: u8 = 44;
    let header: Ipv6 = packet.load(at)?;
    if u32::from_be(header.version_class_flow) >> 28 != 6 {
        return None;
    }
    let (src, dst) = (Addr::from_words(header.src), Addr::from_words(header.dst));
    // An IPv4 address in IPv6 clothes (RFC 4291 §2.5.5.2 never goes on the wire) would pass for the IPv4 one.
    if src.is_v4() || dst.is_v4() {
        return None;
    }
    Some(Ip { src, dst, proto: header.next, fragment: header.next == FRAGMENT_HEADER, l4: at + 40 })
}

/// What kind of transport header a packet has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    Udp,
    EchoRequest,
    EchoReply,
    /// The packet it is about starts eight octets further on.
    IcmpError,
    /// Some other ICMP message, or a protocol that is not known here.
    Other,
}

/// What the transport header says, as far as verdicts need it. Flat: fields that only some variants of an enum have would
/// be undefined registers in the others, which the verifier refuses to see copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    pub kind: Kind,
    /// For an ICMP echo both ports are its identifier; 0 where there is none.
    pub src: Port,
    pub dst: Port,
    /// TCP only.
    pub flags: u8,
    pub header_len: u32,
}

impl Transport {
    /// A connection is being opened.
    #[inline(always)]
    pub fn is_bare_syn(&self) -> bool {
        self.flags & (TCP_SYN | TCP_ACK) == TCP_SYN
    }

    #[inline(always)]
    const fn new(kind: Kind, src: u16, dst: u16) -> Self {
        Self { kind, src: Port::from_wire(src), dst: Port::from_wire(dst), flags: 0, header_len: 8 }
    }
}

/// Reads the transport header of a packet that is no fragment; None when it is cut short.
#[inline(always)]
pub fn transport<P: Packet + ?Sized>(packet: &P, ip: &Ip) -> Option<Transport> {
    if ip.proto == IPPROTO_TCP {
        let tcp: TcpStart = packet.load(ip.l4)?;
        let header_len = (tcp.data_offset >> 4) as u32 * 4;
        let transport = Transport::new(Kind::Tcp, tcp.src, tcp.dst);
        return (header_len >= 20).then_some(Transport { flags: tcp.flags, header_len, ..transport });
    }
    let icmp = if ip.src.is_v4() { IPPROTO_ICMP } else { IPPROTO_ICMPV6 };
    if ip.proto != IPPROTO_UDP && ip.proto != icmp {
        return Some(Transport::new(Kind::Other, 0, 0));
    }
    let first: FirstEight = packet.load(ip.l4)?;
    if ip.proto == IPPROTO_UDP {
        return Some(Transport::new(Kind::Udp, first.a, first.b));
    }
    let kind = icmp_kind(ip.src.is_v4(), (u16::from_be(first.a) >> 8) as u8);
    let id = if matches!(kind, Kind::EchoRequest | Kind::EchoReply) { first.c } else { 0 };
    Some(Transport::new(kind, id, id))
}

#[inline(always)]
const fn icmp_kind(v4: bool, icmp_type: u8) -> Kind {
    match (v4, icmp_type) {
        (true, 8) | (false, 128) => Kind::EchoRequest,
        (true, 0) | (false, 129) => Kind::EchoReply,
        // RFC 792: unreachable, time exceeded, parameter problem. RFC 4443 §2.1: 1 to 4 are the errors of IPv6.
        (true, 3 | 11 | 12) | (false, 1..=4) => Kind::IcmpError,
        _ => Kind::Other,
    }
}

/// The addresses, protocol and ports of the packet that an ICMP error quotes: as *it* was sent.
#[inline(always)]
pub fn quoted<P: Packet + ?Sized>(packet: &P, error: &Ip) -> Option<(Ip, Port, Port)> {
    let at = error.l4 + 8;
    let inner = if error.src.is_v4() { ipv4(packet, at)? } else { ipv6(packet, at)? };
    if inner.fragment || !matches!(inner.proto, IPPROTO_TCP | IPPROTO_UDP) {
        return None;
    }
    // TCP and UDP both begin with their ports, and eight octets of them are always quoted.
    let ports: FirstEight = packet.load(inner.l4)?;
    Some((inner, Port::from_wire(ports.a), Port::from_wire(ports.b)))
}
