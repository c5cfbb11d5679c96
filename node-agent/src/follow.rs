//! One follower per keyspace; what they hear comes out of one bounded channel.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use hawser_etcd::client::{Client, FollowConfig, FollowEvent};
use hawser_kvstore::KeyRange;
use hawser_model::ClusterName;
use hawser_wire::prefix;
use tokio::sync::mpsc;
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
}

/// Events waiting for the core; a follower that finds it full makes its server wait.
const QUEUE: usize = 4_096;

impl Followers {
    pub(crate) fn new(channel: Channel, own: ClusterName) -> (Self, mpsc::Receiver<Heard>) {
        let (heard, receiver) = mpsc::channel(QUEUE);
        (Self { channel, own, heard, running: BTreeMap::new(), generation: 0 }, receiver)
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

    /// Whether this comes from the follower of today.
    pub(crate) fn is_current(&self, heard: &Heard) -> bool {
        self.running.get(&heard.cluster).is_some_and(|running| running.generation == heard.generation)
    }

    /// Counts a range's list; true when it was the last one's.
    pub(crate) fn listed(&mut self, cluster: &ClusterName) -> bool {
        let Some(running) = self.running.get_mut(cluster) else { return false };
        running.listed += 1;
        running.listed >= running.ranges
    }

    pub(crate) fn reset(&mut self, cluster: &ClusterName) {
        if let Some(running) = self.running.get_mut(cluster) {
            running.listed = 0;
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
