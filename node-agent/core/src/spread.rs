//! Where a service's clients are sent: tiers and weights out of what its annotations ask for.
//!
//! The datapath uses the lowest tier that has a healthy backend (`ebpf/logic`). A cluster's backends are up to four groups, by
//! whether they drain and whether they are in the client's zone. A group's place is compared part by part: what drains comes
//! after everything else, then clusters without a share, then counts the affinity's side, then the place in the order, then
//! the zone.

use std::collections::{BTreeMap, BTreeSet};

use hawser_ebpf_abi::TIERS;
use hawser_model::{Affinity, ClusterRef, Fallback, Routing};

use crate::services::{MergedBackend, MergedPort};

/// What one group takes of a port's clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) tier: u8,
    pub(crate) weight: u16,
}

/// Backends of one cluster that are used alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Group {
    pub(crate) draining: bool,
    pub(crate) elsewhere: bool,
}

impl Group {
    pub(crate) fn of(backend: &MergedBackend) -> Self {
        Self { draining: backend.is_draining(), elsewhere: backend.elsewhere }
    }

    /// As `hawser_ebpf_abi::ServiceSpec` numbers them.
    pub(crate) fn number(self) -> u8 {
        u8::from(self.draining) << 1 | u8::from(self.elsewhere)
    }
}

/// Draining, whether the cluster has no weight, the affinity's side, the place in the order, another zone.
type Rank = (bool, bool, bool, usize, bool);

/// By cluster and group, those that are never used left out. One family: a dual-stack port is spread twice.
/// O(backends + clusters × order).
pub(crate) fn spread(
    own: &ClusterRef,
    routing: &Routing,
    port: &MergedPort,
    v4: bool,
) -> BTreeMap<(ClusterRef, Group), Share> {
    let mut sizes = BTreeMap::<(&ClusterRef, Group), usize>::new();
    let mut ready = BTreeMap::<&ClusterRef, usize>::new();
    for (cluster, backends) in &port.slices {
        for backend in backends.iter().filter(|backend| backend.ip.is_ipv4() == v4) {
            *sizes.entry((cluster, Group::of(backend))).or_default() += 1;
            *ready.entry(cluster).or_default() += usize::from(!backend.is_draining());
        }
    }
    let most = ready.values().copied().max().unwrap_or(0);
    // The own cluster's backends are those that Kubernetes calls ready: nobody else judges them.
    let here = ready.get(own).copied().unwrap_or(0);
    let helped = routing.min_healthy.is_some_and(|min| !min.is_met(here, most));
    let ranks: BTreeMap<(&ClusterRef, Group), Rank> = sizes
        .keys()
        .filter_map(|(cluster, group)| {
            Some(((*cluster, *group), rank(own, routing, cluster, helped, *group)?))
        })
        .collect();
    let tiers = tiers(ranks.values().copied().collect());
    let share = |(of, size): (&(&ClusterRef, Group), &usize)| {
        let (cluster, group) = *of;
        let even = (*size).min(Routing::MAX_WEIGHT.into()) as u16;
        let weight = routing.weights.get(&cluster.name).copied().filter(|weight| *weight > 0).unwrap_or(even);
        Some(((cluster.clone(), group), Share { tier: *tiers.get(ranks.get(of)?)?, weight }))
    };
    sizes.iter().filter_map(share).collect()
}

/// The last tier is for all that there is no tier left for, but what is ready never shares one with what drains.
fn tiers(ranks: BTreeSet<Rank>) -> BTreeMap<Rank, u8> {
    let (draining, ready): (Vec<_>, Vec<_>) = ranks.into_iter().partition(|rank| rank.0);
    let last = TIERS - 1 - u8::from(!draining.is_empty());
    let numbered = |ranks: Vec<Rank>, from: u8, last: u8| {
        ranks.into_iter().zip((from..last).chain(std::iter::repeat(last)))
    };
    let mut tiers: BTreeMap<Rank, u8> = numbered(ready, 0, last).collect();
    let from = tiers.values().max().map_or(0, |last| last + 1);
    tiers.extend(numbered(draining, from, TIERS - 1));
    tiers
}

/// None when the cluster is not to be used at all. `helped`: the own cluster is too weak to be preferred, so it stands
/// beside the first of the others.
fn rank(
    own: &ClusterRef,
    routing: &Routing,
    cluster: &ClusterRef,
    helped: bool,
    group: Group,
) -> Option<Rank> {
    let is_own = cluster == own;
    let place = routing.order.iter().position(|name| *name == cluster.name);
    let preferred_home = is_own && routing.affinity == Affinity::Local;
    if place.is_none() && !routing.order.is_empty() && routing.fallback == Fallback::None && !preferred_home {
        return None;
    }
    let place = if preferred_home { 0 } else { place.unwrap_or(routing.order.len()) };
    let unweighted =
        !routing.weights.is_empty() && routing.weights.get(&cluster.name).is_none_or(|w| *w == 0);
    let other_side = match routing.affinity {
        Affinity::None => false,
        Affinity::Local => !is_own && !helped,
        Affinity::Remote => is_own,
    };
    Some((group.draining, unweighted, other_side, place, group.elsewhere))
}
