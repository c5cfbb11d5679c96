//! Leases: which keys die together, and when. Deadlines are data; nobody waits here.

use crate::kv::LeaseId;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Default)]
pub(crate) struct Leases {
    leases: BTreeMap<LeaseId, Lease>,
    deadlines: BTreeSet<(Duration, LeaseId)>,
}

struct Lease {
    ttl: i64,
    deadline: Duration,
    keys: BTreeSet<Bytes>,
}

/// What `LeaseTimeToLive` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseStatus {
    /// Granted, in seconds.
    pub ttl: i64,
    /// Left at `now`.
    pub remaining: Duration,
    /// In order.
    pub keys: Vec<Bytes>,
}

/// When [`crate::Keyspace::handle_time`] has something to do, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    LeaseExpiry(Duration),
}

impl Deadline {
    pub fn at(self) -> Duration {
        let Self::LeaseExpiry(at) = self;
        at
    }
}

/// All operations are O(log leases + log keys of the lease).
impl Leases {
    pub(crate) fn len(&self) -> usize {
        self.leases.len()
    }

    pub(crate) fn contains(&self, id: LeaseId) -> bool {
        self.leases.contains_key(&id)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = (LeaseId, i64)> {
        self.leases.iter().map(|(&id, lease)| (id, lease.ttl))
    }

    /// Granting one that exists keeps its keys and starts its time again.
    pub(crate) fn grant(&mut self, id: LeaseId, ttl: i64, now: Duration) {
        let keys = self.remove(id).unwrap_or_default();
        let deadline = now.saturating_add(seconds(ttl));
        self.deadlines.insert((deadline, id));
        self.leases.insert(id, Lease { ttl, deadline, keys });
    }

    pub(crate) fn remove(&mut self, id: LeaseId) -> Option<BTreeSet<Bytes>> {
        let lease = self.leases.remove(&id)?;
        self.deadlines.remove(&(lease.deadline, id));
        Some(lease.keys)
    }

    /// Starts the lease's time again and tells its TTL.
    pub(crate) fn keep_alive(&mut self, id: LeaseId, now: Duration) -> Option<i64> {
        let lease = self.leases.get_mut(&id)?;
        self.deadlines.remove(&(lease.deadline, id));
        lease.deadline = now.saturating_add(seconds(lease.ttl));
        self.deadlines.insert((lease.deadline, id));
        Some(lease.ttl)
    }

    /// No effect for lease 0, or one that is not known here (a replica knows only the ids its keys carry).
    pub(crate) fn attach(&mut self, id: LeaseId, key: &Bytes) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys.insert(key.clone());
        }
    }

    pub(crate) fn detach(&mut self, id: LeaseId, key: &Bytes) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys.remove(key);
        }
    }

    pub(crate) fn keys(&self, id: LeaseId) -> Option<&BTreeSet<Bytes>> {
        self.leases.get(&id).map(|lease| &lease.keys)
    }

    pub(crate) fn ttl(&self, id: LeaseId) -> Option<i64> {
        self.leases.get(&id).map(|lease| lease.ttl)
    }

    pub(crate) fn status(&self, id: LeaseId, now: Duration) -> Option<LeaseStatus> {
        let lease = self.leases.get(&id)?;
        Some(LeaseStatus {
            ttl: lease.ttl,
            remaining: lease.deadline.saturating_sub(now),
            keys: lease.keys.iter().cloned().collect(),
        })
    }

    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|&(at, _)| at)
    }

    pub(crate) fn expired(&self, now: Duration) -> Vec<LeaseId> {
        self.deadlines.iter().take_while(|&&(at, _)| at <= now).map(|&(_, id)| id).collect()
    }
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}
