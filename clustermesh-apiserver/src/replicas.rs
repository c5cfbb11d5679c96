//! The replicas of one store: each has a key under [`REPLICAS`] while it lives, with the agents that it has heard, so that
//! any of them can answer for all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use hawser_api::admin::ReplicaStatus;
use hawser_etcd::server::WriteError;
use hawser_kvstore::LeaseId;
use hawser_model::{NodeName, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::board::{Board, Facts};
use crate::config::Config;
use crate::leader;
use crate::own::Own;

/// `<host>@<listen>`: `{"<node>": <seconds since the epoch>}`.
pub const REPLICAS: &str = "hawser/private/replicas/v1/";

/// One that is gone is remembered for so long.
const TTL_SECONDS: i64 = 60;
/// How often the lease is kept and what was heard is written; agents report every 20 s.
const EVERY: Duration = Duration::from_secs(15);
/// How soon an agent that was not heard here before is known to other replicas.
const LOOK: Duration = Duration::from_secs(1);
const RESIGN_WITHIN: Duration = Duration::from_secs(2);

/// This process among its like.
#[derive(Clone, Debug)]
pub struct Replica {
    host: String,
    listen: String,
    started: Instant,
    /// Others may share the store.
    shared: bool,
}

impl Replica {
    pub fn new(config: &Config, shared: bool) -> Self {
        let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
        let host = host.unwrap_or_else(|_| "unknown".to_owned());
        Self { host, listen: config.listen.to_string(), started: Instant::now(), shared }
    }

    /// For people: the machine's name and where it listens.
    pub fn name(&self) -> String {
        format!("{} ({})", self.host, self.listen)
    }

    /// In a key: two replicas on one machine differ by where they listen.
    pub fn key(&self) -> String {
        format!("{}@{}", self.host, self.listen)
    }

    pub fn status(&self, own: &Own, facts: &Facts, wall: SystemTime) -> ReplicaStatus {
        let name = self.name();
        let now = Timestamp::from_system(wall);
        let ms = |ago: Duration| i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
        let (leader, leader_ms_ago) = match leader::read(own) {
            _ if !self.shared => (name.clone(), ms(self.started.elapsed())),
            None => (String::new(), -1),
            Some((leader, since)) => (leader, since.map_or(-1, |since| ms(now.since(since)))),
        };
        let alive = own.list(REPLICAS).into_iter();
        let alive = alive.map(|kv| String::from_utf8_lossy(&kv.key[REPLICAS.len()..]).into_owned());
        let exports = facts.leads && facts.exported;
        ReplicaStatus { name, leader, leader_ms_ago, exports, replicas: alive.collect() }
    }

    /// Says that this replica is there and whom it has heard, until told to stop.
    pub async fn run(self, own: Own, board: Arc<Board>, stop: CancellationToken) {
        let mut kept = None;
        loop {
            let heard = heard(&board, Instant::now(), SystemTime::now());
            if kept.as_ref().is_none_or(|kept: &Kept| kept.is_due(&heard))
                && let Err(error) = self.say(&own, heard, &mut kept).await
            {
                tracing::debug!(%error, "which agents were heard here is not known to other replicas");
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        if let Some(Kept { lease, .. }) = kept {
            // Who cannot be told finds out by the lease.
            let _ = tokio::time::timeout(RESIGN_WITHIN, own.revoke_lease(lease)).await;
        }
    }

    async fn say(&self, own: &Own, heard: Heard, kept: &mut Option<Kept>) -> Result<(), WriteError> {
        let before = kept.take();
        let lease = match &before {
            Some(Kept { lease, .. }) if own.keep_lease(*lease).await.is_ok() => Some(*lease),
            _ => None,
        };
        let goes_on = lease.is_some() && before.is_some_and(|before| before.heard == heard);
        let lease = match lease {
            Some(lease) => lease,
            None => {
                let lease = rand::random_range(1..=LeaseId::MAX);
                own.grant_lease(lease, TTL_SECONDS).await?;
                lease
            }
        };
        if !goes_on {
            own.put_leased(&format!("{REPLICAS}{}", self.key()), print(&heard), lease).await?;
        }
        *kept = Some(Kept { lease, heard, at: Instant::now() });
        Ok(())
    }
}

/// What is written of this replica.
struct Kept {
    lease: LeaseId,
    heard: Heard,
    at: Instant,
}

impl Kept {
    /// An agent that was never heard here is news; when a known one spoke again can wait.
    fn is_due(&self, heard: &Heard) -> bool {
        self.at.elapsed() >= EVERY || !heard.keys().eq(self.heard.keys())
    }
}

type Heard = BTreeMap<NodeName, i64>;

fn heard(board: &Board, now: Instant, wall: SystemTime) -> Heard {
    let wall = Timestamp::from_system(wall).unix();
    let at = |at: Instant| wall - i64::try_from(now.saturating_duration_since(at).as_secs()).unwrap_or(wall);
    let nodes = board.read().nodes.into_iter();
    nodes.filter_map(|(name, facts)| Some((name, at(facts.reported?)))).collect()
}

fn print(heard: &Heard) -> Bytes {
    let text: BTreeMap<&str, i64> = heard.iter().map(|(node, at)| (node.as_str(), *at)).collect();
    serde_json::to_vec(&text).expect("a map of strings and numbers always prints").into()
}

/// How long ago each agent was heard last, by whichever replica. Cost: the nodes.
pub fn heard_ago(own: &Own, board: &Board, now: Instant, wall: SystemTime) -> BTreeMap<NodeName, Duration> {
    let mut newest = BTreeMap::new();
    let mut note = |node, ago: Duration| {
        let known = newest.entry(node).or_insert(ago);
        *known = ago.min(*known);
    };
    let seconds = Timestamp::from_system(wall).unix();
    for kv in own.list(REPLICAS) {
        let said: BTreeMap<String, i64> = serde_json::from_slice(&kv.value).unwrap_or_default();
        for (node, at) in said {
            let Ok(node) = NodeName::parse(&node) else { continue };
            note(node, Duration::from_secs(u64::try_from(seconds - at).unwrap_or(0)));
        }
    }
    for (node, facts) in board.read().nodes {
        if let Some(at) = facts.reported {
            note(node, now.saturating_duration_since(at));
        }
    }
    newest
}
