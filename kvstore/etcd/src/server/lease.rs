//! `Lease`: grant, revoke, keep alive, time to live, list.

use super::authorize::Access;
use super::keyspaces::KeyspaceHandle;
use super::kv::{write, wrong_reply};
use super::service::{Shared, header, keyspace_of};
use crate::pb;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use hawser_kvstore::{LeaseId, Op, Reply, ReplyBody};
use std::sync::Arc;
use tonic::{Code, Request, Response, Status, Streaming};

pub(crate) struct LeaseService(pub(crate) Arc<Shared>);

impl LeaseService {
    fn enter<T>(&self, request: Request<T>, rpc: &'static str) -> Result<(KeyspaceHandle, T), Status> {
        let handle = keyspace_of(request.extensions())?;
        self.0.authorize(request.extensions(), &handle, rpc, Access::Lease)?;
        Ok((handle, request.into_inner()))
    }
}

/// A free id is likely: 63 random bits. Positive, as etcd's are.
fn random_id() -> LeaseId {
    i64::from_ne_bytes(rand::random::<[u8; 8]>()) & i64::MAX | 1
}

async fn keep_alive(handle: &KeyspaceHandle, id: LeaseId) -> Result<pb::LeaseKeepAliveResponse, Status> {
    match write(handle, Op::LeaseKeepAlive { id }).await {
        Ok((Reply { body: ReplyBody::LeaseKeptAlive { id, ttl }, .. }, header)) => {
            Ok(pb::LeaseKeepAliveResponse { header: Some(header), id, ttl })
        }
        Ok(_) => Err(wrong_reply()),
        // etcd's way to say on a stream that the lease is gone.
        Err(status) if status.code() == Code::NotFound => {
            let header = handle.keyspace().read(|keyspace| header(keyspace, keyspace.revision()));
            Ok(pb::LeaseKeepAliveResponse { header: Some(header), id, ttl: 0 })
        }
        Err(status) => Err(status),
    }
}

/// One answer per request, in order; the next request is read when the answer was taken.
fn keep_alives(
    handle: KeyspaceHandle,
    requests: Streaming<pb::LeaseKeepAliveRequest>,
) -> BoxStream<'static, Result<pb::LeaseKeepAliveResponse, Status>> {
    let answers = stream::try_unfold((handle, requests), |(handle, mut requests)| async move {
        let Some(request) = requests.message().await? else { return Ok(None) };
        let answer = keep_alive(&handle, request.id).await?;
        Ok(Some((answer, (handle, requests))))
    });
    answers.boxed()
}

#[tonic::async_trait]
impl pb::lease_server::Lease for LeaseService {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let (handle, message) = self.enter(request, "Lease.LeaseGrant")?;
        let id = if message.id == 0 { random_id() } else { message.id };
        match write(&handle, Op::LeaseGrant { id, ttl: message.ttl }).await? {
            (Reply { body: ReplyBody::LeaseGranted { id, ttl }, .. }, header) => {
                let error = String::new();
                Ok(Response::new(pb::LeaseGrantResponse { header: Some(header), id, ttl, error }))
            }
            _ => Err(wrong_reply()),
        }
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let (handle, message) = self.enter(request, "Lease.LeaseRevoke")?;
        let (_, header) = write(&handle, Op::LeaseRevoke { id: message.id }).await?;
        Ok(Response::new(pb::LeaseRevokeResponse { header: Some(header) }))
    }

    type LeaseKeepAliveStream = BoxStream<'static, Result<pb::LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let (handle, requests) = self.enter(request, "Lease.LeaseKeepAlive")?;
        Ok(Response::new(keep_alives(handle, requests)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let (handle, message) = self.enter(request, "Lease.LeaseTimeToLive")?;
        let now = handle.keyspace().now();
        let (lease, header) = handle
            .keyspace()
            .read(|keyspace| (keyspace.lease(message.id, now), header(keyspace, keyspace.revision())));
        let mut response = pb::LeaseTimeToLiveResponse {
            header: Some(header),
            id: message.id,
            ttl: -1,
            ..Default::default()
        };
        if let Some(lease) = lease {
            response.ttl = i64::try_from(lease.remaining.as_secs()).unwrap_or(i64::MAX);
            response.granted_ttl = lease.ttl;
            response.keys = if message.keys { lease.keys } else { Vec::new() };
        }
        Ok(Response::new(response))
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        let (handle, _) = self.enter(request, "Lease.LeaseLeases")?;
        let (leases, header) =
            handle.keyspace().read(|keyspace| (keyspace.leases(), header(keyspace, keyspace.revision())));
        let leases = leases.into_iter().map(|id| pb::LeaseStatus { id }).collect();
        Ok(Response::new(pb::LeaseLeasesResponse { header: Some(header), leases }))
    }
}
