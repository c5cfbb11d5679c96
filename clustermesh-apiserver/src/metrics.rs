//! `/metrics`: what the tasks know already, as families. docs/src/reference/metrics.md says what each is for.
//!
//! Labels are clusters, reasons and roles, so the number of rows grows with the mesh's clusters and with nothing else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hawser_api::admin::LimitStatus;
use hawser_etcd::mirror::{ForeignStatus, MirrorState, MirrorStatus};
use hawser_etcd::server::{KeyspaceHandle, Keyspaces, ReaderStatus, WriteError, Writer};
use hawser_kvstore::{Op, Reply, Revision};
use hawser_model::{ClusterName, Peer};
use hawser_telemetry::{Family, Histogram, Labels, seconds_histogram};

use crate::board::Facts;
use crate::mirrors::Mirrors;
use crate::status;

/// An agent that said nothing for this long is not counted as reporting.
const REPORTING: Duration = Duration::from_secs(60);

/// Times every write of the own keyspace, whoever asks for it.
#[derive(Clone, Debug)]
pub struct Commits {
    took: Histogram,
    failed: Arc<std::sync::atomic::AtomicU64>,
}

impl Default for Commits {
    fn default() -> Self {
        Self { took: seconds_histogram(), failed: Arc::default() }
    }
}

impl Commits {
    /// The same keyspace, its writer timed.
    pub fn around(&self, handle: &KeyspaceHandle) -> KeyspaceHandle {
        let timed = Timed { inner: handle.clone(), commits: self.clone() };
        KeyspaceHandle::new(handle.name(), handle.keyspace().clone(), Arc::new(timed))
    }
}

struct Timed {
    inner: KeyspaceHandle,
    commits: Commits,
}

#[tonic::async_trait]
impl Writer for Timed {
    async fn write(&self, op: Op) -> Result<Reply, WriteError> {
        let asked = Instant::now();
        let result = self.inner.writer().write(op).await;
        self.commits.took.observe(asked.elapsed().as_secs_f64());
        if matches!(result, Err(WriteError::Unavailable(_))) {
            self.commits.failed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        result
    }
}

/// Nodes, services, endpoints, identities.
type Counts = [u32; 4];

/// What remains between two scrapes: what was counted, so that a mirror that did not change is not counted again.
#[derive(Debug, Default)]
pub struct Counted(Mutex<BTreeMap<ClusterName, (Revision, Counts)>>);

impl Counted {
    fn of(&self, mirrors: &Mirrors, peer: &ClusterName, revision: Revision) -> Counts {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, counts)) = counted.get(peer)
            && *at == revision
        {
            return *counts;
        }
        let counts = mirrors.counts(peer);
        counted.insert(peer.clone(), (revision, counts));
        counts
    }

    fn retain(&self, peers: &[RemoteStatus]) {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counted.retain(|name, _| peers.iter().any(|remote| remote.peer.cluster.name == *name));
    }
}

struct RemoteStatus {
    peer: Peer,
    status: Option<MirrorStatus>,
    reader: ReaderStatus,
    counts: Counts,
}

fn target(remote: &RemoteStatus) -> Labels {
    vec![("target_cluster", remote.peer.cluster.name.to_string())]
}

/// Everything of the connected clusters. Cost: the clusters, and the keys of those that changed since the last scrape.
pub fn remotes(mirrors: &Mirrors, counted: &Counted, now: Instant, wall: SystemTime) -> Vec<Family> {
    let remote = |(peer, status): (Peer, Result<MirrorStatus, String>)| {
        let status = status.ok();
        let revision = status.as_ref().map_or(0, |status| status.revision);
        let counts = counted.of(mirrors, &peer.cluster.name, revision);
        let reader = mirrors.readers().get(&peer.cluster.name).status();
        RemoteStatus { peer, status, reader, counts }
    };
    let remotes: Vec<_> = mirrors.status().into_iter().map(remote).collect();
    counted.retain(&remotes);
    let mut families = remote_families(&remotes, now, wall);
    families.extend(limit_families(&remotes));
    families.extend(cilium_families(&remotes, now));
    families
}

