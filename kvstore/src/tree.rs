//! The keys in order, each with the versions that the history may still be asked for.

use crate::kv::{Revision, SharedKv};
use crate::range::KeyRange;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// Look-ups are O(log keys + log versions of the key); a walk over a range is O(log keys + keys in it).
#[derive(Default)]
pub(crate) struct Tree {
    /// The map's own key is a copy: a slice of a version would hold that version's value for as long as the key lives.
    /// 40 bytes an entry, beside the key's.
    keys: BTreeMap<Box<[u8]>, Versions>,
    /// Encoded size of the newest versions.
    bytes: usize,
    /// Keys whose newest version is live.
    live: usize,
}

#[expect(clippy::box_collection, reason = "one word instead of four, in every key that has not changed")]
struct Versions {
    newest: Version,
    /// Oldest first. A key that did not change within the history has none, and pays one word.
    older: Option<Box<VecDeque<Version>>>,
}

pub(crate) enum Version {
    Live(SharedKv),
    Gone(Revision),
}

impl Version {
    fn revision(&self) -> Revision {
        match self {
            Self::Live(kv) => kv.mod_revision,
            Self::Gone(revision) => *revision,
        }
    }

    fn live(&self) -> Option<&SharedKv> {
        match self {
            Self::Live(kv) => Some(kv),
            Self::Gone(_) => None,
        }
    }

    fn size(&self) -> usize {
        self.live().map_or(0, |kv| kv.encoded_len())
    }

    fn count(&self) -> usize {
        usize::from(self.live().is_some())
    }
}

impl Versions {
    fn at(&self, revision: Revision) -> Option<&SharedKv> {
        if self.newest.revision() <= revision {
            return self.newest.live();
        }
        let older = self.older.as_ref()?;
        let after = older.partition_point(|version| version.revision() <= revision);
        older.get(after.checked_sub(1)?)?.live()
    }
}

impl Tree {
    /// Of keys in order, each with its one version. O(keys), and the nodes are full.
    pub(crate) fn of_sorted(kvs: Vec<SharedKv>) -> Self {
        let bytes = kvs.iter().map(|kv| kv.encoded_len()).sum();
        let entry =
            |kv: SharedKv| (Box::from(&kv.key[..]), Versions { newest: Version::Live(kv), older: None });
        let live = kvs.len();
        Self { keys: kvs.into_iter().map(entry).collect(), bytes, live }
    }

    pub(crate) fn get(&self, key: &[u8], at: Revision) -> Option<&SharedKv> {
        self.keys.get(key)?.at(at)
    }

    pub(crate) fn range(&self, keys: &KeyRange, at: Revision) -> impl Iterator<Item = &SharedKv> {
        keys.bounds()
            .into_iter()
            .flat_map(|bounds| self.keys.range::<[u8], _>(bounds))
            .filter_map(move |(_, versions)| versions.at(at))
    }

    /// Sum of the encoded sizes of what is live now.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keys that are live now.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    pub(crate) fn set(&mut self, key: &Bytes, version: Version) {
        self.bytes += version.size();
        self.live += version.count();
        if let Some(versions) = self.keys.get_mut(&key[..]) {
            self.bytes -= versions.newest.size();
            self.live -= versions.newest.count();
            let older = std::mem::replace(&mut versions.newest, version);
            versions.older.get_or_insert_default().push_back(older);
        } else {
            self.keys.insert(Box::from(&key[..]), Versions { newest: version, older: None });
        }
    }

    /// Takes back the last [`Tree::set`] of `key`.
    pub(crate) fn unset(&mut self, key: &[u8]) {
        let Some(versions) = self.keys.get_mut(key) else { return };
        self.bytes -= versions.newest.size();
        self.live -= versions.newest.count();
        match versions.older.as_mut().and_then(|older| older.pop_back()) {
            Some(version) => {
                self.bytes += version.size();
                self.live += version.count();
                versions.newest = version;
            }
            None => {
                self.keys.remove(key);
            }
        }
    }

    /// Forgets what `key` was before `revision`. O(log keys) and what is dropped.
    pub(crate) fn forget_before(&mut self, key: &[u8], revision: Revision) {
        let Some(versions) = self.keys.get_mut(key) else { return };
        if versions.newest.revision() <= revision {
            versions.older = None;
            if versions.newest.live().is_none() {
                self.keys.remove(key);
            }
            return;
        }
        let Some(older) = &mut versions.older else { return };
        let after = older.partition_point(|version| version.revision() <= revision);
        if after > 0 {
            let current_is_gone = older[after - 1].live().is_none();
            older.drain(..after - usize::from(!current_is_gone));
        }
    }

    /// The keys that exist, including those that are kept only because a past revision has them.
    #[cfg(test)]
    pub(crate) fn held(&self) -> (usize, usize) {
        (
            self.keys.len(),
            self.keys.values().map(|v| 1 + v.older.as_ref().map_or(0, |older| older.len())).sum(),
        )
    }
}
