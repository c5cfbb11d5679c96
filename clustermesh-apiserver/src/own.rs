//! The own keyspace as this process reads and writes it: through the same writer that serves clients.

use bytes::Bytes;
use hawser_etcd::server::{KeyspaceHandle, WriteError};
use hawser_kvstore::{
    Compare, CompareResult, CompareTarget, DeleteRange, KeyRange, LeaseId, Op, Put, RangeQuery, ReplyBody,
    Revision, SharedKv, Txn, TxnOp,
};
use tokio::sync::watch;

use crate::export::Step;

/// Operations in one transaction: below etcd's default of 128.
const BATCH: usize = 100;
/// And their bytes: below etcd's default request of 1.5 MiB.
const BATCH_BYTES: usize = 1 << 20;

#[derive(Clone, Debug)]
pub struct Own(KeyspaceHandle);

impl Own {
    pub fn new(handle: KeyspaceHandle) -> Self {
        Self(handle)
    }

    pub fn list(&self, prefix: &str) -> Vec<SharedKv> {
        self.range(KeyRange::prefix(prefix.to_owned()))
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

    /// In order, in as few transactions as fit. Those before an error are written.
    pub async fn write(&self, steps: Vec<Step>) -> Result<(), WriteError> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        for step in steps {
            let size = match &step {
                Step::Put { key, value } => key.len() + value.len(),
                Step::Delete { key } => key.len(),
            };
            if !batch.is_empty() && (batch.len() == BATCH || bytes + size > BATCH_BYTES) {
                self.commit(Vec::new(), std::mem::take(&mut batch)).await?;
                bytes = 0;
            }
            bytes += size;
            batch.push(match step {
                Step::Put { key, value } => TxnOp::Put(Put::new(key, value)),
                Step::Delete { key } => TxnOp::DeleteRange(DeleteRange::new(KeyRange::key(key))),
            });
        }
        if !batch.is_empty() {
            self.commit(Vec::new(), batch).await?;
        }
        Ok(())
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
