//! The plain calls: one request, one reply, its header checked.

use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Response};

use super::MAX_MESSAGE;
use super::error::CallError;
use crate::pb;

/// The metadata key that chooses a keyspace of a Hawser server.
pub(crate) const CLUSTER_METADATA: &str = "hawser-cluster";

/// Cloning counts references; clones share the channel.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    cluster: Option<AsciiMetadataValue>,
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
        Self { channel, cluster: None }
    }

    /// Every request names `cluster` (metadata `hawser-cluster`): the keyspace meant at a Hawser server.
    pub fn for_cluster(channel: Channel, cluster: &str) -> Result<Self, ClientConfigError> {
        let value =
            cluster.parse().map_err(|_| ClientConfigError { name: cluster.chars().take(64).collect() })?;
        Ok(Self { channel, cluster: Some(value) })
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

    /// Keeps a lease alive once and gives its time to live in seconds; 0: there is no such lease any more.
    pub async fn lease_keep_alive(&self, id: i64) -> Result<pb::LeaseKeepAliveResponse, CallError> {
        let once = futures::stream::once(std::future::ready(pb::LeaseKeepAliveRequest { id }));
        let mut replies = self.lease().lease_keep_alive(self.request(once)).await?.into_inner();
        let reply = replies.message().await?.ok_or(CallError::NoAnswer)?;
        checked(reply.header.as_ref())?;
        Ok(reply)
    }

    fn kv(&self) -> pb::kv_client::KvClient<Channel> {
        pb::kv_client::KvClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    fn lease(&self) -> pb::lease_client::LeaseClient<Channel> {
        pb::lease_client::LeaseClient::new(self.channel.clone())
    }

    fn maintenance(&self) -> pb::maintenance_client::MaintenanceClient<Channel> {
        pb::maintenance_client::MaintenanceClient::new(self.channel.clone())
    }

    pub(super) fn watches(&self) -> pb::watch_client::WatchClient<Channel> {
        pb::watch_client::WatchClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(cluster) = &self.cluster {
            request.metadata_mut().insert(CLUSTER_METADATA, cluster.clone());
        }
        request
    }
}

/// etcd never sends a reply without a header, and never the cluster id 0.
fn checked(header: Option<&pb::ResponseHeader>) -> Result<(), CallError> {
    header.filter(|h| h.cluster_id != 0).map(|_| ()).ok_or(CallError::NoHeader)
}
