//! Who owns which prefix, and what lies above and below one, found without a search through all.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::Family;

/// Prefixes to owners, in order.
#[derive(Clone, Debug)]
pub(crate) struct Owners<T> {
    by_prefix: BTreeMap<IpNet, T>,
    /// How many prefixes of each length there are, by family: a mesh uses two to four lengths, and no other is looked for.
    lengths: [[u32; 129]; 2],
}

impl<T> Default for Owners<T> {
    fn default() -> Self {
        Self { by_prefix: BTreeMap::new(), lengths: [[0; 129]; 2] }
    }
}

impl<T> Owners<T> {
    pub(crate) fn get(&self, prefix: &IpNet) -> Option<&T> {
        self.by_prefix.get(prefix)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&IpNet, &T)> {
        self.by_prefix.iter()
    }

    /// Returns who had it.
    pub(crate) fn insert(&mut self, prefix: IpNet, owner: T) -> Option<T> {
        let before = self.by_prefix.insert(prefix, owner);
        if before.is_none() {
            *self.count(&prefix) += 1;
        }
        before
    }

    pub(crate) fn remove(&mut self, prefix: &IpNet) -> Option<T> {
        let before = self.by_prefix.remove(prefix)?;
        *self.count(prefix) -= 1;
        Some(before)
    }

    /// What lies above a prefix, the nearest first, and then what lies below it; not the prefix itself. A look-up for each
    /// length in use, and O(what lies below).
    pub(crate) fn overlapping(&self, prefix: IpNet) -> impl Iterator<Item = (&IpNet, &T)> {
        let lengths = &self.lengths[family(&prefix)];
        let shorter = (0..prefix.prefix_len()).rev().filter(|length| lengths[usize::from(*length)] > 0);
        let around = shorter.filter_map(move |length| Some(IpNet::new(prefix.addr(), length).ok()?.trunc()));
        let above = around.filter_map(|net| self.by_prefix.get_key_value(&net));
        let below = self.by_prefix.range(inside(prefix)).filter(move |(net, _)| **net != prefix);
        above.chain(below)
    }

    fn count(&mut self, prefix: &IpNet) -> &mut u32 {
        &mut self.lengths[family(prefix)][usize::from(prefix.prefix_len())]
    }
}

fn family(prefix: &IpNet) -> usize {
    usize::from(Family::of_net(prefix) == Family::V6)
}

/// `IpNet` sorts by address, then by length: what a prefix covers lies between itself and its last address.
fn inside(prefix: IpNet) -> RangeInclusive<IpNet> {
    prefix..=IpNet::new(prefix.broadcast(), prefix.max_prefix_len()).unwrap_or(prefix)
}

impl<T> FromIterator<(IpNet, T)> for Owners<T> {
    fn from_iter<I: IntoIterator<Item = (IpNet, T)>>(prefixes: I) -> Self {
        let mut owners = Self::default();
        prefixes.into_iter().for_each(|(prefix, owner)| drop(owners.insert(prefix, owner)));
        owners
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlaps_a_prefix_is_above_or_below_it() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let mut owners: Owners<u8> =
            ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "10.2.0.0/16", "fd00::/16"]
                .into_iter()
                .zip(1..)
                .map(|(text, owner)| (net(text), owner))
                .collect();
        let of = |owners: &Owners<u8>, text| {
            owners.overlapping(net(text)).map(|(_, owner)| *owner).collect::<Vec<_>>()
        };
        assert_eq!(of(&owners, "10.1.0.0/16"), [1, 3, 4]);
        assert_eq!(of(&owners, "10.1.2.0/25"), [3, 2, 1, 4]);
        assert_eq!(of(&owners, "fd00:1::/32"), [6]);
        assert_eq!(owners.remove(&net("10.0.0.0/8")), Some(1));
        assert_eq!(of(&owners, "10.2.0.1/32"), [5]);
        assert_eq!(of(&owners, "11.0.0.0/8"), []);
    }
}
