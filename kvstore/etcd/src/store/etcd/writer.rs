//! Writes through to etcd. A write is answered when etcd has it and our readers see it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hawser_kvstore::{
    Change, DeleteRange, Keyspace, Op, OpError, Put, Record, Reply, ReplyBody, Revision, Txn, TxnOp,
};
use tokio::sync::Notify;

use super::is_ours;
use crate::client::{CallError, Client};
use crate::pb;
use crate::server::{SharedKeyspace, WriteError, Writer};
use crate::store::convert::{self, refusal, unavailable};

/// etcd gives up an election and a request in less.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// From etcd's answer until our own watch has it.
const VISIBLE_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct EtcdWriter {
    client: Client,
    keyspace: SharedKeyspace,
    relist: Arc<Notify>,
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("etcd did not answer within {} s", CALL_TIMEOUT.as_secs())]
    NoAnswer,
    #[error(
        "etcd has the write at revision {0}, but its watch does not deliver it; etcd is overloaded or was cut off meanwhile"
    )]
    NotVisible(Revision),
    #[error(
        "etcd answered with revision {has} after it had {had}: it was wiped or restored, and is being listed again"
    )]
    WentBack { had: Revision, has: Revision },
}

#[derive(Debug, thiserror::Error)]
#[error(
    "a store in etcd keeps keys under cilium/ and hawser/ only, and {0} is elsewhere. fix: write such keys to that etcd itself"
)]
struct Elsewhere(String);

fn elsewhere(what: String) -> WriteError {
    WriteError::Elsewhere(Box::new(Elsewhere(what)))
}

impl EtcdWriter {
    pub(super) fn new(client: Client, keyspace: SharedKeyspace, relist: Arc<Notify>) -> Self {
        Self { client, keyspace, relist }
    }

    async fn put(&self, put: Put) -> Result<Reply, WriteError> {
        check_key(&put.key)?;
        let (had, lease) = (self.revision(), put.lease);
        let reply = within(self.client.put(convert::put(put)), lease).await?;
        let revision = self.seen(had, &reply.header).await?;
        Ok(Reply { revision, body: ReplyBody::Put(convert::put_reply(reply)) })
    }

    async fn delete_range(&self, delete: DeleteRange) -> Result<Reply, WriteError> {
        check_delete(&delete)?;
        let had = self.revision();
        let reply = within(self.client.delete_range(convert::delete_range(&delete)), 0).await?;
        let revision = match reply.deleted {
            0 => self.revision(),
            _ => self.seen(had, &reply.header).await?,
        };
        Ok(Reply { revision, body: ReplyBody::DeleteRange(convert::delete_range_reply(reply)) })
    }

    async fn txn(&self, txn: Txn) -> Result<Reply, WriteError> {
        check_txn(&txn)?;
        let had = self.revision();
        let reply = within(self.client.txn(convert::txn(txn)), 0).await?;
        let header = reply.header;
        let reply = convert::txn_reply(reply);
        let revision = match convert::changed_keys(&reply) {
            true => self.seen(had, &header).await?,
            false => self.revision(),
        };
        Ok(Reply { revision, body: ReplyBody::Txn(reply) })
    }

    async fn lease_grant(&self, id: i64, ttl: i64) -> Result<Reply, WriteError> {
        let reply = within(self.client.lease_grant(pb::LeaseGrantRequest { id, ttl }), id).await?;
        let (id, ttl) = (reply.id, reply.ttl);
        self.forget_expired_leases();
        self.note(Change::LeaseGrant { id, ttl });
        Ok(Reply { revision: self.revision(), body: ReplyBody::LeaseGranted { id, ttl } })
    }

    async fn lease_revoke(&self, id: i64) -> Result<Reply, WriteError> {
        let had = self.revision();
        let keys = pb::LeaseTimeToLiveRequest { id, keys: true };
        let keys = within(self.client.lease_time_to_live(keys), id).await?.keys;
        let reply = within(self.client.lease_revoke(pb::LeaseRevokeRequest { id }), id).await?;
        let revision = match keys.iter().any(|key| is_ours(key)) {
            true => self.seen(had, &reply.header).await?,
            false => self.revision(),
        };
        self.note(Change::LeaseRevoke { id });
        Ok(Reply { revision, body: ReplyBody::LeaseRevoked })
    }

    async fn lease_keep_alive(&self, id: i64) -> Result<Reply, WriteError> {
        let reply = within(self.client.lease_keep_alive(id), id).await?;
        if reply.ttl <= 0 {
            self.note(Change::LeaseRevoke { id });
            return Err(OpError::LeaseNotFound { id }.into());
        }
        self.note(Change::LeaseGrant { id, ttl: reply.ttl });
        Ok(Reply { revision: self.revision(), body: ReplyBody::LeaseKeptAlive { id, ttl: reply.ttl } })
    }

