//! The own keyspace as this process reads and writes it: through the same writer that serves clients.

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use hawser_etcd::server::{KeyspaceHandle, WriteError};
use hawser_kvstore::{
    Compare, CompareResult, CompareTarget, Cursor, DeleteRange, EventKind, KeyRange, LeaseId, Op, PullLimits,
    Pulled, Put, RangeQuery, ReplyBody, Revision, SharedKv, Txn, TxnOp,
};
use tokio::sync::watch;

use crate::export::Step;
use crate::leader::{LEADER, Term};

/// Operations in one transaction: below etcd's default of 128.
const BATCH: usize = 100;
/// And their bytes: below etcd's default request of 1.5 MiB.
const BATCH_BYTES: usize = 1 << 20;
/// Transactions on their way at a time: each waits for the disk, together they wait once.
const IN_FLIGHT: usize = 8;

#[derive(Clone, Debug)]
pub struct Own(KeyspaceHandle);

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Store(#[from] WriteError),
    #[error("another replica exports now")]
    NotLeading,
}

/// Transactions' worth of steps, made as they are asked for.
fn batches(steps: Vec<Step>) -> impl Iterator<Item = Vec<TxnOp>> {
    let mut steps = steps.into_iter().peekable();
    std::iter::from_fn(move || {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(step) = steps.next_if(|step| batch.is_empty() || bytes + step.size() <= BATCH_BYTES) {
            bytes += step.size();
            batch.push(match step {
                Step::Put { key, value } => TxnOp::Put(Put::new(key, value)),
                Step::Delete { key } => TxnOp::DeleteRange(DeleteRange::new(KeyRange::key(key))),
            });
            if batch.len() == BATCH {
                break;
            }
        }
        (!batch.is_empty()).then_some(batch)
    })
}

impl Own {
    pub fn new(handle: KeyspaceHandle) -> Self {
        Self(handle)
    }

    pub fn list(&self, prefix: &str) -> Vec<SharedKv> {
        self.range(KeyRange::prefix(prefix.to_owned()))
    }

    /// How many keys are below `prefix`. Cost: those keys.
    pub fn count(&self, prefix: &str) -> u32 {
        let count = RangeQuery { count_only: true, ..RangeQuery::new(KeyRange::prefix(prefix.to_owned())) };
        let counted = self.0.keyspace().read(|keyspace| keyspace.range(&count));
        counted.map_or(0, |reply| u32::try_from(reply.count).unwrap_or(u32::MAX))
    }

    pub fn get(&self, key: &str) -> Option<SharedKv> {
        self.range(KeyRange::key(key.to_owned())).into_iter().next()
    }

    fn range(&self, keys: KeyRange) -> Vec<SharedKv> {
        // The newest revision is always readable.
        self.0.keyspace().read(|k| k.range(&RangeQuery::new(keys))).map(|reply| reply.kvs).unwrap_or_default()
    }

    pub fn revision(&self) -> Revision {
        self.0.keyspace().read(|keyspace| keyspace.revision())
    }

    /// Changes when anything in the keyspace does.
    pub fn subscribe(&self) -> watch::Receiver<(u64, Revision)> {
        self.0.keyspace().subscribe()
    }

    /// What was put below `prefix` since the last call; everything that is there the first time, or when too much has
    /// happened since. Cost: the changes since then.
    pub fn news(&self, prefix: &str, cursor: &mut Option<Cursor>) -> Vec<SharedKv> {
        let keys = KeyRange::prefix(prefix.to_owned());
        self.0.keyspace().read(|keyspace| {
            let mut found = Vec::new();
            while let Some(from) = cursor {
                match keyspace.pull(from, &keys, PullLimits::default()) {
                    Pulled::Events { events, more, .. } => {
                        let puts = events.iter().filter(|event| event.kind() == EventKind::Put);
                        found.extend(puts.map(|event| event.kv().clone()));
                        if !more {
                            return found;
                        }
                    }
                    Pulled::FellBehind { .. } | Pulled::Replaced => *cursor = None,
                }
            }
            *cursor = keyspace.watch(0).ok();
            keyspace.range(&RangeQuery::new(keys)).map(|reply| reply.kvs).unwrap_or_default()
        })
    }

