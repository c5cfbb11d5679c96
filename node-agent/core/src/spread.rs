//! Where a service's clients are sent, cluster by cluster: tiers and weights out of what its annotations ask for.
//!
//! The datapath uses the lowest tier that has a healthy backend (`ebpf/logic`). A cluster's place is compared part by part:
//! clusters without a share come last, then counts the affinity's side, then the place in the order.

use std::collections::{BTreeMap, BTreeSet};

use hawser_ebpf_abi::TIERS;
use hawser_model::{Affinity, ClusterRef, Fallback, Routing};

use crate::services::MergedPort;

/// What one cluster takes of a port's clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) tier: u8,
    pub(crate) weight: u16,
}

/// Whether a cluster has no weight, the affinity's side, the place in the order.
type Rank = (bool, bool, usize);

/// By cluster, those that are never used left out. One family: a dual-stack port is spread twice. O(clusters × order).
pub(crate) fn spread(
    own: &ClusterRef,
    routing: &Routing,
    port: &MergedPort,
    v4: bool,
) -> BTreeMap<ClusterRef, Share> {
    let strengths = port.slices.iter().map(|(cluster, backends)| {
        (cluster, backends.iter().filter(|backend| backend.ip.is_ipv4() == v4).count())
    });
    let strengths: Vec<_> = strengths.filter(|(_, backends)| *backends > 0).collect();
    let most = strengths.iter().map(|(_, backends)| *backends).max().unwrap_or(0);
    // The own cluster's backends are those that Kubernetes calls ready: nobody else judges them.
    let here = strengths.iter().find(|(cluster, _)| *cluster == own).map_or(0, |(_, backends)| *backends);
    let helped = routing.min_healthy.is_some_and(|min| !min.is_met(here, most));
    let ranks: BTreeMap<&ClusterRef, Rank> = strengths
        .iter()
        .filter_map(|(cluster, _)| Some((*cluster, rank(own, routing, cluster, helped)?)))
        .collect();
    let distinct: BTreeSet<Rank> = ranks.values().copied().collect();
    let tiers: BTreeMap<Rank, u8> =
        distinct.into_iter().zip((0..TIERS).chain(std::iter::repeat(TIERS - 1))).collect();
    let share = |(cluster, backends): &(&ClusterRef, usize)| {
        let even = (*backends).min(Routing::MAX_WEIGHT.into()) as u16;
        let weight = routing.weights.get(&cluster.name).copied().filter(|weight| *weight > 0).unwrap_or(even);
        Some(((*cluster).clone(), Share { tier: *tiers.get(ranks.get(cluster)?)?, weight }))
    };
    strengths.iter().filter_map(share).collect()
}

/// None when the cluster is not to be used at all. `helped`: the own cluster is too weak to be preferred, so it stands
/// beside the first of the others.
fn rank(own: &ClusterRef, routing: &Routing, cluster: &ClusterRef, helped: bool) -> Option<Rank> {
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
    Some((unweighted, other_side, place))
}
