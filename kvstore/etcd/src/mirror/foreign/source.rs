//! One kind of entries as it is held: what was listed, and deletions that are held back.

use std::collections::BTreeSet;

use bytes::Bytes;
use hawser_kvstore::{
    ApplyError, Change, KeyRange, KeyValue, Keyspace, RangeQuery, Record, Revision, SharedKv,
};

use super::chart::Source;

/// So many may always go between two heartbeats: half of a few keys says nothing about a cluster's end.
const FEW: usize = 8;

#[derive(Debug)]
pub(super) struct Held {
    pub(super) source: Source,
    /// The follower that gives it.
    pub(super) group: Option<u64>,
    /// Keys that the list under way has named so far.
    pub(super) listing: Option<BTreeSet<Bytes>>,
    /// All of it was listed since its etcd was last another one.
    pub(super) listed: bool,
    /// Held and served, though its etcd has them no more.
    pub(super) ghosts: BTreeSet<Bytes>,
    /// The newest revision there that made one.
    pub(super) ghosts_at: Revision,
    /// Its cluster publishes it no more.
    pub(super) retired: bool,
    /// What was held, and what went, at and since the last heartbeat.
    base: usize,
    spent: usize,
}

impl Held {
    pub(super) fn new(source: Source) -> Self {
        Self {
            source,
            group: None,
            listing: None,
            listed: false,
            ghosts: BTreeSet::new(),
            ghosts_at: 0,
            retired: false,
            base: 0,
            spent: 0,
        }
    }

    pub(super) fn is_readable(&self) -> bool {
        self.source.complete && !self.retired
    }

    /// Whether so many more may go before the next heartbeat: half of what there is.
    pub(super) fn allows(&self, deletions: usize) -> bool {
        self.spent.saturating_add(deletions) <= (self.base / 2).max(FEW)
    }

    pub(super) fn spend(&mut self, deletions: usize) {
        self.spent += deletions;
    }

    /// A new interval begins. O(keys held).
    pub(super) fn count_anew(&mut self, keyspace: &Keyspace) {
        let count = RangeQuery { count_only: true, ..RangeQuery::new(self.range()) };
        self.base = keyspace.range(&count).map_or(0, |reply| reply.count);
        self.spent = 0;
    }

    /// Keys held here that `seen` does not name. O(keys held).
    pub(super) fn unseen(&self, seen: &BTreeSet<Bytes>, keyspace: &Keyspace) -> BTreeSet<Bytes> {
        let held = keyspace.range(&RangeQuery::new(self.range()));
        let kvs = held.map(|reply| reply.kvs).unwrap_or_default();
        kvs.iter().map(|kv| kv.key.clone()).filter(|key| !seen.contains(key)).collect()
    }

    /// Its follower has ended, or begins anew.
    pub(super) fn unfollow(&mut self) {
        self.group = None;
        self.listing = None;
    }

    fn range(&self) -> KeyRange {
        KeyRange::prefix(self.source.to.clone())
    }
}

/// What `key` holds. O(log keys).
pub(super) fn get(keyspace: &Keyspace, key: &Bytes) -> Option<SharedKv> {
    keyspace.range(&RangeQuery::new(KeyRange::key(key.clone()))).ok()?.kvs.into_iter().next()
}

/// One change at the next revision of our own. The same value again is none.
pub(super) fn put(keyspace: &mut Keyspace, key: Bytes, value: Bytes) -> Result<(), ApplyError> {
    let old = get(keyspace, &key);
    if old.as_ref().is_some_and(|old| old.value == value) {
        return Ok(());
    }
    let revision = keyspace.revision() + 1;
    let kv = KeyValue {
        key,
        value,
        create_revision: old.as_ref().map_or(revision, |old| old.create_revision),
        mod_revision: revision,
        version: old.as_ref().map_or(1, |old| old.version + 1),
        lease: 0,
    };
    apply(keyspace, revision, Change::Put(kv))
}

pub(super) fn delete(keyspace: &mut Keyspace, key: &Bytes) -> Result<(), ApplyError> {
    if get(keyspace, key).is_none() {
        return Ok(());
    }
    let revision = keyspace.revision() + 1;
    apply(keyspace, revision, Change::Delete { key: key.clone() })
}

/// No key here has a lease, so that no time is asked for.
fn apply(keyspace: &mut Keyspace, revision: Revision, change: Change) -> Result<(), ApplyError> {
    keyspace.apply(&Record { revision, changes: vec![change] }, std::time::Duration::ZERO)
}