/// What only a cluster on Cilium has: a heartbeat in place of an answer, replicas that know nothing of each other.
fn cilium_families(remotes: &[RemoteStatus], now: Instant) -> Vec<Family> {
    let known = |value: &dyn Fn(&ForeignStatus) -> Option<f64>| -> Vec<_> {
        let row = |remote: &RemoteStatus| {
            let foreign = remote.status.as_ref()?.foreign.as_ref()?;
            Some((target(remote), value(foreign)?))
        };
        remotes.iter().filter_map(row).collect()
    };
    let age = |foreign: &ForeignStatus| Some(now.saturating_duration_since(foreign.beat_at?).as_secs_f64());
    vec![
        Family::gauge(
            "hawser_clustermesh_cilium_heartbeat_age",
            "Since the heartbeat of a cluster on Cilium last changed.",
        )
        .seconds()
        .rows(known(&age)),
        Family::gauge(
            "hawser_clustermesh_cilium_held_back_keys",
            "Keys that a cluster on Cilium has no more and that are served on until it is seen alive.",
        )
        .rows(known(&|foreign| Some(foreign.held_back as f64))),
        Family::counter(
            "hawser_clustermesh_cilium_replica_changes",
            "Times a cluster on Cilium was read from another of its replicas than before.",
        )
        .rows(known(&|foreign| Some(foreign.replica_changes as f64))),
    ]
}

fn remote_families(remotes: &[RemoteStatus], now: Instant, wall: SystemTime) -> Vec<Family> {
    let each = |value: &dyn Fn(&RemoteStatus) -> f64| -> Vec<_> {
        remotes.iter().map(|remote| (target(remote), value(remote))).collect()
    };
    let known = |value: &dyn Fn(&MirrorStatus) -> Option<f64>| -> Vec<_> {
        let row = |remote: &RemoteStatus| Some((target(remote), value(remote.status.as_ref()?)?));
        remotes.iter().filter_map(row).collect()
    };
    let ready = |remote: &RemoteStatus| {
        let synced = remote.status.as_ref().is_some_and(|status| status.state == MirrorState::Synced);
        f64::from(u8::from(synced))
    };
    let gauge = |name, help| Family::gauge(name, help);
    let counter = |name, help| Family::counter(name, help);
    vec![
        gauge("hawser_clustermesh_remote_clusters", "Connected clusters.").value(remotes.len() as f64),
        gauge(
            "hawser_clustermesh_remote_cluster_readiness_status",
            "Whether the mirror of a cluster is synced (1) or not (0).",
        )
        .rows(each(&ready)),
        gauge(
            "hawser_clustermesh_remote_cluster_last_heard",
            "Since a cluster last said anything, if only that nothing is new.",
        )
        .seconds()
        .rows(known(&|status| Some(status.heard_ago(now, wall)?.as_secs_f64()))),
        gauge("hawser_clustermesh_remote_cluster_keys", "Keys in the mirror of a cluster.")
            .rows(known(&|status| Some(status.keys as f64))),
        gauge("hawser_clustermesh_remote_cluster_nodes", "Nodes of a cluster.")
            .rows(each(&|r| r.counts[0].into())),
        gauge("hawser_clustermesh_remote_cluster_services", "Global services of a cluster.")
            .rows(each(&|r| r.counts[1].into())),
        gauge("hawser_clustermesh_remote_cluster_endpoints", "Endpoint addresses of a cluster.")
            .rows(each(&|r| r.counts[2].into())),
        gauge("hawser_clustermesh_remote_cluster_identities", "Identities of a cluster.")
            .rows(each(&|r| r.counts[3].into())),
        gauge("hawser_clustermesh_remote_cluster_revision", "Revision that is served of a cluster.")
            .rows(known(&|status| Some(status.revision as f64))),
        counter(
            "hawser_clustermesh_remote_cluster_relists",
            "Times a cluster was listed anew, after what it forgot.",
        )
        .rows(known(&|status| Some(status.relists as f64))),
        counter(
            "hawser_clustermesh_remote_cluster_reconnects",
            "Times the connection to a cluster was made anew.",
        )
        .rows(known(&|status| Some(status.reconnects as f64))),
        counter("hawser_clustermesh_refused", "Entries of a cluster that were refused, by reason.")
            .rows(refused(remotes)),
    ]
}

