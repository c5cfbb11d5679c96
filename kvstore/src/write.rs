//! Executing operations: each is checked whole, then applied whole, and yields the record of what it changed.

use crate::keyspace::{Keyspace, Undo};
use crate::kv::{Event, KeyValue, LeaseId, Revision, SharedKv};
use crate::op::{
    DeleteRange, DeleteRangeReply, Op, OpError, Put, PutReply, RangeError, Reply, ReplyBody, Txn, TxnOp,
    TxnOpReply, TxnReply,
};
use crate::query;
use crate::record::{Change, Record};
use crate::txn::{self, Path};
use bytes::Bytes;
use std::time::Duration;

/// etcd's `MaxLeaseTTL`, in seconds.
const MAX_LEASE_TTL: i64 = 9_000_000_000;

/// An operation that was executed and waits to be made durable, then published.
#[derive(Clone, Debug, PartialEq)]
pub struct Executed {
    pub reply: Reply,
    /// `None` when there is nothing to make durable.
    pub record: Option<Record>,
}

/// The changes of one operation, all at one revision.
struct Changes {
    revision: Revision,
    list: Vec<Change>,
}

impl Keyspace {
    /// Executes `op` on the newest state. Readers see it after [`Keyspace::publish`]. Refused means nothing was changed.
    ///
    /// O(log keys) for a put; O(keys in the range) for a delete; a transaction is the sum of its operations.
    pub fn execute(&mut self, op: &Op, now: Duration) -> Result<Executed, OpError> {
        if self.replica {
            return Err(OpError::Replica);
        }
        let mut changes = Changes { revision: self.newest + 1, list: Vec::new() };
        let body = match op {
            Op::Put(put) => {
                self.check_put(put)?;
                ReplyBody::Put(self.put(put, &mut changes))
            }
            Op::DeleteRange(delete) => ReplyBody::DeleteRange(self.delete(delete, &mut changes)),
            Op::Txn(txn) => ReplyBody::Txn(self.txn(txn, &mut changes)?),
            &Op::LeaseGrant { id, ttl } => self.grant(id, ttl, &mut changes, now)?,
            &Op::LeaseRevoke { id } => self.revoke(id, &mut changes)?,
            &Op::LeaseKeepAlive { id } => {
                let ttl = self.leases.keep_alive(id, now).ok_or(OpError::LeaseNotFound { id })?;
                ReplyBody::LeaseKeptAlive { id, ttl }
            }
            &Op::Compact { revision } => self.compact(revision, &mut changes)?,
        };
        Ok(self.executed(body, changes))
    }

    /// Revokes the leases whose time has come, each at its own revision. O(expired leases and their keys).
    pub fn handle_time(&mut self, now: Duration) -> Vec<Executed> {
        if self.replica {
            return Vec::new();
        }
        let expired = self.leases.expired(now);
        expired.into_iter().filter_map(|id| self.execute(&Op::LeaseRevoke { id }, now).ok()).collect()
    }

    fn executed(&mut self, body: ReplyBody, changes: Changes) -> Executed {
        let changed_keys =
            changes.list.iter().any(|change| matches!(change, Change::Put(_) | Change::Delete { .. }));
        if changed_keys {
            self.newest = changes.revision;
        }
        let reply = Reply { revision: self.newest, body };
        let record = Record { revision: self.newest, changes: changes.list };
        Executed { reply, record: (!record.changes.is_empty()).then_some(record) }
    }

    fn check_put(&self, put: &Put) -> Result<(), OpError> {
        if put.key.is_empty() {
            return Err(OpError::EmptyKey);
        }
        if put.ignore_value && !put.value.is_empty() {
            return Err(OpError::ValueProvided);
        }
        if put.ignore_lease && put.lease != 0 {
            return Err(OpError::LeaseProvided);
        }
        let exists = self.tree.get(&put.key, Revision::MAX).is_some();
        if (put.ignore_value || put.ignore_lease) && !exists {
            return Err(OpError::KeyNotFound);
        }
        if put.lease != 0 && !self.leases.contains(put.lease) {
            return Err(OpError::LeaseNotFound { id: put.lease });
        }
        let (used, quota) = (self.tree.bytes(), self.limits.quota_bytes);
        if used.saturating_add(put.key.len() + put.value.len()) > quota {
            return Err(OpError::NoSpace { used, quota });
        }
        Ok(())
    }

    fn put(&mut self, put: &Put, changes: &mut Changes) -> PutReply {
        let prev = self.tree.get(&put.key, Revision::MAX).cloned();
        let keep_value = prev.as_ref().filter(|_| put.ignore_value);
        let keep_lease = prev.as_ref().filter(|_| put.ignore_lease);
        let kv = KeyValue {
            key: put.key.clone(),
            value: keep_value.map_or_else(|| put.value.clone(), |prev| prev.value.clone()),
            create_revision: prev.as_ref().map_or(changes.revision, |prev| prev.create_revision),
            mod_revision: changes.revision,
            version: prev.as_ref().map_or(1, |prev| prev.version + 1),
            lease: keep_lease.map_or(put.lease, |prev| prev.lease),
        };
        let event = Event::put(&kv, prev.clone());
        // The record shares the event's buffer, so the request's is let go.
        changes.list.push(Change::Put(KeyValue::clone(event.kv())));
        self.record_event(event);
        PutReply { prev_kv: prev.filter(|_| put.prev_kv) }
    }

