//! The own keyspace kept in one real etcd: read from memory with etcd's own revisions, written through to etcd.
//!
//! One watch covers both prefixes (everything from `cilium/` to `hawser/`'s end), because etcd before 3.4.25 cannot say how far
//! several watches have come (etcd#15220); what lies between the prefixes is another's and passed over.
//! etcd is reached in clear text here, so on loopback or through a tunnel of its own.

mod writer;

use std::sync::Arc;
use std::time::{Duration, Instant};

use hawser_kvstore::{ApplyError, Change, Identity, KeyRange, Keyspace, Limits, Record};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

use crate::client::{
    CallError, Client, Follow, FollowConfig, FollowConfigError, FollowEvent, Order, Pace, Relist,
};
use crate::mirror::fill::{Fill, Filled};
use crate::pb;
use crate::server::SharedKeyspace;
pub use writer::EtcdWriter;

/// What of etcd is ours.
pub const PREFIXES: [&str; 2] = ["cilium/", "hawser/"];
/// Where the lineage is, as 16 hexadecimal digits. A wiped etcd does not have it, even where its own cluster id is the
/// same as before (etcd derives that from its member list).
pub const LINEAGE_KEY: &str = "hawser/private/lineage";
/// From the first prefix to the last one's end.
const COVER: (&str, &str) = ("cilium/", "hawser0");

/// How long a start waits for etcd.
const OPEN_WITHIN: Duration = Duration::from_secs(30);
const TRY_AGAIN: Duration = Duration::from_millis(500);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the keyspace cannot be read from etcd.
#[derive(Debug, thiserror::Error)]
pub enum EtcdStoreError {
    #[error(
        "etcd at {members} cannot be used as the store: {why}. fix: start etcd (>= 3.4) there, or correct `store:`"
    )]
    Unreachable { members: String, why: String },
    #[error(
        "etcd's key {LINEAGE_KEY} holds {found:?} and not 16 hexadecimal digits. fix: restore it; deleting it makes this a new store"
    )]
    Lineage { found: String },
    #[error("{member:?} is not an address of an etcd member")]
    Address { member: String },
    #[error(transparent)]
    Follow(#[from] FollowConfigError),
}

