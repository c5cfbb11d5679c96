//! Keys of the keyspace, built and parsed: Cilium's schema in its state and cache layouts, and ours under `hawser/`.
//!
//! A key has exactly one spelling: what parses, prints as it was. Cost: one allocation per name in the key.

use std::fmt;
use std::net::IpAddr;

use hawser_model::{
    ClusterName, IdentityError, IdentityId, NodeName, ParseClusterError, ParseNodeError, ParseServiceError,
    ParseSliceError, ServiceKey, SliceKey,
};

use crate::limits;

/// Prefixes that export, mirror and agents share. All end in `/`, so that `c1` never matches `c10`.
pub mod prefix {
    /// A key, not a prefix; Cilium's clients watch it as a bare prefix.
    pub const HEARTBEAT: &str = "cilium/.heartbeat";
    pub const CLUSTER_CONFIG: &str = "cilium/cluster-config/";
    pub const SYNCED: &str = "cilium/synced/";
    pub const STATE: &str = "cilium/state/";
    pub const NODES: &str = "cilium/state/nodes/v1/";
    pub const IDENTITIES: &str = "cilium/state/identities/v1/id/";
    pub const IPS: &str = "cilium/state/ip/v1/default/";
    pub const SERVICES: &str = "cilium/state/services/v1/";
    pub const ENDPOINT_SLICES: &str = "cilium/state/endpointslices/v1/";
    pub const SERVICE_EXPORTS: &str = "cilium/state/serviceexports/v1/";
    pub const CACHE: &str = "cilium/cache/";
    pub const HAWSER_STATE: &str = "hawser/state/";
    pub const TUNNEL_NODES: &str = "hawser/state/nodes/v1/";
    /// The CAs a cluster wants to be believed by, and those that it believes its peers by.
    pub const TRUST: &str = "hawser/state/trust/v1/";
    pub const TRUSTED: &str = "hawser/state/trusted/v1/";
    /// Never leaves the cluster.
    pub const HAWSER_LOCAL: &str = "hawser/local/";
    pub const LOCAL_SERVICES: &str = "hawser/local/services/v1/";
    pub const LOCAL_PEERS: &str = "hawser/local/peers/v1/";
    /// Read by API servers only.
    pub const PRIVATE: &str = "hawser/private/";
    pub const PRIVATE_TOKENS: &str = "hawser/private/tokens/v1/";
    /// A key, not a prefix: the replica that exports.
    pub const PRIVATE_LEADER: &str = "hawser/private/leader";
    /// What is shown to clusters on Cilium.
    pub const PRIVATE_PEERS: &str = "hawser/private/peers/v1/";
    /// What each node's agent last said of it.
    pub const PRIVATE_REPORTS: &str = "hawser/private/reports/v1/";
    /// What agents and replicas said of the CAs they trust: `agents/<node>`, `replicas/<name>`.
    pub const PRIVATE_TRUST: &str = "hawser/private/trust/v1/";
}

/// What a cluster publishes, each with its own canary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    Nodes,
    Identities,
    Ips,
    Services,
    EndpointSlices,
    ServiceExports,
    TunnelNodes,
}

impl Resource {
    pub const ALL: [Self; 7] = [
        Self::Nodes,
        Self::Identities,
        Self::Ips,
        Self::Services,
        Self::EndpointSlices,
        Self::ServiceExports,
        Self::TunnelNodes,
    ];

    /// The name its canary carries, no trailing slash. Identities and ip use the base prefix there, not the one their
    /// keys have (Cilium's readers wait for exactly these).
    pub fn canary(self) -> &'static str {
        match self {
            Self::Nodes => "cilium/state/nodes/v1",
            Self::Identities => "cilium/state/identities/v1",
            Self::Ips => "cilium/state/ip/v1",
            Self::Services => "cilium/state/services/v1",
            Self::EndpointSlices => "cilium/state/endpointslices/v1",
            Self::ServiceExports => "cilium/state/serviceexports/v1",
            Self::TunnelNodes => "hawser/state/nodes/v1",
        }
    }

    /// What a reader of `cluster` ranges over and watches, trailing slash included.
    pub fn prefix(self, cluster: &ClusterName) -> String {
        let of_cluster = |base| format!("{base}{cluster}/");
        match self {
            Self::Nodes => of_cluster(prefix::NODES),
            Self::Identities => prefix::IDENTITIES.to_owned(),
            Self::Ips => prefix::IPS.to_owned(),
            Self::Services => of_cluster(prefix::SERVICES),
            Self::EndpointSlices => of_cluster(prefix::ENDPOINT_SLICES),
            Self::ServiceExports => of_cluster(prefix::SERVICE_EXPORTS),
            Self::TunnelNodes => of_cluster(prefix::TUNNEL_NODES),
        }
    }

    /// The same in a keyspace whose cluster-config says `cached`.
    pub fn cached_prefix(self, cluster: &ClusterName) -> String {
        match self {
            Self::Identities => format!("cilium/cache/identities/v1/{cluster}/id/"),
            Self::Ips => format!("cilium/cache/ip/v1/{cluster}/"),
            other => other.prefix(cluster).replacen("cilium/state/", prefix::CACHE, 1),
        }
    }
}

