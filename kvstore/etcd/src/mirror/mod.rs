//! A mirror: another cluster's exported keyspace, held here with the origin's own revisions and cluster id.
//!
//! A watch begun at the origin resumes here, and the other way round. Stop is not remove: a mirror that is dropped
//! or cut off leaves the keyspace registered and served as it was last known; one with a [`MirrorDir`] does so across
//! restarts of the process, too.
//!
//! The origin is a Hawser server, or, in `foreign`, any other etcd (each Cilium replica counts its own revisions).

pub(crate) mod fill;
mod foreign;
pub(crate) mod intake;
mod keep;
#[cfg(test)]
mod keep_tests;
mod task;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hawser_kvstore::{Identity, KeyRange, Keyspace, Limits, Revision};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::client::{Client, FollowConfigError, FollowState, FollowStatus, HeldBy, Meter, Pace, Resume};
use crate::server::{Keyspaces, SharedKeyspace};
pub use foreign::{Chart, ForeignConfig, ForeignStatus, Plan, Signs, Source};
pub use intake::{BYTE_LIMIT, Intake, KEY_LIMIT, VALUE_LIMIT};
use keep::Keeper;
pub use keep::MirrorDir;
use task::Task;

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
    /// Of the history. What may be held is `intake`'s to say.
    pub limits: Limits,
    pub intake: Intake,
    /// What it may say is not what it was when the keyspace was filled: list, also where it could go on.
    pub afresh: bool,
    pub pace: Pace,
    /// Where its state outlives this process.
    pub keep: Option<MirrorDir>,
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
    /// It was read from disk, and the origin was not reached since; what is known is served.
    Restored,
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
    /// The same of the process before, as its last snapshot has it.
    pub heard_before: Option<SystemTime>,
    /// What is on disk.
    pub kept_revision: Option<Revision>,
    /// Why that is not what is served.
    pub keep_trouble: Option<String>,
    pub keys: usize,
    pub bytes: usize,
    pub intake: Intake,
    pub relists: u64,
    pub reconnects: u64,
    /// Entries refused since the start, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    pub last_refusal: Option<String>,
    /// Some of what it says now is not here, because there is no room; and why, of the last one.
    pub crowded: Option<String>,
    /// Since when it has been faster than it is read. What is here is older by that at most.
    pub held: Option<(Instant, HeldBy)>,
    /// All the time that it was not read for.
    pub held_for: Duration,
    pub last_trouble: Option<String>,
    /// Of an etcd that is not Hawser's.
    pub foreign: Option<ForeignStatus>,
}

impl MirrorStatus {
    /// Since the origin last said anything: by the wall clock when it said it to the process before.
    pub fn heard_ago(&self, now: Instant, wall: SystemTime) -> Option<Duration> {
        let here = self.heard_at.map(|at| now.saturating_duration_since(at));
        // A clock that was set back says "just now"; the state says that it was not.
        here.or_else(|| self.heard_before.map(|at| wall.duration_since(at).unwrap_or_default()))
    }
}

/// A mirror at work; dropping it stops the following and leaves the data served.
#[derive(Debug)]
pub struct Mirror {
    keyspace: SharedKeyspace,
    status: watch::Receiver<Shown>,
    task: JoinHandle<()>,
    cluster: String,
    intake: Intake,
    /// Of all its followers, one after the other.
    meter: Meter,
    keep: Option<Keeping>,
    /// Of a foreign one: whoever sees its revisions may see them go on in the next process.
    freeze: Option<watch::Sender<bool>>,
}

#[derive(Debug)]
struct Keeping {
    dir: MirrorDir,
    asks: mpsc::Sender<keep::Ask>,
    ended: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

/// The part of the status that the task keeps.
#[derive(Clone, Debug, Default)]
struct Shown {
    follow: Option<FollowStatus>,
    synced_once: bool,
    restored: bool,
    heard_before: Option<SystemTime>,
    kept_revision: Option<Revision>,
    keep_trouble: Option<String>,
    refused: BTreeMap<&'static str, u64>,
    last_refusal: Option<String>,
    crowded: Option<String>,
    last_trouble: Option<String>,
    /// Of followers before this one.
    relists: u64,
    reconnects: u64,
    foreign: Option<ForeignStatus>,
}

impl Mirror {
    /// Begins to follow. The keyspace is registered in `keyspaces` when the first list is complete, so that nobody
    /// takes "not yet known" for "empty". One that is registered already (an earlier mirror's) is gone on with; else
    /// one that is kept on disk is registered at once. Cost: reading and admitting that, here.
    pub fn start(config: MirrorConfig, keyspaces: &Keyspaces) -> Result<Self, FollowConfigError> {
        Loaded::new(config, keyspaces).follow()
    }

    /// Starts many, as [`Mirror::start`] does each, on all cores: what is kept on disk is read, decoded and admitted here.
    /// They begin to follow when all is read: hundreds of handshakes would take the cores from what is waited for.
    /// Must be called in a tokio runtime.
    pub fn start_all(
        configs: Vec<MirrorConfig>,
        keyspaces: &Keyspaces,
    ) -> Vec<Result<Self, FollowConfigError>> {
        let runtime = tokio::runtime::Handle::current();
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(configs.len());
        let (results, configs) = (Mutex::new(Vec::new()), Mutex::new(configs.into_iter().enumerate()));
        let work = || {
            let _entered = runtime.enter();
            loop {
                let next = configs.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((place, config)) = next else { return };
                let loaded = Loaded::new(config, keyspaces);
                results.lock().unwrap_or_else(PoisonError::into_inner).push((place, loaded));
            }
        };
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_unstable_by_key(|(place, _)| *place);
        results.into_iter().map(|(_, loaded)| loaded.follow()).collect()
    }

