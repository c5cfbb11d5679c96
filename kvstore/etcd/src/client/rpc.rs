//! The plain calls: one request, one reply, its header checked.

use http::uri::PathAndQuery;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::MAX_MESSAGE;
use super::bounded::Bounded;
use super::error::CallError;
use super::members::Members;
use crate::pb;

/// The metadata key that chooses a keyspace of a Hawser server.
pub(crate) const CLUSTER_METADATA: &str = "hawser-cluster";

/// Cloning counts references; clones share the channel.
#[derive(Clone, Debug)]
pub struct Client {
    members: Members,
    cluster: Option<AsciiMetadataValue>,
    requires_leader: bool,
}

/// Why a client could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{name:?} cannot be a cluster's name: metadata holds visible ASCII only")]
pub struct ClientConfigError {
    name: String,
}

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident: $service:ident :: $method:ident ($request:ident) -> $reply:ident;)*) => {$(
        $(#[$doc])*
        pub async fn $name(&self, request: pb::$request) -> Result<pb::$reply, CallError> {
            let reply = self.$service().$method(self.request(request)).await.map(Response::into_inner)?;
            checked(reply.header.as_ref())?;
            Ok(reply)
        }
    )*};
}

impl Client {
    pub fn new(channel: Channel) -> Self {
        Self { members: Members::new([channel]), cluster: None, requires_leader: false }
    }

    /// A real etcd by all its members. One that has lost the others refuses, and ends its watches, instead of falling
    /// behind in silence (etcd's `WithRequireLeader`).
    pub(crate) fn of_etcd(members: Vec<Channel>) -> Self {
        Self { members: Members::new(members), cluster: None, requires_leader: true }
    }

    /// Every request names `cluster` (metadata `hawser-cluster`): the keyspace meant at a Hawser server.
    pub fn for_cluster(channel: Channel, cluster: &str) -> Result<Self, ClientConfigError> {
        let value =
            cluster.parse().map_err(|_| ClientConfigError { name: cluster.chars().take(64).collect() })?;
        Ok(Self { cluster: Some(value), ..Self::new(channel) })
    }

    calls! {
        range: kv::range(RangeRequest) -> RangeResponse;
        put: kv::put(PutRequest) -> PutResponse;
        delete_range: kv::delete_range(DeleteRangeRequest) -> DeleteRangeResponse;
        txn: kv::txn(TxnRequest) -> TxnResponse;
        compact: kv::compact(CompactionRequest) -> CompactionResponse;
        lease_grant: lease::lease_grant(LeaseGrantRequest) -> LeaseGrantResponse;
        lease_revoke: lease::lease_revoke(LeaseRevokeRequest) -> LeaseRevokeResponse;
        lease_time_to_live: lease::lease_time_to_live(LeaseTimeToLiveRequest) -> LeaseTimeToLiveResponse;
        status: maintenance::status(StatusRequest) -> StatusResponse;
    }

    /// A page of a list, for one who does not know the server. Its entries are counted before they are decoded.
    pub(crate) async fn page(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, CallError> {
        let mut grpc = self.grpc().await?;
        let path = PathAndQuery::from_static("/etcdserverpb.KV/Range");
        let codec = Bounded::<pb::RangeRequest, pb::RangeResponse>::default();
        let reply = grpc.unary(self.request(request), path, codec).await?.into_inner();
        checked(reply.header.as_ref())?;
        Ok(reply)
    }

    /// A watch stream; the same holds for the entries of each of its messages.
    pub(crate) async fn stream(
        &self,
        request: Request<ReceiverStream<pb::WatchRequest>>,
    ) -> Result<tonic::Streaming<pb::WatchResponse>, CallError> {
        let mut grpc = self.grpc().await?;
        let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        let codec = Bounded::<pb::WatchRequest, pb::WatchResponse>::default();
        Ok(grpc.streaming(request, path, codec).await?.into_inner())
    }

    async fn grpc(&self) -> Result<Grpc<Members>, CallError> {
        let mut grpc = Grpc::new(self.members.clone()).max_decoding_message_size(MAX_MESSAGE);
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(grpc)
    }

    /// Keeps a lease alive once and gives its time to live in seconds; 0: there is no such lease any more.
    pub async fn lease_keep_alive(&self, id: i64) -> Result<pb::LeaseKeepAliveResponse, CallError> {
        let once = futures::stream::once(std::future::ready(pb::LeaseKeepAliveRequest { id }));
        let mut replies = self.lease().lease_keep_alive(self.request(once)).await?.into_inner();
        let reply = replies.message().await?.ok_or(CallError::NoAnswer)?;
        checked(reply.header.as_ref())?;
        Ok(reply)
    }

    fn kv(&self) -> pb::kv_client::KvClient<Members> {
        pb::kv_client::KvClient::new(self.members.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    fn lease(&self) -> pb::lease_client::LeaseClient<Members> {
        pb::lease_client::LeaseClient::new(self.members.clone())
    }

    fn maintenance(&self) -> pb::maintenance_client::MaintenanceClient<Members> {
        pb::maintenance_client::MaintenanceClient::new(self.members.clone())
    }

    pub(crate) fn watches(&self) -> pb::watch_client::WatchClient<Members> {
        pb::watch_client::WatchClient::new(self.members.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(cluster) = &self.cluster {
            request.metadata_mut().insert(CLUSTER_METADATA, cluster.clone());
        }
        if self.requires_leader {
            request.metadata_mut().insert("hasleader", AsciiMetadataValue::from_static("true"));
        }
        request
    }
}

/// etcd never sends a reply without a header, and never the cluster id 0.
fn checked(header: Option<&pb::ResponseHeader>) -> Result<(), CallError> {
    header.filter(|h| h.cluster_id != 0).map(|_| ()).ok_or(CallError::NoHeader)
}
