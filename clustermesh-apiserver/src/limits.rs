//! What each peer may make this server hold, read and answer: `limits` of `cluster.yaml` (docs/src/reference/limits.md).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use hawser_etcd::mirror::Intake;
use hawser_etcd::server::{Reader, ReaderLimits};
use hawser_model::{ClusterName, PeerKind};
use serde::Deserialize;

use crate::config::Config;
use crate::own::Own;
use crate::peers;

/// A mirror per replica of the peer's API server, and what is left over while they connect anew.
const OF_HAWSER: ReaderLimits = ReaderLimits {
    connections: 64,
    requests_per_second: 2_000,
    list_bytes_per_second: 256 << 20,
    watches: 1_000,
};
/// Without KVStoreMesh each agent of a Cilium cluster reads by itself: 5,000 nodes, twenty requests a second each.
const OF_CILIUM: ReaderLimits = ReaderLimits {
    connections: 10_000,
    requests_per_second: 100_000,
    list_bytes_per_second: 4 << 30,
    watches: 100_000,
};

/// `limits`, as it is written.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsText {
    /// Of every peer.
    #[serde(default)]
    peer: PeerLimitsText,
    /// Of one, instead.
    #[serde(default)]
    peers: BTreeMap<String, PeerLimitsText>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PeerLimitsText {
    keys: Option<u64>,
    bytes: Option<u64>,
    value_bytes: Option<u64>,
    events_per_second: Option<u64>,
    bytes_per_second: Option<u64>,
    connections: Option<u64>,
    requests_per_second: Option<u64>,
    list_bytes_per_second: Option<u64>,
    watches: Option<u64>,
}

/// Limits of every peer, and of those that have their own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    all: PeerLimitsText,
    peers: BTreeMap<ClusterName, PeerLimitsText>,
}

impl LimitsText {
    pub fn into_limits(self) -> Result<Limits, String> {
        self.peer.check("peer")?;
        let one = |(name, limits): (String, PeerLimitsText)| {
            limits.check(&format!("peers.{name}"))?;
            Ok((ClusterName::parse(&name).map_err(|error| format!("peers: {error}"))?, limits))
        };
        let peers = self.peers.into_iter().map(one).collect::<Result<_, String>>()?;
        Ok(Limits { all: self.peer, peers })
    }
}

impl PeerLimitsText {
    fn check(&self, of: &str) -> Result<(), String> {
        /// A list has a canary for every kind and the cluster's configuration: with less, nothing is ever complete.
        const LEAST_KEYS: u64 = 100;
        /// A node or a service does not fit in less.
        const LEAST_BYTES: u64 = 64 << 10;
        let least = [
            ("keys", self.keys, LEAST_KEYS),
            ("bytes", self.bytes, LEAST_BYTES),
            ("valueBytes", self.value_bytes, 1 << 10),
            ("eventsPerSecond", self.events_per_second, 1),
            ("bytesPerSecond", self.bytes_per_second, 1 << 10),
            ("connections", self.connections, 1),
            ("requestsPerSecond", self.requests_per_second, 1),
            ("listBytesPerSecond", self.list_bytes_per_second, 1 << 10),
            ("watches", self.watches, 10),
        ];
        let low = least.iter().find(|(_, said, least)| said.is_some_and(|said| said < *least));
        match low {
            None => Ok(()),
            Some((name, said, least)) => {
                let said = said.unwrap_or_default();
                Err(format!("{of}.{name}: {said} is less than a peer needs; fix: give at least {least}"))
            }
        }
    }
}

fn size(limit: u64) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

impl Limits {
    fn get<T>(&self, peer: &ClusterName, what: impl Fn(&PeerLimitsText) -> Option<T>) -> Option<T> {
        self.peers.get(peer).and_then(&what).or_else(|| what(&self.all))
    }

    /// What we take of it.
    pub fn intake(&self, peer: &ClusterName) -> Intake {
        let default = Intake::default();
        Intake {
            keys: self.get(peer, |p| p.keys).map_or(default.keys, size),
            bytes: self.get(peer, |p| p.bytes).map_or(default.bytes, size),
            value_bytes: self.get(peer, |p| p.value_bytes).map_or(default.value_bytes, size),
            events_per_second: self.get(peer, |p| p.events_per_second).unwrap_or(default.events_per_second),
            bytes_per_second: self.get(peer, |p| p.bytes_per_second).unwrap_or(default.bytes_per_second),
        }
    }

