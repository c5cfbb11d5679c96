//! Services, their ports and backends, as clusters share them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::cluster::shorten;
use crate::{ClusterRef, IdentityId, Names, Routing};

/// Namespace and name; the same pair means the same service in every cluster (namespace sameness).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    namespace: Arc<str>,
    name: Arc<str>,
}

impl ServiceKey {
    /// Both parts are DNS labels (RFC 1123), at most 63 characters, so they can be parts of a key.
    pub fn new(namespace: &str, name: &str) -> Result<Self, ParseServiceError> {
        for (what, text) in [("namespace", namespace), ("name", name)] {
            let ok = !text.is_empty()
                && text.len() <= 63
                && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !text.starts_with('-')
                && !text.ends_with('-');
            if !ok {
                return Err(ParseServiceError::Key { what, text: shorten(text) });
            }
        }
        Ok(Self { namespace: namespace.into(), name: name.into() })
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Namespace and name, to be shared.
    pub fn texts(&self) -> [&Arc<str>; 2] {
        [&self.namespace, &self.name]
    }

    /// Shares the namespace's text.
    pub fn share(&mut self, names: &mut Names) {
        names.share(&mut self.namespace);
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// Upper case, as Kubernetes writes it.
    pub fn parse(text: &str) -> Result<Self, ParseServiceError> {
        match text {
            "TCP" => Ok(Self::Tcp),
            "UDP" => Ok(Self::Udp),
            "SCTP" => Ok(Self::Sctp),
            other => Err(ParseServiceError::Protocol { text: shorten(other) }),
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// The number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A port's name; empty when the service has one unnamed port. Ports of clusters are matched by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PortName(Arc<str>);

impl PortName {
    pub fn parse(text: &str) -> Result<Self, ParseServiceError> {
        let ok = text.len() <= 63
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !ok {
            return Err(ParseServiceError::PortName { text: shorten(text) });
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Shares its text.
    pub fn share(&mut self, names: &mut Names) {
        names.share(&mut self.0);
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePort {
    pub protocol: Protocol,
    pub port: u16,
}

/// The addresses and ports of one side of a service: `{ip: {port name: port}}`.
pub type PortMap = BTreeMap<IpAddr, BTreeMap<PortName, ServicePort>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Affinity {
    /// Every healthy backend of every cluster.
    #[default]
    None,
    /// This cluster's while it has a healthy one, then the others'.
    Local,
    /// The others' while they have a healthy one, then this cluster's.
    Remote,
}

impl Affinity {
    pub fn parse(text: &str) -> Result<Self, ParseServiceError> {
        match text {
            "none" => Ok(Self::None),
            "local" => Ok(Self::Local),
            "remote" => Ok(Self::Remote),
            other => Err(ParseServiceError::Affinity { text: shorten(other) }),
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Local => "local",
            Self::Remote => "remote",
        }
    }
}

impl fmt::Display for Affinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A service as one cluster shares it with the others (`services/v1`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedService {
    pub cluster: ClusterRef,
    pub key: ServiceKey,
    pub frontends: PortMap,
    pub backends: PortMap,
    /// Those of the backends that take nothing new while another one is ready. Only Hawser writes and reads them.
    pub draining: BTreeSet<IpAddr>,
    pub hostnames: BTreeMap<IpAddr, String>,
    pub zones: BTreeMap<IpAddr, String>,
    pub labels: BTreeMap<String, String>,
    pub selector: BTreeMap<String, String>,
    pub include_external: bool,
    /// False is read as "gone".
    pub shared: bool,
}

/// A service of the own cluster that takes part in the mesh (`hawser/local/services/v1`): what agents here need beyond
/// what the others see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobalService {
    pub cluster: ClusterRef,
    pub key: ServiceKey,
    pub cluster_ips: Vec<IpAddr>,
    pub ports: BTreeMap<PortName, ServicePort>,
    pub routing: Routing,
    pub shared: bool,
    pub backends: PortMap,
    /// As in [`SharedService`].
    pub draining: BTreeSet<IpAddr>,
    pub zones: BTreeMap<IpAddr, String>,
    pub outside: Outside,
}

/// Where a service is entered from outside its cluster, beside its ClusterIPs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outside {
    /// Its external addresses and its load balancer's.
    pub ips: BTreeSet<IpAddr>,
    /// On every node's addresses.
    pub node_ports: BTreeMap<PortName, u16>,
}

impl Outside {
    pub fn is_nowhere(&self) -> bool {
        self.ips.is_empty() && self.node_ports.is_empty()
    }
}

/// A pod's address and who it is (`ip/v1`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub ip: IpAddr,
    /// The node it runs on; none when the publisher does not say.
    pub host: Option<IpAddr>,
    pub identity: IdentityId,
    /// 0 in clear, 1..=15 an IPsec SPI, 255 WireGuard.
    pub encryption_key: u8,
    pub namespace: String,
    pub pod: String,
    pub service_account: String,
    pub named_ports: BTreeMap<PortName, ServicePort>,
    /// Its sockets must keep seeing a service's address, or are another kernel's: its own node translates its packets instead.
    pub left_out: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseServiceError {
    #[error("{what} {text:?} is not an RFC 1123 label")]
    Key { what: &'static str, text: String },
    #[error("protocol {text:?} is none of TCP, UDP, SCTP")]
    Protocol { text: String },
    #[error(
        "port name {text:?} is longer than 63 characters or holds more than lower-case letters, digits and '-'"
    )]
    PortName { text: String },
    #[error("affinity {text:?} is none of none, local, remote")]
    Affinity { text: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_key_is_two_labels() {
        assert_eq!(ServiceKey::new("shop", "cart").unwrap().to_string(), "shop/cart");
        for (ns, name) in
            [("", "a"), ("a", ""), ("a/b", "c"), ("A", "b"), ("a", "-b"), ("a", &"x".repeat(64))]
        {
            assert!(ServiceKey::new(ns, name).is_err(), "{ns}/{name}");
        }
    }
}