    fn delete(&mut self, delete: &DeleteRange, changes: &mut Changes) -> DeleteRangeReply {
        let doomed: Vec<SharedKv> = self.tree.range(&delete.keys, Revision::MAX).cloned().collect();
        for kv in &doomed {
            self.delete_one(kv, changes);
        }
        let deleted = doomed.len();
        DeleteRangeReply { deleted, prev_kvs: if delete.prev_kv { doomed } else { Vec::new() } }
    }

    fn delete_one(&mut self, kv: &SharedKv, changes: &mut Changes) {
        let event = Event::delete(kv.key.clone(), changes.revision, Some(kv.clone()));
        changes.list.push(Change::Delete { key: event.kv().key.clone() });
        self.record_event(event);
    }

    fn txn(&mut self, txn: &Txn, changes: &mut Changes) -> Result<TxnReply, OpError> {
        txn::check(txn, self.limits.txn_ops)?;
        let path = txn::path(&self.tree, txn, Revision::MAX);
        self.check_branch(txn, &path)?;
        Ok(self.run_branch(txn, &path, changes))
    }

    /// Everything that could refuse, before anything is changed.
    fn check_branch(&self, txn: &Txn, path: &Path) -> Result<(), OpError> {
        let mut nested = path.nested.iter();
        for op in txn.branch(path.succeeded) {
            match op {
                TxnOp::Put(put) => self.check_put(put)?,
                TxnOp::Range(query) => {
                    self.readable(query.revision, self.newest)?;
                }
                TxnOp::DeleteRange(_) => {}
                TxnOp::Txn(inner) => nested.next().map_or(Ok(()), |path| self.check_branch(inner, path))?,
            }
        }
        Ok(())
    }

    fn run_branch(&mut self, txn: &Txn, path: &Path, changes: &mut Changes) -> TxnReply {
        let mut nested = path.nested.iter();
        let mut responses = Vec::new();
        for op in txn.branch(path.succeeded) {
            match op {
                TxnOp::Put(put) => responses.push(TxnOpReply::Put(self.put(put, changes))),
                TxnOp::DeleteRange(delete) => {
                    responses.push(TxnOpReply::DeleteRange(self.delete(delete, changes)));
                }
                TxnOp::Range(range) => {
                    // Without a revision a transaction reads its own writes.
                    let at = if range.revision > 0 { range.revision } else { Revision::MAX };
                    responses.push(TxnOpReply::Range(query::range(&self.tree, range, at)));
                }
                TxnOp::Txn(inner) => {
                    if let Some(path) = nested.next() {
                        responses.push(TxnOpReply::Txn(self.run_branch(inner, path, changes)));
                    }
                }
            }
        }
        TxnReply { succeeded: path.succeeded, responses }
    }

    fn grant(
        &mut self,
        id: LeaseId,
        ttl: i64,
        changes: &mut Changes,
        now: Duration,
    ) -> Result<ReplyBody, OpError> {
        if id == 0 {
            return Err(OpError::LeaseNotFound { id });
        }
        if ttl > MAX_LEASE_TTL {
            return Err(OpError::LeaseTtlTooLarge { ttl, most: MAX_LEASE_TTL });
        }
        if self.leases.contains(id) {
            return Err(OpError::LeaseExists { id });
        }
        if self.leases.len() >= self.limits.leases {
            return Err(OpError::TooManyLeases { most: self.limits.leases });
        }
        let ttl = ttl.max(self.limits.min_lease_ttl);
        self.leases.grant(id, ttl, now);
        self.undo.push(Undo::Granted(id));
        changes.list.push(Change::LeaseGrant { id, ttl });
        Ok(ReplyBody::LeaseGranted { id, ttl })
    }

    /// Deletes the lease's keys, in order, and then the lease.
    fn revoke(&mut self, id: LeaseId, changes: &mut Changes) -> Result<ReplyBody, OpError> {
        let keys: Vec<Bytes> =
            self.leases.keys(id).ok_or(OpError::LeaseNotFound { id })?.iter().cloned().collect();
        for key in keys {
            if let Some(kv) = self.tree.get(&key, Revision::MAX).cloned() {
                self.delete_one(&kv, changes);
            }
        }
        if let Some(ttl) = self.leases.ttl(id) {
            self.leases.remove(id);
            self.undo.push(Undo::Revoked { id, ttl });
        }
        changes.list.push(Change::LeaseRevoke { id });
        Ok(ReplyBody::LeaseRevoked)
    }

    fn compact(&mut self, revision: Revision, changes: &mut Changes) -> Result<ReplyBody, OpError> {
        let compact_revision = self.pending_compact.unwrap_or(0).max(self.compact_revision());
        if revision <= compact_revision {
            return Err(RangeError::Compacted { revision, compact_revision }.into());
        }
        if revision > self.newest {
            return Err(RangeError::FutureRevision { revision, newest: self.newest }.into());
        }
        self.pending_compact = Some(revision);
        changes.list.push(Change::Compact { revision });
        Ok(ReplyBody::Compacted)
    }
}
