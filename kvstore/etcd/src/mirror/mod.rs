//! A mirror: another cluster's exported keyspace, held here with the origin's own revisions and cluster id.
//!
//! A watch begun at the origin resumes here, and the other way round. Stop is not remove: a mirror that is dropped
//! or cut off leaves the keyspace registered and served as it was last known.
//!
//! The origin is a Hawser server. A foreign etcd (each Cilium replica counts its own revisions) needs revisions of our
//! own in a lineage of our own; it will be another way to turn [`FollowEvent`]s into records, beside [`fill`].

pub(crate) mod fill;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hawser_kvstore::{ApplyError, Identity, KeyRange, KeyValue, Keyspace, Limits, RangeQuery, Revision};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::client::{
    Client, Follow, FollowConfig, FollowConfigError, FollowEvent, FollowState, FollowStatus, Order, Pace,
    Relist, Resume,
};
use crate::server::{KeyspaceHandle, Keyspaces, ReadOnlyWriter, SharedKeyspace};
use fill::{Fill, Filled};

/// After an origin said something that cannot be: it is listed again, but not at once.
const AFTER_NONSENSE: Duration = Duration::from_secs(5);
/// Reasons for refusal that are counted apart; more than an admission has, so that a map stays small whatever it says.
const MOST_REASONS: usize = 64;

/// Why an entry of another cluster is not taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One of a few; refusals are counted by it.
    pub reason: &'static str,
    /// For people: the entry and what is wrong with it.
    pub detail: String,
}

/// Asked about every entry before it is seen by anyone here.
pub trait Admit: Send + Sync + 'static {
    fn admit(&self, key: &[u8], value: &[u8]) -> Result<(), Refusal>;
}

impl<F> Admit for F
where
    F: Fn(&[u8], &[u8]) -> Result<(), Refusal> + Send + Sync + 'static,
{
    fn admit(&self, key: &[u8], value: &[u8]) -> Result<(), Refusal> {
        self(key, value)
    }
}

/// Which cluster, what of it, and what of that to believe.
pub struct MirrorConfig {
    pub cluster: String,
    /// Connected to the origin, or to any mirror of it.
    pub client: Client,
    /// What the origin lets us read. Disjoint.
    pub ranges: Vec<KeyRange>,
    pub admit: Arc<dyn Admit>,
    /// `quota_bytes` bounds what an origin can make us hold; what is beyond it is refused.
    pub limits: Limits,
    pub pace: Pace,
}

impl std::fmt::Debug for MirrorConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MirrorConfig")
            .field("cluster", &self.cluster)
            .field("ranges", &self.ranges)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorState {
    /// The origin was never reached.
    Connecting,
    /// A list is under way.
    Syncing,
    Synced,
    /// It was synced, and cannot be reached now; what is known is served.
    CutOff,
}

/// How a mirror is doing.
#[derive(Clone, Debug, PartialEq)]
pub struct MirrorStatus {
    pub state: MirrorState,
    pub cluster_id: Option<u64>,
    /// What is served here.
    pub revision: Revision,
    /// When the origin last said anything, if only that nothing is new.
    pub heard_at: Option<Instant>,
    pub keys: usize,
    pub relists: u64,
    pub reconnects: u64,
    /// Entries refused since the start, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    pub last_refusal: Option<String>,
    pub last_trouble: Option<String>,
}

/// A mirror at work; dropping it stops the following and leaves the data served.
#[derive(Debug)]
pub struct Mirror {
    keyspace: SharedKeyspace,
    status: watch::Receiver<Shown>,
    task: JoinHandle<()>,
}

/// The part of the status that the task keeps.
#[derive(Clone, Debug, Default)]
struct Shown {
    follow: Option<FollowStatus>,
    synced_once: bool,
    refused: BTreeMap<&'static str, u64>,
    last_refusal: Option<String>,
    last_trouble: Option<String>,
}