/// What of its limits a cluster uses, as one that is read and as one that reads.
fn limit_families(remotes: &[RemoteStatus]) -> Vec<Family> {
    let each = |value: &dyn Fn(&RemoteStatus) -> f64| -> Vec<_> {
        remotes.iter().map(|remote| (target(remote), value(remote))).collect()
    };
    let known = |value: &dyn Fn(&MirrorStatus) -> f64| -> Vec<_> {
        let row = |remote: &RemoteStatus| Some((target(remote), value(remote.status.as_ref()?)));
        remotes.iter().filter_map(row).collect()
    };
    let refused = remotes.iter().flat_map(|remote| by_reason(remote, remote.reader.refused.iter()));
    vec![
        Family::gauge("hawser_clustermesh_limit", "Limits of a cluster, as in cluster.yaml.")
            .rows(limits(remotes)),
        Family::gauge(
            "hawser_clustermesh_remote_cluster_held",
            "What the mirror of a cluster holds: keys and values.",
        )
        .bytes()
        .rows(known(&|status| status.bytes as f64)),
        Family::counter(
            "hawser_clustermesh_remote_cluster_paused",
            "Time that a cluster was not read for, because it was faster than its limits.",
        )
        .seconds()
        .rows(known(&|status| status.held_for.as_secs_f64())),
        Family::gauge("hawser_clustermesh_reader_connections", "Connections of a cluster that reads here.")
            .rows(each(&|remote| remote.reader.connections as f64)),
        Family::gauge("hawser_clustermesh_reader_watches", "Watches of a cluster that reads here.")
            .rows(each(&|remote| remote.reader.watches as f64)),
        Family::counter(
            "hawser_clustermesh_reader_refused",
            "What a cluster asked here and was refused, by the limit that it met.",
        )
        .rows(refused.collect::<Vec<_>>()),
    ]
}

fn limits(remotes: &[RemoteStatus]) -> Vec<(Labels, f64)> {
    let of = |remote: &RemoteStatus| {
        let limits = remote.status.as_ref().map(|status| status::limits(status, &remote.reader));
        let row = |limit: LimitStatus| {
            let mut labels = target(remote);
            labels.push(("limit", limit.name));
            (labels, limit.limit as f64)
        };
        limits.unwrap_or_default().into_iter().map(row).collect::<Vec<_>>()
    };
    remotes.iter().flat_map(of).collect()
}

fn by_reason<'a>(
    remote: &RemoteStatus,
    counts: impl Iterator<Item = (&'a &'static str, &'a u64)>,
) -> Vec<(Labels, f64)> {
    let row = |(reason, count): (&&'static str, &u64)| {
        let mut labels = target(remote);
        labels.push(("reason", (*reason).to_owned()));
        (labels, *count as f64)
    };
    counts.map(row).collect()
}

fn refused(remotes: &[RemoteStatus]) -> Vec<(Labels, f64)> {
    let of =
        |remote: &RemoteStatus| by_reason(remote, remote.status.iter().flat_map(|status| &status.refused));
    remotes.iter().flat_map(of).collect()
}

