//! The own keyspace kept in one real etcd: read from memory with etcd's own revisions, written through to etcd.
//!
//! One watch covers both prefixes (everything from `cilium/` to `hawser/`'s end), because etcd before 3.4.25 cannot say how far
//! several watches have come (etcd#15220); what lies between the prefixes is another's and passed over.

mod list;
mod tls;
mod writer;

use std::sync::Arc;
use std::time::{Duration, Instant};

use hawser_kvstore::{ApplyError, Change, Identity, KeyRange, Keyspace, Limits, Record, Revision};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

use crate::client::{
    CallError, Client, Follow, FollowConfig, FollowConfigError, FollowEvent, Order, Pace, Relist,
    ResetReason, Resume,
};
use crate::mirror::fill::{Fill, Filled, Verdict};
use crate::pb;
use crate::server::SharedKeyspace;
pub use list::BARRIER_KEY;
use list::{BeginError, REPLAYED, list, within};
pub use tls::{StoreTls, StoreTlsError};
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
    #[error("etcd at {members} cannot be used as the store: {why}{}", fix(why))]
    Unreachable { members: String, why: String },
    #[error(
        "etcd's key {LINEAGE_KEY} holds {found:?} and not 16 hexadecimal digits. fix: restore it; deleting it makes this a new store"
    )]
    Lineage { found: String },
    #[error("{member:?} is not an address of an etcd member")]
    Address { member: String },
    #[error(transparent)]
    Tls(#[from] StoreTlsError),
    #[error(transparent)]
    Follow(#[from] FollowConfigError),
}

/// One fix, of who knows best.
fn fix(why: &str) -> &'static str {
    if why.contains("fix:") {
        ""
    } else if why.contains("certificate") || why.contains("alert") || why.contains("tls") {
        ". fix: see which CA etcd's --trusted-ca-file and storeTLS.ca name, and who signed storeTLS.cert"
    } else {
        ". fix: start etcd (>= 3.4) there, or correct `store:`"
    }
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
    /// Read whole, with the history that etcd still has of the last [`REPLAYED`] revisions.
    pub async fn open(
        members: &[String],
        tls: Option<&StoreTls>,
        cluster: &str,
    ) -> Result<Self, EtcdStoreError> {
        tls.map_or(Ok(()), StoreTls::check)?;
        let client = Client::of_etcd(channels(members, tls)?);
        let identity = Identity::new(cluster, 0, 0);
        let keyspace = SharedKeyspace::new(Keyspace::replica(identity, Limits::default()));
        let (known, lineage) = watch::channel(0);
        let relist = Arc::new(Notify::new());
        let mut task = Task {
            client: client.clone(),
            cluster: cluster.to_owned(),
            keyspace: keyspace.clone(),
            lineage: known,
            relist: relist.clone(),
            said: String::new(),
        };
        let members = members.join(",");
        let (follow, newest) = task.begin_within(OPEN_WITHIN, &members).await?;
        let mut loaded = keyspace.subscribe();
        let task = tokio::spawn(task.run(follow));
        let writer = Arc::new(EtcdWriter::new(client, keyspace.clone(), relist));
        let store = Self { writer, keyspace, lineage, task };
        let replayed = loaded.wait_for(|(_, revision)| *revision >= newest);
        match tokio::time::timeout(OPEN_WITHIN, replayed).await {
            Ok(Ok(_)) => Ok(store),
            _ => {
                let why = format!("its watch did not come to revision {newest}");
                Err(EtcdStoreError::Unreachable { members, why })
            }
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

/// One to each member: it connects when first used, and again whenever the connection is lost.
fn channels(members: &[String], tls: Option<&StoreTls>) -> Result<Vec<Channel>, EtcdStoreError> {
    let channel = |member: &String| {
        let address = || EtcdStoreError::Address { member: member.clone() };
        let scheme = if tls.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{member}"))
            .map_err(|_| address())?
            .connect_timeout(CALL_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(CALL_TIMEOUT)
            .keep_alive_while_idle(true);
        let Some(tls) = tls else { return Ok(endpoint.connect_lazy()) };
        let door = Arc::new(tls::Door::new(member, tls).ok_or_else(address)?);
        let dial = tower::service_fn(move |_: http::Uri| Arc::clone(&door).connect());
        Ok(endpoint.connect_with_connector_lazy(dial))
    };
    members.iter().map(channel).collect()
}

/// The lineage in etcd; when there is none, `fresh`, written in the same transaction that found none.
async fn ensure_lineage(client: &Client, fresh: u64) -> Result<u64, BeginError> {
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
    let reply = within(client.txn(request)).await?;
    if reply.succeeded {
        return Ok(fresh);
    }
    let found = reply.responses.into_iter().find_map(|op| match op.response {
        Some(pb::response_op::Response::ResponseRange(mut range)) => range.kvs.pop(),
        _ => None,
    });
    read_lineage(&found.map(|kv| kv.value).unwrap_or_default())
}

fn read_lineage(value: &[u8]) -> Result<u64, BeginError> {
    parse_lineage(value).ok_or_else(|| BeginError::Lineage(value.escape_ascii().to_string()))
}

fn parse_lineage(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok().filter(|text| text.len() == 16)?;
    u64::from_str_radix(text, 16).ok()
}

fn is_ours(key: &[u8]) -> bool {
    PREFIXES.iter().any(|prefix| key.starts_with(prefix.as_bytes()))
}

fn verdict(key: &[u8]) -> Verdict {
    if is_ours(key) { Verdict::Take } else { Verdict::Drop }
}

struct Task {
    client: Client,
    cluster: String,
    keyspace: SharedKeyspace,
    /// 0 until it is known.
    lineage: watch::Sender<u64>,
    /// The writer has seen that etcd is not what it was.
    relist: Arc<Notify>,
    /// The trouble that was logged last: each is said once, not at each attempt.
    said: String,
}

/// Why following begins again.
#[derive(Debug, thiserror::Error)]
enum Restart {
    #[error("etcd answered a write with an older revision than it had: it was wiped or restored")]
    WentBack,
    #[error("another lineage was written into etcd")]
    OtherLineage,
    #[error("etcd cannot go on from where we are: {0:?}")]
    Reset(ResetReason),
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

impl Task {
    async fn begin_within(
        &mut self,
        patience: Duration,
        members: &str,
    ) -> Result<(Follow, Revision), EtcdStoreError> {
        let began = Instant::now();
        loop {
            let why = match self.begin(None).await {
                Ok(begun) => return Ok(begun),
                Err(BeginError::Lineage(found)) => return Err(EtcdStoreError::Lineage { found }),
                Err(error) => error.to_string(),
            };
            if began.elapsed() > patience {
                return Err(EtcdStoreError::Unreachable { members: members.to_owned(), why });
            }
            self.say(&why, "etcd is not reached yet, trying again");
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }

    fn say(&mut self, why: &str, what: &'static str) {
        if self.said != why {
            tracing::warn!(why, "{what}");
            why.clone_into(&mut self.said);
        }
    }

    /// Follows on from what is here when that is still etcd's own past; else from a list, of an older revision where etcd
    /// has one. Also says which revision etcd was at: an answer before that one would be an answer of the past.
    async fn begin(&self, after: Option<&Restart>) -> Result<(Follow, Revision), BeginError> {
        let key = pb::RangeRequest { key: LINEAGE_KEY.into(), ..Default::default() };
        let reply = within(self.client.range(key)).await?;
        let header = reply.header.unwrap_or_default();
        let (lineage, since) = match reply.kvs.first() {
            Some(kv) => (read_lineage(&kv.value)?, kv.mod_revision),
            None => (ensure_lineage(&self.client, rand::random()).await?, header.revision),
        };
        let newest = self.barrier().await?;
        let same = lineage == *self.lineage.borrow();
        let here = self.keyspace.read(Keyspace::revision);
        let here = if same && here <= newest.unwrap_or(header.revision) { here } else { 0 };
        if here > 0 && matches!(after, Some(Restart::Reset(ResetReason::Behind { .. }))) {
            return Ok((self.resume(header.cluster_id, here)?, here));
        }
        // Without a barrier nobody can tell when the replay is over.
        let oldest = newest.map_or(header.revision, |newest| newest - REPLAYED);
        let listed = list(&self.client, oldest.max(since).max(here)).await?;
        let (revision, keys) = (listed.revision, listed.kvs.len());
        let identity = Identity::new(&self.cluster, lineage, 0);
        self.lineage.send_replace(lineage);
        self.keyspace.update(|keyspace| keyspace.load(identity, revision, listed.kvs))?;
        tracing::info!(revision, newest, keys, "the own keyspace is listed from etcd");
        Ok((self.resume(listed.cluster_id, revision)?, newest.unwrap_or(revision)))
    }

    /// The revision of a write of ours that our watch will deliver; none when etcd has no room for it.
    async fn barrier(&self) -> Result<Option<Revision>, BeginError> {
        let value = format!("{:016x}", rand::random::<u64>()).into();
        let put = pb::PutRequest { key: BARRIER_KEY.into(), value, ..Default::default() };
        match within(self.client.put(put)).await {
            Ok(reply) => Ok(Some(reply.header.unwrap_or_default().revision)),
            Err(BeginError::Call(CallError::Status(status)))
                if status.code() == tonic::Code::ResourceExhausted =>
            {
                tracing::warn!(
                    why = status.message(),
                    "etcd takes no writes; its keys are read, and watches begun at another replica list again here"
                );
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn resume(&self, cluster_id: u64, revision: Revision) -> Result<Follow, FollowConfigError> {
        self.client.follow(FollowConfig {
            start: Some(Resume { cluster_id, revision, known: Vec::new() }),
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

    async fn run(mut self, mut follow: Follow) {
        loop {
            let restart = self.follow(&mut follow).await;
            self.say(&restart.to_string(), "following etcd anew");
            follow = loop {
                tokio::time::sleep(TRY_AGAIN).await;
                match self.begin(Some(&restart)).await {
                    Ok((follow, _)) => break follow,
                    Err(error) => self.say(&error.to_string(), "etcd cannot be followed yet, trying again"),
                }
            };
        }
    }

    async fn follow(&mut self, follow: &mut Follow) -> Restart {
        let mut fill = Fill::new(1);
        loop {
            let event = tokio::select! {
                event = follow.next() => event,
                () = self.relist.notified() => return Restart::WentBack,
            };
            // A follower ends only with its runtime.
            let Some(event) = event else { return std::future::pending().await };
            match &event {
                FollowEvent::Reset { reason, .. } => return Restart::Reset(reason.clone()),
                FollowEvent::Interrupted { reason } => {
                    self.say(reason, "etcd is not reached; reads go on from memory");
                }
                // It is there: the next trouble is another one.
                _ => self.said.clear(),
            }
            for filled in fill.handle(event, |kv, _| verdict(&kv.key)) {
                // Lists are made by `begin` alone.
                let Filled::Apply(record) = filled else { continue };
                if let Err(restart) = self.take(record).await {
                    return restart;
                }
            }
        }
    }

    async fn take(&self, record: Record) -> Result<(), Restart> {
        if record.changes.is_empty() && record.revision <= self.keyspace.read(Keyspace::revision) {
            return Ok(());
        }
        let now = self.keyspace.now();
        self.keyspace.update(|keyspace| keyspace.apply(&record, now))?;
        self.guard_lineage(&record).await
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
