//! The clusters admitted here: what `hawser/local/peers/v1/` says, and what each peer's word is held against.

use std::sync::Arc;

use hawser_etcd::mirror::{Admit, Refusal};
use hawser_kvstore::{KeyRange, SharedKv};
use hawser_model::{ClusterName, Peer};
use hawser_wire::{Context, Entry, Key, PeerRecord, Reason, admit, decode, prefix};

use crate::config::Config;
use crate::own::Own;

/// Every peer that can be read. One that cannot is told once and passed over: the others are not its fault.
pub fn admitted(own: &Own, config: &Config) -> Vec<(Peer, SharedKv)> {
    let read = |kv: SharedKv| match read(&kv, config) {
        Ok(peer) => Some((peer?, kv)),
        Err(error) => {
            tracing::error!(error, "an admitted cluster cannot be read; fix: connect it again");
            None
        }
    };
    own.list(prefix::LOCAL_PEERS).into_iter().filter_map(read).collect()
}

/// One of them.
pub fn record(own: &Own, config: &Config, peer: &ClusterName) -> Option<Peer> {
    own.get(&key(peer)).and_then(|kv| read(&kv, config).ok().flatten())
}

/// None of a value that is no peer's.
fn read(kv: &SharedKv, config: &Config) -> Result<Option<Peer>, String> {
    let context = Context { cluster: config.cluster.clone(), width: config.width };
    let key = Key::parse(&kv.key).map_err(|error| error.to_string())?;
    match decode(&key, &kv.value, &context).map_err(|error| error.to_string())? {
        Entry::LocalPeer(peer) => Ok(Some(peer)),
        _ => Ok(None),
    }
}

/// Where it is written that somebody understood, for this peer, what the mesh passes by.
pub fn bypass_key(peer: &str) -> String {
    format!("{}policy-bypass/v1/{peer}", prefix::PRIVATE)
}

/// Connected clusters for which nobody did.
pub fn without_bypass(own: &Own) -> Vec<String> {
    let name = |kv: SharedKv| {
        let name = kv.key.strip_prefix(prefix::LOCAL_PEERS.as_bytes())?;
        Some(String::from_utf8_lossy(name).into_owned())
    };
    let peers = own.list(prefix::LOCAL_PEERS).into_iter().filter_map(name);
    peers.filter(|peer| own.get(&bypass_key(peer)).is_none()).collect()
}

/// What is shown to a cluster on Cilium: [`crate::cilium::Shown`].
pub fn shown_key(peer: &str) -> String {
    format!("{}{peer}", prefix::PRIVATE_PEERS)
}

pub fn key(peer: &ClusterName) -> String {
    Key::LocalPeer(peer.clone()).to_string()
}

/// What of a peer's keyspace is read: what its API server lets us (contracts.md, Roles).
pub fn ranges(peer: &ClusterName) -> Vec<KeyRange> {
    vec![
        KeyRange::key(prefix::HEARTBEAT),
        KeyRange::key(Key::ClusterConfig(peer.clone()).to_string()),
        KeyRange::prefix(format!("{}{peer}/", prefix::SYNCED)),
        // Before what there is much of: a limit must not cost the tunnels.
        KeyRange::prefix(prefix::HAWSER_STATE),
        KeyRange::prefix(prefix::STATE),
    ]
}

/// Decodes and admits what a peer says, entry by entry. Cost: that of decoding.
pub fn admission(peer: &Peer, config: &Config) -> Arc<dyn Admit> {
    let record = PeerRecord::new(peer, config.width, config.plan);
    let context = record.context();
    Arc::new(move |key: &[u8], value: &[u8]| {
        let refuse = |reason, detail: String| Err(Refusal { reason, detail });
        let key = match Key::parse(key) {
            // Nobody can say whether it stays within what the peer may say.
            Ok(Key::Other(key)) => {
                return refuse("unknown_kind", format!("{key:?} is of no kind known here"));
            }
            Ok(key) => key,
            Err(error) => return refuse("malformed", error.to_string()),
        };
        match decode(&key, value, &context) {
            Err(error) => refuse(why(&error.fault.reason), error.to_string()),
            Ok(entry) => match admit(&record, &key, &entry) {
                Err(error) => refuse(error.metric(), error.to_string()),
                Ok(()) => Ok(()),
            },
        }
    })
}

/// The codec finds some of what a peer may not claim before admission does: counted under the same names.
fn why(reason: &Reason) -> &'static str {
    match reason {
        Reason::ForeignIdentity { .. } => "identity_range",
        Reason::ForeignLabels { .. } => "identity_labels",
        Reason::Differs { by: "the keyspace", .. } => "foreign_cluster",
        Reason::TooLarge { .. } | Reason::TooMany { .. } => "too_large",
        _ => "malformed",
    }
}