/// What is served, and to how many. Cost: the keyspaces.
pub fn served(keyspaces: &Keyspaces, commits: &Commits) -> Vec<Family> {
    let all: Vec<_> =
        keyspaces.all().iter().map(|handle| (handle.name().to_owned(), handle.stats())).collect();
    let each = |value: &dyn Fn(&hawser_etcd::server::Stats) -> u64| -> Vec<(Labels, f64)> {
        let row = |(name, stats): &(String, _)| (vec![("keyspace", name.clone())], value(stats) as f64);
        all.iter().map(row).collect()
    };
    let own = keyspaces.own().keyspace();
    let (revision, bytes) = own.read(|keyspace| (keyspace.revision(), keyspace.live_bytes()));
    let failed = commits.failed.load(std::sync::atomic::Ordering::Relaxed);
    vec![
        Family::gauge("hawser_clustermesh_watchers", "Watches open now, by whose keyspace they watch.")
            .rows(each(&|stats| stats.open_watches)),
        Family::counter(
            "hawser_clustermesh_events",
            "Events sent to watchers; each counts as often as it was sent.",
        )
        .rows(each(&|stats| stats.events)),
        Family::counter(
            "hawser_clustermesh_watchers_cut",
            "Watches ended because their reader fell behind the history.",
        )
        .rows(each(&|stats| stats.fell_behind)),
        Family::counter(
            "hawser_clustermesh_range_requests",
            "Range requests: a client that resumes its watch makes none.",
        )
        .rows(each(&|stats| stats.ranges)),
        Family::counter("hawser_clustermesh_write_requests", "Write requests of clients.")
            .rows(each(&|stats| stats.writes)),
        Family::gauge("hawser_clustermesh_store_revision", "Revision of the own keyspace.")
            .value(revision as f64),
        Family::gauge(
            "hawser_clustermesh_store_live",
            "Keys and values of the own keyspace, without history.",
        )
        .bytes()
        .value(bytes as f64),
        Family::histogram(
            "hawser_clustermesh_store_commit",
            "From a write that was asked for to its being durable.",
            commits.took.clone(),
        ),
        Family::counter(
            "hawser_clustermesh_store_commit_failures",
            "Writes that the store could not make durable.",
        )
        .value(failed as f64),
    ]
}

/// Nodes that divide probes among them, and what they find down together.
pub fn sharing((nodes, down): (usize, usize)) -> Vec<Family> {
    vec![
        Family::gauge(
            "hawser_clustermesh_sharing_nodes",
            "Nodes of this cluster that divide the probing of remote nodes with this replica's help.",
        )
        .value(nodes as f64),
        Family::gauge(
            "hawser_clustermesh_sharing_down_nodes",
            "Remote nodes that those find down, at least one of them.",
        )
        .value(down as f64),
    ]
}

/// What this cluster exports, and whether it is well.
pub fn own(
    facts: &Facts,
    ends: [(&'static str, Option<hawser_model::Timestamp>); 3],
    now: Instant,
) -> Vec<Family> {
    let reporting = facts.nodes.values().filter_map(|node| node.reported);
    let reporting = reporting.filter(|at| now.saturating_duration_since(*at) <= REPORTING).count();
    let problems = [
        ("source", facts.source_problems.len()),
        ("export", facts.export_problems.len()),
        ("heartbeat", usize::from(facts.heartbeat_problem.is_some())),
        ("writeback", usize::from(facts.writeback_problem.is_some())),
    ];
    let exported = [
        ("nodes", facts.nodes.len() as f64),
        ("services", facts.services.into()),
        ("endpoints", facts.endpoints.into()),
        ("identities", facts.identities.into()),
    ];
    let kind = |(kind, value): (&str, f64)| (vec![("kind", kind.to_owned())], value);
    let end = |(role, end): (&str, Option<hawser_model::Timestamp>)| {
        Some((vec![("role", role.to_owned())], end?.unix() as f64))
    };
    vec![
        Family::gauge("hawser_clustermesh_exported", "What this cluster exports, by kind.")
            .rows(exported.map(kind)),
        Family::gauge(
            "hawser_clustermesh_leader",
            "Whether this replica leads, and so exports (1), or not (0).",
        )
        .value(f64::from(u8::from(facts.leads))),
        Family::gauge(
            "hawser_clustermesh_source_synced",
            "Whether the source was read whole and is exported (1) or not (0).",
        )
        .value(f64::from(u8::from(facts.exported))),
        Family::gauge(
            "hawser_clustermesh_problems",
            "Problems that `hawser status` shows, by what they are of.",
        )
        .rows(problems.map(|(name, count)| kind((name, count as f64)))),
        Family::gauge(
            "hawser_clustermesh_agents_reporting",
            "Agents of this cluster that reported within a minute.",
        )
        .value(reporting as f64),
        Family::gauge(
            "hawser_clustermesh_certificate_expiry",
            "When a certificate of this server ends, in seconds since the epoch.",
        )
        .seconds()
        .rows(ends.into_iter().filter_map(end)),
    ]
}
