//! A small map of strings that is only read: labels, annotations, selectors. One allocation, whatever it holds; as a
//! `BTreeMap` it would be half a kilobyte and two more for each entry, and every service has three.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer};

use crate::Labelled;

/// Pairs in the order of their keys. A look-up is linear: Kubernetes' objects have a handful.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Pairs {
    /// Key, value, key, value, an [`END`] after each.
    text: Box<str>,
}

/// No label has it, and in an annotation it is taken for U+FFFD: neither means anything with it.
const END: char = '\0';

impl Pairs {
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut parts = self.text.split_terminator(END);
        std::iter::from_fn(move || Some((parts.next()?, parts.next()?)))
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
}

impl Labelled for Pairs {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key)
    }
}

impl From<&BTreeMap<String, String>> for Pairs {
    fn from(map: &BTreeMap<String, String>) -> Self {
        let mut text =
            String::with_capacity(map.iter().map(|(key, value)| key.len() + value.len() + 2).sum());
        for part in map.iter().flat_map(|(key, value)| [key, value]) {
            match part.contains(END) {
                true => text.push_str(&part.replace(END, "\u{fffd}")),
                false => text.push_str(part),
            }
            text.push(END);
        }
        Self { text: text.into() }
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
        let given = [("b", "2"), ("a", ""), ("", "empty"), ("b", "3"), ("ä", "\n")];
        let map: BTreeMap<String, String> = given.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let pairs: Pairs = given.into_iter().collect();
        assert_eq!(pairs, Pairs::from(&map));
        assert_eq!(pairs.to_map(), map);
        for key in ["", "a", "b", "ä", "c"] {
            assert_eq!(pairs.get(key), map.get(key).map(String::as_str), "{key:?}");
        }
        assert!(Pairs::default().is_empty() && !pairs.is_empty());
        // The same text, cut elsewhere, is another map.
        assert_ne!(Pairs::from_iter([("a", "bc")]), Pairs::from_iter([("ab", "c")]));
        let odd = Pairs::from_iter([("a\0b", "true\0")]);
        assert_eq!(odd.iter().collect::<Vec<_>>(), [("a\u{fffd}b", "true\u{fffd}")]);
    }
}
