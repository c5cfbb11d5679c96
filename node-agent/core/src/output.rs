//! What the agent's core says to its shell: plans, outputs, deadlines.

use std::collections::BTreeMap;

use hawser_discovery::{NodeId, Reflector};
use hawser_ebpf_abi::DesiredDatapath;
use hawser_model::{ClusterName, Time};
use hawser_tunnels::Desired;

#[cfg(doc)]
use crate::Agent;
use crate::flips::Flip;
use crate::health::WordWrite;

/// What everything should be, from one view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// None only before the first plan.
    pub tunnels: Option<Desired>,
    pub datapath: DesiredDatapath,
    /// Whom to probe, once the tunnels are there.
    pub probed: BTreeMap<NodeId, Reflector>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Follow this cluster's keyspace from its beginning; a follower that exists is replaced.
    Follow(ClusterName),
    Unfollow(ClusterName),
    Word(WordWrite),
    /// Write these at once, but not while a reconcile is under way: that has an older plan.
    Flip(Flip),
    /// End connections that are over and say nothing themselves.
    Sweep,
    /// The own keyspace cannot be read, and there is no plan to say so: what an earlier run left in the kernel is old.
    OwnStale,
    /// Put the guards of [`Agent::guards`] where they are missing, and take nothing away.
    Guard,
    /// Look at the engine's peers, then say with [`Agent::handle_seen`] what was seen, and with [`Agent::handle_nodes_heard`] whom liveness
    /// heard when.
    LookAtPeers,
    /// Bring everything to [`Agent::plan`], then say how it went with [`Agent::handle_reconciled`].
    Reconcile,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    Debounce,
    FirstPlan,
    OwnStale,
    Drained,
    /// A withdrawn backend's grace is over.
    Withdrawn,
    /// A cluster's keyspace was not heard for long.
    Unread,
    Retry,
    Resync,
    Sweep,
    /// Clusters that did not come back with the others are down again like any other.
    Rejoined,
    /// A node is silent that can be tried elsewhere.
    Endpoint,
    /// The same, by another gateway.
    Gateway,
    /// A guard of what is gone has rested.
    Guard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline {
    pub at: Time,
    pub timer: Timer,
}
