//! `/metrics` of the agent: what `hawser status` says, summed up by cluster. docs/src/reference/metrics.md names each.
//!
//! Labels are clusters, reasons and maps: a mesh of 25,000 nodes makes no more rows than one of 25.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use hawser_api::local::{StatusReply, TunnelStatus};
use hawser_ebpf::LruUse;
use hawser_ebpf_abi::{DesiredDatapath, ServiceSpec, maglev_slots, map, size};
use hawser_model::{ClusterHealth, HealthWord};
use hawser_telemetry::{Family, Histogram, Labels, seconds_histogram};

/// What the loop counts.
#[derive(Clone, Debug)]
pub(crate) struct Meters {
    pub up: u64,
    pub down: u64,
    pub unknown: u64,
    pub reconcile: Histogram,
    pub reconcile_failures: u64,
}

impl Default for Meters {
    fn default() -> Self {
        Self { up: 0, down: 0, unknown: 0, reconcile: seconds_histogram(), reconcile_failures: 0 }
    }
}

impl Meters {
    pub(crate) fn flip(&mut self, to: ClusterHealth) {
        match to {
            ClusterHealth::Up => self.up += 1,
            ClusterHealth::Down => self.down += 1,
            ClusterHealth::Unknown => self.unknown += 1,
        }
    }
}

/// Everything at one moment.
#[derive(Debug)]
pub(crate) struct Observation {
    pub status: StatusReply,
    pub meters: Meters,
    /// None while the datapath has problems.
    pub maps: Option<Vec<MapFill>>,
    /// Whether the last reconcile did all it had to; none before the first.
    pub reconciled: Option<bool>,
}

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapFill {
    name: &'static str,
    entries: usize,
    most: u32,
    /// Of an LRU map, which is full at some time and then forgets.
    forgotten: Option<u64>,
}

impl MapFill {
    pub(crate) fn of_lru(of: &LruUse) -> Self {
        let entries = usize::try_from(of.made.min(of.size.into())).unwrap_or(usize::MAX);
        Self { name: of.map, entries, most: of.size, forgotten: Some(of.forgotten()) }
    }
}

/// What a service takes of `backends`.
fn slots(service: &ServiceSpec) -> usize {
    let lens = service.slices.values().map(|slice| slice.backends.len());
    if service.maglev { lens.map(maglev_slots).sum() } else { lens.sum() }
}

/// Of the maps that grow with the mesh. Cost: the services.
pub(crate) fn fills(datapath: &DesiredDatapath) -> Vec<MapFill> {
    let slices = || datapath.services.values().flat_map(|service| service.slices.values());
    let fill = |name, entries, most| MapFill { name, entries, most, forgotten: None };
    vec![
        fill(map::SERVICES, datapath.services.len(), size::SERVICES),
        fill(map::SLICES, slices().count(), size::SLICES),
        fill(map::BACKENDS, datapath.services.values().map(slots).sum(), size::BACKENDS),
        fill(map::IPCACHE, datapath.ipcache.len(), size::IPCACHE),
        fill(map::ENDPOINTS, datapath.endpoints.len(), size::ENDPOINTS),
        fill(map::EXPORTED, datapath.exported.len(), size::EXPORTED),
        fill(map::FRONTENDS, datapath.frontends.len(), size::FRONTENDS),
        fill(map::RESET_WISHES, datapath.reset_wishes.len(), size::RESET_WISHES),
    ]
}

/// Bytes by cluster that only grow, though peers come and go and a peer's own count begins anew with its session.
#[derive(Debug, Default)]
pub(crate) struct Traffic(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    /// By public key, as they were at the last scrape: received, sent.
    last: BTreeMap<String, (u64, u64)>,
    total: BTreeMap<String, (u64, u64)>,
}

impl Traffic {
    /// Received and sent by cluster. Cost: the tunnels.
    fn take(&self, tunnels: &[TunnelStatus]) -> BTreeMap<String, (u64, u64)> {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = std::mem::take(&mut counted.last);
        for tunnel in tunnels {
            let (rx, tx) = last.get(&tunnel.public_key).copied().unwrap_or_default();
            let since = |now: u64, then: u64| now.checked_sub(then).unwrap_or(now);
            let total = counted.total.entry(tunnel.cluster.clone()).or_default();
            total.0 += since(tunnel.rx_bytes, rx);
            total.1 += since(tunnel.tx_bytes, tx);
            counted.last.insert(tunnel.public_key.clone(), (tunnel.rx_bytes, tunnel.tx_bytes));
        }
        counted.total.clone()
    }
}

