//! What a durable log stores and a mirror receives: changes with the revisions they have, and whole states.

use crate::kv::{KeyValue, LeaseId, Revision};
use bytes::Bytes;
use thiserror::Error;

/// What one operation changed. Applying the same records to the same state gives the same state, on any machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The keyspace's revision after it: a new one when a key changed, else the one it had.
    pub revision: Revision,
    pub changes: Vec<Change>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key as it is from now on; its `mod_revision` is the record's revision.
    Put(KeyValue),
    Delete {
        key: Bytes,
    },
    /// `ttl` in seconds, from the moment of applying.
    LeaseGrant {
        id: LeaseId,
        ttl: i64,
    },
    /// The lease alone; the deletions of its keys are changes of the same record, before it.
    LeaseRevoke {
        id: LeaseId,
    },
    Compact {
        revision: Revision,
    },
}

/// Who a keyspace is to etcd clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The header's `cluster_id`. Another one tells a client that its revisions mean nothing here.
    pub cluster_id: u64,
    /// Random, written when a store is created, kept by replicas. `None` in a mirror that adopted only the cluster id.
    pub lineage: Option<u64>,
}

impl Identity {
    /// `view` is the reader's export filter; 0 is everything.
    pub fn new(cluster: &str, lineage: u64, view: u64) -> Self {
        let mut hash = Fnv::default();
        hash.write(&(cluster.len() as u64).to_be_bytes());
        hash.write(cluster.as_bytes());
        hash.write(&lineage.to_be_bytes());
        hash.write(&view.to_be_bytes());
        Self { cluster_id: hash.finish(), lineage: Some(lineage) }
    }

    /// A mirror is its origin: it answers with the origin's cluster id, verbatim.
    pub fn adopted(cluster_id: u64) -> Self {
        Self { cluster_id, lineage: None }
    }
}

/// FNV-1a with a final mix: a stable name, not a defence (what is hashed is our own).
pub(crate) struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// Never 0: etcd clients take 0 for "no header".
    pub(crate) fn finish(&self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ (mixed >> 29)).max(1)
    }
}

/// A whole keyspace at one revision, without its history: what a durable log starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub identity: Identity,
    pub revision: Revision,
    /// In key order.
    pub kvs: Vec<KeyValue>,
    /// Granted leases and their TTL in seconds, in id order.
    pub leases: Vec<(LeaseId, i64)>,
}

/// Why a record or a listing cannot be applied. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ApplyError {
    #[error("a record of revision {revision} changes keys, but the keyspace is already at {newest}")]
    NotNewer { revision: Revision, newest: Revision },
    #[error(
        "a record of revision {revision} skips revisions after {newest}: only a replica's may have holes"
    )]
    Hole { revision: Revision, newest: Revision },
    #[error("key {key:?} is said to be changed at {mod_revision} in a state of revision {revision}")]
    WrongModRevision { key: Bytes, mod_revision: Revision, revision: Revision },
    #[error("a key is empty")]
    EmptyKey,
    #[error("a key was given twice or out of order: {key:?}")]
    Unordered { key: Bytes },
    #[error("a listing can only be loaded into a replica")]
    NotAReplica,
}
