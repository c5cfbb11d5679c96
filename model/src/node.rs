//! Nodes: what a cluster says about its machines, and the ends of their tunnels.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::cluster::shorten;
use crate::{ClusterRef, Epoch, EspEnd, MeshAddresses, NodeIndex};

/// An RFC 1123 subdomain of at most 253 characters, as Kubernetes names nodes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(Arc<str>);

impl NodeName {
    pub fn parse(name: &str) -> Result<Self, ParseNodeError> {
        let label = |label: &str| {
            let bytes = label.as_bytes();
            let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            edge(bytes.first())
                && edge(bytes.last())
                && bytes.len() <= 63
                && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        };
        if name.len() > 253 || !name.split('.').all(label) {
            return Err(ParseNodeError::Name { name: shorten(name) });
        }
        Ok(Self(name.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Kubernetes' and Cilium's kinds of node address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressKind {
    InternalIp,
    ExternalIp,
    CiliumInternalIp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeAddress {
    pub kind: AddressKind,
    pub ip: IpAddr,
}

/// The kernel's boot id: 36 characters, another one after every boot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BootId(Arc<str>);

impl BootId {
    pub fn parse(text: &str) -> Result<Self, ParseNodeError> {
        let shape = |(at, b): (usize, u8)| match at {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        };
        if text.len() != 36 || !text.bytes().enumerate().all(shape) {
            return Err(ParseNodeError::BootId { text: shorten(text) });
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A Curve25519 public key, 32 bytes; all zero is no key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    pub fn new(bytes: [u8; 32]) -> Result<Self, ParseNodeError> {
        if bytes == [0; 32] {
            return Err(ParseNodeError::ZeroKey);
        }
        Ok(Self(bytes))
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for PublicKey {
    /// Enough to tell two keys apart in a log line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key:")?;
        self.0[..4].iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// A node as Cilium's `nodes/v1` knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub cluster: ClusterRef,
    pub name: NodeName,
    pub addresses: Vec<NodeAddress>,
    /// Pod CIDRs, the primary ones first. Empty where the CNI gives none per node.
    pub pod_cidrs: Vec<IpNet>,
    pub boot_id: Option<BootId>,
    /// The key of a Cilium node, or of a Hawser node's active epoch.
    pub wireguard_key: Option<PublicKey>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

/// What a Hawser node says of itself beyond `nodes/v1`: `hawser/state/nodes/v1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelNode {
    pub cluster: ClusterRef,
    pub name: NodeName,
    pub index: NodeIndex,
    pub mesh: MeshAddresses,
    pub boot_id: Option<BootId>,
    pub wireguard: Option<TunnelEnd>,
    /// Where it is reached from outside of its cluster, which knows it by other addresses.
    pub public_endpoint: Option<SocketAddr>,
    /// It sends on what nodes of its cluster and of another one, all behind NATs, have for each other. Only with a public endpoint.
    pub gateway: bool,
}

/// One end of WireGuard tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelEnd {
    pub epoch: Epoch,
    pub public_key: PublicKey,
    pub port: u16,
    pub mtu: u16,
    /// Beside `port`: for parallel sessions with peers that have such, too.
    pub more_ports: MorePorts,
    /// Where the mesh encrypts with IPsec.
    pub esp: Option<EspEnd>,
}

/// Ports of a node's parallel sessions beyond the first: few, and each one once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MorePorts {
    count: u8,
    ports: [u16; Self::MOST],
}

impl MorePorts {
    pub const MOST: usize = 7;

    /// None of what is too many, twice the same, or zero.
    pub fn new(ports: &[u16]) -> Option<Self> {
        let again = |(at, port): (usize, &u16)| *port == 0 || ports[..at].contains(port);
        if ports.len() > Self::MOST || ports.iter().enumerate().any(again) {
            return None;
        }
        let mut made = Self { count: ports.len() as u8, ..Self::default() };
        made.ports[..ports.len()].copy_from_slice(ports);
        Some(made)
    }

    pub fn as_slice(&self) -> &[u16] {
        &self.ports[..usize::from(self.count)]
    }
}

impl TunnelEnd {
    pub fn endpoint(&self, underlay: IpAddr) -> SocketAddr {
        SocketAddr::new(underlay, self.port)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseNodeError {
    #[error("node name {name:?} is not an RFC 1123 subdomain")]
    Name { name: String },
    #[error("boot id {text:?} is not a UUID of 36 characters")]
    BootId { text: String },
    #[error("a public key of zeros is no key")]
    ZeroKey,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_name_is_a_subdomain() {
        for good in ["node-1", "ip-10-0-0-1.ec2.internal", "0a"] {
            assert_eq!(NodeName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "a..b", "Node", "a_b", "-a", "a-", "a/b", &"a".repeat(64), &"a.".repeat(127)] {
            assert!(NodeName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn parallel_sessions_have_few_ports_and_each_its_own() {
        assert_eq!(MorePorts::new(&[51880, 51881]).unwrap().as_slice(), [51880, 51881]);
        assert_eq!(MorePorts::new(&[]), Some(MorePorts::default()));
        for bad in [&[0][..], &[1, 1], &[1, 2, 3, 4, 5, 6, 7, 8]] {
            assert_eq!(MorePorts::new(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_boot_id_has_its_shape() {
        assert!(BootId::parse("6c1f0c1e-1111-4222-8333-444455556666").is_ok());
        for bad in ["", "6c1f0c1e-1111-4222-8333-44445555666", "6c1f0c1e_1111-4222-8333-444455556666"] {
            assert!(BootId::parse(bad).is_err(), "{bad}");
        }
    }
}