pub(crate) fn families(seen: &Observation, traffic: &Traffic, certificate_ends: Option<i64>) -> Vec<Family> {
    let mut families = clusters(&seen.status);
    families.extend(tunnels(&seen.status, traffic));
    families.extend(liveness(seen));
    families.extend(node(seen, certificate_ends));
    families
}

fn target(cluster: &str) -> Labels {
    vec![("target_cluster", cluster.to_owned())]
}

fn clusters(status: &StatusReply) -> Vec<Family> {
    let each = |value: &dyn Fn(&hawser_api::local::ClusterStatus) -> Option<f64>| -> Vec<_> {
        status.clusters.iter().filter_map(|c| Some((target(&c.name), value(c)?))).collect()
    };
    let remote = status.clusters.iter().filter(|cluster| !cluster.own).count();
    let up = |word: &str| match word {
        "up" => Some(1.0),
        "down" => Some(0.0),
        _ => None,
    };
    vec![
        Family::gauge("hawser_agent_remote_clusters", "Connected clusters.").value(remote as f64),
        Family::gauge(
            "hawser_agent_cluster_synced",
            "Whether a cluster's keyspace was read whole (1) or not (0).",
        )
        .rows(each(&|c| Some(f64::from(u8::from(c.synced))))),
        Family::gauge(
            "hawser_agent_cluster_up",
            "Whether packets to a cluster arrive (1) or not (0); absent when not known.",
        )
        .rows(each(&|c| if c.own { None } else { up(&c.data_plane) })),
        Family::gauge("hawser_agent_cluster_last_heard", "Since a cluster's keyspace last said anything.")
            .seconds()
            .rows(each(&|c| seconds(c.heard_ms_ago))),
        Family::gauge("hawser_agent_cluster_nodes", "Nodes of a cluster.")
            .rows(each(&|c| Some(c.nodes.into()))),
        Family::gauge("hawser_agent_cluster_services", "Global services of a cluster.")
            .rows(each(&|c| Some(c.services.into()))),
        Family::gauge("hawser_agent_cluster_endpoints", "Endpoint addresses of a cluster.")
            .rows(each(&|c| Some(c.endpoints.into()))),
        Family::gauge("hawser_agent_cluster_identities", "Identities of a cluster.")
            .rows(each(&|c| Some(c.identities.into()))),
    ]
}

/// Milliseconds of the status, where -1 is none.
fn seconds(ms: i64) -> Option<f64> {
    (ms >= 0).then_some(ms as f64 / 1e3)
}

fn tunnels(status: &StatusReply, traffic: &Traffic) -> Vec<Family> {
    let mut by_cluster: BTreeMap<&str, Vec<&TunnelStatus>> = BTreeMap::new();
    // Those to gateways of the own cluster, and a gateway's to its nodes, are probed by nobody.
    for tunnel in status.tunnels.iter().filter(|tunnel| tunnel.cluster != status.cluster) {
        by_cluster.entry(&tunnel.cluster).or_default().push(tunnel);
    }
    let count = |is: &dyn Fn(&TunnelStatus) -> bool| -> Vec<_> {
        let of = |tunnels: &[&TunnelStatus]| tunnels.iter().filter(|tunnel| is(tunnel)).count() as f64;
        by_cluster.iter().map(|(cluster, tunnels)| (target(cluster), of(tunnels))).collect()
    };
    let spread = |value: &dyn Fn(&TunnelStatus) -> Option<f64>| -> Vec<_> {
        by_cluster.iter().flat_map(|(cluster, tunnels)| stats(cluster, tunnels, value)).collect()
    };
    let rtt = |tunnel: &TunnelStatus| (tunnel.rtt_us >= 0).then_some(tunnel.rtt_us as f64 / 1e6);
    let traffic = traffic.take(&status.tunnels);
    let bytes = |which: &dyn Fn(&(u64, u64)) -> u64| -> Vec<_> {
        traffic.iter().map(|(cluster, both)| (target(cluster), which(both) as f64)).collect()
    };
    vec![
        Family::gauge("hawser_agent_tunnels", "Tunnels to nodes of a cluster.").rows(count(&|_| true)),
        Family::gauge("hawser_agent_tunnels_up", "Of those, the ones whose far end answers probes.")
            .rows(count(&|tunnel| tunnel.health == "up")),
        Family::gauge(
            "hawser_agent_tunnels_grey",
            "Of those, the ones that get less of what is new: users fail there, or large packets do not arrive.",
        )
        .rows(count(&|tunnel| {
            tunnel.health == "up" && tunnel.weight < u32::from(HealthWord::FULL_WEIGHT)
        })),
        Family::gauge("hawser_agent_tunnel_last_handshake", "Since the tunnels of a cluster shook hands.")
            .seconds()
            .rows(spread(&|tunnel| seconds(tunnel.last_handshake_ms_ago))),
        Family::gauge(
            "hawser_agent_tunnel_rtt",
            "Smoothed round trip of liveness probes through the tunnels of a cluster.",
        )
        .seconds()
        .rows(spread(&rtt)),
        Family::counter(
            "hawser_agent_tunnel_received",
            "Carried by the tunnels of a cluster, as UDP payload.",
        )
        .bytes()
        .rows(bytes(&|both| both.0)),
        Family::counter("hawser_agent_tunnel_sent", "Carried by the tunnels of a cluster, as UDP payload.")
            .bytes()
            .rows(bytes(&|both| both.1)),
    ]
}

