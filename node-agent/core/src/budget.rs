//! What one remote cluster may take of the maps that all clusters share, so that none can fill them for the others.
//!
//! The own cluster has no bound: it is this one's own affair. `services` and `slices` need none either: a remote adds at
//! most one slice to each frontend, and frontends are the own cluster's.

use std::collections::BTreeMap;

use hawser_ebpf_abi::map::{BACKENDS, IPCACHE};
use hawser_ebpf_abi::{maglev_slots, size};
use hawser_model::{Algorithm, ClusterRef};

use crate::services::MergedService;

/// 262,144 / 8 = 32,768 slots. A slice that changes is written beside the old one, which rests for a while: a cluster that
/// changes everything at once takes twice its share, a quarter of the map.
pub(crate) const BACKENDS_SHARE: usize = size::BACKENDS as usize / 8;
/// 524,288 / 8 = 65,536 entries: a full /16 of pods. Entries are replaced in place, so this is all a cluster takes.
pub(crate) const IPCACHE_SHARE: usize = size::IPCACHE as usize / 8;

/// Leaves out what is over a remote cluster's share of `backends`: whole services, the later ones by namespace and name.
/// Gives what each cluster takes. O(backends).
pub(crate) fn limit_backends(
    own: &ClusterRef,
    services: &mut [MergedService],
    notes: &mut Vec<String>,
) -> BTreeMap<ClusterRef, usize> {
    let mut used = BTreeMap::<ClusterRef, usize>::new();
    // How many services, how many backends, and the first of them.
    let mut over = BTreeMap::<ClusterRef, (usize, usize, String)>::new();
    for service in services {
        for (cluster, cost) in costs(own, service) {
            let used = used.entry(cluster.clone()).or_default();
            if *used + cost <= BACKENDS_SHARE {
                *used += cost;
                continue;
            }
            for port in service.ports.values_mut() {
                port.slices.remove(&cluster);
            }
            let left_out = over.entry(cluster).or_insert_with(|| (0, 0, service.key.to_string()));
            left_out.0 += 1;
            left_out.1 += cost;
        }
    }
    notes.extend(over.into_iter().map(|(cluster, (services, backends, first))| {
        format!(
            "{cluster} states more than {BACKENDS_SHARE} backends, one cluster's share of the map {BACKENDS}: {services} of its services with {backends} backends are left out, the first one {first}. fix: share fewer or smaller services there"
        )
    }));
    used
}

/// Slots of `backends` that a service takes, by remote cluster: its programmed ports times its ClusterIPs.
pub(crate) fn costs(own: &ClusterRef, service: &MergedService) -> BTreeMap<ClusterRef, usize> {
    let v6 = service.cluster_ips.iter().filter(|ip| ip.is_ipv6()).count();
    let v4 = service.cluster_ips.len() - v6;
    let maglev = service.routing.algorithm == Algorithm::Maglev;
    let mut costs = BTreeMap::new();
    for port in service.ports.values().filter(|port| port.is_programmed()) {
        for (cluster, backends) in port.slices.iter().filter(|(cluster, _)| *cluster != own) {
            let of_v6 = backends.iter().filter(|backend| backend.ip.is_ipv6()).count();
            let slots = |backends| if maglev { maglev_slots(backends) } else { backends };
            let cost = slots(of_v6) * v6 + slots(backends.len() - of_v6) * v4;
            *costs.entry(cluster.clone()).or_insert(0) += cost;
        }
    }
    costs
}

/// One remote cluster's share of `ipcache` while it is filled.
pub(crate) struct IpcacheShare {
    left: usize,
    over: usize,
}

impl IpcacheShare {
    /// `claimed` entries are in whatever comes: the ranges it was admitted with.
    pub(crate) fn new(claimed: usize) -> Self {
        Self { left: IPCACHE_SHARE.saturating_sub(claimed), over: 0 }
    }

    /// Whether one more entry fits.
    pub(crate) fn take(&mut self) -> bool {
        let fits = self.left > 0;
        self.left = self.left.saturating_sub(1);
        self.over += usize::from(!fits);
        fits
    }

    pub(crate) fn note(&self, cluster: &ClusterRef) -> Option<String> {
        let over = self.over;
        (over > 0).then(|| {
            format!(
                "{cluster} states more than {IPCACHE_SHARE} addresses and ranges, one cluster's share of the map {IPCACHE}: {over} are left out and known by the range around them alone. fix: remove endpoints that are gone from its source"
            )
        })
    }
}
