//! Remote clusters as the planners need them: admitted, synced, and every address attributed to its node.
//!
//! Cost: one pass over nodes and endpoints, O(n log n); it is made once per plan and shared by the planners.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use hawser_discovery::{MOST_ENDPOINTS, NodeId};
use hawser_model::{
    AddressKind, BootId, Encryption, MeshAddresses, Node, NodeAddress, NodeName, Peer, TunnelEnd, TunnelNode,
};
use hawser_tunnels::PrefixTable;
use ipnet::IpNet;

use crate::config::AgentConfig;
use crate::gateways::Way;
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
    /// Where it can be reached, best first; one at least.
    pub stated: Vec<SocketAddr>,
    /// The one of them that is taken, or where it was heard from.
    pub endpoint: SocketAddr,
    pub keepalive: Option<u16>,
    /// Its cluster's other nodes are reached by it.
    pub gateway: bool,
    pub way: Way,
    /// This node is a gateway and carries what the node has for others of this cluster.
    pub carried: bool,
    /// We are behind a NAT, and it has to hear from us to answer.
    pub dialled: bool,
    pub boot_id: Option<&'a BootId>,
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
    pub ends: Ends,
}

/// Which address of one cluster is behind which of its nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ends {
    nodes: Vec<(NodeId, NodeName)>,
    by_host: BTreeMap<IpAddr, usize>,
    by_prefix: PrefixTable<usize>,
}

/// A cluster that backends are taken from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin<'a> {
    pub peer: &'a Peer,
    pub view: &'a ClusterView,
    pub ends: &'a Ends,
}

impl Ends {
    /// By the address's endpoint's host, else by pod CIDR.
    fn at(&self, view: &ClusterView, ip: IpAddr) -> Option<usize> {
        let host = view.endpoints.get(&ip).and_then(|endpoint| endpoint.host);
        host.and_then(|host| self.by_host.get(&host)).or_else(|| self.by_prefix.lookup(ip)).copied()
    }
}

impl<'a> Origin<'a> {
    /// The node an address of this cluster is behind.
    pub(crate) fn node_of(&self, ip: IpAddr) -> Option<&'a (NodeId, NodeName)> {
        self.ends.nodes.get(self.ends.at(self.view, ip)?)
    }

    pub(crate) fn admits_pod(&self, ip: IpAddr) -> bool {
        admitted(&self.peer.pod_cidrs, ip)
    }

    /// The node that has this address itself.
    pub(crate) fn host(&self, ip: IpAddr) -> Option<&'a (NodeId, NodeName)> {
        self.ends.nodes.get(*self.ends.by_host.get(&ip)?)
    }
}

impl<'a> Remote<'a> {
    pub(crate) fn origin(&self) -> Origin<'_> {
        Origin { peer: self.peer, view: self.view, ends: &self.ends }
    }

    /// The node an address of this cluster is behind.
    pub(crate) fn node_of(&self, ip: IpAddr) -> Option<&RemoteNode<'a>> {
        self.nodes.get(self.ends.at(self.view, ip)?)
    }

    /// Its pods. Endpoints at node addresses are not behind the tunnel, so they are not among them.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = (IpAddr, &'a KeptEndpoint)> + use<'a> {
        let peer = self.peer;
        let all = self.view.endpoints.iter().map(|(ip, endpoint)| (*ip, endpoint));
        all.filter(move |(ip, _)| admitted(&peer.pod_cidrs, *ip))
    }
}

pub(crate) fn admitted(cidrs: &[IpNet], ip: IpAddr) -> bool {
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
    let families = families(view, config);
    for (peer, cluster) in view.peers() {
        if peer.cluster.id == config.cluster.id || peer.cluster.name == config.cluster.name {
            notes.push(format!(
                "{} is admitted as a peer but is this cluster, {}. fix: hawser disconnect {}",
                peer.cluster, config.cluster, peer.cluster.name
            ));
            continue;
        }
        if let Some(cluster) = cluster.filter(|cluster| cluster.is_synced()) {
            remotes.push(remote(peer, cluster, config, families, notes));
        }
    }
    for peer in leaving {
        if let Some(cluster) = view.cluster(&peer.cluster.name).filter(|cluster| cluster.is_synced()) {
            remotes.push(Remote { leaving: true, ..remote(peer, cluster, config, families, notes) });
        }
    }
    remotes
}

/// Families in which this node has an underlay address, by what its own cluster states; both while it states none.
fn families(view: &MeshView, config: &AgentConfig) -> [bool; 2] {
    let own = view.own().nodes.get(&config.node);
    let has = |v6| own.is_some_and(|node| node.addresses.iter().any(|address| address.ip.is_ipv6() == v6));
    if has(false) || has(true) { [has(false), has(true)] } else { [true; 2] }
}