/// The least, the middle and the most: three rows a cluster, however many nodes it has.
fn stats(
    cluster: &str,
    tunnels: &[&TunnelStatus],
    value: &dyn Fn(&TunnelStatus) -> Option<f64>,
) -> Vec<(Labels, f64)> {
    let mut values: Vec<f64> = tunnels.iter().filter_map(|tunnel| value(tunnel)).collect();
    values.sort_by(f64::total_cmp);
    let (Some(min), Some(max)) = (values.first(), values.last()) else { return Vec::new() };
    let row = |(stat, value): (&str, f64)| {
        let mut labels = target(cluster);
        labels.push(("stat", stat.to_owned()));
        (labels, value)
    };
    [("min", *min), ("median", values[values.len() / 2]), ("max", *max)].map(row).into()
}

fn liveness(seen: &Observation) -> Vec<Family> {
    let (status, meters) = (&seen.status, &seen.meters);
    let one = |label, value: &str, count: u64| (vec![(label, value.to_owned())], count as f64);
    let probing = status.probing.as_ref();
    vec![
        Family::counter(
            "hawser_agent_liveness_flips",
            "Changes of mind about nodes and clusters, by the new verdict.",
        )
        .rows([
            one("to", "up", meters.up),
            one("to", "down", meters.down),
            one("to", "unknown", meters.unknown),
        ]),
        Family::gauge("hawser_agent_probed_nodes", "Remote nodes by why this one asks them, and how often.")
            .rows(probing.iter().flat_map(|probing| {
                [
                    one("kind", "use", probing.watched.into()),
                    one("kind", "cluster", probing.shared.into()),
                    one("kind", "itself", probing.others.into()),
                ]
            })),
        Family::gauge(
            "hawser_agent_probe_sharers",
            "Nodes of this cluster that divide the probing of remote nodes; 0: each asks for itself.",
        )
        .rows(probing.map(|probing| (Vec::new(), f64::from(probing.sharers)))),
        Family::counter("hawser_agent_health_word_writes", "Health words written to the maps.").rows([
            one("kind", "cluster", status.cluster_word_writes),
            one("kind", "node", status.node_word_writes),
        ]),
    ]
}