    /// Writes what is not on disk yet, for a process that is about to end.
    pub async fn settle(&self) {
        if let Some(freeze) = &self.freeze {
            return self.seal(freeze).await;
        }
        let Some(Keeping { dir, asks, ended, .. }) = &self.keep else { return };
        let revision = self.keyspace.read(Keyspace::revision);
        if revision == 0 || self.status.borrow().kept_revision == Some(revision) {
            return;
        }
        if let Some((_, Err(error))) = keep::keep(dir, asks, ended).await {
            let (cluster, dir) = (&self.cluster, dir.place());
            tracing::warn!(cluster, dir, %error, "the mirror's last changes are not on disk; they are asked for again");
        }
    }

    /// Ends it for good: nothing of it stays on disk. The keyspace is the caller's to remove.
    /// Cost: removing a file, and writing one when that is just under way.
    pub fn forget(self) {
        if let Some(keep) = &self.keep {
            keep.dir.forget(&self.cluster, &keep.ended);
        }
    }

    /// O(1).
    pub fn state(&self) -> MirrorState {
        let shown = self.status.borrow();
        shown.state()
    }

    /// O(reasons for refusal).
    pub fn status(&self) -> MirrorStatus {
        let shown = self.status.borrow().clone();
        let (revision, held) = self.keyspace.read(|keyspace| (keyspace.revision(), task::held(keyspace)));
        let follow = shown.follow.as_ref();
        MirrorStatus {
            state: shown.state(),
            cluster_id: follow.and_then(|follow| follow.cluster_id),
            revision,
            heard_at: follow.and_then(|follow| follow.heard_at),
            heard_before: shown.heard_before,
            kept_revision: shown.kept_revision,
            keep_trouble: shown.keep_trouble,
            keys: held.keys,
            bytes: held.bytes,
            intake: self.intake,
            relists: shown.relists + follow.map_or(0, |follow| follow.relists),
            reconnects: shown.reconnects + follow.map_or(0, |follow| follow.reconnects),
            held: self.meter.held_since(),
            held_for: self.meter.held_for(),
            crowded: shown.crowded,
            last_trouble: shown
                .last_trouble
                .or_else(|| follow.and_then(|follow| follow.last_trouble.clone())),
            refused: shown.refused,
            last_refusal: shown.last_refusal,
            foreign: shown.foreign,
        }
    }

    /// Waits until `status` may have changed. Cancel safe.
    pub async fn changed(&mut self) {
        if self.status.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// A mirror with what is known of it, before it is served and follows.
struct Loaded {
    task: Task,
    status: watch::Receiver<Shown>,
    /// Where to go on; none: with a list.
    start: Option<Resume>,
    going_on: bool,
}

impl Loaded {
    fn new(config: MirrorConfig, keyspaces: &Keyspaces) -> Self {
        // Never the own keyspace, which is a replica too when etcd keeps it.
        let earlier = keyspaces.get(&config.cluster).filter(|_| config.cluster != keyspaces.own().name());
        let earlier = earlier.map(|handle| handle.keyspace().clone());
        let going_on = earlier.is_some();
        let keyspace = earlier
            .unwrap_or_else(|| SharedKeyspace::new(Keyspace::replica(Identity::adopted(1), config.limits)));
        let (shown, status) = watch::channel(Shown::default());
        // What an earlier mirror refused is not known here.
        let partial = going_on;
        let meter = config.intake.meter();
        let mut task = Task { config, meter, keyspaces: keyspaces.clone(), keyspace, shown, partial };
        let start = match going_on {
            true if task.config.afresh => None,
            true => Some(task.keyspace.read(task::position)),
            false => task.restore(),
        };
        Self { task, status, start, going_on }
    }

    fn follow(self) -> Result<Mirror, FollowConfigError> {
        let Self { task, status, start, going_on } = self;
        let follow = task.config.client.follow(task.follow_config(start))?;
        task.serve();
        let (asks, asked) = mpsc::channel(1);
        Ok(Mirror {
            keyspace: task.keyspace.clone(),
            status,
            cluster: task.config.cluster.clone(),
            intake: task.config.intake,
            meter: task.meter.clone(),
            keep: task.config.keep.clone().map(|dir| Keeping::start(dir, &task, asks, going_on)),
            freeze: None,
            task: tokio::spawn(task.run(follow, asked)),
        })
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(keep) = &self.keep {
            keep.task.abort();
        }
    }
}

impl Keeping {
    fn start(dir: MirrorDir, task: &Task, asks: mpsc::Sender<keep::Ask>, going_on: bool) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let changes = task.keyspace.subscribe();
        let keeper = Keeper {
            dir: dir.clone(),
            cluster: task.config.cluster.clone(),
            asks: asks.clone(),
            // Empty and not served, or as it is on disk. What an earlier mirror wrote is not known.
            kept: (!going_on).then(|| *changes.borrow()),
            changes,
            shown: task.shown.clone(),
            ended: ended.clone(),
        };
        Self { dir, asks, ended, task: tokio::spawn(keeper.run()) }
    }
}

impl Shown {
    fn state(&self) -> MirrorState {
        match self.follow.as_ref().map(|follow| follow.state) {
            Some(FollowState::Following) => MirrorState::Synced,
            Some(FollowState::Listing) => MirrorState::Syncing,
            _ if self.synced_once => MirrorState::CutOff,
            _ if self.restored => MirrorState::Restored,
            _ => MirrorState::Connecting,
        }
    }
}
