//! View -> tunnels: a peer for every remote node, routes for what its cluster was admitted with, and guards behind all of it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hawser_tunnels::{Desired, Device, Peer, PeerName};
use ipnet::IpNet;

use crate::config::AgentConfig;
use crate::slots::NodeSlots;
use crate::topology::{Remote, RemoteNode};
use crate::view::MeshView;

/// The own cluster's nodes are not among the peers: inside a cluster the CNI carries. O(nodes + stray pods).
pub(crate) fn plan_tunnels(
    config: &AgentConfig,
    view: &MeshView,
    remotes: &[Remote<'_>],
    slots: &NodeSlots,
) -> Desired {
    let own = config.mesh_addresses();
    let mut peers = Vec::new();
    let mut routes = BTreeSet::new();
    // A mesh address, wherever it may be, never leaves in clear; nor do packets to a cluster that is not complete yet.
    let mut guards = BTreeSet::from([IpNet::from(config.mesh.ipv4()), IpNet::from(config.mesh.ula())]);
    guards.extend(view.peers().flat_map(|(peer, _)| peer.pod_cidrs.iter().map(IpNet::trunc)));
    for remote in remotes {
        routes.extend(remote.peer.pod_cidrs.iter().map(IpNet::trunc));
        routes.extend(config.mesh_ranges(remote.peer.cluster.id));
        peers.extend(remote.nodes.iter().map(|node| Peer {
            name: PeerName { cluster: remote.peer.cluster.clone(), node: node.name.clone() },
            public_key: node.end.public_key,
            endpoint: node.endpoint,
            allowed: allowed(node),
            keepalive: node.keepalive,
            boot_id: node.boot_id.cloned(),
            slot: slots.get(node.id),
        }));
    }
    Desired {
        device: Device {
            name: config.device.clone(),
            public_key: config.public_key,
            port: config.port,
            mtu: config.mtu,
            mark: config.mark,
        },
        addresses: BTreeSet::from([IpAddr::V4(own.ipv4), IpAddr::V6(own.ipv6)]),
        table: config.table,
        rule_priority: config.rule_priority,
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