/// Where its tunnel can go: handshakes go out before any key is proven, so only to what its cluster was admitted with.
/// Families that this node has come first, then its public endpoint, then internal addresses, then IPv4, then what is stated first.
/// A gateway has only its public endpoint: where it is needed, nothing else can be reached.
fn endpoints(
    peer: &Peer,
    node: &Node,
    tunnel: &TunnelNode,
    end: &TunnelEnd,
    families: [bool; 2],
) -> Vec<SocketAddr> {
    let kinds = [AddressKind::InternalIp, AddressKind::ExternalIp];
    let kind = |address: &NodeAddress| kinds.iter().position(|kind| *kind == address.kind);
    let stated = node.addresses.iter().filter(|_| !tunnel.gateway);
    let stated = stated.filter_map(|address| Some((1 + kind(address)?, end.endpoint(address.ip))));
    let public = tunnel.public_endpoint.into_iter().map(|endpoint| (0, endpoint));
    let mut ranked: Vec<_> = public
        .chain(stated)
        .filter(|(_, endpoint)| admitted(&peer.node_cidrs, endpoint.ip()))
        .map(|(kind, endpoint)| {
            let v6 = endpoint.is_ipv6();
            ((!families[usize::from(v6)], kind, v6), endpoint)
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let mut endpoints: Vec<SocketAddr> = Vec::new();
    for (_, endpoint) in ranked {
        if !endpoints.contains(&endpoint) && endpoints.len() < MOST_ENDPOINTS {
            endpoints.push(endpoint);
        }
    }
    endpoints
}

/// It was admitted with the own one; either cluster has changed it since.
fn other_encryption(peer: &Peer, nodes: &[RemoteNode<'_>], config: &AgentConfig) -> Option<String> {
    let of = |node: &RemoteNode<'_>| match node.end.esp {
        Some(_) => Encryption::Ipsec,
        None => Encryption::Wireguard,
    };
    let first = nodes.iter().find(|node| of(node) != config.encryption)?;
    let count = nodes.iter().filter(|node| of(node) != config.encryption).count();
    let (theirs, ours, cluster) = (of(first), config.encryption, &peer.cluster);
    Some(format!(
        "{count} nodes of {cluster} encrypt with {theirs}, the first is {}, and those of {} with {ours}: no tunnel comes about between them. fix: \
         set the same encryption in the cluster.yaml of both clusters, and start the agents again",
        first.name, config.cluster
    ))
}

fn remote<'a>(
    peer: &'a Peer,
    view: &'a ClusterView,
    config: &AgentConfig,
    families: [bool; 2],
    notes: &mut Vec<String>,
) -> Remote<'a> {
    let mut nodes = Vec::new();
    let mut ends = Ends::default();
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
        let stated = endpoints(peer, node, tunnel, &end, families);
        let Some(endpoint) = stated.first().copied() else {
            notes.push(format!(
                "{}/{name} states no InternalIP, ExternalIP or public endpoint inside the node CIDRs of its cluster and gets no tunnel. fix: add the range to nodeCIDRs there, and connect it again with a new bundle",
                view.name
            ));
            continue;
        };
        let pod_cidrs: Vec<_> = node.pod_cidrs.iter().map(IpNet::trunc).collect();
        let at = nodes.len();
        let id = NodeId { cluster: peer.cluster.id, index: tunnel.index };
        ends.nodes.push((id, name.clone()));
        ends.by_host.extend(node.addresses.iter().map(|address| (address.ip, at)));
        for cidr in &pod_cidrs {
            ends.by_prefix.insert(*cidr, at);
        }
        nodes.push(RemoteNode {
            id,
            name,
            end,
            stated,
            endpoint,
            keepalive: None,
            gateway: tunnel.gateway,
            way: Way::Direct,
            carried: false,
            dialled: false,
            boot_id: tunnel.boot_id.as_ref(),
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
    notes.extend(other_encryption(peer, &nodes, config));
    let mut remote = Remote { peer, view, leaving: false, nodes, ends };
    find_strays(&mut remote);
    remote
}

/// Pods outside of their node's prefixes: it has them one by one.
fn find_strays(remote: &mut Remote<'_>) {
    for (ip, endpoint) in remote.endpoints() {
        let at = endpoint.host.and_then(|host| remote.ends.by_host.get(&host).copied());
        if let Some(node) = at.and_then(|at| remote.nodes.get_mut(at))
            && !admitted(&node.pod_cidrs, ip)
        {
            node.stray_pods.push(ip);
        }
    }
}