fn node(seen: &Observation, certificate_ends: Option<i64>) -> Vec<Family> {
    let (status, meters) = (&seen.status, &seen.meters);
    let reasons = status.reasons.iter().map(|count| {
        let verdict = if count.drop { "drop" } else { "pass" };
        (vec![("reason", count.reason.clone()), ("verdict", verdict.to_owned())], count.packets as f64)
    });
    let maps = seen.maps.as_deref().unwrap_or_default();
    let fill = |value: &dyn Fn(&MapFill) -> Option<f64>| -> Vec<_> {
        let row = |fill: &MapFill| Some((vec![("map_name", fill.name.to_owned())], value(fill)?));
        maps.iter().filter_map(row).collect()
    };
    let kind = |kind: &str| vec![("role", kind.to_owned())];
    vec![
        Family::counter(
            "hawser_agent_packets",
            "Packets and connections by the reason for what was done with them.",
        )
        .rows(reasons),
        Family::gauge(
            "hawser_agent_bpf_map_entries",
            "Entries of a map; absent while the datapath has problems.",
        )
        .rows(fill(&|fill| Some(fill.entries as f64))),
        Family::gauge("hawser_agent_bpf_map_pressure", "How full a map is, of 1, that must not be full.")
            .rows(fill(&|fill| fill.forgotten.is_none().then(|| fill.entries as f64 / f64::from(fill.most)))),
        Family::counter(
            "hawser_agent_bpf_map_forgotten",
            "About how many entries a map let go to make room, the oldest first.",
        )
        .rows(fill(&|fill| fill.forgotten.map(|forgotten| forgotten as f64))),
        Family::histogram("hawser_agent_reconcile", "How long reconciles took.", meters.reconcile.clone()),
        Family::counter("hawser_agent_reconcile_failures", "Reconciles that could not do all they had to.")
            .value(meters.reconcile_failures as f64),
        Family::gauge("hawser_agent_services", "Global services of the mesh.").value(status.services.into()),
        Family::gauge("hawser_agent_local_pods", "Pods of this node that the mesh knows.")
            .value(status.local_pods.into()),
        Family::gauge("hawser_agent_problems", "Problems that `hawser status` shows.")
            .value(status.problems.len() as f64),
        Family::gauge(
            "hawser_agent_certificate_expiry",
            "When this node's certificate ends, in seconds since the epoch.",
        )
        .seconds()
        .rows(certificate_ends.map(|ends| (kind("agent"), ends as f64))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawser_api::local::Probing;
    use hawser_telemetry::{documented, lint, process_families, render};

    const PAGE: &str = include_str!("../../docs/src/reference/metrics.md");

    fn tunnel(node: u32, rtt_us: i64, rx_bytes: u64) -> TunnelStatus {
        TunnelStatus {
            cluster: "eu-west".into(),
            node: format!("node-{node}"),
            public_key: format!("key-{node}"),
            last_handshake_ms_ago: -1,
            health: if rtt_us >= 0 { "up" } else { "down" }.into(),
            rtt_us,
            rx_bytes,
            ..TunnelStatus::default()
        }
    }

    fn observation(tunnels: Vec<TunnelStatus>) -> Observation {
        let probing = Some(Probing { watched: 7, shared: 90, others: 3, sharers: 4, ..Probing::default() });
        let status = StatusReply { tunnels, probing, ..StatusReply::default() };
        let mut maps = fills(&DesiredDatapath::default());
        maps.push(MapFill::of_lru(&LruUse { map: map::FLOWS, size: 1_000, made: 1_234 }));
        let maps = Some(maps);
        Observation { status, meters: Meters::default(), maps, reconciled: Some(true) }
    }

    fn text(seen: &Observation, traffic: &Traffic) -> String {
        let mut all = process_families("0.0.0");
        all.extend(families(seen, traffic, Some(5)));
        render(all).unwrap()
    }

    #[test]
    fn every_metric_is_on_its_page_and_the_page_names_no_other() {
        let text = text(&observation(vec![tunnel(1, 250, 10)]), &Traffic::default());
        assert_eq!(lint(&text), [""; 0]);
        assert_eq!(documented(&text, PAGE, &["hawser_clustermesh_"]), [""; 0]);
        assert!(text.contains("hawser_agent_probed_nodes{kind=\"cluster\"} 90"), "{text}");
        assert!(text.contains("hawser_agent_bpf_map_pressure{map_name=\"services\"} 0"), "{text}");
        assert!(text.contains("hawser_agent_bpf_map_forgotten_total{map_name=\"flows\"} 234"), "{text}");
        assert!(!text.contains("hawser_agent_bpf_map_pressure{map_name=\"flows\"}"), "{text}");
    }

    #[test]
    fn a_thousand_nodes_make_no_more_rows_than_two() {
        let rows = |nodes: u32| {
            let tunnels = (0..nodes).map(|node| tunnel(node, i64::from(node), 1)).collect();
            text(&observation(tunnels), &Traffic::default()).lines().count()
        };
        assert_eq!(rows(2), rows(1_000));
    }

    #[test]
    fn carried_bytes_only_grow_whatever_peers_come_and_go() {
        let traffic = Traffic::default();
        let received = |tunnels: Vec<TunnelStatus>| traffic.take(&tunnels).get("eu-west").map(|both| both.0);
        assert_eq!(received(vec![tunnel(1, 0, 100), tunnel(2, 0, 50)]), Some(150));
        assert_eq!(received(vec![tunnel(1, 0, 120)]), Some(170), "the second one went");
        assert_eq!(received(vec![tunnel(1, 0, 10)]), Some(180), "the first one began anew");
        assert_eq!(received(vec![]), Some(180));
    }

    #[test]
    fn a_cluster_is_summed_up_as_its_best_its_middle_and_its_worst_tunnel() {
        let seen =
            observation(vec![tunnel(1, 100, 0), tunnel(2, -1, 0), tunnel(3, 900, 0), tunnel(4, 300, 0)]);
        let text = text(&seen, &Traffic::default());
        for (stat, value) in [("min", "0.0001"), ("median", "0.0003"), ("max", "0.0009")] {
            let row = format!(
                "hawser_agent_tunnel_rtt_seconds{{target_cluster=\"eu-west\",stat=\"{stat}\"}} {value}\n"
            );
            assert!(text.contains(&row), "{row}\n{text}");
        }
        assert!(text.contains("hawser_agent_tunnels{target_cluster=\"eu-west\"} 4"), "{text}");
        assert!(text.contains("hawser_agent_tunnels_up{target_cluster=\"eu-west\"} 3"), "{text}");
    }
}
