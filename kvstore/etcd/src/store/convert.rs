//! The core's operations as etcd's messages and its replies back: the server's `convert`, seen from the other side.

use hawser_kvstore::{
    Compare, CompareResult, CompareTarget, DeleteRange, DeleteRangeReply, OpError, Put, PutReply, RangeError,
    RangeQuery, RangeReply, SharedKv, SortBy, Txn, TxnOp, TxnOpReply, TxnReply,
};
use tonic::Code;

use crate::client::CallError;
use crate::durable::from_wire;
use crate::pb;
use crate::server::WriteError;

pub(super) fn put(put: Put) -> pb::PutRequest {
    pb::PutRequest {
        key: put.key,
        value: put.value,
        lease: put.lease,
        prev_kv: put.prev_kv,
        ignore_value: put.ignore_value,
        ignore_lease: put.ignore_lease,
    }
}

pub(super) fn delete_range(delete: &DeleteRange) -> pb::DeleteRangeRequest {
    let (key, range_end) = delete.keys.to_wire();
    pb::DeleteRangeRequest { key, range_end, prev_kv: delete.prev_kv }
}

pub(super) fn txn(txn: Txn) -> pb::TxnRequest {
    pb::TxnRequest {
        compare: txn.compare.into_iter().map(compare).collect(),
        success: txn.success.into_iter().map(txn_op).collect(),
        failure: txn.failure.into_iter().map(txn_op).collect(),
    }
}

fn txn_op(op: TxnOp) -> pb::RequestOp {
    use pb::request_op::Request;
    let request = match op {
        TxnOp::Range(query) => Request::RequestRange(range(&query)),
        TxnOp::Put(op) => Request::RequestPut(put(op)),
        TxnOp::DeleteRange(op) => Request::RequestDeleteRange(delete_range(&op)),
        TxnOp::Txn(op) => Request::RequestTxn(txn(op)),
    };
    pb::RequestOp { request: Some(request) }
}

fn range(query: &RangeQuery) -> pb::RangeRequest {
    use pb::range_request::{SortOrder, SortTarget};
    let (key, range_end) = query.keys.to_wire();
    let target = match query.sort.by {
        SortBy::Key => SortTarget::Key,
        SortBy::Version => SortTarget::Version,
        SortBy::CreateRevision => SortTarget::Create,
        SortBy::ModRevision => SortTarget::Mod,
        SortBy::Value => SortTarget::Value,
    };
    let order = if query.sort.descending { SortOrder::Descend } else { SortOrder::Ascend };
    pb::RangeRequest {
        key,
        range_end,
        limit: i64::try_from(query.limit).unwrap_or(i64::MAX),
        revision: query.revision,
        sort_order: order as i32,
        sort_target: target as i32,
        serializable: false,
        keys_only: query.keys_only,
        count_only: query.count_only,
        min_mod_revision: query.min_mod_revision,
        max_mod_revision: query.max_mod_revision,
        min_create_revision: query.min_create_revision,
        max_create_revision: query.max_create_revision,
    }
}

fn compare(compare: Compare) -> pb::Compare {
    use pb::compare::{CompareResult as Result, CompareTarget as Target, TargetUnion};
    let (key, range_end) = compare.keys.to_wire();
    let result = match compare.result {
        CompareResult::Equal => Result::Equal,
        CompareResult::Greater => Result::Greater,
        CompareResult::Less => Result::Less,
        CompareResult::NotEqual => Result::NotEqual,
    };
    let (target, union) = match compare.target {
        CompareTarget::Version(version) => (Target::Version, TargetUnion::Version(version)),
        CompareTarget::CreateRevision(at) => (Target::Create, TargetUnion::CreateRevision(at)),
        CompareTarget::ModRevision(at) => (Target::Mod, TargetUnion::ModRevision(at)),
        CompareTarget::Value(value) => (Target::Value, TargetUnion::Value(value)),
        CompareTarget::Lease(lease) => (Target::Lease, TargetUnion::Lease(lease)),
    };
    pb::Compare { result: result as i32, target: target as i32, key, range_end, target_union: Some(union) }
}

pub(super) fn put_reply(reply: pb::PutResponse) -> PutReply {
    PutReply { prev_kv: reply.prev_kv.map(shared) }
}

pub(super) fn delete_range_reply(reply: pb::DeleteRangeResponse) -> DeleteRangeReply {
    DeleteRangeReply {
        deleted: count(reply.deleted),
        prev_kvs: reply.prev_kvs.into_iter().map(shared).collect(),
    }
}

pub(super) fn txn_reply(reply: pb::TxnResponse) -> TxnReply {
    let responses = reply.responses.into_iter().filter_map(|op| op.response).map(txn_op_reply);
    TxnReply { succeeded: reply.succeeded, responses: responses.collect() }
}

