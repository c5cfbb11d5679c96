//! What `hawser status` shows of this cluster, in the words of the API.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use hawser_api::admin::{CiliumOrigin, LimitStatus, NodeStatus, PeerStatus};
use hawser_etcd::client::HeldBy;
use hawser_etcd::mirror::{ForeignStatus, MirrorState, MirrorStatus};
use hawser_etcd::server::ReaderStatus;
use hawser_model::{NodeName, Peer};
use hawser_wire::{Context, Entry, Key, decode, prefix};

use crate::board::{Board, Facts};
use crate::config::Config;
use crate::exports::Exports;
use crate::mirrors::Mirrors;
use crate::own::Own;
use crate::replicas::heard_ago;

fn ms(ago: Option<Duration>) -> i64 {
    ago.map_or(-1, |ago| i64::try_from(ago.as_millis()).unwrap_or(i64::MAX))
}

/// The nodes that are exported, by whichever replica, and those that the source here has besides. Cost: the nodes.
pub fn nodes(config: &Config, own: &Own, board: &Board, now: Instant) -> Vec<NodeStatus> {
    let heard = heard_ago(own, board, now, SystemTime::now());
    let mut nodes: BTreeMap<NodeName, (u32, String)> = BTreeMap::new();
    for (name, facts) in board.read().nodes {
        nodes.insert(name, (facts.index.into(), facts.mesh_ipv4));
    }
    let context = Context { cluster: config.cluster.clone(), width: config.width };
    for kv in own.list(prefix::TUNNEL_NODES) {
        let entry = Key::parse(&kv.key).ok().and_then(|key| decode(&key, &kv.value, &context).ok());
        if let Some(Entry::TunnelNode(node)) = entry {
            let mesh_ipv4 = config.plan.ipv4_of(config.cluster.id, node.index).to_string();
            nodes.insert(node.name, (node.index.get().into(), mesh_ipv4));
        }
    }
    let node = |(name, (index, mesh_ipv4)): (NodeName, (u32, String))| NodeStatus {
        index,
        mesh_ipv4,
        reported_ms_ago: ms(heard.get(&name).copied()),
        name: name.to_string(),
    };
    nodes.into_iter().map(node).collect()
}

/// Identities, endpoints and services: what is exported here, or by the replica that leads. Cost: their keys, then.
pub fn counts(own: &Own, facts: &Facts) -> [u32; 3] {
    match facts.leads {
        true => [facts.identities, facts.endpoints, facts.services],
        false => [prefix::IDENTITIES, prefix::IPS, prefix::LOCAL_SERVICES].map(|prefix| own.count(prefix)),
    }
}

pub fn peers(mirrors: &Mirrors, exports: &Exports, now: Instant) -> Vec<PeerStatus> {
    let all = mirrors.status();
    let of = |(peer, status): &(Peer, _)| PeerStatus {
        exports: exports.place_of(&peer.cluster.name),
        ..peer_status(mirrors, peer, status, now)
    };
    all.iter().map(of).collect()
}

