//! States and records from elsewhere: a durable log's replay, and a mirror that follows its origin's revisions.

use crate::keyspace::{Keyspace, Limits};
use crate::kv::{Event, KeyValue, Revision, SharedKv};
use crate::record::{ApplyError, Change, Identity, Record, Snapshot};
use crate::tree::Tree;
use std::time::Duration;

impl Keyspace {
    /// The state that [`Keyspace::snapshot`] took, taking writes again. Its history is empty: who watches from before it lists
    /// again. Every lease starts its full TTL at `now`.
    pub fn restore(snapshot: &Snapshot, limits: Limits, now: Duration) -> Result<Self, ApplyError> {
        let mut keyspace = Self::new(snapshot.identity, limits);
        for &(id, ttl) in &snapshot.leases {
            keyspace.leases.grant(id, ttl, now);
        }
        keyspace.replace(snapshot.kvs.iter().map(SharedKv::new).collect(), snapshot.revision)?;
        keyspace.start_at(snapshot.revision, snapshot.identity);
        Ok(keyspace)
    }

    /// The whole state after the last executed write. O(keys), sharing their bytes.
    pub fn snapshot(&self) -> Snapshot {
        let all = crate::KeyRange::all();
        Snapshot {
            identity: self.identity,
            revision: self.newest,
            kvs: self.tree.range(&all, Revision::MAX).map(|kv| KeyValue::clone(kv)).collect(),
            leases: self.leases.ids().collect(),
        }
    }

    /// Makes a replica what its origin listed at `revision`: keys in order, each with its own revisions. The history starts
    /// anew, so watchers list again too; when `identity` is another one (or `revision` is behind) they are told so.
    ///
    /// O(keys). Given [`SharedKv`]s it copies keys only.
    pub fn load(
        &mut self,
        identity: Identity,
        revision: Revision,
        kvs: impl IntoIterator<Item: Into<SharedKv>>,
    ) -> Result<(), ApplyError> {
        if !self.replica {
            return Err(ApplyError::NotAReplica);
        }
        self.replace(kvs.into_iter().map(Into::into).collect(), revision)?;
        self.start_at(revision, identity);
        Ok(())
    }

    /// Applies and publishes one record. A log's records follow each other without a hole and contain what
    /// [`Keyspace::execute`] gave; a replica's have the origin's revisions, holes and all. A record without changes only moves
    /// a replica's revision (etcd's progress notification). Refused means nothing was changed.
    ///
    /// O(changes * log keys).
    pub fn apply(&mut self, record: &Record, now: Duration) -> Result<(), ApplyError> {
        self.check(record)?;
        for change in &record.changes {
            match change {
                Change::Put(kv) => {
                    let prev = self.tree.get(&kv.key, Revision::MAX).cloned();
                    self.record_event(Event::put(kv, prev));
                }
                Change::Delete { key } => {
                    // A mirror may not have had it (its listing was newer than the deletion of what it saw): no event then.
                    if let Some(prev) = self.tree.get(key, Revision::MAX).cloned() {
                        self.record_event(Event::delete(key.clone(), record.revision, Some(prev)));
                    }
                }
                &Change::LeaseGrant { id, ttl } => self.leases.grant(id, ttl, now),
                &Change::LeaseRevoke { id } => drop(self.leases.remove(id)),
                &Change::Compact { revision } => self.pending_compact = Some(revision.min(record.revision)),
            }
        }
        self.newest = record.revision;
        self.publish();
        Ok(())
    }

    fn check(&self, record: &Record) -> Result<(), ApplyError> {
        let (revision, newest) = (record.revision, self.newest);
        let mut changes_keys = false;
        for change in &record.changes {
            match change {
                Change::Put(kv) if kv.key.is_empty() => return Err(ApplyError::EmptyKey),
                Change::Put(kv) if kv.mod_revision != revision => {
                    let key = kv.key.clone();
                    return Err(ApplyError::WrongModRevision {
                        key,
                        mod_revision: kv.mod_revision,
                        revision,
                    });
                }
                Change::Put(_) | Change::Delete { .. } => changes_keys = true,
                _ => {}
            }
        }
        if revision < newest || (changes_keys && revision == newest) {
            return Err(ApplyError::NotNewer { revision, newest });
        }
        if !self.replica && revision != newest + Revision::from(changes_keys) {
            return Err(ApplyError::Hole { revision, newest });
        }
        Ok(())
    }

    fn replace(&mut self, kvs: Vec<SharedKv>, revision: Revision) -> Result<(), ApplyError> {
        for pair in kvs.windows(2) {
            if pair[0].key >= pair[1].key {
                return Err(ApplyError::Unordered { key: pair[1].key.clone() });
            }
        }
        for kv in &kvs {
            if kv.key.is_empty() {
                return Err(ApplyError::EmptyKey);
            }
            if kv.mod_revision > revision {
                let (key, mod_revision) = (kv.key.clone(), kv.mod_revision);
                return Err(ApplyError::WrongModRevision { key, mod_revision, revision });
            }
        }
        for kv in &kvs {
            self.leases.attach(kv.lease, &kv.key);
        }
        self.tree = Tree::of_sorted(kvs);
        Ok(())
    }
}
