//! One value of a keyspace, decoded and encoded.

use bytes::Bytes;
use hawser_model::{
    ClusterConfig, ClusterIdWidth, ClusterRef, Endpoint, EndpointSlice, GlobalService, Identity, Node, Peer,
    ServiceExport, SharedService, Timestamp, TrustNotice, TrustReceipt, TunnelNode,
};

use crate::error::{DecodeError, Fault, Reason, short};
use crate::{
    Key, Resource, config, hawser, identity, ip, limits, node, peer, service, service_export, slice, trust,
};

/// Whose keyspace is read: what its values have to agree with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    pub cluster: ClusterRef,
    pub width: ClusterIdWidth,
}

/// What a key's value says, as a value of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Heartbeat(Timestamp),
    ClusterConfig(ClusterConfig),
    /// A canary counts by being there; its value is only a hint for people.
    Synced {
        resource: Resource,
        at: Option<Timestamp>,
    },
    Node(Node),
    Identity(Identity),
    Endpoint(Endpoint),
    Service(SharedService),
    Slice(EndpointSlice),
    Export(ServiceExport),
    TunnelNode(TunnelNode),
    Trust(TrustNotice),
    Trusted(TrustReceipt),
    LocalService(GlobalService),
    LocalPeer(Peer),
}

/// Decodes one value. Cost: one pass over the bytes, text copied once into the model; memory is bounded by
/// [`limits`].
///
/// [`Key::Other`] and [`Key::Private`] have no value here: pass them over before.
pub fn decode(key: &Key, value: &[u8], cx: &Context) -> Result<Entry, DecodeError> {
    decode_value(key, value, cx).map_err(|fault| DecodeError { key: short(&key.to_string()), fault })
}

fn decode_value(key: &Key, value: &[u8], cx: &Context) -> Result<Entry, Fault> {
    if value.len() > limits::VALUE_BYTES {
        return Err(Reason::TooLarge { len: value.len(), max: limits::VALUE_BYTES }.at(""));
    }
    let own = |name| same("key", name, cx.cluster.name.as_str(), "the keyspace");
    match key {
        Key::LocalPeer(_) | Key::Other(_) | Key::Private(_) => {}
        named => named.cluster().map_or(Ok(()), |cluster| own(cluster.as_str()))?,
    }
    match key {
        Key::Heartbeat => {
            let at = Timestamp::parse(text(value)?).map_err(|why| Reason::from(why).at(""))?;
            Ok(Entry::Heartbeat(at))
        }
        Key::Synced { resource, .. } => {
            let at = str::from_utf8(value).ok().and_then(|text| Timestamp::parse(text).ok());
            Ok(Entry::Synced { resource: *resource, at })
        }
        Key::ClusterConfig(_) => config::decode(value, cx).map(Entry::ClusterConfig),
        Key::Node { node: name, .. } => node::decode(name, value, cx).map(Entry::Node),
        Key::Identity(id) => identity::decode(*id, text(value)?, cx).map(Entry::Identity),
        Key::Ip(ip) => ip::decode(*ip, value, cx).map(Entry::Endpoint),
        Key::Service { service, .. } => service::decode(service, value, cx).map(Entry::Service),
        Key::EndpointSlice { slice, .. } => slice::decode(slice, value, cx).map(Entry::Slice),
        Key::ServiceExport { service, .. } => service_export::decode(service, value, cx).map(Entry::Export),
        Key::TunnelNode { node, .. } => hawser::decode_node(node, value, cx).map(Entry::TunnelNode),
        Key::Trust(_) => trust::decode_notice(value).map(Entry::Trust),
        Key::Trusted { peer, .. } => trust::decode_receipt(peer, value).map(Entry::Trusted),
        Key::LocalService { service, .. } => {
            hawser::decode_service(service, value, cx).map(Entry::LocalService)
        }
        Key::LocalPeer(name) => peer::decode(name, value, cx).map(Entry::LocalPeer),
        Key::Other(_) | Key::Private(_) => Err(Reason::NoCodec.at("")),
    }
}

/// Refuses a field that contradicts what is known already.
pub(crate) fn same(field: &str, found: &str, expected: &str, by: &'static str) -> Result<(), Fault> {
    if found == expected {
        return Ok(());
    }
    Err(Reason::Differs { found: short(found), expected: short(expected), by }.at(field))
}

/// Refuses a cluster name and id that are not the keyspace's own.
pub(crate) fn same_cluster(
    cx: &Context,
    (name_field, name): (&str, &str),
    (id_field, id): (&str, u32),
) -> Result<(), Fault> {
    same(name_field, name, cx.cluster.name.as_str(), "the keyspace")?;
    same(id_field, &id.to_string(), &cx.cluster.id.to_string(), "the keyspace")
}

fn text(value: &[u8]) -> Result<&str, Fault> {
    str::from_utf8(value).map_err(|_| Reason::Utf8.at(""))
}

/// RFC 3339, rewritten every 60 s.
pub fn encode_heartbeat(at: Timestamp) -> Bytes {
    at.to_string().into_bytes().into()
}

/// A canary's value: when it was written. Readers look only at its being there.
pub fn encode_synced(at: Timestamp) -> Bytes {
    encode_heartbeat(at)
}

impl Entry {
    /// The key this value belongs under, in `cluster`'s keyspace.
    pub fn key(&self, cluster: &ClusterRef) -> Key {
        let of = |cluster: &ClusterRef| cluster.name.clone();
        match self {
            Self::Heartbeat(_) => Key::Heartbeat,
            Self::ClusterConfig(config) => Key::ClusterConfig(of(&config.cluster)),
            Self::Synced { resource, .. } => Key::synced(&cluster.name, *resource),
            Self::Node(node) => Key::Node { cluster: of(&node.cluster), node: node.name.clone() },
            Self::Identity(identity) => Key::Identity(identity.id),
            Self::Endpoint(endpoint) => Key::ip(endpoint.ip),
            Self::Service(s) => Key::Service { cluster: of(&s.cluster), service: s.key.clone() },
            Self::Slice(s) => Key::EndpointSlice { cluster: of(&s.cluster), slice: s.key.clone() },
            Self::Export(s) => Key::ServiceExport { cluster: of(&s.cluster), service: s.key.clone() },
            Self::TunnelNode(n) => Key::TunnelNode { cluster: of(&n.cluster), node: n.name.clone() },
            Self::Trust(_) => Key::Trust(of(cluster)),
            Self::Trusted(receipt) => Key::Trusted { cluster: of(cluster), peer: receipt.peer.clone() },
            Self::LocalService(s) => Key::LocalService { cluster: of(&s.cluster), service: s.key.clone() },
            Self::LocalPeer(peer) => Key::LocalPeer(of(&peer.cluster)),
        }
    }

    /// The bytes to write under [`Entry::key`].
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Heartbeat(at) => encode_heartbeat(*at),
            Self::Synced { at, .. } => at.map(encode_synced).unwrap_or_default(),
            Self::ClusterConfig(config) => config::encode(config),
            Self::Node(node) => node::encode(node),
            Self::Identity(identity) => identity::encode(identity),
            Self::Endpoint(endpoint) => ip::encode(endpoint),
            Self::Service(service) => service::encode(service),
            Self::Slice(slice) => slice::encode(slice),
            Self::Export(export) => service_export::encode(export),
            Self::TunnelNode(node) => hawser::encode_node(node),
            Self::Trust(notice) => trust::encode_notice(notice),
            Self::Trusted(receipt) => trust::encode_receipt(receipt),
            Self::LocalService(service) => hawser::encode_service(service),
            Self::LocalPeer(peer) => peer::encode(peer),
        }
    }
}
