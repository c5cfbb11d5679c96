//! How often each node may be asked, so that a node of any mesh sends at most [`MOST_PACKETS`] probes a second.
//!
//! ```text
//! W  watched nodes: used within the last 60 s, in the 64 clusters used most recently
//! S  its part of what the cluster's nodes watch for each other, W aside: about all remote nodes / nodes that share
//! R  all other nodes
//! i  the configured interval; a silent node is asked 4 times as often (LivenessConfig::HASTE)
//!
//! interval of a watched node   = max(i, 4 W / 3,600)      so that all of them may fall silent at once
//! interval of a shared node    = max(i, S / 160)          at half of what is left for them; the other half is for haste
//! interval of any other node   = max(i, R / 40)
//!   while nobody shares        = max(i, R / 200)
//! packets a second, at rest    = W / interval of the watched + S / of the shared + R / of the others
//! ```
//! In a mesh of up to 200 i nodes everybody is asked at the configured interval, used or not, and nothing is shared. The bounds hold by force as
//! well: probes of watched nodes leave at most 3,600 times a second, others 400 times, and what is too many waits.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hawser_model::{ClusterId, Time};

use crate::{LivenessConfig, NodeId};

pub const MOST_PACKETS: u32 = 4_000;
/// Of them for watched nodes.
pub const FOR_WATCHED: u32 = 3_600;
/// And for all others.
pub const FOR_OTHERS: u32 = MOST_PACKETS - FOR_WATCHED;
/// Of the rest, at rest: for what is watched for the others, while somebody shares.
const FOR_SHARED: u32 = 160;
pub const WATCHED_CLUSTERS: usize = 64;
/// A node that was used this recently is watched.
pub const RECENTLY: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    pub watched: BTreeSet<NodeId>,
    /// For the other nodes of its cluster.
    pub shared: BTreeSet<NodeId>,
    pub others: usize,
    /// Between two probes of a watched node, of a shared one, and of any other one.
    pub interval: Duration,
    pub interval_of_shared: Duration,
    pub interval_of_others: Duration,
}

impl Budget {
    /// Probes a second while everybody answers.
    pub fn packets_per_second(&self) -> f64 {
        let rate = |nodes: usize, interval: Duration| nodes as f64 / interval.as_secs_f64().max(1e-6);
        rate(self.watched.len(), self.interval)
            + rate(self.shared.len(), self.interval_of_shared)
            + rate(self.others, self.interval_of_others)
    }
}

/// The budget for these nodes, each with when it was last used. `mine`: those that this one watches for its colleagues, if
/// there are any. O(nodes).
pub fn budget(
    nodes: impl Iterator<Item = (NodeId, Option<Time>)>,
    mine: Option<&BTreeSet<NodeId>>,
    config: &LivenessConfig,
    now: Time,
) -> Budget {
    let mut all = 0;
    let mut used: BTreeMap<ClusterId, (Time, Vec<NodeId>)> = BTreeMap::new();
    for (node, last) in nodes {
        all += 1;
        let Some(last) = last.filter(|last| now.since(*last) < RECENTLY) else { continue };
        let cluster = used.entry(node.cluster).or_default();
        cluster.0 = cluster.0.max(last);
        cluster.1.push(node);
    }
    let mut clusters: Vec<_> = used.into_values().collect();
    clusters.sort_by_key(|(last, _)| std::cmp::Reverse(*last));
    let watched: BTreeSet<_> =
        clusters.into_iter().take(WATCHED_CLUSTERS).flat_map(|(_, nodes)| nodes).collect();
    let rest = all - watched.len();
    let stretched = |nodes: usize, rate: u32| {
        config.interval.max(Duration::from_secs_f64(nodes as f64 / f64::from(rate)))
    };
    let alone = stretched(rest, FOR_OTHERS / 2);
    // Where everybody can be asked, nobody needs colleagues for it.
    let mine = mine.filter(|_| alone > config.interval);
    let shared: BTreeSet<_> =
        mine.into_iter().flatten().filter(|node| !watched.contains(node)).copied().collect();
    let others = rest - shared.len();
    Budget {
        interval: stretched(watched.len() * LivenessConfig::HASTE as usize, FOR_WATCHED),
        interval_of_shared: stretched(shared.len(), FOR_SHARED),
        interval_of_others: if mine.is_some() {
            stretched(others, FOR_OTHERS / 2 - FOR_SHARED)
        } else {
            alone
        },
        watched,
        shared,
        others,
    }
}

/// Lets at most `rate` a second pass, with a tenth of a second's worth at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pacer {
    step: Duration,
    /// Up to here everything is given away.
    given: Time,
}

impl Pacer {
    const AT_ONCE: Duration = Duration::from_millis(100);

    pub(crate) fn new(rate: u32) -> Self {
        Self { step: Duration::from_secs(1) / rate, given: Time::ZERO }
    }

    /// Gives away the next place: now, or later.
    pub(crate) fn reserve(&mut self, now: Time) -> Time {
        let ahead = self.given.since(now);
        self.given = self.given.max(now) + self.step;
        now + ahead.saturating_sub(Self::AT_ONCE)
    }
}
