//! The seam for roles: the server asks about every request and knows no role itself.

use super::keyspaces::KeyspaceHandle;
use super::view::ServedView;
use hawser_kvstore::KeyRange;

/// What a request is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access<'a> {
    /// Range, Watch, and the reading parts of a Txn: comparisons, ranges, `prev_kv`.
    Read(&'a KeyRange),
    /// Put, DeleteRange, and those in a Txn.
    Write(&'a KeyRange),
    Compact,
    /// Any lease RPC. `LeaseTimeToLive` shows the lease's keys, so this is for whoever may write.
    Lease,
    /// Status, MemberList, Alarm: tells sizes and revisions, no key.
    Status,
}

#[derive(Clone, Copy, Debug)]
pub struct AccessRequest<'a> {
    /// The HTTP request's extensions: the TLS acceptor or a layer above left the caller's role there.
    pub caller: &'a http::Extensions,
    /// The cluster whose keyspace is meant.
    pub keyspace: &'a str,
    /// As etcd names it, `KV.Range`; for the sentence of a refusal.
    pub rpc: &'static str,
    pub access: Access<'a>,
}

/// Why not: one sentence that names the role, the RPC and the range. Sent as `PermissionDenied`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Denied {
    pub sentence: String,
}

/// Called for every request, for every operation of a Txn, and for every watch that a stream creates.
pub trait Authorize: Send + Sync + 'static {
    fn authorize(&self, request: AccessRequest<'_>) -> Result<(), Denied>;

    /// The keyspace that every request of this caller means, whatever it names.
    fn keyspace(&self, _caller: &http::Extensions) -> Option<&str> {
        None
    }

    /// What the caller sees of the keyspace, where that is not all of it: every request of his is answered from there.
    fn view(&self, _caller: &http::Extensions, _keyspace: &KeyspaceHandle) -> Option<ServedView> {
        None
    }
}

/// For tests on loopback.
#[derive(Clone, Copy, Debug, Default)]
pub struct AllowAll;

impl Authorize for AllowAll {
    fn authorize(&self, _request: AccessRequest<'_>) -> Result<(), Denied> {
        Ok(())
    }
}
