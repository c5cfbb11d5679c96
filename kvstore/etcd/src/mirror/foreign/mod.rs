//! A mirror of an etcd that is not Hawser's: its state under revisions of our own, so that nobody who watches here ever
//! notices which replica it was read from.
//!
//! docs/src/architecture/store.md has the rules; [`Chart`] brings the schema.

mod chart;
mod core;
#[cfg(test)]
mod core_tests;
mod source;
mod task;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use hawser_kvstore::{Identity, Keyspace, Limits, Revision, SharedKv};
use tokio::sync::{mpsc, watch};

pub use chart::{Chart, Plan, Signs, Source};

use super::keep::{self, Keeper};
use super::{Admit, Intake, Keeping, Mirror, MirrorDir, Shown};
use crate::client::{Client, Meter, Pace};
use crate::server::{Keyspaces, SharedKeyspace};
use task::Task;

/// Which cluster, how it is reached and read, and what of it to believe.
pub struct ForeignConfig {
    pub cluster: String,
    /// A client over a connection of its own: to another replica each time, if there is one.
    pub connect: Box<dyn FnMut() -> Client + Send>,
    pub chart: Box<dyn Chart>,
    /// Keys are as they are here.
    pub admit: Arc<dyn Admit>,
    /// Of the history.
    pub limits: Limits,
    pub intake: Intake,
    pub pace: Pace,
    pub keep: Option<MirrorDir>,
}

impl std::fmt::Debug for ForeignConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ForeignConfig").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// What there is to know of a foreign mirror beside what every mirror has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ForeignStatus {
    /// Its etcd's, not ours.
    pub cluster_id: Option<u64>,
    pub layout: Option<&'static str>,
    /// When its heartbeat last changed.
    pub beat_at: Option<Instant>,
    /// Kinds whose publisher has not said that they are complete.
    pub waits_for: Vec<&'static str>,
    /// Keys that its etcd has no more, and that are served on until the cluster is seen alive after it.
    pub held_back: usize,
    /// How often it was another etcd (another replica) than before.
    pub replica_changes: u64,
}

/// Of the configuration, what lasts.
struct Terms {
    cluster: String,
    admit: Arc<dyn Admit>,
    intake: Intake,
    meter: Meter,
    pace: Pace,
    keep: Option<MirrorDir>,
}

impl Mirror {
    /// Begins to follow an etcd that is not Hawser's. Registered as [`Mirror::start`] says. Never fails: what cannot be
    /// followed is said in the status.
    pub fn start_foreign(config: ForeignConfig, keyspaces: &Keyspaces) -> Self {
        let ForeignConfig { cluster, connect, chart, admit, limits, intake, pace, keep } = config;
        let meter = intake.meter();
        let config = Terms { cluster, admit, intake, meter: meter.clone(), pace, keep };
        let earlier = keyspaces.get(&config.cluster).filter(|_| config.cluster != keyspaces.own().name());
        let going_on = earlier.is_some();
        let keyspace = earlier
            .map(|handle| handle.keyspace().clone())
            .unwrap_or_else(|| SharedKeyspace::new(Keyspace::replica(new_identity(&config.cluster), limits)));
        let (shown, status) = watch::channel(Shown::default());
        let restored = match going_on {
            true => {
                renew(&config.cluster, &keyspace);
                false
            }
            false => task::restore(&config, &keyspace, &shown),
        };
        let (freeze, frozen) = watch::channel(false);
        let (asks, asked) = mpsc::channel(1);
        let keep = config.keep.clone().map(|dir| {
            let ended = Arc::new(AtomicBool::new(false));
            let changes = keyspace.subscribe();
            let keeper = Keeper {
                dir: dir.clone(),
                cluster: config.cluster.clone(),
                asks: asks.clone(),
                // Empty and not served, or as it is on disk.
                kept: (!going_on).then(|| *changes.borrow()),
                changes,
                shown: shown.clone(),
                ended: ended.clone(),
            };
            Keeping { dir, asks, ended, task: tokio::spawn(keeper.run()) }
        });
        let (cluster, intake) = (config.cluster.clone(), config.intake);
        let task = Task::new(config, connect, chart, keyspaces.clone(), keyspace.clone(), shown);
        if going_on || restored {
            task.register();
        }
        let task = tokio::spawn(task.run(asked, frozen));
        Self { keyspace, status, task, cluster, intake, meter, keep, freeze: Some(freeze) }
    }

    /// Of a foreign mirror: nothing of it changes any more, and what is on disk is the last that anyone saw, so that the
    /// next process can go on with its revisions.
    pub(super) async fn seal(&self, freeze: &watch::Sender<bool>) {
        let Some(Keeping { dir, asks, ended, .. }) = &self.keep else { return };
        freeze.send_replace(true);
        if self.keyspace.read(Keyspace::revision) == 0 {
            return;
        }
        let written = match keep::keep(dir, asks, ended).await {
            Some((_, Ok(()))) => {
                let (cluster_id, revision) = self.place();
                dir.seal(&self.cluster, cluster_id, revision)
            }
            Some((_, Err(error))) => Err(error),
            None => return,
        };
        if let Err(error) = written {
            let (cluster, dir) = (&self.cluster, dir.place());
            tracing::warn!(cluster, dir, %error, "the mirror's revisions cannot go on after a restart; agents list it again");
        }
    }

    fn place(&self) -> (u64, Revision) {
        self.keyspace.read(|keyspace| (keyspace.identity().cluster_id, keyspace.revision()))
    }
}

/// A lineage that nobody has seen.
fn new_identity(cluster: &str) -> Identity {
    Identity::new(cluster, rand::random(), 0)
}

/// The same entries in a new lineage: who has revisions of another life lists, and finds nothing new. O(keys).
fn renew(cluster: &str, keyspace: &SharedKeyspace) {
    let renewed = keyspace.update(|keyspace| {
        let state = keyspace.snapshot();
        let kvs: Vec<SharedKv> = state.kvs.iter().map(SharedKv::new).collect();
        keyspace.load(new_identity(cluster), state.revision.max(1), kvs)
    });
    if let Err(error) = renewed {
        tracing::error!(cluster, %error, "a mirror's state cannot be taken over; it is listed");
    }
}