    async fn compact(&self, revision: Revision) -> Result<Reply, WriteError> {
        let request = pb::CompactionRequest { revision, physical: false };
        within(self.client.compact(request), 0).await?;
        self.note(Change::Compact { revision });
        Ok(Reply { revision: self.revision(), body: ReplyBody::Compacted })
    }

    /// The reply's revision where no key changed: what can be read here, which etcd may be ahead of.
    fn revision(&self) -> Revision {
        self.keyspace.read(Keyspace::revision)
    }

    /// What no watch tells, so that our own replies about leases and old revisions agree with etcd's.
    fn note(&self, change: Change) {
        let now = self.keyspace.now();
        self.keyspace.update(|keyspace| {
            let record = Record { revision: keyspace.revision(), changes: vec![change] };
            // Of a record without keys nothing can be refused at the present revision.
            let _ = keyspace.apply(&record, now);
        });
    }

    /// etcd expires leases; nothing tells us. A lease that another replica keeps alive is forgotten here too, which
    /// costs an answer to `LeaseTimeToLive` and nothing else. O(leases), once a minute at most.
    fn forget_expired_leases(&self) {
        const LATE: Duration = Duration::from_secs(60);
        let now = self.keyspace.now();
        let expired = self.keyspace.read(|keyspace| {
            if keyspace.poll_deadline().is_none_or(|deadline| deadline.at() + LATE > now) {
                return Vec::new();
            }
            let is_over = |id: &i64| keyspace.lease(*id, now).is_some_and(|lease| lease.remaining.is_zero());
            keyspace.leases().into_iter().filter(is_over).collect()
        });
        for id in expired {
            self.note(Change::LeaseRevoke { id });
        }
    }

    /// Waits until our readers see what was written.
    async fn seen(&self, had: Revision, header: &Option<pb::ResponseHeader>) -> Result<Revision, WriteError> {
        let has = of(header);
        if has <= had {
            self.relist.notify_one();
            return Err(unavailable(Trouble::WentBack { had, has }));
        }
        let mut progress = self.keyspace.subscribe();
        let seen = progress.wait_for(|(_, revision)| *revision >= has);
        match tokio::time::timeout(VISIBLE_WITHIN, seen).await {
            Ok(Ok(_)) => Ok(has),
            _ => Err(unavailable(Trouble::NotVisible(has))),
        }
    }
}

#[tonic::async_trait]
impl Writer for EtcdWriter {
    async fn write(&self, op: Op) -> Result<Reply, WriteError> {
        match op {
            Op::Put(put) => self.put(put).await,
            Op::DeleteRange(delete) => self.delete_range(delete).await,
            Op::Txn(txn) => self.txn(txn).await,
            Op::LeaseGrant { id, ttl } => self.lease_grant(id, ttl).await,
            Op::LeaseRevoke { id } => self.lease_revoke(id).await,
            Op::LeaseKeepAlive { id } => self.lease_keep_alive(id).await,
            Op::Compact { revision } => self.compact(revision).await,
        }
    }
}

async fn within<T>(call: impl Future<Output = Result<T, CallError>>, lease: i64) -> Result<T, WriteError> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(reply) => reply.map_err(|error| refusal(error, lease)),
        Err(_) => Err(unavailable(Trouble::NoAnswer)),
    }
}

fn of(header: &Option<pb::ResponseHeader>) -> Revision {
    header.as_ref().map_or(0, |header| header.revision)
}

/// A key that we do not watch would never become visible.
fn check_key(key: &[u8]) -> Result<(), WriteError> {
    if key.is_empty() {
        return Err(OpError::EmptyKey.into());
    }
    if is_ours(key) { Ok(()) } else { Err(elsewhere(key.escape_ascii().to_string())) }
}

fn check_delete(delete: &DeleteRange) -> Result<(), WriteError> {
    let ours =
        super::PREFIXES.iter().any(|prefix| hawser_kvstore::KeyRange::prefix(*prefix).covers(&delete.keys));
    if ours { Ok(()) } else { Err(elsewhere(format!("part of {:?}", delete.keys))) }
}

fn check_txn(txn: &Txn) -> Result<(), WriteError> {
    txn.success.iter().chain(&txn.failure).try_for_each(|op| match op {
        TxnOp::Range(_) => Ok(()),
        TxnOp::Put(put) => check_key(&put.key),
        TxnOp::DeleteRange(delete) => check_delete(delete),
        TxnOp::Txn(inner) => check_txn(inner),
    })
}