impl Mirror {
    /// Begins to follow. The keyspace is registered in `keyspaces` when the first list is complete, so that nobody
    /// takes "not yet known" for "empty". One that is registered already (an earlier mirror's) is gone on with.
    pub fn start(config: MirrorConfig, keyspaces: &Keyspaces) -> Result<Self, FollowConfigError> {
        // Never the own keyspace, which is a replica too when etcd keeps it.
        let earlier = keyspaces.get(&config.cluster).filter(|_| config.cluster != keyspaces.own().name());
        let earlier = earlier.map(|handle| handle.keyspace().clone());
        let start = earlier.as_ref().map(|keyspace| keyspace.read(position));
        let keyspace = earlier
            .unwrap_or_else(|| SharedKeyspace::new(Keyspace::replica(Identity::adopted(1), config.limits)));
        let follow = config.client.follow(follow_config(&config, start))?;
        let (shown, status) = watch::channel(Shown::default());
        let task = Task { config, keyspaces: keyspaces.clone(), keyspace: keyspace.clone(), shown };
        Ok(Self { keyspace, status, task: tokio::spawn(task.run(follow)) })
    }

    /// O(1).
    pub fn state(&self) -> MirrorState {
        let shown = self.status.borrow();
        state(shown.follow.as_ref().map(|follow| follow.state), shown.synced_once)
    }

    /// O(keys): it counts them.
    pub fn status(&self) -> MirrorStatus {
        let shown = self.status.borrow().clone();
        let count = RangeQuery { count_only: true, ..RangeQuery::new(KeyRange::all()) };
        let (revision, keys) = self
            .keyspace
            .read(|keyspace| (keyspace.revision(), keyspace.range(&count).map_or(0, |reply| reply.count)));
        let follow = shown.follow.as_ref();
        MirrorStatus {
            state: state(follow.map(|follow| follow.state), shown.synced_once),
            cluster_id: follow.and_then(|follow| follow.cluster_id),
            revision,
            heard_at: follow.and_then(|follow| follow.heard_at),
            keys,
            relists: follow.map_or(0, |follow| follow.relists),
            reconnects: follow.map_or(0, |follow| follow.reconnects),
            last_trouble: shown
                .last_trouble
                .or_else(|| follow.and_then(|follow| follow.last_trouble.clone())),
            refused: shown.refused,
            last_refusal: shown.last_refusal,
        }
    }

