//! A small map of strings that is only read: labels, annotations, selectors. Two allocations, whatever it holds; as a
//! `BTreeMap` it would be half a kilobyte and two more for each entry, and every service has three.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer};

use crate::Labelled;

/// Pairs in the order of their keys. A look-up is linear: Kubernetes' objects have a handful.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Pairs {
    /// Key, value, key, value.
    text: Box<str>,
    /// Where each of them ends.
    ends: Box<[u32]>,
}

impl Pairs {
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut start = 0;
        self.ends.chunks_exact(2).map(move |ends| {
            let (middle, end) = (ends[0] as usize, ends[1] as usize);
            let pair = (&self.text[start..middle], &self.text[middle..end]);
            start = end;
            pair
        })
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == key).map(|(_, value)| value)
    }

    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// A copy that can be changed.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        self.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// Of pairs in the order of their keys, each key once.
    fn of_sorted<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> Self {
        let mut text = String::with_capacity(pairs.clone().map(|(key, value)| key.len() + value.len()).sum());
        let mut ends = Vec::with_capacity(2 * pairs.clone().count());
        for part in pairs.flat_map(|(key, value)| [key, value]) {
            text.push_str(part);
            ends.push(u32::try_from(text.len()).expect("a file and an answer are far below 4 GiB"));
        }
        Self { text: text.into(), ends: ends.into() }
    }
}

impl Labelled for Pairs {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key)
    }
}

impl From<&BTreeMap<String, String>> for Pairs {
    fn from(map: &BTreeMap<String, String>) -> Self {
        Self::of_sorted(map.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    }
}

/// Of equal keys the last one counts.
impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Pairs {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self::from(&pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Self::from(&BTreeMap::deserialize(from)?))
    }
}

impl fmt::Debug for Pairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_what_a_map_would_be() {
        let given = [("b", "2"), ("a", ""), ("", "empty"), ("b", "3"), ("ä\0", "\0")];
        let map: BTreeMap<String, String> = given.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let pairs: Pairs = given.into_iter().collect();
        assert_eq!(pairs, Pairs::from(&map));
        assert_eq!(pairs.to_map(), map);
        for key in ["", "a", "b", "ä\0", "c"] {
            assert_eq!(pairs.get(key), map.get(key).map(String::as_str), "{key:?}");
        }
        assert!(Pairs::default().is_empty() && !pairs.is_empty());
        // The same text, cut elsewhere, is another map.
        assert_ne!(Pairs::from_iter([("a", "bc")]), Pairs::from_iter([("ab", "c")]));
    }
}