fn txn_op_reply(reply: pb::response_op::Response) -> TxnOpReply {
    use pb::response_op::Response;
    match reply {
        Response::ResponseRange(reply) => TxnOpReply::Range(RangeReply {
            kvs: reply.kvs.into_iter().map(shared).collect(),
            more: reply.more,
            count: count(reply.count),
        }),
        Response::ResponsePut(reply) => TxnOpReply::Put(put_reply(reply)),
        Response::ResponseDeleteRange(reply) => TxnOpReply::DeleteRange(delete_range_reply(reply)),
        Response::ResponseTxn(reply) => TxnOpReply::Txn(txn_reply(reply)),
    }
}

fn shared(kv: pb::KeyValue) -> SharedKv {
    SharedKv::new(&from_wire(kv))
}

fn count(count: i64) -> usize {
    usize::try_from(count).unwrap_or(0)
}

/// Whether a transaction's answer says that a key was changed.
pub(super) fn changed_keys(reply: &TxnReply) -> bool {
    reply.responses.iter().any(|op| match op {
        TxnOpReply::Range(_) => false,
        TxnOpReply::Put(_) => true,
        TxnOpReply::DeleteRange(reply) => reply.deleted > 0,
        TxnOpReply::Txn(reply) => changed_keys(reply),
    })
}

/// What etcd's refusal means. It tells them apart by text (`rpctypes/error.go`). `lease`: the one that was asked about.
pub(super) fn refusal(error: CallError, lease: i64) -> WriteError {
    let CallError::Status(status) = &error else { return unavailable(error) };
    let says = |text| status.message().contains(text);
    WriteError::Refused(match status.code() {
        Code::InvalidArgument if says("key is not provided") => OpError::EmptyKey,
        Code::InvalidArgument if says("key not found") => OpError::KeyNotFound,
        Code::InvalidArgument if says("value is provided") => OpError::ValueProvided,
        Code::InvalidArgument if says("lease is provided") => OpError::LeaseProvided,
        Code::InvalidArgument if says("duplicate key") => OpError::DuplicateKey,
        // etcd's `--max-txn-ops` unless set otherwise.
        Code::InvalidArgument if says("too many operations") => OpError::TooManyOps { ops: 129, most: 128 },
        Code::NotFound if says("lease not found") => OpError::LeaseNotFound { id: lease },
        Code::FailedPrecondition if says("lease already exists") => OpError::LeaseExists { id: lease },
        Code::OutOfRange if says("too large lease TTL") => {
            OpError::LeaseTtlTooLarge { ttl: i64::MAX, most: 9_000_000_000 }
        }
        Code::OutOfRange if says("compacted") => {
            OpError::Range(RangeError::Compacted { revision: 0, compact_revision: 0 })
        }
        Code::OutOfRange if says("future revision") => {
            OpError::Range(RangeError::FutureRevision { revision: 0, newest: 0 })
        }
        Code::ResourceExhausted if says("space exceeded") => OpError::NoSpace { used: 0, quota: 0 },
        _ => return unavailable(error),
    })
}

pub(super) fn unavailable(error: impl std::error::Error + Send + Sync + 'static) -> WriteError {
    WriteError::Unavailable(Box::new(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::convert as server;
    use hawser_kvstore::{KeyRange, Sort};

    #[test]
    fn what_we_send_to_etcd_is_what_our_server_would_read() {
        let query = RangeQuery {
            limit: 3,
            sort: Sort { by: SortBy::ModRevision, descending: true },
            ..RangeQuery::new(KeyRange::prefix("a"))
        };
        let inner = Txn {
            compare: vec![Compare {
                keys: KeyRange::key("k"),
                result: CompareResult::Less,
                target: CompareTarget::Value("v".into()),
            }],
            success: vec![TxnOp::DeleteRange(DeleteRange::new(KeyRange::prefix("p")))],
            failure: vec![],
        };
        let whole = Txn {
            compare: [
                CompareTarget::Version(1),
                CompareTarget::CreateRevision(0),
                CompareTarget::ModRevision(3),
                CompareTarget::Lease(4),
            ]
            .map(|target| Compare { keys: KeyRange::all(), result: CompareResult::NotEqual, target })
            .into(),
            success: vec![
                TxnOp::Put(Put { lease: 9, prev_kv: true, ..Put::new("k", "v") }),
                TxnOp::Txn(inner),
            ],
            failure: vec![TxnOp::Range(query)],
        };
        assert_eq!(server::txn(txn(whole.clone())).unwrap(), whole);
    }

    #[test]
    fn etcds_refusals_come_back_as_the_same_words() {
        for (code, text) in [
            (Code::NotFound, "etcdserver: requested lease not found"),
            (Code::InvalidArgument, "etcdserver: duplicate key given in txn request"),
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
        ] {
            let refused = refusal(CallError::Status(tonic::Status::new(code, text)), 7);
            assert_eq!(crate::server::status::write(refused).message(), text);
        }
        let down = refusal(CallError::Status(tonic::Status::unavailable("connection refused")), 0);
        assert!(matches!(down, WriteError::Unavailable(_)));
    }
}
