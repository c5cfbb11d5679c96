//! Containment (decision 4): a remote cluster may say only what is its own. Everything else is refused and counted.
//!
//! Decoding has already tied every value to its key and every name and id to the keyspace it came from; here the values
//! are held against what the cluster was admitted with.

use std::net::IpAddr;

use hawser_model::{
    AddressKind, ClusterIdWidth, ClusterRef, EndpointSlice, IdentityId, IpNet, MeshPlan, Node, Peer,
    TunnelNode,
};

use crate::entry::{Context, Entry};
use crate::key::Key;

/// What a peer was admitted with, and the mesh's own settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRecord {
    pub cluster: ClusterRef,
    pub width: ClusterIdWidth,
    pub mesh: MeshPlan,
    pub pod_cidrs: Vec<IpNet>,
    pub node_cidrs: Vec<IpNet>,
}

impl PeerRecord {
    pub fn new(peer: &Peer, width: ClusterIdWidth, mesh: MeshPlan) -> Self {
        Self {
            cluster: peer.cluster.clone(),
            width,
            mesh,
            pod_cidrs: peer.pod_cidrs.clone(),
            node_cidrs: peer.node_cidrs.clone(),
        }
    }

    /// What its values are decoded with.
    pub fn context(&self) -> Context {
        Context { cluster: self.cluster.clone(), width: self.width }
    }

    fn holds_pod(&self, ip: IpAddr) -> bool {
        self.pod_cidrs.iter().any(|net| net.contains(&ip))
    }

    fn holds_node(&self, ip: IpAddr) -> bool {
        self.node_cidrs.iter().any(|net| net.contains(&ip))
    }

    fn pod_or_node(&self, field: &'static str, ip: IpAddr) -> Result<(), Refusal> {
        if self.holds_pod(ip) || self.holds_node(ip) {
            return Ok(());
        }
        Err(Refusal::Address { cluster: self.cluster.clone(), field, ip })
    }

    fn node(&self, field: &'static str, ip: IpAddr) -> Result<(), Refusal> {
        if self.holds_node(ip) {
            return Ok(());
        }
        Err(Refusal::NodeAddress { cluster: self.cluster.clone(), field, ip })
    }

    fn speaks(&self, of: &ClusterRef) -> Result<(), Refusal> {
        if *of == self.cluster {
            return Ok(());
        }
        Err(Refusal::Cluster { cluster: self.cluster.clone(), claimed: of.clone() })
    }
}

/// Whether `peer` may say this. Cost: one pass over the addresses of the entry, times the peer's CIDRs.
pub fn admit(peer: &PeerRecord, key: &Key, entry: &Entry) -> Result<(), Refusal> {
    // `hawser/local/` and `hawser/private/` never leave a cluster: whoever sends them is not talking about itself.
    let kind_ok = !matches!(entry, Entry::LocalService(_) | Entry::LocalPeer(_));
    if !kind_ok || *key != entry.key(&peer.cluster) {
        return Err(Refusal::Key { cluster: peer.cluster.clone(), key: key.to_string() });
    }
    match entry {
        Entry::Heartbeat(_) | Entry::Synced { .. } => Ok(()),
        // What it says of CAs is held against those that it is believed by, by `pki`.
        Entry::Trust(_) | Entry::Trusted(_) => Ok(()),
        Entry::ClusterConfig(config) => peer.speaks(&config.cluster),
        Entry::Node(node) => admit_node(peer, node),
        Entry::Identity(identity) => {
            admit_identity(peer, identity.id)?;
            if identity.labels.speak_for(&peer.cluster.name) {
                return Ok(());
            }
            Err(Refusal::Labels { cluster: peer.cluster.clone(), id: identity.id })
        }
        Entry::Endpoint(endpoint) => {
            peer.pod_or_node("IP", endpoint.ip)?;
            endpoint.host.map_or(Ok(()), |host| peer.node("HostIP", host))?;
            match endpoint.identity.is_reserved() {
                true => Ok(()),
                false => admit_identity(peer, endpoint.identity),
            }
        }
        Entry::Service(service) => {
            peer.speaks(&service.cluster)?;
            service.backends.keys().try_for_each(|ip| peer.pod_or_node("backends", *ip))
        }
        Entry::Slice(slice) => admit_slice(peer, slice),
        Entry::Export(export) => peer.speaks(&export.cluster),
        Entry::TunnelNode(node) => admit_tunnel_node(peer, node),
        Entry::LocalService(_) | Entry::LocalPeer(_) => Ok(()),
    }
}

