//! `Cluster` and `Maintenance`: the little of them that clients ask before they trust a server.

use super::authorize::Access;
use super::keyspaces::KeyspaceHandle;
use super::service::{ETCD_VERSION, MEMBER_ID, RAFT_TERM, Shared, header, keyspace_of};
use crate::pb;
use std::sync::Arc;
use tonic::{Request, Response, Status};

pub(crate) struct ClusterService(pub(crate) Arc<Shared>);

impl ClusterService {
    fn enter<T>(&self, request: &Request<T>, rpc: &'static str) -> Result<KeyspaceHandle, Status> {
        let handle = keyspace_of(request.extensions())?;
        self.0.authorize(request.extensions(), &handle, rpc, Access::Status)?;
        Ok(handle)
    }
}

fn newest_header(handle: &KeyspaceHandle) -> pb::ResponseHeader {
    handle.keyspace().read(|keyspace| header(keyspace, keyspace.revision()))
}

#[tonic::async_trait]
impl pb::cluster_server::Cluster for ClusterService {
    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        let handle = self.enter(&request, "Cluster.MemberList")?;
        let member = pb::Member {
            id: MEMBER_ID,
            name: handle.name().to_owned(),
            peer_ur_ls: Vec::new(),
            client_ur_ls: self.0.advertise.clone(),
            is_learner: false,
        };
        Ok(Response::new(pb::MemberListResponse {
            header: Some(newest_header(&handle)),
            members: vec![member],
        }))
    }
}

#[tonic::async_trait]
impl pb::maintenance_server::Maintenance for ClusterService {
    /// There are none to get, none to set; `etcdctl endpoint health` asks.
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        let handle = self.enter(&request, "Maintenance.Alarm")?;
        if request.get_ref().action() != pb::alarm_request::AlarmAction::Get {
            return Err(Status::unimplemented("alarms can only be listed here"));
        }
        Ok(Response::new(pb::AlarmResponse { header: Some(newest_header(&handle)), alarms: Vec::new() }))
    }

    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        let handle = self.enter(&request, "Maintenance.Status")?;
        let size = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
        let (header, live, history) = handle.keyspace().read(|keyspace| {
            (header(keyspace, keyspace.revision()), keyspace.live_bytes(), keyspace.history_size().1)
        });
        let applied = u64::try_from(header.revision).unwrap_or(0);
        Ok(Response::new(pb::StatusResponse {
            header: Some(header),
            version: ETCD_VERSION.to_owned(),
            db_size: size(live + history),
            leader: MEMBER_ID,
            raft_index: applied,
            raft_term: RAFT_TERM,
            raft_applied_index: applied,
            errors: Vec::new(),
            db_size_in_use: size(live),
            is_learner: false,
        }))
    }
}
