//! Where a replica begins: etcd's keys as they were a while ago, so that what happened since comes as events and is a
//! history that watches resume in, whichever replica they were begun at.

use std::future::Future;

use hawser_kvstore::{KeyRange, Revision, SharedKv};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{CALL_TIMEOUT, COVER, LINEAGE_KEY, is_ours};
use crate::client::{CallError, Client, FollowConfigError, Trouble};
use crate::durable::from_wire;
use crate::pb;

/// Written by whoever begins, and waited for in its own watch: then everything before it was delivered. Of an etcd before
/// 3.4.25 nothing else says so (etcd#15220).
pub const BARRIER_KEY: &str = "hawser/private/barrier";
/// Revisions before the newest one that are replayed; what the history can hold of them is its own bound (64 MiB).
pub(super) const REPLAYED: Revision = 100_000;
/// Keys per page.
const PAGE: i64 = 2048;
/// Compactions between looking for the oldest revision and listing it.
const TRIES: usize = 3;

/// Why a replica cannot begin just now.
#[derive(Debug, thiserror::Error)]
pub(super) enum BeginError {
    #[error("it does not answer within {} s", CALL_TIMEOUT.as_secs())]
    NoAnswer,
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("its key {LINEAGE_KEY} holds {0:?} and not 16 hexadecimal digits")]
    Lineage(String),
    #[error("it forgets its history faster than it can be listed")]
    Compacted,
    #[error(transparent)]
    Follow(#[from] FollowConfigError),
    #[error(transparent)]
    Apply(#[from] hawser_kvstore::ApplyError),
}

pub(super) async fn within<T>(call: impl Future<Output = Result<T, CallError>>) -> Result<T, BeginError> {
    let reply = tokio::time::timeout(CALL_TIMEOUT, call).await.map_err(|_| BeginError::NoAnswer)?;
    Ok(reply?)
}

/// Everything of ours at one revision.
pub(super) struct Listed {
    /// etcd's own.
    pub(super) cluster_id: u64,
    pub(super) revision: Revision,
    /// In key order.
    pub(super) kvs: Vec<SharedKv>,
}

/// The keys at `wanted`, or at the oldest revision after it that is still there.
pub(super) async fn list(client: &Client, wanted: Revision) -> Result<Listed, BeginError> {
    let mut at = wanted;
    for _ in 0..TRIES {
        match list_at(client, at).await {
            Err(BeginError::Call(error)) if Trouble::from(&error) == Trouble::Compacted => {
                at = oldest(client, at).await?;
            }
            other => return other,
        }
    }
    Err(BeginError::Compacted)
}

async fn list_at(client: &Client, revision: Revision) -> Result<Listed, BeginError> {
    let (mut key, range_end) = KeyRange::between(COVER.0, COVER.1).to_wire();
    let mut listed = Listed { cluster_id: 0, revision, kvs: Vec::new() };
    let mut limit = PAGE;
    loop {
        let request = pb::RangeRequest {
            key: key.clone(),
            range_end: range_end.clone(),
            limit,
            revision,
            ..Default::default()
        };
        let page = match within(client.range(request)).await {
            Err(BeginError::Call(error)) if limit > 1 && Trouble::from(&error) == Trouble::TooLarge => {
                limit /= 2;
                continue;
            }
            page => page?,
        };
        listed.cluster_id = page.header.map_or(0, |header| header.cluster_id);
        let last = page.kvs.last().map(|kv| kv.key.clone());
        let ours = page.kvs.into_iter().filter(|kv| is_ours(&kv.key));
        listed.kvs.extend(ours.map(|kv| SharedKv::new(&from_wire(kv))));
        match last {
            Some(last) if page.more => key = [&last[..], &[0]].concat().into(),
            _ => return Ok(listed),
        }
    }
}

/// The oldest revision that is not compacted, when `compacted` is. No request answers that; a watch that comes too late does.
async fn oldest(client: &Client, compacted: Revision) -> Result<Revision, BeginError> {
    let (requests, receiver) = mpsc::channel(1);
    let create =
        pb::WatchCreateRequest { key: LINEAGE_KEY.into(), start_revision: compacted, ..Default::default() };
    let request = pb::watch_request::RequestUnion::CreateRequest(create);
    // There is room for one.
    let _ = requests.try_send(pb::WatchRequest { request_union: Some(request) });
    within(async {
        let request = client.request(ReceiverStream::new(receiver));
        let mut replies = client.watches().watch(request).await?.into_inner();
        while let Some(reply) = replies.message().await? {
            if reply.compact_revision > 0 {
                return Ok(reply.compact_revision);
            }
        }
        Err(CallError::NoAnswer)
    })
    .await
}
