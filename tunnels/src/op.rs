//! One step. Its `Display` is the line that `hawser plan` prints.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use hawser_model::{BootId, EspEnd, PublicKey};
use ipnet::IpNet;

use crate::{DeviceName, Mark, PeerName, Rule};

/// An operation on the device, its engine, or our routing table. Each may be repeated without harm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Create the device, or adopt a persistent one.
    CreateDevice {
        name: DeviceName,
    },
    /// `unreachable <prefix>` with a metric worse than any route to the device.
    AddGuard {
        prefix: IpNet,
    },
    Configure {
        name: DeviceName,
        public_key: PublicKey,
        port: u16,
        mark: Mark,
    },
    SetLink {
        name: DeviceName,
        mtu: u16,
    },
    AddAddress {
        address: IpAddr,
    },
    /// Of one that is there already: gives it another slot, or other associations.
    AddPeer {
        peer: PeerName,
        public_key: PublicKey,
        endpoint: SocketAddr,
        keepalive: Option<u16>,
        more_ports: Vec<u16>,
        boot_id: Option<BootId>,
        esp: Option<EspEnd>,
        slot: u32,
    },
    SetEndpoint {
        peer: PeerName,
        public_key: PublicKey,
        endpoint: SocketAddr,
    },
    SetKeepalive {
        peer: PeerName,
        public_key: PublicKey,
        keepalive: Option<u16>,
    },
    /// The peer has parallel sessions at these ports, beside its first. Nothing to do where there is one a peer.
    SetPorts {
        peer: PeerName,
        public_key: PublicKey,
        ports: Vec<u16>,
    },
    /// Adds prefixes to a peer. One that another peer held moves in the same instant (WireGuard's rule).
    Allow {
        peer: PeerName,
        public_key: PublicKey,
        prefixes: BTreeSet<IpNet>,
    },
    /// Adds, or changes the preferred source of, a route to the device.
    SetRoute {
        prefix: IpNet,
        source: IpAddr,
    },
    RemoveRoute {
        prefix: IpNet,
    },
    /// Leaves a peer with `keep`; `drop` is what it loses.
    Restrict {
        peer: PeerName,
        public_key: PublicKey,
        keep: BTreeSet<IpNet>,
        drop: BTreeSet<IpNet>,
    },
    RemovePeer {
        public_key: PublicKey,
    },
    RemoveAddress {
        address: IpAddr,
    },
    RemoveRule {
        rule: Rule,
    },
    RemoveGuard {
        prefix: IpNet,
    },
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateDevice { name } => write!(f, "create device {name}"),
            Self::AddGuard { prefix } => write!(f, "guard {prefix}: unreachable unless a tunnel leads there"),
            Self::Configure { name, public_key, port, mark } => {
                write!(f, "configure {name}: {public_key:?}, port {port}, mark {mark}")
            }
            Self::SetLink { name, mtu } => write!(f, "set {name} up, mtu {mtu}"),
            Self::AddAddress { address } => write!(f, "add own address {address}"),
            Self::AddPeer { peer, public_key, endpoint, keepalive, .. } => {
                write!(f, "add peer {peer} at {endpoint}, {public_key:?}, {}", Keepalive(*keepalive))
            }
            Self::SetEndpoint { peer, endpoint, .. } => write!(f, "move peer {peer} to {endpoint}"),
            Self::SetKeepalive { peer, keepalive, .. } => write!(f, "peer {peer}: {}", Keepalive(*keepalive)),
            Self::SetPorts { peer, ports, .. } if ports.is_empty() => write!(f, "peer {peer}: one session"),
            Self::SetPorts { peer, ports, .. } => {
                let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                write!(f, "peer {peer}: sessions at ports {}, too", ports.join(", "))
            }
            Self::Allow { peer, prefixes, .. } => write!(f, "peer {peer} owns {}", List(prefixes)),
            Self::SetRoute { prefix, source } => write!(f, "route {prefix} into the mesh, source {source}"),
            Self::RemoveRoute { prefix } => write!(f, "remove route {prefix}"),
            Self::Restrict { peer, drop, .. } => write!(f, "peer {peer} no longer owns {}", List(drop)),
            Self::RemovePeer { public_key } => write!(f, "remove peer {public_key:?}"),
            Self::RemoveAddress { address } => write!(f, "remove own address {address}"),
            Self::RemoveRule { rule } => write!(f, "remove rule {rule} and its table's routes"),
            Self::RemoveGuard { prefix } => write!(f, "remove guard {prefix}"),
        }
    }
}

struct Keepalive(Option<u16>);

impl fmt::Display for Keepalive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(seconds) => write!(f, "keepalive {seconds} s"),
            None => f.write_str("no keepalive"),
        }
    }
}

struct List<'a>(&'a BTreeSet<IpNet>);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, prefix) in self.0.iter().enumerate() {
            write!(f, "{}{prefix}", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}
