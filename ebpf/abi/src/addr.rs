//! Addresses and ports as they lie in packets: network byte order, one width for both families.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Plain;
use crate::layout::plain;

/// An IPv6 address, or an IPv4 address as `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2).
///
/// Four words in *memory* order (a word is four octets as they lie in the packet), so programs copy words, not bytes.
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Addr([u32; 4]);

// SAFETY: repr(transparent) over integers.
unsafe impl Plain for Addr {}

impl Addr {
    pub const UNSPECIFIED: Self = Self([0; 4]);
    const V4_PREFIX: u32 = 0xffff_u32.to_be();

    /// From the four octets as they lie in the packet, read as one word.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self([0, 0, Self::V4_PREFIX, word])
    }

    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.0
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == Self::V4_PREFIX
    }

    /// The last word: all of an IPv4 address.
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.0[3]
    }

    pub fn octets(&self) -> [u8; 16] {
        let mut octets = [0; 16];
        for (out, word) in octets.chunks_exact_mut(4).zip(self.0) {
            out.copy_from_slice(&word.to_ne_bytes());
        }
        octets
    }

    pub fn ip(&self) -> IpAddr {
        let v6 = Ipv6Addr::from(self.octets());
        v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        Self::from_v4_word(u32::from_ne_bytes(ip.octets()))
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(ip: Ipv6Addr) -> Self {
        let mut words = [0; 4];
        for (word, octets) in words.iter_mut().zip(ip.octets().as_chunks::<4>().0) {
            *word = u32::from_ne_bytes(*octets);
        }
        Self(words)
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

/// In the order of the octets, so that listings read as people expect.
impl Ord for Addr {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.octets().cmp(&other.octets())
    }
}

impl PartialOrd for Addr {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

/// A port in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Port(u16);

// SAFETY: repr(transparent) over an integer.
unsafe impl Plain for Port {}

impl Port {
    pub const fn new(host_order: u16) -> Self {
        Self(host_order.to_be())
    }

    /// From two octets as they lie in the packet, read as one half-word.
    #[inline(always)]
    pub const fn from_wire(wire: u16) -> Self {
        Self(wire)
    }

    #[inline(always)]
    pub const fn wire(self) -> u16 {
        self.0
    }

    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

impl Ord for Port {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.get().cmp(&other.get())
    }
}

impl PartialOrd for Port {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

plain! {
    /// The key of the `ipcache` trie. The prefix length counts the bits of the 16-byte form: an IPv4 /24 is 120.
    pub struct PrefixKey: 20 {
        pub bits: u32,
        pub addr: Addr,
    }
}

impl PrefixKey {
    /// None when `len` is longer than the family allows. Host bits are cleared.
    pub fn new(ip: IpAddr, len: u8) -> Option<Self> {
        let (max, offset) = if ip.is_ipv4() { (32, 96) } else { (128, 0) };
        if len > max {
            return None;
        }
        let bits = u32::from(len) + offset;
        let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
        let masked = u128::from_be_bytes(Addr::from(ip).octets()) & mask;
        Some(Self { bits, addr: Ipv6Addr::from(masked).into() })
    }

    #[inline(always)]
    pub const fn host(addr: Addr) -> Self {
        Self { bits: 128, addr }
    }

    /// The prefix length as its family counts it.
    pub fn len(&self) -> u32 {
        if self.addr.is_v4() { self.bits.saturating_sub(96) } else { self.bits }
    }

    pub fn is_empty(&self) -> bool {
        self.bits == 0
    }
}

impl fmt::Display for PrefixKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len())
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn both_families_have_one_form_and_lie_as_in_the_packet() {
        let v4: Addr = IpAddr::from([10, 1, 0, 7]).into();
        assert!(v4.is_v4());
        assert_eq!(v4.as_bytes(), &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 0, 7]);
        assert_eq!(v4.to_string(), "10.1.0.7");
        let v6: Addr = "fd68::1".parse::<IpAddr>().unwrap().into();
        assert!(!v6.is_v4());
        assert_eq!(v6.ip().to_string(), "fd68::1");
        assert_eq!(Port::new(80).as_bytes_of_wire(), [0, 80]);
    }

    impl Port {
        fn as_bytes_of_wire(self) -> [u8; 2] {
            self.wire().to_ne_bytes()
        }
    }

    #[test]
    fn a_prefix_counts_bits_of_the_long_form_and_clears_host_bits() {
        let key = PrefixKey::new(IpAddr::from([10, 2, 3, 4]), 16).unwrap();
        assert_eq!((key.bits, key.to_string().as_str()), (112, "10.2.0.0/16"));
        let all = PrefixKey::new("::".parse().unwrap(), 0).unwrap();
        assert_eq!((all.bits, all.addr), (0, Addr::UNSPECIFIED));
        assert!(PrefixKey::new(IpAddr::from([10, 2, 3, 4]), 33).is_none());
    }
}
