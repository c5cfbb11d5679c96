//! Mesh addresses: two for every node, computed, never believed.
//!
//! ```text
//! IPv4   240.0.0.0/4     1111 ccc cccccc  nnnn nnnn nnnn nnnn     c: cluster id (9 of 12 bits), n: node index
//!        us-east (1), node 1 = 240.1.0.1
//! IPv6   <ula /48> : cluster id (16) : first 64 bits of SHA-256(node name)
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use sha2::{Digest, Sha256};

use crate::cluster::shorten;
use crate::{ClusterId, NodeName};

/// A node's number in its cluster, given by its own API server; 1 to 65,535, and never reused while the node lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIndex(u16);

impl NodeIndex {
    pub fn new(index: u32) -> Option<Self> {
        u16::try_from(index).ok().filter(|index| *index != 0).map(Self)
    }

    pub fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for NodeIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The address plan of a mesh, equal in all its clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeshPlan {
    ula: Ipv6Net,
    ipv4: Ipv4Net,
}

impl MeshPlan {
    pub fn new(ula: Ipv6Net, ipv4: Ipv4Net) -> Result<Self, MeshPlanError> {
        if ula.prefix_len() != 48 || ula.trunc() != ula || ula.addr().octets()[0] != 0xfd {
            return Err(MeshPlanError::Ula { ula });
        }
        if ipv4.prefix_len() > 7 || ipv4.trunc() != ipv4 {
            return Err(MeshPlanError::Ipv4 { ipv4 });
        }
        Ok(Self { ula, ipv4 })
    }

    pub fn ula(&self) -> Ipv6Net {
        self.ula
    }

    pub fn ipv4(&self) -> Ipv4Net {
        self.ipv4
    }

    pub fn ipv4_of(&self, cluster: ClusterId, node: NodeIndex) -> Ipv4Addr {
        let host = u32::from(cluster.get()) << 16 | u32::from(node.get());
        Ipv4Addr::from(u32::from(self.ipv4.network()) | host)
    }

    pub fn ipv6_of(&self, cluster: ClusterId, node: &NodeName) -> Ipv6Addr {
        let mut octets = self.ula.network().octets();
        octets[6..8].copy_from_slice(&cluster.get().to_be_bytes());
        octets[8..].copy_from_slice(&Sha256::digest(node.as_str().as_bytes())[..8]);
        Ipv6Addr::from(octets)
    }

    pub fn addresses(&self, cluster: ClusterId, index: NodeIndex, node: &NodeName) -> MeshAddresses {
        MeshAddresses { ipv4: self.ipv4_of(cluster, index), ipv6: self.ipv6_of(cluster, node) }
    }

    /// Whether an address lies in the mesh's own ranges, whoever it belongs to.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.ipv4.contains(&v4),
            IpAddr::V6(v6) => self.ula.contains(&v6),
        }
    }
}

impl Default for MeshPlan {
    fn default() -> Self {
        let ula = Ipv6Addr::new(0xfd68, 0x6177, 0x7365, 0, 0, 0, 0, 0);
        Self { ula: Ipv6Net::new_assert(ula, 48), ipv4: Ipv4Net::new_assert(Ipv4Addr::new(240, 0, 0, 0), 4) }
    }
}

/// How packets between clusters are encrypted. Equal in the whole mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Encryption {
    #[default]
    Wireguard,
    Ipsec,
}

impl Encryption {
    pub fn parse(text: &str) -> Result<Self, ParseEncryptionError> {
        match text {
            "wireguard" => Ok(Self::Wireguard),
            "ipsec" => Ok(Self::Ipsec),
            other => Err(ParseEncryptionError { text: shorten(other) }),
        }
    }

    /// A cluster's setting: also `auto`, which is the one that every node can and that needs no secret, WireGuard. It does not
    /// depend on what others set, so that a mesh is never mixed by the order in which clusters came.
    pub fn of_setting(text: &str) -> Result<Self, ParseEncryptionError> {
        if text == "auto" { Ok(Self::default()) } else { Self::parse(text) }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wireguard => "wireguard",
            Self::Ipsec => "ipsec",
        }
    }
}

impl fmt::Display for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How the nodes of a cluster are reached from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum NodePath {
    /// Each where it is stated, or where it was heard from.
    #[default]
    Direct,
    /// None but its gateways can be reached: two such clusters meet at a gateway of either.
    Gateways,
}

impl NodePath {
    pub fn parse(text: &str) -> Result<Self, ParseNodePathError> {
        match text {
            "direct" => Ok(Self::Direct),
            "gateways" => Ok(Self::Gateways),
            other => Err(ParseNodePathError { text: shorten(other) }),
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Gateways => "gateways",
        }
    }
}

impl fmt::Display for NodePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("path {text:?} is neither direct nor gateways")]
pub struct ParseNodePathError {
    pub text: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("encryption {text:?} is neither wireguard nor ipsec")]
pub struct ParseEncryptionError {
    pub text: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeshPlanError {
    #[error("mesh ULA {ula} is not a /48 of fd00::/8 (RFC 4193 §3.1)")]
    Ula { ula: Ipv6Net },
    #[error(
        "mesh IPv4 range {ipv4} leaves less than 9 bits for the cluster and 16 for the node: it must be /7 or wider"
    )]
    Ipv4 { ipv4: Ipv4Net },
}

/// A node's two addresses inside the tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MeshAddresses {
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
}

impl MeshAddresses {
    /// The one that stands for `address`: that of its family.
    pub fn of_family(&self, address: IpAddr) -> IpAddr {
        match address {
            IpAddr::V4(_) => self.ipv4.into(),
            IpAddr::V6(_) => self.ipv6.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClusterIdWidth;

    #[test]
    fn addresses_are_computed_from_cluster_and_node() {
        let plan = MeshPlan::default();
        let name = NodeName::parse("node-1").unwrap();
        let id = |id| ClusterId::new(id, ClusterIdWidth::Bits9).unwrap();
        let one = plan.addresses(id(1), NodeIndex::new(1).unwrap(), &name);
        assert_eq!(one.ipv4.to_string(), "240.1.0.1");
        let last = plan.addresses(id(511), NodeIndex::new(65_535).unwrap(), &name);
        assert_eq!(last.ipv4.to_string(), "241.255.255.255");
        assert_ne!(one.ipv6, last.ipv6);
        assert!(plan.contains(one.ipv6.into()) && plan.contains(last.ipv4.into()));
        assert_eq!(one.ipv6.segments()[3], 1);
    }

    #[test]
    fn a_plan_without_room_is_refused() {
        let plan = MeshPlan::default();
        assert!(MeshPlan::new(plan.ula(), "240.0.0.0/8".parse().unwrap()).is_err());
        assert!(MeshPlan::new("fe80::/48".parse().unwrap(), plan.ipv4()).is_err());
        assert!(MeshPlan::new("fd00::/64".parse().unwrap(), plan.ipv4()).is_err());
    }
}
