//! What can be asked of a keyspace, what it answers, and why it may refuse: etcd's operations as values.

use crate::kv::{LeaseId, Revision, SharedKv};
use crate::range::KeyRange;
use bytes::Bytes;
use thiserror::Error;

/// A read. `Default`-like: start from [`RangeQuery::new`] and set what differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeQuery {
    pub keys: KeyRange,
    /// 0: no limit.
    pub limit: usize,
    /// 0: the newest. A past one is answered as long as it is not compacted.
    pub revision: Revision,
    pub sort: Sort,
    pub keys_only: bool,
    pub count_only: bool,
    /// Bounds on revisions, 0 for none. As in etcd they filter the answer, not the count.
    pub min_mod_revision: Revision,
    pub max_mod_revision: Revision,
    pub min_create_revision: Revision,
    pub max_create_revision: Revision,
}

impl RangeQuery {
    pub fn new(keys: KeyRange) -> Self {
        Self {
            keys,
            limit: 0,
            revision: 0,
            sort: Sort::default(),
            keys_only: false,
            count_only: false,
            min_mod_revision: 0,
            max_mod_revision: 0,
            min_create_revision: 0,
            max_create_revision: 0,
        }
    }

    pub fn at(mut self, revision: Revision) -> Self {
        self.revision = revision;
        self
    }

    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }
}

/// `None` as the order means ascending, and by key costs nothing: keys are kept in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sort {
    pub by: SortBy,
    pub descending: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortBy {
    #[default]
    Key,
    Version,
    CreateRevision,
    ModRevision,
    Value,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct RangeReply {
    pub kvs: Vec<SharedKv>,
    /// The limit cut the answer short.
    pub more: bool,
    /// Keys in the range, whatever the limit.
    pub count: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    pub key: Bytes,
    pub value: Bytes,
    pub lease: LeaseId,
    pub prev_kv: bool,
    /// Keep the value the key has; refused when it has none.
    pub ignore_value: bool,
    /// Keep the lease the key has; refused when the key does not exist.
    pub ignore_lease: bool,
}

impl Put {
    pub fn new(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self {
            key: key.into(),
            value: value.into(),
            lease: 0,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteRange {
    pub keys: KeyRange,
    pub prev_kv: bool,
}

impl DeleteRange {
    pub fn new(keys: KeyRange) -> Self {
        Self { keys, prev_kv: false }
    }
}

/// If every comparison holds `success` runs, else `failure`; all of it at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    pub compare: Vec<Compare>,
    pub success: Vec<TxnOp>,
    pub failure: Vec<TxnOp>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnOp {
    Range(RangeQuery),
    Put(Put),
    DeleteRange(DeleteRange),
    Txn(Txn),
}

/// Holds when it holds for every key in the range. A missing key compares as all zeros, and never by value (as etcd).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    pub keys: KeyRange,
    /// How the key's field stands to the target: `Greater` is "the key's is greater".
    pub result: CompareResult,
    pub target: CompareTarget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareResult {
    Equal,
    Greater,
    Less,
    NotEqual,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompareTarget {
    Version(i64),
    CreateRevision(Revision),
    ModRevision(Revision),
    Value(Bytes),
    Lease(LeaseId),
}

/// Anything that changes a keyspace, or only its leases' deadlines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put(Put),
    DeleteRange(DeleteRange),
    Txn(Txn),
    /// `id` is chosen by the caller (the core has no randomness) and not 0; `ttl` in seconds.
    LeaseGrant {
        id: LeaseId,
        ttl: i64,
    },
    LeaseRevoke {
        id: LeaseId,
    },
    /// Moves the deadline only: nothing to make durable, a restored lease starts its full TTL again.
    LeaseKeepAlive {
        id: LeaseId,
    },
    /// Forget what was before `revision`.
    Compact {
        revision: Revision,
    },
}

/// The answer to an [`Op`].
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// The keyspace's revision after the operation: the header's.
    pub revision: Revision,
    pub body: ReplyBody,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ReplyBody {
    Put(PutReply),
    DeleteRange(DeleteRangeReply),
    Txn(TxnReply),
    LeaseGranted { id: LeaseId, ttl: i64 },
    LeaseRevoked,
    LeaseKeptAlive { id: LeaseId, ttl: i64 },
    Compacted,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct PutReply {
    pub prev_kv: Option<SharedKv>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeleteRangeReply {
    pub deleted: usize,
    pub prev_kvs: Vec<SharedKv>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct TxnReply {
    pub succeeded: bool,
    pub responses: Vec<TxnOpReply>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum TxnOpReply {
    Range(RangeReply),
    Put(PutReply),
    DeleteRange(DeleteRangeReply),
    Txn(TxnReply),
}

/// Why a revision cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RangeError {
    #[error("revision {revision} is compacted: the oldest readable one is {compact_revision}")]
    Compacted { revision: Revision, compact_revision: Revision },
    #[error("revision {revision} is in the future: the newest is {newest}")]
    FutureRevision { revision: Revision, newest: Revision },
}

/// Why an operation is refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OpError {
    #[error("an empty key was given: every key has at least one byte")]
    EmptyKey,
    #[error("a value was given together with ignore_value: leave one out")]
    ValueProvided,
    #[error("a lease was given together with ignore_lease: leave one out")]
    LeaseProvided,
    #[error("the key whose value or lease was to be kept does not exist")]
    KeyNotFound,
    #[error("two operations of one transaction change the same key")]
    DuplicateKey,
    #[error("a transaction has {ops} operations or comparisons, the most is {most}")]
    TooManyOps { ops: usize, most: usize },
    #[error("lease {id} is not known: it was never granted, or has expired")]
    LeaseNotFound { id: LeaseId },
    #[error("lease {id} exists already")]
    LeaseExists { id: LeaseId },
    #[error("a lease of {ttl} s is too long, the most is {most} s")]
    LeaseTtlTooLarge { ttl: i64, most: i64 },
    #[error("there are {most} leases, the most there may be")]
    TooManyLeases { most: usize },
    #[error("the keyspace holds {used} bytes and may hold {quota}: delete keys, or raise the quota")]
    NoSpace { used: usize, quota: usize },
    #[error("this keyspace is a replica: write to its origin")]
    Replica,
    #[error("a transaction that writes was given to be read")]
    NotReadOnly,
    #[error(transparent)]
    Range(#[from] RangeError),
}
