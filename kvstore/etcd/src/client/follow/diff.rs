//! What the caller was given, kept so that a second list yields differences only.

use std::collections::BTreeMap;

use bytes::Bytes;
use hawser_kvstore::{KeyRange, Revision};

use super::Relist;
use crate::pb::KeyValue;

/// One change, before it is given to the caller.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Change {
    Put(KeyValue),
    Delete { key: Bytes, mod_revision: Revision },
}

impl Change {
    pub(super) fn revision(&self) -> Revision {
        match self {
            Self::Put(kv) => kv.mod_revision,
            Self::Delete { mod_revision, .. } => *mod_revision,
        }
    }

    /// Bytes it holds, roughly.
    pub(super) fn cost(&self) -> usize {
        match self {
            Self::Put(kv) => 128 + kv.key.len() + kv.value.len(),
            Self::Delete { key, .. } => 64 + key.len(),
        }
    }
}

/// Keys and the mod revisions they were given with; nothing at all with [`Relist::Whole`].
#[derive(Debug)]
pub(super) struct Known(Option<BTreeMap<Bytes, Revision>>);

impl Known {
    pub(super) fn new(relist: Relist, start: Vec<(Bytes, Revision)>) -> Self {
        Self(match relist {
            Relist::Diff => Some(start.into_iter().collect()),
            Relist::Whole => None,
        })
    }

    /// Whether the caller has to be told, and remembers that he is. O(log keys); copies a new key, so that
    /// the network buffer it came in can go.
    pub(super) fn is_news(&mut self, change: &Change) -> bool {
        let Some(known) = &mut self.0 else { return true };
        match change {
            Change::Put(kv) => match known.get_mut(&kv.key) {
                Some(revision) => std::mem::replace(revision, kv.mod_revision) != kv.mod_revision,
                None => known.insert(Bytes::copy_from_slice(&kv.key), kv.mod_revision).is_none(),
            },
            Change::Delete { key, .. } => known.remove(key).is_some(),
        }
    }

    /// In another history equal revisions mean nothing: every key will be news once. O(keys).
    pub(super) fn distrust_revisions(&mut self) {
        self.0.iter_mut().flat_map(BTreeMap::values_mut).for_each(|revision| *revision = 0);
    }

    /// Keys of `range`, from `from` to `to` (included; the range's end without it), that the caller has
    /// and `kvs`, all the server has there, in order, does not. O(keys there).
    pub(super) fn vanished(
        &self,
        range: &KeyRange,
        from: &Bytes,
        to: Option<&Bytes>,
        kvs: &[KeyValue],
    ) -> Vec<Bytes> {
        let Some(known) = &self.0 else { return Vec::new() };
        let mut there = kvs.iter().map(|kv| &kv.key).peekable();
        let mut gone = Vec::new();
        for key in known.range(from.clone()..).map(|(key, _)| key) {
            if !range.contains(key) || to.is_some_and(|to| key > to) {
                break;
            }
            while there.peek().is_some_and(|other| *other < key) {
                there.next();
            }
            if there.peek() != Some(&key) {
                gone.push(key.clone());
            }
        }
        gone
    }
}
