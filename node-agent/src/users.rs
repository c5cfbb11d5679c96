//! What users' connections to each node came to, as the kernel counts them, looked at for the probing task.
//!
//! In a mesh of up to [`SMALL`] nodes every node's counters are read twice in a probing interval (a system call each, about a
//! microsecond); in a larger one those of nodes that were used in the last minute, and everybody's every ten seconds.

use std::collections::BTreeMap;
use std::time::Duration;

use hawser_agent_core::Agent;
use hawser_discovery::{NodeId, RECENTLY, Users};
use hawser_model::Time;

use crate::datapath::Datapath;

const SMALL: usize = 256;
const EVERYBODY: Duration = Duration::from_secs(10);
/// However short the interval of probes is.
const LEAST: Duration = Duration::from_millis(25);

/// When the counters are looked at.
pub(crate) fn ticks(sampling: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(sampling.max(LEAST));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}

/// What the last looks saw.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    known: BTreeMap<NodeId, Known>,
    everybody: Option<Time>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    users: Users,
    changed: Option<Time>,
    /// The probing task knows these.
    told: bool,
    /// It was told of a change, and not yet that there was none since.
    moving: bool,
}

impl Sampler {
    /// What the probing task is to be told. Nothing while the maps are being written.
    pub(crate) fn look(&mut self, agent: &Agent, datapath: &Datapath, now: Time) -> Vec<(NodeId, Users)> {
        let probed = &agent.plan().probed;
        let due = self.everybody.is_none_or(|at| now.since(at) >= EVERYBODY);
        let everybody = probed.len() <= SMALL || due;
        let lately = |node: &NodeId| {
            let known = self.known.get(node).and_then(|known| known.changed);
            known.is_some_and(|at| now.since(at) < RECENTLY)
        };
        let nodes = probed.keys().filter(|node| everybody || lately(node));
        let slots = nodes.map(|node| (*node, agent.slots().get(*node))).filter(|(_, slot)| *slot != 0);
        let Some(found) = datapath.users(slots) else { return Vec::new() };
        if due {
            self.everybody = Some(now);
            self.known.retain(|node, _| probed.contains_key(node));
        }
        self.take(found, now)
    }

    /// Counters that changed, those before them when they were never told, and once those that did no more.
    fn take(&mut self, found: Vec<(NodeId, Users)>, now: Time) -> Vec<(NodeId, Users)> {
        let mut tell = Vec::new();
        for (node, users) in found {
            let fresh = Known { users, changed: None, told: false, moving: false };
            let known = self.known.entry(node).or_insert(fresh);
            if known.users == users && !known.moving {
                continue;
            }
            known.moving = known.users != users;
            if !std::mem::replace(&mut known.told, true) {
                tell.push((node, known.users));
            }
            if known.moving {
                (known.users, known.changed) = (users, Some(now));
            }
            tell.push((node, users));
        }
        tell
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawser_model::{ClusterId, ClusterIdWidth, NodeIndex};

    #[test]
    fn a_change_is_told_with_what_was_before_and_its_end_once() {
        let cluster = ClusterId::new(2, ClusterIdWidth::Bits8).unwrap();
        let node = NodeId { cluster, index: NodeIndex::new(1).unwrap() };
        let users = |established| Users { established, ..Users::default() };
        let mut sampler = Sampler::default();
        let mut look = |established| {
            let told = sampler.take(vec![(node, users(established))], Time::ZERO);
            told.into_iter().map(|(_, users)| users.established).collect::<Vec<_>>()
        };
        // An earlier agent's counters are no news.
        assert_eq!(look(7), [0; 0]);
        assert_eq!(look(7), [0; 0]);
        assert_eq!(look(9), [7, 9]);
        assert_eq!(look(10), [10]);
        assert_eq!(look(10), [10]);
        assert_eq!(look(10), [0; 0]);
        assert_eq!(look(12), [12]);
    }
}
