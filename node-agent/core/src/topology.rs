//! Remote clusters as the planners need them: admitted, synced, and every address attributed to its node.
//!
//! Cost: one pass over nodes and endpoints, O(n log n); it is made once per plan and shared by the planners.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use hawser_discovery::NodeId;
use hawser_model::{AddressKind, MeshAddresses, Node, NodeName, Peer, TunnelEnd};
use hawser_tunnels::PrefixTable;
use ipnet::IpNet;

use crate::config::AgentConfig;
use crate::kept::KeptEndpoint;
use crate::view::{ClusterView, MeshView};

/// Nodes of one cluster that get a tunnel: Kubernetes' own limit. Each costs a handshake and two probes a second, so a
/// cluster that states more of them than it can have takes nothing from the others.
pub(crate) const MOST_NODES: usize = 5_000;

/// A node we can have a tunnel to.
#[derive(Clone, Debug)]
pub(crate) struct RemoteNode<'a> {
    pub id: NodeId,
    pub name: &'a NodeName,
    pub end: TunnelEnd,
    pub endpoint: SocketAddr,
    pub mesh: MeshAddresses,
    pub pod_cidrs: Vec<IpNet>,
    /// Its pods that none of its own CIDRs covers.
    pub stray_pods: Vec<IpAddr>,
}

/// A cluster whose data is in use.
#[derive(Debug)]
pub(crate) struct Remote<'a> {
    pub peer: &'a Peer,
    pub view: &'a ClusterView,
    /// No longer admitted: its tunnels stay a little, its services do not.
    pub leaving: bool,
    pub nodes: Vec<RemoteNode<'a>>,
    by_host: BTreeMap<IpAddr, usize>,
    by_prefix: PrefixTable<usize>,
}

impl<'a> Remote<'a> {
    /// The node an address of this cluster is behind: by its endpoint's host, else by pod CIDR.
    pub(crate) fn node_of(&self, ip: IpAddr) -> Option<&RemoteNode<'a>> {
        let host = self.view.endpoints.get(&ip).and_then(|endpoint| endpoint.host);
        let at = host.and_then(|host| self.by_host.get(&host)).or_else(|| self.by_prefix.lookup(ip));
        self.nodes.get(*at?)
    }

    /// Its pods. Endpoints at node addresses are not behind the tunnel, so they are not among them.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = (IpAddr, &'a KeptEndpoint)> + use<'a> {
        let peer = self.peer;
        let all = self.view.endpoints.iter().map(|(ip, endpoint)| (*ip, endpoint));
        all.filter(move |(ip, _)| admitted(&peer.pod_cidrs, *ip))
    }

    pub(crate) fn admits_pod(&self, ip: IpAddr) -> bool {
        admitted(&self.peer.pod_cidrs, ip)
    }
}

fn admitted(cidrs: &[IpNet], ip: IpAddr) -> bool {
    cidrs.iter().any(|cidr| cidr.contains(&ip))
}

/// All admitted clusters whose data is complete, in the order of their names, then those that are `leaving`. `notes` gets
/// what was left out and why.
pub(crate) fn remotes<'a>(
    view: &'a MeshView,
    leaving: impl Iterator<Item = &'a Peer>,
    config: &AgentConfig,
    notes: &mut Vec<String>,
) -> Vec<Remote<'a>> {
    let mut remotes = Vec::new();
    for (peer, cluster) in view.peers() {
        if peer.cluster.id == config.cluster.id || peer.cluster.name == config.cluster.name {
            notes.push(format!(
                "{} is admitted as a peer but is this cluster, {}. fix: hawser disconnect {}",
                peer.cluster, config.cluster, peer.cluster.name
            ));
            continue;
        }
        if let Some(cluster) = cluster.filter(|cluster| cluster.is_synced()) {
            remotes.push(remote(peer, cluster, config, notes));
        }
    }
    for peer in leaving {
        if let Some(cluster) = view.cluster(&peer.cluster.name).filter(|cluster| cluster.is_synced()) {
            remotes.push(Remote { leaving: true, ..remote(peer, cluster, config, notes) });
        }
    }
    remotes
}

/// Where its tunnel goes: handshakes go out before any key is proven, so only to what its cluster was admitted with.
fn underlay(peer: &Peer, node: &Node) -> Option<IpAddr> {
    let of_family = |v6| {
        let stated = node.addresses.iter().filter(|address| address.ip.is_ipv6() == v6);
        let within: Vec<_> = stated.filter(|address| admitted(&peer.node_cidrs, address.ip)).collect();
        let of_kind = |kind| within.iter().find(|address| address.kind == kind).map(|address| address.ip);
        of_kind(AddressKind::InternalIp).or_else(|| of_kind(AddressKind::ExternalIp))
    };
    of_family(false).or_else(|| of_family(true))
}

fn remote<'a>(
    peer: &'a Peer,
    view: &'a ClusterView,
    config: &AgentConfig,
    notes: &mut Vec<String>,
) -> Remote<'a> {
    let mut nodes = Vec::new();
    let mut by_host = BTreeMap::new();
    let mut by_prefix = PrefixTable::default();
    for (name, tunnel) in &view.tunnel_nodes {
        let Some(end) = tunnel.wireguard else { continue };
        if nodes.len() == MOST_NODES {
            notes.push(format!(
                "{} states more than {MOST_NODES} nodes, and {}/{name} and those after it get no tunnel. fix: remove nodes that are gone from its source",
                view.name, view.name
            ));
            break;
        }
        let Some(node) = view.nodes.get(name) else { continue };
        let Some(underlay) = underlay(peer, node) else {
            notes.push(format!(
                "{}/{name} states no InternalIP or ExternalIP inside the node CIDRs of its cluster and gets no tunnel. fix: add the range to nodeCIDRs there, and connect it again with a new bundle",
                view.name
            ));
            continue;
        };
        let pod_cidrs: Vec<_> = node.pod_cidrs.iter().map(IpNet::trunc).collect();
        let at = nodes.len();
        by_host.extend(node.addresses.iter().map(|address| (address.ip, at)));
        for cidr in &pod_cidrs {
            by_prefix.insert(*cidr, at);
        }
        nodes.push(RemoteNode {
            id: NodeId { cluster: peer.cluster.id, index: tunnel.index },
            name,
            end,
            endpoint: end.endpoint(underlay),
            // Computed, never believed.
            mesh: config.mesh.addresses(peer.cluster.id, tunnel.index, name),
            pod_cidrs,
            stray_pods: Vec::new(),
        });
    }
    if view.cilium && nodes.is_empty() {
        notes.push(format!(
            "{} runs Cilium: its {} nodes, {} services, {} addresses and identities are known here, and no tunnel leads there, so none of its backends is chosen and packets to its pods are dropped, never sent in clear. fix: run hawser-node-agent on its nodes and connect it as a cluster on Hawser, for traffic; nothing, where only Cilium reads this cluster",
            view.name, view.nodes.len(), view.service_count(), view.endpoints.len()
        ));
    }
    let mut remote = Remote { peer, view, leaving: false, nodes, by_host, by_prefix };
    for (ip, endpoint) in remote.endpoints() {
        let at = endpoint.host.and_then(|host| remote.by_host.get(&host).copied());
        if let Some(node) = at.and_then(|at| remote.nodes.get_mut(at))
            && !admitted(&node.pod_cidrs, ip)
        {
            node.stray_pods.push(ip);
        }
    }
    remote
}
