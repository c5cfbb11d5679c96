//! One etcd keyspace as a pure state machine: ordered keys, revisions, leases, transactions, a bounded history and cursors on it.
//!
//! It reads no clock (`now` is a `Duration` since some fixed point of the process), knows no network and no runtime.

mod apply;
mod encode;
mod history;
mod keyspace;
mod kv;
mod lease;
mod op;
mod query;
mod range;
mod record;
mod tree;
mod txn;
mod view;
mod write;

pub use history::{Cursor, PullLimits, Pulled};
pub use keyspace::{Keyspace, Limits};
pub use kv::{Event, EventKind, KeyValue, LeaseId, Revision, SharedKv};
pub use lease::{Deadline, LeaseStatus};
pub use op::{
    Compare, CompareResult, CompareTarget, DeleteRange, DeleteRangeReply, Op, OpError, Put, PutReply,
    RangeError, RangeQuery, RangeReply, Reply, ReplyBody, Sort, SortBy, Txn, TxnOp, TxnOpReply, TxnReply,
};
pub use range::KeyRange;
pub use record::{ApplyError, Change, Identity, Record, Snapshot};
pub use view::{Filter, Horizon, View, view_id};
pub use write::Executed;