    /// What it may ask.
    pub fn reader(&self, peer: &ClusterName, kind: &PeerKind) -> ReaderLimits {
        let default = match kind {
            PeerKind::Hawser => OF_HAWSER,
            PeerKind::Cilium(_) => OF_CILIUM,
        };
        let rate = |said: Option<u64>, default| said.unwrap_or(default);
        ReaderLimits {
            connections: self.get(peer, |p| p.connections).map_or(default.connections, size),
            requests_per_second: rate(self.get(peer, |p| p.requests_per_second), default.requests_per_second),
            list_bytes_per_second: rate(
                self.get(peer, |p| p.list_bytes_per_second),
                default.list_bytes_per_second,
            ),
            watches: self.get(peer, |p| p.watches).map_or(default.watches, size),
        }
    }
}

/// The remote clusters that read here, each with what it has used of its limits.
#[derive(Clone, Debug)]
pub struct Readers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Arc<Config>,
    own: Own,
    readers: Mutex<BTreeMap<ClusterName, Arc<Reader>>>,
}

impl Readers {
    pub fn new(config: Arc<Config>, own: Own) -> Self {
        Self(Arc::new(Inner { config, own, readers: Mutex::default() }))
    }

    /// One of another kind than before is counted anew. Cost: reading its record.
    pub fn get(&self, peer: &ClusterName) -> Arc<Reader> {
        let kind = peers::record(&self.0.own, &self.0.config, peer).map(|peer| peer.kind).unwrap_or_default();
        let limits = self.0.config.limits.reader(peer, &kind);
        let mut readers = self.0.readers.lock().unwrap_or_else(PoisonError::into_inner);
        match readers.get(peer).filter(|reader| reader.limits() == limits) {
            Some(reader) => Arc::clone(reader),
            None => {
                let reader = Reader::new(peer.as_str(), limits);
                readers.insert(peer.clone(), Arc::clone(&reader));
                reader
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawser_model::CiliumPeer;

    fn limits(text: &str) -> Result<Limits, String> {
        serde_saphyr::from_str::<LimitsText>(text).map_err(|error| error.to_string())?.into_limits()
    }

    fn name(name: &str) -> ClusterName {
        ClusterName::parse(name).unwrap()
    }

    #[test]
    fn a_peers_own_limits_come_before_those_of_all_and_both_before_the_defaults() {
        let limits = limits(
            "peer: { keys: 5000, requestsPerSecond: 7 }\npeers: { eu-west: { keys: 9000, watches: 20 } }\n",
        )
        .unwrap();
        let keys = |peer| limits.intake(&name(peer)).keys;
        assert_eq!((keys("eu-west"), keys("ap-south")), (9000, 5000));
        assert_eq!(limits.intake(&name("eu-west")).bytes, Intake::default().bytes);
        let reader = limits.reader(&name("eu-west"), &PeerKind::Hawser);
        assert_eq!((reader.watches, reader.requests_per_second), (20, 7));
        assert_eq!(reader.connections, OF_HAWSER.connections);
    }

    #[test]
    fn a_cluster_whose_agents_read_one_by_one_has_room_for_all_of_them() {
        let reader = Limits::default().reader(&name("eu-west"), &PeerKind::Cilium(CiliumPeer::default()));
        assert!(reader.connections >= 2 * 5_000 && reader.watches >= 5_000 * 10);
        assert!(reader.requests_per_second >= 5_000 * 20);
    }

    #[test]
    fn what_no_peer_could_live_with_is_refused_by_name() {
        let refused = |text: &str| limits(text).unwrap_err();
        assert!(refused("peer: { keys: 5 }").contains("peer.keys: 5 is less than a peer needs; fix: "));
        assert!(refused("peers: { eu-west: { bytes: 5 } }").contains("peers.eu-west.bytes: 5"));
        assert!(refused("peers: { Eu_West: {} }").contains("Eu_West"));
        assert!(refused("peer: { kyes: 500 }").contains("kyes"));
    }
}
