//! What `hawser status` shows of this cluster, in the words of the API.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use hawser_api::admin::{NodeStatus, PeerStatus};
use hawser_etcd::mirror::{MirrorState, MirrorStatus};
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
    let reasons = [restored, trouble.as_deref(), keep_trouble.as_deref()];
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
        refused: status.refused.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect(),
        relists: status.relists,
        reconnects: status.reconnects,
        ..named
    }
}