/// One key of a cluster's keyspace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    Heartbeat,
    ClusterConfig(ClusterName),
    /// A canary: everything of this kind has been written at least once.
    Synced {
        cluster: ClusterName,
        resource: Resource,
    },
    Node {
        cluster: ClusterName,
        node: NodeName,
    },
    Identity(IdentityId),
    Ip(IpAddr),
    Service {
        cluster: ClusterName,
        service: ServiceKey,
    },
    EndpointSlice {
        cluster: ClusterName,
        slice: SliceKey,
    },
    ServiceExport {
        cluster: ClusterName,
        service: ServiceKey,
    },
    TunnelNode {
        cluster: ClusterName,
        node: NodeName,
    },
    /// The CAs that the cluster wants to be believed by.
    Trust(ClusterName),
    /// The CAs that the cluster believes a peer by.
    Trusted {
        cluster: ClusterName,
        peer: ClusterName,
    },
    LocalService {
        cluster: ClusterName,
        service: ServiceKey,
    },
    LocalPeer(ClusterName),
    /// Under `hawser/private/`: the rest of the key.
    Private(String),
    /// Someone else's, or of a kind this version does not read: passed over, never an error.
    Other(String),
}

impl Key {
    /// The key of an endpoint. IPv4-mapped IPv6 addresses are folded, so that one address has one key.
    pub fn ip(address: IpAddr) -> Self {
        Self::Ip(address.to_canonical())
    }

    pub fn synced(cluster: &ClusterName, resource: Resource) -> Self {
        Self::Synced { cluster: cluster.clone(), resource }
    }

    /// The cluster that the key itself names; identities and addresses in the state layout name none.
    pub fn cluster(&self) -> Option<&ClusterName> {
        match self {
            Self::ClusterConfig(cluster) | Self::LocalPeer(cluster) | Self::Trust(cluster) => Some(cluster),
            Self::Synced { cluster, .. }
            | Self::Node { cluster, .. }
            | Self::Service { cluster, .. }
            | Self::EndpointSlice { cluster, .. }
            | Self::ServiceExport { cluster, .. }
            | Self::TunnelNode { cluster, .. }
            | Self::Trusted { cluster, .. }
            | Self::LocalService { cluster, .. } => Some(cluster),
            Self::Heartbeat | Self::Identity(_) | Self::Ip(_) | Self::Private(_) | Self::Other(_) => None,
        }
    }

    /// Parses a key of the state layout. A key below one of our prefixes that does not follow its schema is an error;
    /// a key elsewhere is [`Key::Other`].
    pub fn parse(key: &[u8]) -> Result<Self, KeyError> {
        let text = text(key)?;
        let parsed = Self::parse_state(text).map_err(|why| KeyError::new(text, why))?;
        if parsed.to_string() != text {
            return Err(KeyError::new(text, KeyErrorKind::NotCanonical { canonical: parsed.to_string() }));
        }
        Ok(parsed)
    }

    /// Parses a key of the cache layout, where every key names its cluster: that cluster, and the key as the state
    /// layout has it. [`Key::Other`] comes with no cluster.
    pub fn parse_cached(key: &[u8]) -> Result<(Option<ClusterName>, Self), KeyError> {
        let whole = text(key)?;
        let other = || Ok((None, Self::Other(whole.to_owned())));
        if let Some(rest) = whole.strip_prefix(prefix::SYNCED) {
            let Some((cluster, canary)) = rest.split_once("/cilium/cache/") else { return other() };
            let state = format!("{}{cluster}/{}{canary}", prefix::SYNCED, prefix::STATE);
            return Self::scoped(whole, cluster, &state);
        }
        if let Some(cluster) = whole.strip_prefix(prefix::CLUSTER_CONFIG) {
            return Self::scoped(whole, cluster, whole);
        }
        let Some(rest) = whole.strip_prefix(prefix::CACHE) else { return other() };
        if let Some((cluster, id)) =
            rest.strip_prefix("identities/v1/").and_then(|rest| rest.split_once("/id/"))
        {
            return Self::scoped(whole, cluster, &format!("{}{id}", prefix::IDENTITIES));
        }
        if let Some((cluster, ip)) = rest.strip_prefix("ip/v1/").and_then(|rest| rest.split_once('/')) {
            return Self::scoped(whole, cluster, &format!("{}{ip}", prefix::IPS));
        }
        let cluster = rest.split('/').nth(2).unwrap_or_default();
        Self::scoped(whole, cluster, &format!("{}{rest}", prefix::STATE))
    }

