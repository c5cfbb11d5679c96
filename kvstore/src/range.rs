//! A range of keys as etcd names it: one key, `[start, end)`, or everything from a key on.

use bytes::Bytes;
use std::ops::Bound;

/// Which keys a request means.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    start: Bytes,
    end: RangeEnd,
}

type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum RangeEnd {
    /// Only `start` itself.
    Single,
    Before(Bytes),
    Unbounded,
}

impl KeyRange {
    pub fn key(key: impl Into<Bytes>) -> Self {
        Self { start: key.into(), end: RangeEnd::Single }
    }

    pub fn from_key(key: impl Into<Bytes>) -> Self {
        Self { start: key.into(), end: RangeEnd::Unbounded }
    }

    pub fn between(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self { start: start.into(), end: RangeEnd::Before(end.into()) }
    }

    pub fn all() -> Self {
        Self::from_key(Bytes::new())
    }

    /// Every key that begins with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let end = match start.iter().rposition(|&byte| byte < 0xff) {
            Some(last) => {
                let mut end = start[..=last].to_vec();
                end[last] += 1;
                RangeEnd::Before(Bytes::from(end))
            }
            None => RangeEnd::Unbounded,
        };
        Self { start, end }
    }

    /// `key` and `range_end` as the etcd API writes them: an empty end is one key, `\0` is "from `key` on",
    /// and `\0` as the key is the first key there can be.
    pub fn from_wire(key: Bytes, range_end: Bytes) -> Self {
        match &range_end[..] {
            [] => Self::key(key),
            [0] if key[..] == [0] => Self::all(),
            [0] => Self::from_key(key),
            _ => Self::between(key, range_end),
        }
    }

    /// The inverse of [`KeyRange::from_wire`]: `(key, range_end)`.
    pub fn to_wire(&self) -> (Bytes, Bytes) {
        const ZERO: Bytes = Bytes::from_static(&[0]);
        match &self.end {
            RangeEnd::Single => (self.start.clone(), Bytes::new()),
            RangeEnd::Before(end) => (self.start.clone(), end.clone()),
            RangeEnd::Unbounded if self.start.is_empty() => (ZERO, ZERO),
            RangeEnd::Unbounded => (self.start.clone(), ZERO),
        }
    }

    pub fn start(&self) -> &Bytes {
        &self.start
    }

    pub fn as_single(&self) -> Option<&Bytes> {
        matches!(self.end, RangeEnd::Single).then_some(&self.start)
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            RangeEnd::Single => key == self.start,
            RangeEnd::Before(end) => key >= &self.start[..] && key < &end[..],
            RangeEnd::Unbounded => key >= &self.start[..],
        }
    }

    /// True for `[b, a)` with a <= b: nothing can be in it.
    pub fn is_empty(&self) -> bool {
        matches!(&self.end, RangeEnd::Before(end) if end <= &self.start)
    }

    /// Whether every key of `inner` is also a key of `self`. An empty `inner` is covered by anything.
    pub fn covers(&self, inner: &Self) -> bool {
        if inner.is_empty() {
            return true;
        }
        match (&self.end, &inner.end) {
            (_, RangeEnd::Single) => self.contains(&inner.start),
            (RangeEnd::Single, _) => false,
            _ if inner.start < self.start => false,
            (RangeEnd::Unbounded, _) => true,
            (RangeEnd::Before(_), RangeEnd::Unbounded) => false,
            (RangeEnd::Before(mine), RangeEnd::Before(theirs)) => theirs <= mine,
        }
    }

    /// Bounds for `BTreeMap::range`; `None` when nothing can match (a `BTreeMap` panics on an inverted range).
    pub(crate) fn bounds(&self) -> Option<Bounds<'_>> {
        let start = Bound::Included(&self.start[..]);
        match &self.end {
            RangeEnd::Single => Some((start, Bound::Included(&self.start[..]))),
            RangeEnd::Before(end) if end <= &self.start => None,
            RangeEnd::Before(end) => Some((start, Bound::Excluded(&end[..]))),
            RangeEnd::Unbounded => Some((start, Bound::Unbounded)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_its_successor() {
        let range = KeyRange::prefix("cilium/state/");
        assert!(range.contains(b"cilium/state/") && range.contains(b"cilium/state/\xff\xff"));
        assert!(!range.contains(b"cilium/state0") && !range.contains(b"cilium/state"));
        assert!(KeyRange::prefix(&b"\xff\xff"[..]).contains(b"\xff\xff\xff"));
        assert!(KeyRange::prefix("").contains(b""));
    }

    #[test]
    fn the_wire_form_is_etcds() {
        let zero = Bytes::from_static(&[0]);
        assert_eq!(KeyRange::from_wire(zero.clone(), zero.clone()), KeyRange::all());
        assert_eq!(KeyRange::from_wire("a".into(), zero), KeyRange::from_key("a"));
        for range in [KeyRange::all(), KeyRange::key("a"), KeyRange::from_key("a"), KeyRange::prefix("a")] {
            let (key, end) = range.to_wire();
            assert_eq!(KeyRange::from_wire(key, end), range);
        }
    }

    #[test]
    fn covering_is_about_every_key() {
        let state = KeyRange::prefix("cilium/state/");
        assert!(state.covers(&KeyRange::key("cilium/state/ip/v1/x")));
        assert!(state.covers(&KeyRange::prefix("cilium/state/ip/")));
        assert!(!state.covers(&KeyRange::prefix("cilium/")));
        assert!(!state.covers(&KeyRange::from_key("cilium/state/a")));
        assert!(KeyRange::all().covers(&KeyRange::from_key("z")));
        assert!(KeyRange::key("a").covers(&KeyRange::key("a")));
        assert!(!KeyRange::key("a").covers(&KeyRange::prefix("a")));
        assert!(KeyRange::key("a").covers(&KeyRange::between("z", "b")));
    }
}
