//! Longest-prefix lookup: the rule by which WireGuard decides where a packet goes and whose it is.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Prefixes to values.
///
/// Hash maps and a list of the prefix lengths in use: a lookup costs one hash probe per length in use, longest first (a mesh
/// uses two to four), whatever the number of prefixes. So does a change: the maps of a family are many, so that the one
/// that has to grow moves a few thousand prefixes and not all of them while packets wait.
#[derive(Clone, Debug)]
pub struct PrefixTable<T> {
    v4: Lengths<T>,
    v6: Lengths<T>,
}

#[derive(Clone, Debug)]
struct Lengths<T> {
    /// How many prefixes of each length there are.
    count: [u32; 129],
    /// Lengths in use, longest first.
    used: Vec<u8>,
    entries: [HashMap<(u8, u128), T>; SHARDS],
}

const SHARD_BITS: u32 = 6;
const SHARDS: usize = 1 << SHARD_BITS;

/// Which of the maps has a prefix.
fn shard(&(length, bits): &(u8, u128)) -> usize {
    let folded = (bits >> 64) as u64 ^ bits as u64 ^ u64::from(length);
    // Fibonacci hashing: neighbours part.
    (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SHARD_BITS)) as usize
}

impl<T> Default for PrefixTable<T> {
    fn default() -> Self {
        Self { v4: Lengths::default(), v6: Lengths::default() }
    }
}

impl<T> Default for Lengths<T> {
    fn default() -> Self {
        Self { count: [0; 129], used: Vec::new(), entries: std::array::from_fn(|_| HashMap::new()) }
    }
}

impl<T> PrefixTable<T> {
    /// Returns what the prefix led to before. Host bits are ignored.
    pub fn insert(&mut self, prefix: IpNet, value: T) -> Option<T> {
        self.family_mut(prefix.addr()).insert(key(&prefix), value)
    }

    pub fn remove(&mut self, prefix: &IpNet) -> Option<T> {
        self.family_mut(prefix.addr()).remove(key(prefix))
    }

    /// Exactly this prefix.
    pub fn get(&self, prefix: &IpNet) -> Option<&T> {
        self.family(prefix.addr()).get(&key(prefix))
    }

    /// The longest prefix that covers an address.
    pub fn lookup(&self, address: IpAddr) -> Option<&T> {
        self.family(address).lookup(bits(address))
    }

    /// Every prefix, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, &T)> {
        let v4 = self.v4.entries.iter().flatten().filter_map(|(&(length, bits), value)| {
            let address = Ipv4Addr::from((bits >> 96) as u32);
            Some((IpNet::new(address.into(), length).ok()?, value))
        });
        let v6 = self.v6.entries.iter().flatten().filter_map(|(&(length, bits), value)| {
            Some((IpNet::new(Ipv6Addr::from(bits).into(), length).ok()?, value))
        });
        v4.chain(v6)
    }

    fn family(&self, address: IpAddr) -> &Lengths<T> {
        if address.is_ipv4() { &self.v4 } else { &self.v6 }
    }

    fn family_mut(&mut self, address: IpAddr) -> &mut Lengths<T> {
        if address.is_ipv4() { &mut self.v4 } else { &mut self.v6 }
    }
}

impl<T> Lengths<T> {
    fn insert(&mut self, key: (u8, u128), value: T) -> Option<T> {
        let old = self.entries[shard(&key)].insert(key, value);
        if old.is_none() {
            self.count[usize::from(key.0)] += 1;
            if self.count[usize::from(key.0)] == 1 {
                self.refresh();
            }
        }
        old
    }

    fn remove(&mut self, key: (u8, u128)) -> Option<T> {
        let old = self.entries[shard(&key)].remove(&key)?;
        self.count[usize::from(key.0)] -= 1;
        if self.count[usize::from(key.0)] == 0 {
            self.refresh();
        }
        Some(old)
    }

    fn refresh(&mut self) {
        self.used.clear();
        self.used.extend((0..=128u8).rev().filter(|length| self.count[usize::from(*length)] > 0));
    }

    fn lookup(&self, address: u128) -> Option<&T> {
        self.used.iter().find_map(|length| self.get(&(*length, address & mask(*length))))
    }

    fn get(&self, key: &(u8, u128)) -> Option<&T> {
        self.entries[shard(key)].get(key)
    }
}

/// Addresses are left-aligned in 128 bits, so that one mask serves both families.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)) << 96,
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

fn key(prefix: &IpNet) -> (u8, u128) {
    (prefix.prefix_len(), bits(prefix.addr()) & mask(prefix.prefix_len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address() -> impl Strategy<Value = IpAddr> {
        // Few bits vary, so that prefixes nest and addresses hit.
        prop_oneof![
            (0u8..4, 0u8..4).prop_map(|(a, b)| IpAddr::from([10, a, b, a ^ b])),
            (0u8..4, 0u8..4)
                .prop_map(|(a, b)| IpAddr::from([0xfd, a, 0, 0, 0, 0, 0, 0, b, 0, 0, 0, 0, 0, 0, a])),
        ]
    }

    fn prefix() -> impl Strategy<Value = IpNet> {
        (address(), 0u8..=128).prop_map(|(address, length)| {
            let longest = if address.is_ipv4() { 32 } else { 128 };
            IpNet::new(address, length.min(longest)).unwrap().trunc()
        })
    }

    proptest! {
        #[test]
        fn lookup_finds_what_a_search_through_all_prefixes_finds(
            steps in prop::collection::vec((prefix(), any::<bool>()), 0..40),
            probes in prop::collection::vec(address(), 20),
        ) {
            let mut table = PrefixTable::default();
            let mut naive: HashMap<IpNet, usize> = HashMap::new();
            for (at, (prefix, add)) in steps.into_iter().enumerate() {
                if add {
                    prop_assert_eq!(table.insert(prefix, at), naive.insert(prefix, at));
                } else {
                    prop_assert_eq!(table.remove(&prefix), naive.remove(&prefix));
                }
            }
            let listed: HashMap<IpNet, usize> = table.iter().map(|(prefix, value)| (prefix, *value)).collect();
            prop_assert_eq!(&listed, &naive);
            for probe in probes {
                let longest = naive.iter().filter(|(p, _)| p.contains(&probe)).max_by_key(|(p, _)| p.prefix_len());
                prop_assert_eq!(table.lookup(probe), longest.map(|(_, v)| v));
            }
        }
    }
}