    fn scoped(whole: &str, cluster: &str, state: &str) -> Result<(Option<ClusterName>, Self), KeyError> {
        let parsed =
            Self::parse(state.as_bytes()).map_err(|error| KeyError { key: whole.into(), ..error })?;
        if matches!(parsed, Self::Other(_)) {
            return Ok((None, Self::Other(whole.to_owned())));
        }
        let cluster = ClusterName::parse(cluster).map_err(|why| KeyError::new(whole, why.into()))?;
        Ok((Some(cluster), parsed))
    }

    fn parse_state(text: &str) -> Result<Self, KeyErrorKind> {
        if text == prefix::HEARTBEAT {
            return Ok(Self::Heartbeat);
        }
        if let Some(name) = text.strip_prefix(prefix::CLUSTER_CONFIG) {
            return Ok(Self::ClusterConfig(ClusterName::parse(name)?));
        }
        if let Some(rest) = text.strip_prefix(prefix::SYNCED) {
            let (cluster, canary) = rest.split_once('/').ok_or(KeyErrorKind::Parts)?;
            let cluster = ClusterName::parse(cluster)?;
            return Ok(match Resource::ALL.into_iter().find(|kind| kind.canary() == canary) {
                Some(resource) => Self::Synced { cluster, resource },
                None => Self::Other(text.to_owned()),
            });
        }
        if let Some(rest) = text.strip_prefix(prefix::NODES) {
            let (cluster, node) = cluster_and_node(rest)?;
            return Ok(Self::Node { cluster, node });
        }
        if let Some(number) = text.strip_prefix(prefix::IDENTITIES) {
            let number = number.parse::<u32>().map_err(|_| KeyErrorKind::Number)?;
            return Ok(Self::Identity(IdentityId::from_wire(number)?));
        }
        if let Some(address) = text.strip_prefix(prefix::IPS) {
            let ip = address.parse::<IpAddr>().map_err(|_| KeyErrorKind::Address)?;
            return Ok(Self::Ip(ip.to_canonical()));
        }
        if let Some(rest) = text.strip_prefix(prefix::SERVICES) {
            let (cluster, service) = cluster_and_service(rest)?;
            return Ok(Self::Service { cluster, service });
        }
        if let Some(rest) = text.strip_prefix(prefix::ENDPOINT_SLICES) {
            let (cluster, namespace, name) = three(rest)?;
            let slice = SliceKey::new(namespace, name)?;
            return Ok(Self::EndpointSlice { cluster: ClusterName::parse(cluster)?, slice });
        }
        if let Some(rest) = text.strip_prefix(prefix::SERVICE_EXPORTS) {
            let (cluster, service) = cluster_and_service(rest)?;
            return Ok(Self::ServiceExport { cluster, service });
        }
        Self::parse_hawser(text)
    }

    fn parse_hawser(text: &str) -> Result<Self, KeyErrorKind> {
        if let Some(rest) = text.strip_prefix(prefix::TUNNEL_NODES) {
            let (cluster, node) = cluster_and_node(rest)?;
            return Ok(Self::TunnelNode { cluster, node });
        }
        if let Some(name) = text.strip_prefix(prefix::TRUST) {
            return Ok(Self::Trust(ClusterName::parse(name)?));
        }
        if let Some(rest) = text.strip_prefix(prefix::TRUSTED) {
            let (cluster, peer) = rest.split_once('/').ok_or(KeyErrorKind::Parts)?;
            return Ok(Self::Trusted {
                cluster: ClusterName::parse(cluster)?,
                peer: ClusterName::parse(peer)?,
            });
        }
        if let Some(rest) = text.strip_prefix(prefix::LOCAL_SERVICES) {
            let (cluster, service) = cluster_and_service(rest)?;
            return Ok(Self::LocalService { cluster, service });
        }
        if let Some(name) = text.strip_prefix(prefix::LOCAL_PEERS) {
            return Ok(Self::LocalPeer(ClusterName::parse(name)?));
        }
        if let Some(rest) = text.strip_prefix(prefix::PRIVATE) {
            return Ok(Self::Private(rest.to_owned()));
        }
        Ok(Self::Other(text.to_owned()))
    }
}

