//! Which nodes users' packets go to or come from: those whose tunnel carries more than probes and keep-alives do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hawser_discovery::{LivenessConfig, NodeId, PATIENCE, PeerSeen};
use hawser_discovery_net::ProberSnapshot;
use hawser_model::{PublicKey, Time};
use hawser_tunnels_linux::{PeerStats, Stats};

use crate::clock;

/// Between two looks at the tunnels' counters.
pub(crate) const EVERY: Duration = Duration::from_secs(10);
/// A probe or its answer as WireGuard counts it: 52 octets of IP, padded, with header and tag.
const PROBE: u64 = 96;

/// What the last look saw, by the peers' keys.
#[derive(Debug, Default)]
pub(crate) struct Used {
    bytes: BTreeMap<PublicKey, u64>,
}

impl Used {
    /// The nodes whose tunnels carried users' packets since the last look. O(peers).
    pub(crate) fn look(
        &mut self,
        stats: &Stats,
        nodes: &BTreeMap<PublicKey, NodeId>,
        liveness: &LivenessConfig,
    ) -> BTreeSet<NodeId> {
        let seen: BTreeMap<_, _> =
            stats.peers.iter().map(|(key, peer)| (*key, peer.rx_bytes + peer.tx_bytes)).collect();
        let most = most_of_probes(liveness.interval);
        let grown = |(key, bytes): (&PublicKey, &u64)| {
            let before = self.bytes.get(key)?;
            (bytes.saturating_sub(*before) > most).then(|| nodes.get(key).copied())?
        };
        let used = seen.iter().filter_map(grown).collect();
        self.bytes = seen;
        used
    }
}

/// WireGuard's `REJECT_AFTER_TIME`: so old a handshake's session is none any more.
const SESSION: Duration = Duration::from_secs(180);

/// What the choice of endpoints wants to know of each peer. `answering`: where there are no handshakes (IPsec), octets that
/// come in show one direction alone, and an answered probe both.
pub(crate) fn peers_seen(
    stats: &Stats,
    answering: Option<&BTreeSet<PublicKey>>,
) -> BTreeMap<PublicKey, PeerSeen> {
    let seen = |key: &PublicKey, peer: &PeerStats| PeerSeen {
        endpoint: peer.endpoint,
        received: peer.rx_bytes,
        session: match answering {
            Some(answering) => answering.contains(key),
            None => peer.last_handshake.is_some_and(|at| clock::ago(at) < SESSION),
        },
    };
    stats.peers.iter().map(|(key, peer)| (*key, seen(key, peer))).collect()
}

/// Nodes that answered since an endpoint would have been left.
pub(crate) fn answering(seen: &ProberSnapshot, now: Time) -> BTreeSet<NodeId> {
    let lately = |heard: Option<Time>| heard.is_some_and(|heard| now.since(heard) < PATIENCE);
    seen.nodes.iter().filter(|(_, node)| lately(node.heard)).map(|(node, _)| *node).collect()
}

/// When each node was heard last.
pub(crate) fn heard(seen: &ProberSnapshot) -> BTreeMap<NodeId, Time> {
    seen.nodes.iter().filter_map(|(node, seen)| Some((*node, seen.heard?))).collect()
}

/// Probes in haste, ours and theirs, each with its answer: no more than this comes of them between two looks.
fn most_of_probes(interval: Duration) -> u64 {
    let rounds = EVERY.as_millis() / interval.as_millis().max(1) + 1;
    let rounds = u64::try_from(rounds).unwrap_or(u64::MAX);
    rounds.saturating_mul(u64::from(LivenessConfig::HASTE) * 2 * 2 * PROBE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawser_model::{ClusterId, ClusterIdWidth, NodeIndex};

    fn key(n: u8) -> PublicKey {
        PublicKey::new([n; 32]).unwrap()
    }

    fn node(n: u32) -> NodeId {
        NodeId {
            cluster: ClusterId::new(2, ClusterIdWidth::Bits8).unwrap(),
            index: NodeIndex::new(n).unwrap(),
        }
    }

    #[test]
    fn probes_alone_are_no_use_and_a_users_download_is() {
        let nodes = BTreeMap::from([(key(1), node(1)), (key(2), node(2))]);
        let (config, mut used, mut stats) = (LivenessConfig::default(), Used::default(), Stats::default());
        let mut look = |bytes: [u64; 2]| {
            for (n, more) in [(1, bytes[0]), (2, bytes[1])] {
                let peer: &mut PeerStats = stats.peers.entry(key(n)).or_default();
                peer.rx_bytes += more;
            }
            used.look(&stats, &nodes, &config)
        };
        assert_eq!(look([1 << 30, 1 << 30]), BTreeSet::new(), "what was before is not known");
        let probes = 10 * 4 * PROBE;
        assert_eq!(look([probes, probes]), BTreeSet::new());
        assert_eq!(look([probes, probes + (1 << 20)]), BTreeSet::from([node(2)]));
        assert_eq!(look([0, 0]), BTreeSet::new());
    }

    #[test]
    fn where_there_are_no_handshakes_an_answered_probe_speaks_for_the_path_and_octets_alone_do_not() {
        let peer = PeerStats { rx_bytes: 1 << 20, ..PeerStats::default() };
        let stats =
            Stats { peers: BTreeMap::from([(key(1), peer.clone()), (key(2), peer)]), ..Stats::default() };
        let sessions = |answering: Option<&BTreeSet<PublicKey>>| -> Vec<bool> {
            peers_seen(&stats, answering).values().map(|seen| seen.session).collect()
        };
        assert_eq!(sessions(Some(&BTreeSet::from([key(2)]))), [false, true]);
        assert_eq!(sessions(None), [false, false], "WireGuard without a handshake");
    }
}
