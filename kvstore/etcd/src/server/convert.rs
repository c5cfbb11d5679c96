//! etcd's messages to the core's operations and back. Requests are parsed here, once.

use super::status;
use crate::pb;
use hawser_kvstore::{
    Compare, CompareResult, CompareTarget, DeleteRange, DeleteRangeReply, KeyRange, Put, PutReply,
    RangeQuery, RangeReply, Revision, SharedKv, Sort, SortBy, Txn, TxnOp, TxnOpReply, TxnReply,
};
use tonic::Status;

pub(crate) fn range_query(request: pb::RangeRequest) -> Result<RangeQuery, Status> {
    if request.key.is_empty() {
        return Err(status::empty_key());
    }
    let sort = sort(request.sort_order, request.sort_target)?;
    Ok(RangeQuery {
        keys: KeyRange::from_wire(request.key, request.range_end),
        // A negative limit is none, as in etcd.
        limit: usize::try_from(request.limit).unwrap_or(0),
        revision: request.revision,
        sort,
        keys_only: request.keys_only,
        count_only: request.count_only,
        min_mod_revision: request.min_mod_revision,
        max_mod_revision: request.max_mod_revision,
        min_create_revision: request.min_create_revision,
        max_create_revision: request.max_create_revision,
    })
}

fn sort(order: i32, target: i32) -> Result<Sort, Status> {
    use pb::range_request::{SortOrder, SortTarget};
    let order = SortOrder::try_from(order).map_err(|_| status::invalid_sort())?;
    let by = match SortTarget::try_from(target).map_err(|_| status::invalid_sort())? {
        SortTarget::Key => SortBy::Key,
        SortTarget::Version => SortBy::Version,
        SortTarget::Create => SortBy::CreateRevision,
        SortTarget::Mod => SortBy::ModRevision,
        SortTarget::Value => SortBy::Value,
    };
    Ok(Sort { by, descending: order == SortOrder::Descend })
}

pub(crate) fn put(request: pb::PutRequest) -> Result<Put, Status> {
    if request.key.is_empty() {
        return Err(status::empty_key());
    }
    Ok(Put {
        key: request.key,
        value: request.value,
        lease: request.lease,
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    })
}

pub(crate) fn delete_range(request: pb::DeleteRangeRequest) -> Result<DeleteRange, Status> {
    if request.key.is_empty() {
        return Err(status::empty_key());
    }
    Ok(DeleteRange { keys: KeyRange::from_wire(request.key, request.range_end), prev_kv: request.prev_kv })
}

/// Recursion is bounded: prost refuses messages nested more than 100 deep.
pub(crate) fn txn(request: pb::TxnRequest) -> Result<Txn, Status> {
    Ok(Txn {
        compare: request.compare.into_iter().map(compare).collect::<Result<_, _>>()?,
        success: request.success.into_iter().map(txn_op).collect::<Result<_, _>>()?,
        failure: request.failure.into_iter().map(txn_op).collect::<Result<_, _>>()?,
    })
}

fn txn_op(op: pb::RequestOp) -> Result<TxnOp, Status> {
    use pb::request_op::Request;
    // An empty operation is refused as etcd refuses it.
    match op.request.ok_or_else(status::key_not_found)? {
        Request::RequestRange(request) => range_query(request).map(TxnOp::Range),
        Request::RequestPut(request) => put(request).map(TxnOp::Put),
        Request::RequestDeleteRange(request) => delete_range(request).map(TxnOp::DeleteRange),
        Request::RequestTxn(request) => txn(request).map(TxnOp::Txn),
    }
}

fn compare(compare: pb::Compare) -> Result<Compare, Status> {
    use pb::compare::{CompareResult as Result, CompareTarget as Target, TargetUnion};
    if compare.key.is_empty() {
        return Err(status::empty_key());
    }
    let result = match compare.result() {
        Result::Equal => CompareResult::Equal,
        Result::Greater => CompareResult::Greater,
        Result::Less => CompareResult::Less,
        Result::NotEqual => CompareResult::NotEqual,
    };
    // A target without its union member compares with that member's default, as protobuf reads it.
    let target = match (compare.target(), compare.target_union) {
        (Target::Version, Some(TargetUnion::Version(version))) => CompareTarget::Version(version),
        (Target::Version, _) => CompareTarget::Version(0),
        (Target::Create, Some(TargetUnion::CreateRevision(at))) => CompareTarget::CreateRevision(at),
        (Target::Create, _) => CompareTarget::CreateRevision(0),
        (Target::Mod, Some(TargetUnion::ModRevision(at))) => CompareTarget::ModRevision(at),
        (Target::Mod, _) => CompareTarget::ModRevision(0),
        (Target::Value, Some(TargetUnion::Value(value))) => CompareTarget::Value(value),
        (Target::Value, _) => CompareTarget::Value(bytes::Bytes::new()),
        (Target::Lease, Some(TargetUnion::Lease(lease))) => CompareTarget::Lease(lease),
        (Target::Lease, _) => CompareTarget::Lease(0),
    };
    Ok(Compare { keys: KeyRange::from_wire(compare.key, compare.range_end), result, target })
}

/// Shares the key's and the value's bytes.
pub(crate) fn key_value(kv: &SharedKv) -> pb::KeyValue {
    pb::KeyValue {
        key: kv.key.clone(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value.clone(),
        lease: kv.lease,
    }
}

fn count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

pub(crate) fn range_response(reply: &RangeReply, header: pb::ResponseHeader) -> pb::RangeResponse {
    pb::RangeResponse {
        header: Some(header),
        kvs: reply.kvs.iter().map(key_value).collect(),
        more: reply.more,
        count: count(reply.count),
    }
}

pub(crate) fn put_response(reply: &PutReply, header: pb::ResponseHeader) -> pb::PutResponse {
    pb::PutResponse { header: Some(header), prev_kv: reply.prev_kv.as_ref().map(key_value) }
}

pub(crate) fn delete_range_response(
    reply: &DeleteRangeReply,
    header: pb::ResponseHeader,
) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse {
        header: Some(header),
        deleted: count(reply.deleted),
        prev_kvs: reply.prev_kvs.iter().map(key_value).collect(),
    }
}

pub(crate) fn txn_response(reply: &TxnReply, header: pb::ResponseHeader) -> pb::TxnResponse {
    let inner = |revision: Revision| pb::ResponseHeader { revision, ..pb::ResponseHeader::default() };
    let responses = reply.responses.iter().map(|op| txn_op_response(op, inner(header.revision)));
    pb::TxnResponse { header: Some(header), succeeded: reply.succeeded, responses: responses.collect() }
}

fn txn_op_response(reply: &TxnOpReply, header: pb::ResponseHeader) -> pb::ResponseOp {
    use pb::response_op::Response;
    let response = match reply {
        TxnOpReply::Range(reply) => Response::ResponseRange(range_response(reply, header)),
        TxnOpReply::Put(reply) => Response::ResponsePut(put_response(reply, header)),
        TxnOpReply::DeleteRange(reply) => Response::ResponseDeleteRange(delete_range_response(reply, header)),
        TxnOpReply::Txn(reply) => Response::ResponseTxn(txn_response(reply, header)),
    };
    pb::ResponseOp { response: Some(response) }
}
