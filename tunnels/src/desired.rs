//! What a node wants of its tunnels, as the planner of `node-agent/core` says it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use hawser_model::{BootId, ClusterRef, EspEnd, NodeName, PublicKey};
use ipnet::IpNet;

/// Everything a node wants: one device, its peers, and what lies behind them.
///
/// May contradict itself, because it is merged from clusters that do not know each other: [`crate::resolve()`] settles that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    pub device: Device,
    /// Own mesh addresses, at most one of a family: the preferred sources of the routes.
    pub addresses: BTreeSet<IpAddr>,
    pub peers: Vec<Peer>,
    /// Prefixes behind the mesh: each gets a route to the device and a guard.
    pub routes: BTreeSet<IpNet>,
    /// Prefixes that must never leave in clear though nothing leads there now: a guard alone. Need not repeat `routes`.
    pub guards: BTreeSet<IpNet>,
}

impl Desired {
    /// The preferred source of a route.
    pub fn source(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| Family::of(*address) == family)
    }
}

/// The WireGuard device. The private key stays with the driver; here it is known by its public half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub name: DeviceName,
    pub public_key: PublicKey,
    pub port: u16,
    pub mtu: u16,
    /// On the engine's own packets, so that they do not enter the tunnel they come from.
    pub mark: Mark,
}

/// The other end of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub name: PeerName,
    pub public_key: PublicKey,
    pub endpoint: SocketAddr,
    /// What may come from it and is sent to it, host bits zero.
    pub allowed: BTreeSet<IpNet>,
    /// Seconds; none is silent when idle.
    pub keepalive: Option<u16>,
    /// Where it has parallel sessions beyond its first, if it has any.
    pub more_ports: Vec<u16>,
    /// Goes into the keys of IPsec.
    pub boot_id: Option<BootId>,
    /// By which of them it receives, where the mesh encrypts with IPsec.
    pub esp: Option<EspEnd>,
    /// The key of the gateway that carries it, which is a peer too. Then nothing goes to this key and endpoint themselves.
    pub via: Option<PublicKey>,
    /// The node's number on this machine, by which `tunnel_in` knows it: IPsec's request id. WireGuard has its keys for that.
    pub slot: u32,
}

/// Whose tunnel end it is. The order of names decides conflicts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerName {
    pub cluster: ClusterRef,
    pub node: NodeName,
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.cluster.name, self.node)
    }
}

/// A firewall mark and the bits of it that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    pub value: u32,
    pub mask: u32,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{:#x}", self.value, self.mask)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub fn of_net(net: &IpNet) -> Self {
        Self::of(net.addr())
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::V4 { "ipv4" } else { "ipv6" })
    }
}

/// `not fwmark <mark> lookup <table>`: how the mesh's routes were led to before they stood in the main table. Taken away where one is
/// found: with any rule of somebody's the kernel looks up every packet's route by the long way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    pub family: Family,
    pub priority: u32,
    pub table: u32,
    pub mark: Mark,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: not fwmark {} lookup {}", self.family, self.priority, self.mark, self.table)
    }
}

/// A network interface's name: 1 to 15 bytes that a path and a shell can bear.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceName(Arc<str>);

impl DeviceName {
    /// `IFNAMSIZ` less its NUL.
    pub const MAX_LEN: usize = 15;

    pub fn parse(name: &str) -> Result<Self, ParseDeviceNameError> {
        let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let dots = name.bytes().all(|b| b == b'.');
        if name.is_empty() || name.len() > Self::MAX_LEN || dots || !name.bytes().all(fine) {
            let name = name.chars().take(32).collect();
            return Err(ParseDeviceNameError { name });
        }
        Ok(Self(name.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for DeviceName {
    type Err = ParseDeviceNameError;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::parse(name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("device name {name:?} is not 1 to 15 letters, digits, '-', '_' or '.'")]
pub struct ParseDeviceNameError {
    name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_name_is_one_that_linux_takes() {
        for good in ["hawser0", "a", "wg-1.2_x", "abcdefghijklmno"] {
            assert_eq!(DeviceName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a/b", "a b", "abcdefghijklmnop", "ä"] {
            assert!(DeviceName::parse(bad).is_err(), "{bad}");
        }
    }
}
