//! Where anything of another cluster can be at all: a bit for each block of addresses, so that a packet between local pods pays
//! for two loads and no walk through `ipcache`.

use core::ops::Range;

use crate::{Addr, PrefixKey};

/// 2^16 blocks of IPv4, a /16 each, then as many of IPv6, onto which the /32s are folded.
const BLOCKS: u32 = 2 << 16;
/// Entries of the map `remote_blocks` (ARRAY of u64).
pub const BLOCK_WORDS: u32 = BLOCKS / 64;

/// The block of an address.
#[inline(always)]
pub const fn block(addr: &Addr) -> u32 {
    if addr.is_v4() {
        return u32::from_be(addr.v4_word()) >> 16;
    }
    let high = u32::from_be(addr.words()[0]);
    block_v6((high >> 16) as u16, high as u16)
}

/// That of an IPv4 address, by its first two octets in host order.
#[inline(always)]
pub const fn block_v4(first: u16) -> u32 {
    first as u32
}

/// That of an IPv6 address, by its first four octets. One that begins with 32 zero bits may be an IPv4 address in other clothes.
#[inline(always)]
pub const fn block_v6(first: u16, second: u16) -> u32 {
    1 << 16 | (first ^ second) as u32
}

/// All blocks that a prefix has addresses in, or more.
pub fn blocks(prefix: &PrefixKey) -> Range<u32> {
    const V4: u32 = 96;
    let first = block(&prefix.addr);
    if prefix.addr.is_v4() {
        let shorter = (V4 + 16).saturating_sub(prefix.bits.max(V4));
        return first..first + (1 << shorter);
    }
    // What begins with 32 zero bits may be IPv4.
    if prefix.bits < 32 || prefix.addr.words()[0] == 0 {
        return 0..BLOCKS;
    }
    first..first + 1
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    fn key(text: &str) -> PrefixKey {
        let (ip, len) = text.split_once('/').unwrap();
        PrefixKey::new(ip.parse().unwrap(), len.parse().unwrap()).unwrap()
    }

    fn of(text: &str) -> u32 {
        block(&text.parse::<IpAddr>().unwrap().into())
    }

    #[test]
    fn every_address_of_a_prefix_lies_in_its_blocks() {
        for (prefix, inside) in [
            ("10.2.0.0/16", ["10.2.0.0", "10.2.255.255"]),
            ("10.2.3.0/24", ["10.2.3.0", "10.2.3.255"]),
            ("10.0.0.0/8", ["10.0.0.1", "10.255.255.255"]),
            ("240.0.0.0/4", ["240.0.0.0", "255.255.255.255"]),
            ("0.0.0.0/0", ["0.0.0.0", "255.255.255.255"]),
            ("fd68:1:2::/48", ["fd68:1:2::", "fd68:1:2:ffff:ffff:ffff:ffff:ffff"]),
            ("fd68:1::/32", ["fd68:1::", "fd68:1:ffff::1"]),
            ("fd00::/8", ["fd00::", "fdff:ffff::"]),
            ("::/0", ["10.2.0.0", "fd00::1"]),
            ("::/64", ["10.2.0.0", "::1"]),
        ] {
            let blocks = blocks(&key(prefix));
            assert!(inside.iter().all(|addr| blocks.contains(&of(addr))), "{prefix}: {blocks:?}");
            assert!(blocks.end <= BLOCKS, "{prefix}: {blocks:?}");
        }
    }

    #[test]
    fn the_first_octets_say_the_block() {
        assert_eq!(block_v4(0x0a02), of("10.2.255.1"));
        assert_eq!(block_v6(0xfd68, 0x6177), of("fd68:6177:7365::1"));
    }

    #[test]
    fn what_is_elsewhere_has_another_block() {
        assert!(!blocks(&key("10.2.0.0/16")).contains(&of("10.1.255.255")));
        assert!(!blocks(&key("10.2.0.0/15")).contains(&of("10.4.0.0")));
        assert!(!blocks(&key("fd68:1::/48")).contains(&of("fd69:1::")));
        assert!(!blocks(&key("0.0.0.0/0")).contains(&of("fd69:1::")));
    }
}
