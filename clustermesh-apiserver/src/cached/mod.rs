//! What Cilium's agents in this very cluster read: every mirror at once, in the cached layout, as KVStoreMesh has it
//! (cilium-facts §1.2).
//!
//! A keyspace of its own, in memory: it counts its own revisions in a lineage that begins with the process, so an agent that comes to
//! another replica lists anew, as it does at Cilium's. Cost: for every key of every mirror its bytes once more, and nothing while
//! `cachedLayout` is off.

mod fill;
mod layout;
mod task;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hawser_etcd::server::{KeyspaceHandle, Keyspaces, ReadOnlyWriter, SharedKeyspace};
use hawser_kvstore::{Identity, Keyspace, Limits, Op, Put};
use hawser_wire::{encode_heartbeat, prefix};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::own::Own;
use crate::trust::now;

/// The keyspace's name. No cluster can have it, so nothing but a `local-` certificate leads there, or the metadata of an admin.
pub const KEYSPACE: &str = "_cached";
/// Agents take a cluster without one for dead after two minutes.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// How often it is looked which clusters there are.
const LOOK: Duration = Duration::from_secs(1);

/// The cached layout, kept in step with the mirrors.
#[derive(Clone, Debug)]
pub struct Cached {
    config: Arc<Config>,
    own: Own,
    keyspaces: Keyspaces,
    cache: SharedKeyspace,
    /// Between a cluster's going and its data's (cilium-facts §1.12).
    linger: Duration,
}

impl Cached {
    /// KVStoreMesh's.
    pub const LINGER: Duration = Duration::from_secs(180);

    /// Serves it from now on, empty.
    pub fn new(config: Arc<Config>, own: Own, keyspaces: Keyspaces, linger: Duration) -> Self {
        let identity = Identity::new(KEYSPACE, rand::random(), 0);
        // What it may hold is bounded where it comes from.
        let limits = Limits { quota_bytes: usize::MAX, ..Limits::default() };
        let cache = SharedKeyspace::new(Keyspace::new(identity, limits));
        let this = Self { config, own, keyspaces, cache, linger };
        this.beat();
        let writer = ReadOnlyWriter::new(KEYSPACE);
        this.keyspaces.add(KeyspaceHandle::new(KEYSPACE, this.cache.clone(), writer));
        this
    }

    /// Until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        let mut look = tokio::time::interval(LOOK);
        let mut tasks = JoinSet::new();
        let mut followed = BTreeSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = heartbeat.tick() => self.beat(),
                Some(ended) = tasks.join_next() => match ended {
                    Ok(name) => _ = followed.remove(&name),
                    // Nothing of it may be told any more for true: whoever reads goes elsewhere, or waits.
                    Err(error) => {
                        tracing::error!(%error, "a cluster of the cached layout is no longer followed; the layout is no longer served");
                        self.keyspaces.remove(KEYSPACE);
                        return stop.cancelled().await;
                    }
                },
                _ = look.tick() => {
                    for mirror in self.keyspaces.all() {
                        let name = mirror.name().to_owned();
                        let is_mirror = name != KEYSPACE && name != self.config.cluster.name.as_str();
                        if is_mirror && followed.insert(name.clone()) {
                            tasks.spawn(task::follow(self.clone(), name));
                        }
                    }
                }
            }
        }
    }

    fn beat(&self) {
        self.apply(vec![Op::Put(Put::new(prefix::HEARTBEAT, encode_heartbeat(now())))]);
    }

    /// Each at a revision of its own; readers see them in parts when there are many. Cost: the operations.
    fn apply(&self, ops: Vec<Op>) {
        const AT_ONCE: usize = 1_000;
        for ops in ops.chunks(AT_ONCE) {
            let time = self.cache.now();
            self.cache.update(|cache| {
                for op in ops {
                    // Puts and deletes without conditions, below every quota.
                    if let Err(error) = cache.execute(op, time) {
                        tracing::error!(%error, "the cached layout misses a change");
                    }
                }
                cache.publish();
            });
        }
    }
}
