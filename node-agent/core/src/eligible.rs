//! Whether a new connection may be sent to a backend now: the datapath's tiers (`ebpf/logic`), told for people.

use hawser_model::{ClusterRef, HealthWord, OnLoss};

use crate::health::{HealthWords, WordPlace};
use crate::services::{MergedBackend, MergedService};
use crate::spread::{Group, spread};

/// A backend as status shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendStatus {
    pub cluster: ClusterRef,
    pub backend: MergedBackend,
    pub healthy: bool,
    pub eligible: bool,
}

/// For each port, in the order of the service's ports, every backend of every cluster.
///
/// The lowest tier that has a healthy backend is eligible, each family for itself; without any, the lowest tier with health
/// ignored. O(backends).
pub fn backends(service: &MergedService, own: &ClusterRef, health: &HealthWords) -> Vec<Vec<BackendStatus>> {
    let heeded = service.routing.on_data_plane_loss == OnLoss::Drain;
    service
        .ports
        .values()
        .map(|port| {
            let all = port.slices.iter().flat_map(|(c, backends)| backends.iter().map(move |b| (c, b)));
            let mut statuses: Vec<_> = all
                .map(|(cluster, backend)| BackendStatus {
                    cluster: cluster.clone(),
                    backend: backend.clone(),
                    healthy: is_healthy(cluster, backend, own, health),
                    eligible: false,
                })
                .collect();
            for v4 in [true, false] {
                let shares = spread(own, &service.routing, port, v4);
                let level = |s: &BackendStatus| {
                    let of = (s.cluster.clone(), Group::of(&s.backend));
                    let share = shares.get(&of).filter(|_| s.backend.ip.is_ipv4() == v4)?;
                    Some((heeded && !s.healthy, share.tier))
                };
                let best = statuses.iter().filter_map(level).min();
                for status in &mut statuses {
                    status.eligible |= best.is_some() && level(status) == best;
                }
            }
            statuses
        })
        .collect()
}

fn is_healthy(cluster: &ClusterRef, backend: &MergedBackend, own: &ClusterRef, health: &HealthWords) -> bool {
    let of_cluster =
        if cluster == own { HealthWord::UP } else { health.word(WordPlace::Cluster(cluster.id)) };
    let of_node = match backend.slot {
        0 => HealthWord::UP,
        slot => health.word(WordPlace::Node(slot)),
    };
    of_cluster.takes_new() && of_node.takes_new()
}
