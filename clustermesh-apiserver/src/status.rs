//! What `hawser status` shows of this cluster, in the words of the API.

use std::time::{Duration, Instant, SystemTime};

use hawser_api::admin::{NodeStatus, PeerStatus};
use hawser_etcd::mirror::{MirrorState, MirrorStatus};
use hawser_model::Peer;

use crate::board::Facts;
use crate::mirrors::Mirrors;

fn ms_ago(at: Option<Instant>, now: Instant) -> i64 {
    ms(at.map(|at| now.saturating_duration_since(at)))
}

fn ms(ago: Option<Duration>) -> i64 {
    ago.map_or(-1, |ago| i64::try_from(ago.as_millis()).unwrap_or(i64::MAX))
}

pub fn nodes(facts: &Facts, now: Instant) -> Vec<NodeStatus> {
    let node = |(name, node): (&hawser_model::NodeName, &crate::board::NodeFacts)| NodeStatus {
        name: name.to_string(),
        index: node.index.into(),
        mesh_ipv4: node.mesh_ipv4.clone(),
        reported_ms_ago: ms_ago(node.reported, now),
    };
    facts.nodes.iter().map(node).collect()
}

pub fn peers(mirrors: &Mirrors, now: Instant) -> Vec<PeerStatus> {
    let all = mirrors.status();
    all.iter().map(|(peer, status)| peer_status(mirrors, peer, status, now)).collect()
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
