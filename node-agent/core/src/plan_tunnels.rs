//! View -> tunnels: a peer for every remote node, and for those of the own cluster that a gateway stands between, routes for what its cluster was admitted with, and guards behind all of it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hawser_model::Encryption;
use hawser_tunnels::{Desired, Device, Peer, PeerName};
use ipnet::IpNet;

use crate::config::AgentConfig;
use crate::gateways::{Neighbour, Way};
use crate::slots::NodeSlots;
use crate::topology::{Remote, RemoteNode};
use crate::view::MeshView;

/// The own cluster's nodes are among the peers only for what they or this node carry as gateways: inside a cluster the CNI carries.
/// O(nodes + stray pods).
pub(crate) fn plan_tunnels(
    config: &AgentConfig,
    view: &MeshView,
    remotes: &[Remote<'_>],
    neighbours: &[Neighbour<'_>],
    slots: &NodeSlots,
) -> Desired {
    let own = config.mesh_addresses();
    let gateway_here = view.own().tunnel_nodes.get(&config.node).is_some_and(|node| node.gateway);
    let mut peers = Vec::new();
    let mut routes = BTreeSet::new();
    // A mesh address, wherever it may be, never leaves in clear; nor do packets to a cluster that is not complete yet.
    let mut guards = BTreeSet::from([IpNet::from(config.mesh.ipv4()), IpNet::from(config.mesh.ula())]);
    guards.extend(view.peers().flat_map(|(peer, _)| peer.pod_cidrs.iter().map(IpNet::trunc)));
    for remote in remotes {
        routes.extend(remote.peer.pod_cidrs.iter().map(IpNet::trunc));
        routes.extend(config.mesh_ranges(remote.peer.cluster.id));
        let reached = remote.nodes.iter().filter(|node| node.way != Way::Nowhere);
        peers.extend(reached.map(|node| Peer {
            name: PeerName { cluster: remote.peer.cluster.clone(), node: node.name.clone() },
            public_key: node.end.public_key,
            endpoint: node.endpoint,
            allowed: allowed(node),
            keepalive: node.keepalive,
            // A gateway's public endpoint is one port.
            more_ports: match gateway_here || node.gateway {
                true => Vec::new(),
                false => node.end.more_ports.as_slice().to_vec(),
            },
            boot_id: node.boot_id.cloned(),
            esp: node.end.esp.filter(|_| config.encryption == Encryption::Ipsec),
            via: match node.way {
                Way::Via(gateway) => Some(gateway),
                Way::Direct | Way::Nowhere => None,
            },
            slot: slots.get(node.id),
        }));
    }
    peers.extend(neighbours.iter().map(|node| Peer {
        name: PeerName { cluster: config.cluster.clone(), node: node.name.clone() },
        public_key: node.key,
        endpoint: node.endpoint,
        allowed: node.carried.clone(),
        keepalive: None,
        more_ports: Vec::new(),
        boot_id: node.boot_id.cloned(),
        esp: None,
        via: None,
        slot: 0,
    }));
    Desired {
        device: Device {
            name: config.device.clone(),
            public_key: config.public_key,
            port: config.port,
            mtu: config.mtu,
            mark: config.mark,
        },
        addresses: BTreeSet::from([IpAddr::V4(own.ipv4), IpAddr::V6(own.ipv6)]),
        peers,
        routes,
        guards,
    }
}

fn allowed(node: &RemoteNode<'_>) -> BTreeSet<IpNet> {
    let mesh = [IpAddr::V4(node.mesh.ipv4), IpAddr::V6(node.mesh.ipv6)];
    let single = mesh.into_iter().chain(node.stray_pods.iter().copied()).map(IpNet::from);
    node.pod_cidrs.iter().copied().chain(single).collect()
}