fn peer_status(
    mirrors: &Mirrors,
    peer: &Peer,
    status: &Result<MirrorStatus, String>,
    now: Instant,
) -> PeerStatus {
    let named = PeerStatus {
        name: peer.cluster.name.to_string(),
        id: peer.cluster.id.get().into(),
        ..Default::default()
    };
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            return PeerStatus {
                state: "connecting".into(),
                reason: error.clone(),
                heard_ms_ago: -1,
                held_ms: -1,
                ..named
            };
        }
    };
    let (state, trouble) = match status.state {
        MirrorState::Connecting => ("connecting", &status.last_trouble),
        MirrorState::Restored => ("restored", &status.last_trouble),
        MirrorState::Syncing => ("syncing", &status.last_trouble),
        MirrorState::Synced => ("synced", &status.last_refusal),
        MirrorState::CutOff => ("cut off", &status.last_trouble),
    };
    let restored = (status.state == MirrorState::Restored)
        .then_some("not reached since the start; what was kept on disk is served");
    let keep_trouble = status.keep_trouble.as_ref().map(|why| format!("not kept on disk: {why}"));
    let crowded = status.crowded.as_ref().map(|why| format!("not all of it is here: {why}"));
    let held = held(peer, status, now);
    // What it has no more, and is kept, is worth a word although all is well.
    let trouble = match &status.foreign {
        Some(foreign) if foreign.held_back > 0 => &status.last_trouble,
        _ => trouble,
    };
    let trouble = trouble.as_ref().filter(|trouble| status.crowded.as_ref() != Some(trouble));
    let reasons =
        [restored, trouble.map(String::as_str), crowded.as_deref(), held.as_deref(), keep_trouble.as_deref()];
    let reader = mirrors.readers().get(&peer.cluster.name).status();
    let [nodes, services, endpoints, identities] = mirrors.counts(&peer.cluster.name);
    PeerStatus {
        state: state.into(),
        reason: reasons.into_iter().flatten().collect::<Vec<_>>().join("; "),
        revision: status.revision,
        heard_ms_ago: ms(status.heard_ago(now, SystemTime::now())),
        keys: status.keys as u64,
        nodes,
        services,
        endpoints,
        identities,
        refused: told(&status.refused),
        relists: status.relists,
        reconnects: status.reconnects,
        limits: limits(status, &reader),
        held_ms: status.held.map_or(-1, |(since, _)| ms(Some(now.saturating_duration_since(since)))),
        refused_requests: told(&reader.refused),
        cilium: status.foreign.as_ref().map(|foreign| cilium(foreign, now)),
        ..named
    }
}

fn cilium(foreign: &ForeignStatus, now: Instant) -> CiliumOrigin {
    CiliumOrigin {
        layout: foreign.layout.unwrap_or_default().to_owned(),
        beat_ms_ago: ms(foreign.beat_at.map(|at| now.saturating_duration_since(at))),
        waits_for: foreign.waits_for.iter().map(|kind| (*kind).to_owned()).collect(),
        held_back: foreign.held_back as u64,
        replica_changes: foreign.replica_changes,
    }
}

fn told(counts: &BTreeMap<&'static str, u64>) -> BTreeMap<String, u64> {
    counts.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect()
}

/// A peer that is read later than it speaks.
fn held(peer: &Peer, status: &MirrorStatus, now: Instant) -> Option<String> {
    let (since, by) = status.held?;
    let (name, limit) = match by {
        HeldBy::Events => ("eventsPerSecond", status.intake.events_per_second),
        HeldBy::Bytes => ("bytesPerSecond", status.intake.bytes_per_second),
    };
    let (cluster, seconds) = (&peer.cluster.name, now.saturating_duration_since(since).as_secs());
    Some(format!(
        "for {seconds} s it has been faster than {name} {limit}, so it is read later, by that at most; \
         fix: find out what changes there so fast, or raise limits.peers.{cluster}.{name}"
    ))
}

/// Each by its name in cluster.yaml.
pub fn limits(status: &MirrorStatus, reader: &ReaderStatus) -> Vec<LimitStatus> {
    let limit = |name: &str, limit: u64, used: Option<usize>| LimitStatus {
        name: name.into(),
        limit,
        used: used.map_or(-1, |used| i64::try_from(used).unwrap_or(i64::MAX)),
    };
    let (intake, may) = (&status.intake, &reader.limits);
    vec![
        limit("keys", intake.keys as u64, Some(status.keys)),
        limit("bytes", intake.bytes as u64, Some(status.bytes)),
        limit("valueBytes", intake.value_bytes as u64, None),
        limit("eventsPerSecond", intake.events_per_second, None),
        limit("bytesPerSecond", intake.bytes_per_second, None),
        limit("connections", may.connections as u64, Some(reader.connections)),
        limit("watches", may.watches as u64, Some(reader.watches)),
        limit("requestsPerSecond", may.requests_per_second, None),
        limit("listBytesPerSecond", may.list_bytes_per_second, None),
    ]
}