    /// In as few transactions as fit, each only while `term` lasts: puts, some transactions at a time, then deletions. What of it
    /// is written after an error is not known.
    pub async fn write(&self, steps: Vec<Step>, term: Term) -> Result<(), ExportError> {
        let fence = || match term {
            Term::Alone => Vec::new(),
            Term::Since(revision) => vec![Compare {
                keys: KeyRange::key(LEADER),
                result: CompareResult::Equal,
                target: CompareTarget::CreateRevision(revision),
            }],
        };
        let commit = async |batch| match self.commit(fence(), batch).await? {
            true => Ok(()),
            false => Err(ExportError::NotLeading),
        };
        let is_put = |step: &Step| matches!(step, Step::Put { .. });
        let (puts, deletes): (Vec<_>, Vec<_>) = steps.into_iter().partition(is_put);
        for steps in [puts, deletes] {
            let batches = futures::stream::iter(batches(steps).map(&commit));
            batches.buffer_unordered(IN_FLIGHT).try_collect::<()>().await?;
        }
        Ok(())
    }

    /// Creates a key that is not there; the revision, if it was created.
    pub async fn create_leased(
        &self,
        key: &str,
        value: impl Into<Bytes>,
        lease: LeaseId,
    ) -> Result<Option<Revision>, WriteError> {
        let keys = KeyRange::key(key.to_owned());
        let target = CompareTarget::CreateRevision(0);
        let compare = vec![Compare { keys, result: CompareResult::Equal, target }];
        let put = Put { lease, ..Put::new(key.to_owned(), value) };
        let txn = Txn { compare, success: vec![TxnOp::Put(put)], failure: Vec::new() };
        let reply = self.0.writer().write(Op::Txn(txn)).await?;
        let created = matches!(reply.body, ReplyBody::Txn(body) if body.succeeded);
        Ok(created.then_some(reply.revision))
    }

    pub async fn revoke_lease(&self, id: LeaseId) -> Result<(), WriteError> {
        self.0.writer().write(Op::LeaseRevoke { id }).await.map(|_| ())
    }

    /// Forgets what was before `revision`.
    pub async fn compact(&self, revision: Revision) -> Result<(), WriteError> {
        self.0.writer().write(Op::Compact { revision }).await.map(|_| ())
    }

    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<(), WriteError> {
        self.0.writer().write(Op::Put(Put::new(key, value))).await.map(|_| ())
    }

    pub async fn put_leased(&self, key: &str, value: Bytes, lease: LeaseId) -> Result<(), WriteError> {
        let put = Put { lease, ..Put::new(key.to_owned(), value) };
        self.0.writer().write(Op::Put(put)).await.map(|_| ())
    }

    /// Whether it was there.
    pub async fn delete(&self, key: &str) -> Result<bool, WriteError> {
        let op = Op::DeleteRange(DeleteRange::new(KeyRange::key(key.to_owned())));
        let reply = self.0.writer().write(op).await?;
        Ok(matches!(reply.body, ReplyBody::DeleteRange(reply) if reply.deleted > 0))
    }

    /// Deletes the key if it is still as it was read: the one who gets `true` has it to himself.
    pub async fn take(&self, read: &SharedKv) -> Result<bool, WriteError> {
        let keys = KeyRange::key(read.key.clone());
        let compare = Compare {
            keys: keys.clone(),
            result: CompareResult::Equal,
            target: CompareTarget::ModRevision(read.mod_revision),
        };
        self.commit(vec![compare], vec![TxnOp::DeleteRange(DeleteRange::new(keys))]).await
    }

    /// Replaces the value if the key is still as it was read.
    pub async fn replace(&self, read: &SharedKv, value: Bytes) -> Result<bool, WriteError> {
        let compare = Compare {
            keys: KeyRange::key(read.key.clone()),
            result: CompareResult::Equal,
            target: CompareTarget::ModRevision(read.mod_revision),
        };
        self.commit(vec![compare], vec![TxnOp::Put(Put::new(read.key.clone(), value))]).await
    }

    async fn commit(&self, compare: Vec<Compare>, success: Vec<TxnOp>) -> Result<bool, WriteError> {
        let txn = Txn { compare, success, failure: Vec::new() };
        let reply = self.0.writer().write(Op::Txn(txn)).await?;
        Ok(matches!(reply.body, ReplyBody::Txn(reply) if reply.succeeded))
    }

    pub async fn grant_lease(&self, id: LeaseId, ttl: i64) -> Result<(), WriteError> {
        self.0.writer().write(Op::LeaseGrant { id, ttl }).await.map(|_| ())
    }

    pub async fn keep_lease(&self, id: LeaseId) -> Result<(), WriteError> {
        self.0.writer().write(Op::LeaseKeepAlive { id }).await.map(|_| ())
    }
}