fn admit_identity(peer: &PeerRecord, id: IdentityId) -> Result<(), Refusal> {
    if id.belongs_to(peer.cluster.id, peer.width) {
        return Ok(());
    }
    Err(Refusal::Identity { cluster: peer.cluster.clone(), id })
}

fn admit_node(peer: &PeerRecord, node: &Node) -> Result<(), Refusal> {
    peer.speaks(&node.cluster)?;
    for address in &node.addresses {
        match address.kind {
            // Tunnels go there.
            AddressKind::InternalIp => peer.node("IPAddresses", address.ip)?,
            // Cilium's own router address is one of the node's pod addresses.
            AddressKind::CiliumInternalIp => peer.pod_or_node("IPAddresses", address.ip)?,
            // A public or NAT address often lies in no CIDR of the cluster and is only information then: agents aim
            // tunnels inside the node CIDRs alone. Addresses of the mesh or of the peer's pods are never such.
            AddressKind::ExternalIp => {
                if peer.mesh.contains(address.ip) || peer.holds_pod(address.ip) {
                    let (cluster, ip) = (peer.cluster.clone(), address.ip);
                    return Err(Refusal::NodeAddress { cluster, field: "IPAddresses", ip });
                }
            }
        }
    }
    for cidr in &node.pod_cidrs {
        if !peer.pod_cidrs.iter().any(|net| net.contains(cidr)) {
            return Err(Refusal::PodCidr { cluster: peer.cluster.clone(), cidr: *cidr });
        }
    }
    Ok(())
}

fn admit_slice(peer: &PeerRecord, slice: &EndpointSlice) -> Result<(), Refusal> {
    peer.speaks(&slice.cluster)?;
    let mut addresses = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
    addresses.try_for_each(|ip| peer.pod_or_node("endpoints", *ip))
}

fn admit_tunnel_node(peer: &PeerRecord, node: &TunnelNode) -> Result<(), Refusal> {
    peer.speaks(&node.cluster)?;
    let computed = peer.mesh.addresses(peer.cluster.id, node.index, &node.name);
    let pairs = [
        ("meshIPv4", IpAddr::from(node.mesh.ipv4), IpAddr::from(computed.ipv4)),
        ("meshIPv6", node.mesh.ipv6.into(), computed.ipv6.into()),
    ];
    for (field, said, computed) in pairs {
        if said != computed {
            return Err(Refusal::MeshAddress { cluster: peer.cluster.clone(), field, said, computed });
        }
    }
    Ok(())
}

/// Why a remote's entry was not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("cluster {cluster} may not write {key}: it is no key of what a peer says about itself")]
    Key { cluster: ClusterRef, key: String },
    #[error("cluster {cluster} speaks for cluster {claimed}")]
    Cluster { cluster: ClusterRef, claimed: ClusterRef },
    #[error("cluster {cluster} claims identity {id}, which is not in its range")]
    Identity { cluster: ClusterRef, id: IdentityId },
    #[error("cluster {cluster} claims identity {id}, whose labels do not name it as their cluster")]
    Labels { cluster: ClusterRef, id: IdentityId },
    #[error(
        "cluster {cluster} claims {ip} ({field}), which is in none of its pod or node CIDRs; \
         fix: add the range to podCIDRs or nodeCIDRs there, and connect it again with a new bundle"
    )]
    Address { cluster: ClusterRef, field: &'static str, ip: IpAddr },
    #[error(
        "cluster {cluster} claims {ip} ({field}) for a node, which is in none of its node CIDRs; \
         fix: add the range to nodeCIDRs there, and connect it again with a new bundle"
    )]
    NodeAddress { cluster: ClusterRef, field: &'static str, ip: IpAddr },
    #[error(
        "cluster {cluster} claims pod CIDR {cidr}, which is in none of the pod CIDRs it was admitted with; \
         fix: add the range to podCIDRs there, and connect it again with a new bundle"
    )]
    PodCidr { cluster: ClusterRef, cidr: IpNet },
    #[error("cluster {cluster} states {field} {said}, but that node's address computes to {computed}")]
    MeshAddress { cluster: ClusterRef, field: &'static str, said: IpAddr, computed: IpAddr },
}

impl Refusal {
    /// A short steady name for metrics and `hawser status`.
    pub fn metric(&self) -> &'static str {
        match self {
            Self::Key { .. } => "foreign_key",
            Self::Cluster { .. } => "foreign_cluster",
            Self::Identity { .. } => "identity_range",
            Self::Labels { .. } => "identity_labels",
            Self::Address { .. } => "address_range",
            Self::NodeAddress { .. } => "node_address",
            Self::PodCidr { .. } => "pod_cidr",
            Self::MeshAddress { .. } => "mesh_address",
        }
    }
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