/// The follower of etcd. Dropping it stops it; the keyspace stays as it was last known.
#[derive(Debug)]
pub struct EtcdStore {
    keyspace: SharedKeyspace,
    writer: Arc<EtcdWriter>,
    lineage: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl EtcdStore {
    pub async fn open(members: &[String], cluster: &str) -> Result<Self, EtcdStoreError> {
        let unreachable = |why| EtcdStoreError::Unreachable { members: members.join(","), why };
        let client = Client::new(channel(members)?);
        let began = Instant::now();
        let mut said = String::new();
        let lineage = loop {
            match ensure_lineage(&client, rand::random()).await {
                Ok(lineage) => break lineage,
                Err(EnsureError::Lineage(found)) => return Err(EtcdStoreError::Lineage { found }),
                Err(EnsureError::Call(why)) if began.elapsed() > OPEN_WITHIN => return Err(unreachable(why)),
                Err(EnsureError::Call(why)) => {
                    if why != said {
                        tracing::warn!(
                            members = members.join(","),
                            why,
                            "etcd is not reached yet, trying again"
                        );
                        said = why;
                    }
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            }
        };
        let keyspace =
            SharedKeyspace::new(Keyspace::replica(Identity::new(cluster, lineage, 0), Limits::default()));
        let (known, mut lineage) = watch::channel(lineage);
        lineage.mark_unchanged();
        let relist = Arc::new(Notify::new());
        let task = Task {
            client: client.clone(),
            cluster: cluster.to_owned(),
            keyspace: keyspace.clone(),
            lineage: known,
            relist: relist.clone(),
        };
        let mut loaded = keyspace.subscribe();
        let follow = task.begin()?;
        let task = tokio::spawn(task.run(follow));
        let store = Self {
            writer: Arc::new(EtcdWriter::new(client, keyspace.clone(), relist)),
            keyspace,
            lineage,
            task,
        };
        // etcd's first revision is 1 and a replica's before it is loaded 0.
        match tokio::time::timeout(OPEN_WITHIN, loaded.wait_for(|(_, revision)| *revision > 0)).await {
            Ok(Ok(_)) => Ok(store),
            _ => Err(unreachable("its keys could not be listed".to_owned())),
        }
    }

    pub fn keyspace(&self) -> &SharedKeyspace {
        &self.keyspace
    }

    pub fn writer(&self) -> Arc<EtcdWriter> {
        self.writer.clone()
    }

    pub fn lineage(&self) -> u64 {
        *self.lineage.borrow()
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Connects when first used, and again whenever a connection is lost; calls go to any member that is there.
fn channel(members: &[String]) -> Result<Channel, EtcdStoreError> {
    let endpoint = |member: &String| {
        let endpoint = Endpoint::from_shared(format!("http://{member}"))
            .map_err(|_| EtcdStoreError::Address { member: member.clone() })?;
        Ok(endpoint
            .connect_timeout(CALL_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(CALL_TIMEOUT)
            .keep_alive_while_idle(true))
    };
    let endpoints: Vec<Endpoint> = members.iter().map(endpoint).collect::<Result<_, EtcdStoreError>>()?;
    Ok(match endpoints.as_slice() {
        [one] => one.connect_lazy(),
        many => Channel::balance_list(many.iter().cloned()),
    })
}

enum EnsureError {
    Call(String),
    Lineage(String),
}

/// The lineage in etcd; when there is none, `fresh`, written in the same transaction that found none.
async fn ensure_lineage(client: &Client, fresh: u64) -> Result<u64, EnsureError> {
    use pb::compare::{CompareTarget, TargetUnion};
    use pb::request_op::Request;
    let key = bytes::Bytes::from_static(LINEAGE_KEY.as_bytes());
    let request = pb::TxnRequest {
        compare: vec![pb::Compare {
            key: key.clone(),
            target: CompareTarget::Create as i32,
            target_union: Some(TargetUnion::CreateRevision(0)),
            ..Default::default()
        }],
        success: vec![pb::RequestOp {
            request: Some(Request::RequestPut(pb::PutRequest {
                key: key.clone(),
                value: format!("{fresh:016x}").into(),
                ..Default::default()
            })),
        }],
        failure: vec![pb::RequestOp {
            request: Some(Request::RequestRange(pb::RangeRequest { key, ..Default::default() })),
        }],
    };
    let reply = tokio::time::timeout(CALL_TIMEOUT, client.txn(request)).await;
    let reply = reply
        .map_err(|_| EnsureError::Call("it does not answer".to_owned()))?
        .map_err(|error: CallError| EnsureError::Call(error.to_string()))?;
    if reply.succeeded {
        return Ok(fresh);
    }
    let found = reply.responses.into_iter().find_map(|op| match op.response {
        Some(pb::response_op::Response::ResponseRange(mut range)) => range.kvs.pop(),
        _ => None,
    });
    let value = found.map(|kv| kv.value).unwrap_or_default();
    parse_lineage(&value).ok_or_else(|| EnsureError::Lineage(value.escape_ascii().to_string()))
}

fn parse_lineage(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok().filter(|text| text.len() == 16)?;
    u64::from_str_radix(text, 16).ok()
}

fn is_ours(key: &[u8]) -> bool {
    PREFIXES.iter().any(|prefix| key.starts_with(prefix.as_bytes()))
}

struct Task {
    client: Client,
    cluster: String,
    keyspace: SharedKeyspace,
    lineage: watch::Sender<u64>,
    /// The writer has seen that etcd is not what it was.
    relist: Arc<Notify>,
}

/// Why following begins again, with a list.
#[derive(Debug, thiserror::Error)]
enum Restart {
    #[error("etcd answered a write with an older revision than it had: it was wiped or restored")]
    WentBack,
    #[error("another lineage was written into etcd")]
    OtherLineage,
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

impl Task {
    fn begin(&self) -> Result<Follow, FollowConfigError> {
        self.client.follow(FollowConfig {
            order: Order::Total,
            relist: Relist::Whole,
            trust_progress: false,
            pace: Pace {
                retry_most: Duration::from_secs(1),
                behind_grace: Duration::from_secs(2),
                ..Pace::default()
            },
            ..FollowConfig::new(vec![KeyRange::between(COVER.0, COVER.1)])
        })
    }

    async fn run(self, mut follow: Follow) {
        loop {
            let why = self.follow(&mut follow).await;
            tracing::warn!(%why, "listing etcd again");
            tokio::time::sleep(TRY_AGAIN).await;
            match self.begin() {
                Ok(again) => follow = again,
                Err(error) => return tracing::error!(%error, "etcd cannot be followed"),
            }
        }
    }

    async fn follow(&self, follow: &mut Follow) -> Restart {
        let mut fill = Fill::new(1);
        loop {
            let event = tokio::select! {
                event = follow.next() => event,
                () = self.relist.notified() => return Restart::WentBack,
            };
            // A follower ends only with its runtime.
            let Some(event) = event else { return std::future::pending().await };
            match &event {
                FollowEvent::Reset { reason, .. } => {
                    tracing::info!(?reason, "listing the own keyspace from etcd")
                }
                FollowEvent::Interrupted { reason } => {
                    tracing::warn!(reason, "etcd is not reached; reads go on from memory")
                }
                _ => {}
            }
            for filled in fill.handle(event, |kv, _| is_ours(&kv.key)) {
                if let Err(restart) = self.take(filled).await {
                    return restart;
                }
            }
        }
    }

    async fn take(&self, filled: Filled) -> Result<(), Restart> {
        match filled {
            Filled::Load { revision, kvs, .. } => {
                let listed = kvs.iter().find(|kv| kv.key == LINEAGE_KEY.as_bytes());
                let lineage = match listed.and_then(|kv| parse_lineage(&kv.value)) {
                    Some(lineage) => lineage,
                    None => self.new_lineage().await,
                };
                self.lineage.send_replace(lineage);
                let identity = Identity::new(&self.cluster, lineage, 0);
                self.keyspace.update(|keyspace| keyspace.load(identity, revision, kvs))?;
            }
            Filled::Apply(record) => {
                if record.changes.is_empty() && record.revision <= self.keyspace.read(Keyspace::revision) {
                    return Ok(());
                }
                let now = self.keyspace.now();
                self.keyspace.update(|keyspace| keyspace.apply(&record, now))?;
                self.guard_lineage(&record).await?;
            }
        }
        Ok(())
    }

    /// etcd was emptied: from now on this is another store.
    async fn new_lineage(&self) -> u64 {
        let fresh = rand::random();
        loop {
            match ensure_lineage(&self.client, fresh).await {
                Ok(lineage) => return lineage,
                Err(EnsureError::Lineage(found)) => {
                    tracing::error!(found, "the key {LINEAGE_KEY} in etcd is not a lineage; restore it")
                }
                Err(EnsureError::Call(why)) => tracing::warn!(why, "the lineage cannot be written to etcd"),
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }

    /// The lineage is not for anyone to change: a deleted one is written again, another one is another store.
    async fn guard_lineage(&self, record: &Record) -> Result<(), Restart> {
        let ours = *self.lineage.borrow();
        for change in &record.changes {
            match change {
                Change::Put(kv)
                    if kv.key == LINEAGE_KEY.as_bytes()
                        && parse_lineage(&kv.value).is_some_and(|lineage| lineage != ours) =>
                {
                    return Err(Restart::OtherLineage);
                }
                Change::Delete { key } if key == LINEAGE_KEY.as_bytes() => {
                    tracing::warn!("the key {LINEAGE_KEY} was deleted from etcd; it is written again");
                    if !matches!(ensure_lineage(&self.client, ours).await, Ok(lineage) if lineage == ours) {
                        return Err(Restart::OtherLineage);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}
