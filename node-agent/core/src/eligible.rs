//! Whether a new connection may be sent to a backend now: the datapath's levels (`ebpf/logic`), told for people.

use hawser_model::{Affinity, ClusterRef, HealthWord};

use crate::health::{HealthWords, WordPlace};
use crate::services::{MergedBackend, MergedService};

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
/// The first level that has a backend is the eligible one: the preferred side and healthy, the other side and healthy,
/// then the same two with health ignored.
pub fn backends(service: &MergedService, own: &ClusterRef, health: &HealthWords) -> Vec<Vec<BackendStatus>> {
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
            let level = |s: &BackendStatus| level(service.affinity, s.cluster == *own, s.healthy);
            let best = statuses.iter().map(level).min();
            for status in &mut statuses {
                status.eligible = Some(level(status)) == best;
            }
            statuses
        })
        .collect()
}

fn level(affinity: Affinity, own: bool, healthy: bool) -> u8 {
    let preferred = match affinity {
        Affinity::None => true,
        Affinity::Local => own,
        Affinity::Remote => !own,
    };
    2 * u8::from(!healthy) + u8::from(!preferred)
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
