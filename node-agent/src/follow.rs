//! One follower per keyspace; what they hear comes out of one bounded channel.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use hawser_agent_core::Agent;
use hawser_etcd::client::{Client, FollowConfig, FollowEvent};
use hawser_kvstore::KeyRange;
use hawser_model::{ClusterName, Time};
use hawser_wire::prefix;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

/// What a follower heard.
#[derive(Debug)]
pub(crate) struct Heard {
    pub cluster: ClusterName,
    /// Which follower of this cluster; an older one's last words are not listened to.
    generation: u64,
    pub event: FollowEvent,
}

#[derive(Debug)]
struct Running {
    generation: u64,
    ranges: usize,
    /// Ranges listed since the list began.
    listed: usize,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
pub(crate) struct Followers {
    channel: Channel,
    own: ClusterName,
    heard: mpsc::Sender<Heard>,
    running: BTreeMap<ClusterName, Running>,
    generation: u64,
    /// The cluster's CAs are announced in its keyspace: that is when to ask for them.
    trust_news: Arc<Notify>,
}

/// Events waiting for the core; a follower that finds it full makes its server wait.
const QUEUE: usize = 4_096;

impl Followers {
    pub(crate) fn new(
        channel: Channel,
        own: ClusterName,
        trust_news: Arc<Notify>,
    ) -> (Self, mpsc::Receiver<Heard>) {
        let (heard, receiver) = mpsc::channel(QUEUE);
        (Self { channel, own, heard, running: BTreeMap::new(), generation: 0, trust_news }, receiver)
    }

    /// Follows from the beginning; replaces a follower that is there.
    pub(crate) fn follow(&mut self, cluster: &ClusterName) -> Result<()> {
        let ranges = ranges(cluster, *cluster == self.own);
        let count = ranges.len();
        // Hawser's API server answers progress requests in order.
        let config = FollowConfig { trust_progress: true, ..FollowConfig::new(ranges) };
        let client = Client::for_cluster(self.channel.clone(), cluster.as_str())?;
        let mut follow = client.follow(config).with_context(|| format!("following {cluster}"))?;
        self.generation += 1;
        let (generation, heard, name) = (self.generation, self.heard.clone(), cluster.clone());
        let task = tokio::spawn(async move {
            while let Some(event) = follow.next().await {
                if heard.send(Heard { cluster: name.clone(), generation, event }).await.is_err() {
                    return;
                }
            }
        });
        self.running.insert(cluster.clone(), Running { generation, ranges: count, listed: 0, task });
        Ok(())
    }

    pub(crate) fn unfollow(&mut self, cluster: &ClusterName) {
        self.running.remove(cluster);
    }

    /// Tells the core what was heard.
    pub(crate) fn tell(&mut self, agent: &mut Agent, heard: Heard, now: Time) {
        let cluster = heard.cluster;
        let Some(running) = self.running.get_mut(&cluster).filter(|r| r.generation == heard.generation)
        else {
            return;
        };
        match heard.event {
            FollowEvent::Reset { reason, .. } => {
                tracing::info!(%cluster, ?reason, "listing");
                running.listed = 0;
            }
            FollowEvent::Put { kv, .. } => {
                if cluster == self.own && kv.key.starts_with(prefix::TRUST.as_bytes()) {
                    self.trust_news.notify_one();
                }
                agent.handle_put(&cluster, &kv.key, &kv.value, now);
                agent.handle_heard(&cluster, None, now);
            }
            FollowEvent::Delete { key, .. } => {
                agent.handle_delete(&cluster, &key, now);
                agent.handle_heard(&cluster, None, now);
            }
            FollowEvent::Listed { revision, .. } => {
                running.listed += 1;
                if running.listed == running.ranges {
                    tracing::info!(%cluster, %revision, "listed");
                    agent.handle_listed(&cluster, revision, now);
                }
            }
            FollowEvent::Progress { revision } => agent.handle_heard(&cluster, Some(revision), now),
            FollowEvent::Interrupted { reason } => {
                let known = agent.view().cluster(&cluster).and_then(|view| view.interrupted.as_ref());
                if known != Some(&reason) {
                    tracing::warn!(%cluster, reason, "the keyspace cannot be read for now, its state is kept");
                }
                agent.handle_interrupted(&cluster, reason, now);
            }
        }
    }
}

/// What an agent reads. Of the own cluster also what never leaves it; never what is private to API servers.
fn ranges(cluster: &ClusterName, own: bool) -> Vec<KeyRange> {
    let mut ranges = vec![
        KeyRange::key(format!("{}{cluster}", prefix::CLUSTER_CONFIG)),
        KeyRange::prefix(format!("{}{cluster}/", prefix::SYNCED)),
        KeyRange::prefix(prefix::STATE),
        KeyRange::prefix(prefix::HAWSER_STATE),
    ];
    if own {
        ranges.push(KeyRange::prefix(prefix::HAWSER_LOCAL));
    }
    ranges
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