fn text(key: &[u8]) -> Result<&str, KeyError> {
    let text = str::from_utf8(key).map_err(|_| {
        KeyError::new(&String::from_utf8_lossy(&key[..key.len().min(64)]), KeyErrorKind::Utf8)
    })?;
    if text.len() > limits::KEY_BYTES {
        return Err(KeyError::new(text, KeyErrorKind::TooLong { len: text.len() }));
    }
    Ok(text)
}

fn three(rest: &str) -> Result<(&str, &str, &str), KeyErrorKind> {
    let mut parts = rest.split('/');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(a), Some(b), Some(c), None) => Ok((a, b, c)),
        _ => Err(KeyErrorKind::Parts),
    }
}

fn cluster_and_node(rest: &str) -> Result<(ClusterName, NodeName), KeyErrorKind> {
    let (cluster, node) = rest.split_once('/').ok_or(KeyErrorKind::Parts)?;
    Ok((ClusterName::parse(cluster)?, NodeName::parse(node)?))
}

fn cluster_and_service(rest: &str) -> Result<(ClusterName, ServiceKey), KeyErrorKind> {
    let (cluster, namespace, name) = three(rest)?;
    Ok((ClusterName::parse(cluster)?, ServiceKey::new(namespace, name)?))
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Heartbeat => f.write_str(prefix::HEARTBEAT),
            Self::ClusterConfig(cluster) => write!(f, "{}{cluster}", prefix::CLUSTER_CONFIG),
            Self::Synced { cluster, resource } => {
                write!(f, "{}{cluster}/{}", prefix::SYNCED, resource.canary())
            }
            Self::Node { cluster, node } => write!(f, "{}{cluster}/{node}", prefix::NODES),
            Self::Identity(id) => write!(f, "{}{id}", prefix::IDENTITIES),
            Self::Ip(ip) => write!(f, "{}{ip}", prefix::IPS),
            Self::Service { cluster, service } => write!(f, "{}{cluster}/{service}", prefix::SERVICES),
            Self::EndpointSlice { cluster, slice } => {
                write!(f, "{}{cluster}/{slice}", prefix::ENDPOINT_SLICES)
            }
            Self::ServiceExport { cluster, service } => {
                write!(f, "{}{cluster}/{service}", prefix::SERVICE_EXPORTS)
            }
            Self::TunnelNode { cluster, node } => write!(f, "{}{cluster}/{node}", prefix::TUNNEL_NODES),
            Self::Trust(cluster) => write!(f, "{}{cluster}", prefix::TRUST),
            Self::Trusted { cluster, peer } => write!(f, "{}{cluster}/{peer}", prefix::TRUSTED),
            Self::LocalService { cluster, service } => {
                write!(f, "{}{cluster}/{service}", prefix::LOCAL_SERVICES)
            }
            Self::LocalPeer(cluster) => write!(f, "{}{cluster}", prefix::LOCAL_PEERS),
            Self::Private(rest) => write!(f, "{}{rest}", prefix::PRIVATE),
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// A key below one of our prefixes that does not follow its schema.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("key {key:?}: {kind}")]
pub struct KeyError {
    /// At most 200 characters of it.
    pub key: String,
    pub kind: KeyErrorKind,
}

impl KeyError {
    fn new(key: &str, kind: KeyErrorKind) -> Self {
        Self { key: key.chars().take(200).collect(), kind }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyErrorKind {
    #[error("is not UTF-8")]
    Utf8,
    #[error("is {len} bytes long, more than {}", limits::KEY_BYTES)]
    TooLong { len: usize },
    #[error("has too few or too many parts")]
    Parts,
    #[error("its last part is not a decimal identity")]
    Number,
    #[error("its last part is not an IP address (a CIDR is not either)")]
    Address,
    #[error("is not how the same key is written: {canonical:?}")]
    NotCanonical { canonical: String },
    #[error(transparent)]
    Cluster(#[from] ParseClusterError),
    #[error(transparent)]
    Node(#[from] ParseNodeError),
    #[error(transparent)]
    Service(#[from] ParseServiceError),
    #[error(transparent)]
    Slice(#[from] ParseSliceError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

#[cfg(test)]
#[path = "key_tests.rs"]
mod tests;
