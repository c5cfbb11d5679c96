//! `KV`: Range, Put, DeleteRange, Txn, Compact.

use super::authorize::Access;
use super::keyspaces::{Counters, KeyspaceHandle};
use super::service::{MAX_REQUEST, Shared, header, keyspace_of};
use super::{convert, reader, status};
use crate::pb;
use hawser_kvstore::{Op, Reply, ReplyBody, Txn, TxnOp};
use prost::Message;
use std::sync::Arc;
use tonic::{Request, Response, Status};

pub(crate) struct KvService(pub(crate) Arc<Shared>);

/// Carries out `op` and gives its reply with the header that belongs to it.
pub(crate) async fn write(handle: &KeyspaceHandle, op: Op) -> Result<(Reply, pb::ResponseHeader), Status> {
    Counters::count(&handle.counters().writes);
    let reply = handle.writer().write(op).await.map_err(status::write)?;
    let header = handle.keyspace().read(|keyspace| header(keyspace, reply.revision));
    Ok((reply, header))
}

/// A writer that answers a question with another one's answer is a defect of ours, not of the caller.
pub(crate) fn wrong_reply() -> Status {
    Status::internal("the store answered another operation")
}

fn checked_size(message: &impl Message) -> Result<(), Status> {
    if message.encoded_len() > MAX_REQUEST { Err(status::request_too_large()) } else { Ok(()) }
}

impl KvService {
    /// Every key a transaction may touch, in either branch, is asked about before anything runs.
    fn authorize_txn(
        &self,
        caller: &http::Extensions,
        handle: &KeyspaceHandle,
        txn: &Txn,
    ) -> Result<(), Status> {
        let ask = |access: Access<'_>| self.0.authorize(caller, handle, "KV.Txn", access);
        for compare in &txn.compare {
            ask(Access::Read(&compare.keys))?;
        }
        for op in txn.success.iter().chain(&txn.failure) {
            match op {
                TxnOp::Range(query) => ask(Access::Read(&query.keys))?,
                TxnOp::Put(put) => self.authorize_put(caller, handle, "KV.Txn", put)?,
                TxnOp::DeleteRange(delete) => self.authorize_delete(caller, handle, "KV.Txn", delete)?,
                TxnOp::Txn(inner) => self.authorize_txn(caller, handle, inner)?,
            }
        }
        Ok(())
    }

    fn authorize_put(
        &self,
        caller: &http::Extensions,
        handle: &KeyspaceHandle,
        rpc: &'static str,
        put: &hawser_kvstore::Put,
    ) -> Result<(), Status> {
        let key = hawser_kvstore::KeyRange::key(put.key.clone());
        self.0.authorize(caller, handle, rpc, Access::Write(&key))?;
        if put.prev_kv { self.0.authorize(caller, handle, rpc, Access::Read(&key)) } else { Ok(()) }
    }

    fn authorize_delete(
        &self,
        caller: &http::Extensions,
        handle: &KeyspaceHandle,
        rpc: &'static str,
        delete: &hawser_kvstore::DeleteRange,
    ) -> Result<(), Status> {
        self.0.authorize(caller, handle, rpc, Access::Write(&delete.keys))?;
        if delete.prev_kv {
            self.0.authorize(caller, handle, rpc, Access::Read(&delete.keys))
        } else {
            Ok(())
        }
    }
}

#[tonic::async_trait]
impl pb::kv_server::Kv for KvService {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let handle = keyspace_of(request.extensions())?;
        let (_, caller, message) = request.into_parts();
        let query = convert::range_query(message)?;
        self.0.authorize(&caller, &handle, "KV.Range", Access::Read(&query.keys))?;
        Counters::count(&handle.counters().ranges);
        let (reply, header) = handle.keyspace().read(|keyspace| {
            let reply = keyspace.range(&query).map_err(status::range)?;
            Ok::<_, Status>((reply, header(keyspace, keyspace.revision())))
        })?;
        reader::listed(&caller, || reply.kvs.iter().map(|kv| kv.encoded_len()).sum())?;
        Ok(Response::new(convert::range_response(&reply, header)))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let handle = keyspace_of(request.extensions())?;
        let (_, caller, message) = request.into_parts();
        checked_size(&message)?;
        let put = convert::put(message)?;
        self.authorize_put(&caller, &handle, "KV.Put", &put)?;
        match write(&handle, Op::Put(put)).await? {
            (Reply { body: ReplyBody::Put(reply), .. }, header) => {
                Ok(Response::new(convert::put_response(&reply, header)))
            }
            _ => Err(wrong_reply()),
        }
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let handle = keyspace_of(request.extensions())?;
        let (_, caller, message) = request.into_parts();
        let delete = convert::delete_range(message)?;
        self.authorize_delete(&caller, &handle, "KV.DeleteRange", &delete)?;
        match write(&handle, Op::DeleteRange(delete)).await? {
            (Reply { body: ReplyBody::DeleteRange(reply), .. }, header) => {
                Ok(Response::new(convert::delete_range_response(&reply, header)))
            }
            _ => Err(wrong_reply()),
        }
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let handle = keyspace_of(request.extensions())?;
        let (_, caller, message) = request.into_parts();
        checked_size(&message)?;
        let txn = convert::txn(message)?;
        self.authorize_txn(&caller, &handle, &txn)?;
        if txn.is_read_only() {
            Counters::count(&handle.counters().ranges);
            let (reply, header) = handle.keyspace().read(|keyspace| {
                let reply = keyspace.read_txn(&txn).map_err(status::op)?;
                Ok::<_, Status>((reply, header(keyspace, keyspace.revision())))
            })?;
            let response = convert::txn_response(&reply, header);
            reader::listed(&caller, || response.encoded_len())?;
            return Ok(Response::new(response));
        }
        match write(&handle, Op::Txn(txn)).await? {
            (Reply { body: ReplyBody::Txn(reply), .. }, header) => {
                Ok(Response::new(convert::txn_response(&reply, header)))
            }
            _ => Err(wrong_reply()),
        }
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let handle = keyspace_of(request.extensions())?;
        let (_, caller, message) = request.into_parts();
        self.0.authorize(&caller, &handle, "KV.Compact", Access::Compact)?;
        let (_, header) = write(&handle, Op::Compact { revision: message.revision }).await?;
        Ok(Response::new(pb::CompactionResponse { header: Some(header) }))
    }
}
