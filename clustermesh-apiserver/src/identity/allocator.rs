//! Labels to numbers: the lowest that is free, remembered by the keyspace itself.
//!
//! A number whose last pod went lingers under its labels, so that a restarted deployment is who it was, and then rests,
//! so that nobody who still remembers it takes a stranger for it. Cost: logarithmic per look-up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hawser_model::{ClusterId, ClusterIdWidth, IdentityId, Labels, Time};

/// How long an identity nobody carries stays published.
const LINGER: Duration = Duration::from_secs(300);
/// How long its number then stays unused.
const REST: Duration = Duration::from_secs(900);

#[derive(Debug, thiserror::Error)]
#[error("all {max} identities of cluster id {cluster} are in use; fix: let fewer labels make an identity")]
pub struct Exhausted {
    pub cluster: ClusterId,
    pub max: u32,
}

#[derive(Debug)]
pub struct Allocator {
    cluster: ClusterId,
    width: ClusterIdWidth,
    ids: BTreeMap<Labels, IdentityId>,
    numbers: BTreeSet<u32>,
    /// Since when nobody carries it.
    idle: BTreeMap<IdentityId, Time>,
    /// Until when a number is not given again.
    resting: BTreeMap<u32, Time>,
}

impl Allocator {
    /// `known` is what the keyspace holds: numbers of other clusters in it are passed over.
    pub fn new(
        cluster: ClusterId,
        width: ClusterIdWidth,
        known: impl IntoIterator<Item = (IdentityId, Labels)>,
        now: Time,
    ) -> Self {
        let mut allocator = Self {
            cluster,
            width,
            ids: BTreeMap::new(),
            numbers: BTreeSet::new(),
            idle: BTreeMap::new(),
            resting: BTreeMap::new(),
        };
        for (id, labels) in known {
            if id.belongs_to(cluster, width) {
                allocator.numbers.insert(id.local(width));
                // Should labels ever have two numbers, the later is an unused one that rests from now on.
                match allocator.ids.entry(labels) {
                    std::collections::btree_map::Entry::Vacant(free) => {
                        free.insert(id);
                        allocator.idle.insert(id, now);
                    }
                    std::collections::btree_map::Entry::Occupied(_) => {
                        allocator.numbers.remove(&id.local(width));
                        allocator.resting.insert(id.local(width), now + REST);
                    }
                }
            }
        }
        allocator
    }

    pub fn id_for(&mut self, labels: &Labels, now: Time) -> Result<IdentityId, Exhausted> {
        if let Some(id) = self.ids.get(labels) {
            return Ok(*id);
        }
        let max = (1u32 << (24 - self.width.bits())) - 1;
        let exhausted = || Exhausted { cluster: self.cluster, max };
        let free = |local: &u32| {
            !self.numbers.contains(local) && self.resting.get(local).is_none_or(|until| *until <= now)
        };
        let local = (1..=max).find(free).ok_or_else(exhausted)?;
        let id = IdentityId::new(self.cluster, self.width, local).map_err(|_| exhausted())?;
        self.resting.remove(&local);
        self.numbers.insert(local);
        self.ids.insert(labels.clone(), id);
        Ok(id)
    }

    /// Tells which identities are carried now; those that were not for long enough are let go.
    pub fn settle(&mut self, carried: &BTreeSet<IdentityId>, now: Time) {
        self.resting.retain(|_, until| *until > now);
        let (idle, resting, numbers) = (&mut self.idle, &mut self.resting, &mut self.numbers);
        let width = self.width;
        self.ids.retain(|_, id| {
            if carried.contains(id) {
                idle.remove(id);
                return true;
            }
            let since = *idle.entry(*id).or_insert(now);
            if now.since(since) < LINGER {
                return true;
            }
            idle.remove(id);
            numbers.remove(&id.local(width));
            resting.insert(id.local(width), now + REST);
            false
        });
    }

    /// When [`Allocator::settle`] next has something to let go.
    pub fn poll_deadline(&self) -> Option<Time> {
        self.idle.values().min().map(|since| *since + LINGER)
    }

    pub fn iter(&self) -> impl Iterator<Item = (IdentityId, &Labels)> {
        self.ids.iter().map(|(labels, id)| (*id, labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(app: &str) -> Labels {
        Labels::parse(&format!("k8s:app={app};")).unwrap()
    }

    fn at(seconds: u64) -> Time {
        Time::from_millis(seconds * 1000)
    }

    fn fresh() -> Allocator {
        let cluster = ClusterId::new(7, ClusterIdWidth::Bits8).unwrap();
        Allocator::new(cluster, ClusterIdWidth::Bits8, [], at(0))
    }

    #[test]
    fn the_same_labels_have_the_same_number_and_others_another() {
        let mut allocator = fresh();
        let cart = allocator.id_for(&labels("cart"), at(0)).unwrap();
        assert_eq!(cart.get(), (7 << 16) + 1);
        assert_eq!(allocator.id_for(&labels("cart"), at(9)).unwrap(), cart);
        assert_eq!(allocator.id_for(&labels("till"), at(9)).unwrap().get(), cart.get() + 1);
    }

    #[test]
    fn a_restart_remembers_what_the_keyspace_holds() {
        let mut first = fresh();
        for app in ["a", "b", "c"] {
            first.id_for(&labels(app), at(0)).unwrap();
        }
        let known: Vec<_> = first.iter().map(|(id, labels)| (id, labels.clone())).collect();
        let mut second = Allocator::new(first.cluster, first.width, known, at(0));
        for app in ["c", "a", "b"] {
            assert_eq!(
                second.id_for(&labels(app), at(1)).unwrap(),
                first.id_for(&labels(app), at(1)).unwrap()
            );
        }
    }

    #[test]
    fn a_number_lingers_then_rests_then_is_given_again() {
        let mut allocator = fresh();
        let cart = allocator.id_for(&labels("cart"), at(0)).unwrap();
        allocator.settle(&BTreeSet::from([cart]), at(0));
        allocator.settle(&BTreeSet::new(), at(10));
        assert_eq!(allocator.poll_deadline(), Some(at(310)));
        // Back within five minutes: who it was.
        assert_eq!(allocator.id_for(&labels("cart"), at(300)).unwrap(), cart);
        allocator.settle(&BTreeSet::new(), at(311));
        assert_eq!(allocator.iter().count(), 0);
        let till = allocator.id_for(&labels("till"), at(312)).unwrap();
        assert_ne!(till, cart, "it rests");
        let late = allocator.id_for(&labels("late"), at(312 + 900)).unwrap();
        assert_eq!(late, cart, "and is the lowest free one after that");
    }

    #[test]
    fn a_full_cluster_says_so() {
        let cluster = ClusterId::new(1, ClusterIdWidth::Bits9).unwrap();
        let known = (1..=32_767)
            .map(|n| (IdentityId::new(cluster, ClusterIdWidth::Bits9, n).unwrap(), labels(&n.to_string())));
        let mut allocator = Allocator::new(cluster, ClusterIdWidth::Bits9, known, at(0));
        let error = allocator.id_for(&labels("one-more"), at(0)).unwrap_err();
        assert!(error.to_string().contains("32767"), "{error}");
    }
}