    /// Waits until `status` may have changed. Cancel safe.
    pub async fn changed(&mut self) {
        if self.status.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn state(follow: Option<FollowState>, synced_once: bool) -> MirrorState {
    match (follow, synced_once) {
        (Some(FollowState::Following), _) => MirrorState::Synced,
        (Some(FollowState::Listing), _) => MirrorState::Syncing,
        (_, true) => MirrorState::CutOff,
        (_, false) => MirrorState::Connecting,
    }
}

/// Where a replica stands, for its follower to go on from.
pub(crate) fn position(keyspace: &Keyspace) -> Resume {
    let cluster_id = keyspace.identity().cluster_id;
    Resume { cluster_id, revision: keyspace.revision(), known: Vec::new() }
}

fn follow_config(config: &MirrorConfig, start: Option<Resume>) -> FollowConfig {
    FollowConfig {
        start,
        order: Order::Total,
        relist: Relist::Whole,
        trust_progress: true,
        pace: config.pace.clone(),
        ..FollowConfig::new(config.ranges.clone())
    }
}

struct Task {
    config: MirrorConfig,
    keyspaces: Keyspaces,
    keyspace: SharedKeyspace,
    shown: watch::Sender<Shown>,
}

impl Task {
    async fn run(self, first: Follow) {
        let mut follow = first;
        if self.registered() {
            self.shown.send_modify(|shown| shown.synced_once = true);
        }
        loop {
            let error = self.follow(&mut follow).await;
            tracing::error!(cluster = self.config.cluster, %error, "the origin's state cannot be taken over; it is listed again");
            self.shown.send_modify(|shown| shown.last_trouble = Some(error.to_string()));
            tokio::time::sleep(AFTER_NONSENSE).await;
            match self.config.client.follow(follow_config(&self.config, None)) {
                Ok(again) => follow = again,
                // The same configuration was accepted when the mirror was started.
                Err(error) => return tracing::error!(%error, "a mirror cannot be started again"),
            }
        }
    }

    /// Until the origin says something that cannot be.
    async fn follow(&self, follow: &mut Follow) -> ApplyError {
        let mut fill = Fill::new(self.config.ranges.len());
        let mut status = follow.status();
        loop {
            let event = tokio::select! {
                event = follow.next() => event,
                Ok(()) = status.changed() => {
                    let now = status.borrow_and_update().clone();
                    self.shown.send_modify(|shown| {
                        shown.synced_once |= now.state == FollowState::Following;
                        shown.follow = Some(now);
                    });
                    continue;
                }
            };
            // A follower ends only with its runtime.
            let Some(event) = event else { return std::future::pending().await };
            if let FollowEvent::Reset { reason, cluster_id } = &event {
                tracing::info!(cluster = self.config.cluster, ?reason, cluster_id, "mirror lists its origin");
            }
            for filled in fill.handle(event, |kv, listed| self.admit(kv, listed)) {
                if let Err(error) = self.take(filled) {
                    return error;
                }
            }
        }
    }

    fn take(&self, filled: Filled) -> Result<(), ApplyError> {
        match filled {
            Filled::Load { cluster_id, revision, kvs } => {
                let identity = Identity::adopted(cluster_id);
                self.keyspace.update(|keyspace| keyspace.load(identity, revision, &kvs))?;
                if !self.registered() {
                    let writer = ReadOnlyWriter::new(&self.config.cluster);
                    self.keyspaces.add(KeyspaceHandle::new(
                        &self.config.cluster,
                        self.keyspace.clone(),
                        writer,
                    ));
                }
                self.shown.send_modify(|shown| shown.last_trouble = None);
                Ok(())
            }
            Filled::Apply(record) => {
                let now = self.keyspace.now();
                self.keyspace.update(|keyspace| {
                    match record.changes.is_empty() && record.revision <= keyspace.revision() {
                        true => Ok(()),
                        false => keyspace.apply(&record, now),
                    }
                })
            }
        }
    }

    fn registered(&self) -> bool {
        self.keyspaces.get(&self.config.cluster).is_some()
    }

    /// Bytes that would be held with `kv`. `listed`: those of the list before it.
    fn held_with(&self, kv: &KeyValue, listed: Option<usize>) -> usize {
        let new = fill::cost(kv);
        match listed {
            Some(listed) => listed + new,
            None => self.keyspace.read(|keyspace| {
                let before = keyspace.range(&RangeQuery::new(KeyRange::key(kv.key.clone())));
                let old =
                    before.ok().and_then(|reply| reply.kvs.first().map(|kv| fill::cost(kv))).unwrap_or(0);
                (keyspace.live_bytes() + new).saturating_sub(old)
            }),
        }
    }

    fn admit(&self, kv: &KeyValue, listed: Option<usize>) -> bool {
        let quota = self.config.limits.quota_bytes;
        let verdict = match self.held_with(kv, listed) > quota {
            true => Err(Refusal {
                reason: "quota",
                detail: format!(
                    "{}: the mirror of {} may hold {quota} bytes",
                    kv.key.escape_ascii(),
                    self.config.cluster
                ),
            }),
            false => self.config.admit.admit(&kv.key, &kv.value),
        };
        let Err(refusal) = verdict else { return true };
        tracing::debug!(
            cluster = self.config.cluster,
            refusal.reason,
            refusal.detail,
            "an entry was refused"
        );
        self.shown.send_modify(|shown| {
            if shown.refused.len() < MOST_REASONS || shown.refused.contains_key(refusal.reason) {
                *shown.refused.entry(refusal.reason).or_default() += 1;
            }
            shown.last_refusal = Some(refusal.detail);
        });
        false
    }
}
