//! Pairs that meet at a gateway: which ones, where, and what a gateway carries. From plan to plan: one [`GatewayChoice`] a node.
//!
//! Two clusters that say `path: gateways` are reached by their gateways alone. A node has a tunnel to each gateway of both: to the
//! other cluster's as to any node, to those of its own inside. One of them carries a pair. At a gateway everybody is a peer: nodes
//! of other clusters, which come to it, and the nodes of its own cluster that it carries for.
//!
//! Cost: a plan is O(nodes × gateways), a verdict O(log nodes).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use hawser_discovery::NodeId;
use hawser_ebpf_abi::{CONFIG_GATEWAY, DesiredDatapath, IP_CARRIED, IP_GUARDED, IpEntry, PrefixKey};
use hawser_model::{
    AddressKind, BootId, ClusterConfig, IdentityId, NodeName, NodePath, PublicKey, Time, TunnelNode,
};
use hawser_tunnels::{Desired, GatewayChoice, PairEnd, PeerName};
use ipnet::IpNet;

use crate::agent::Agent;
use crate::choices::Choices;
use crate::config::AgentConfig;
use crate::topology::{Remote, RemoteNode, admitted};
use crate::view::{Changed, ClusterView, MeshView};

/// Of one cluster; those that come first by name. Each costs every node of both clusters a tunnel.
pub(crate) const MOST_GATEWAYS: usize = 16;

/// How packets get to a remote node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Direct,
    /// By the gateway with this key.
    Via(PublicKey),
    /// Neither cluster has a gateway.
    Nowhere,
}

/// A node of the own cluster that has a tunnel to this one.
#[derive(Clone, Debug)]
pub(crate) struct Neighbour<'a> {
    pub name: &'a NodeName,
    pub key: PublicKey,
    pub endpoint: SocketAddr,
    pub boot_id: Option<&'a BootId>,
    /// Its addresses on the underlay.
    pub hosts: Vec<IpAddr>,
    pod_cidrs: &'a [IpNet],
    /// What this node, a gateway, carries for it. Nothing when it is the gateway.
    pub carried: BTreeSet<IpNet>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Gateways {
    pub(crate) choices: Choices<GatewayChoice>,
    /// Of the last run.
    remembered: BTreeMap<PeerName, PublicKey>,
}

fn path(view: &ClusterView) -> NodePath {
    view.config.as_ref().map_or(NodePath::Direct, |config: &ClusterConfig| config.path)
}

fn pair_end(id: NodeId) -> PairEnd {
    PairEnd { cluster: id.cluster, index: id.index }
}

/// A cluster's gateways, of nodes in the order of their names.
fn first_gateways(ends: impl Iterator<Item = (PairEnd, PublicKey)>) -> BTreeMap<PairEnd, PublicKey> {
    ends.take(MOST_GATEWAYS).collect()
}

impl Gateways {
    pub(crate) fn remember(&mut self, tunnels: &Desired) {
        let carried = tunnels.peers.iter().filter_map(|peer| Some((peer.name.clone(), peer.via?)));
        self.remembered.extend(carried);
    }

    /// Gives every remote node its way, and says which nodes of the own cluster get a tunnel for that.
    pub(crate) fn settle<'a>(
        &mut self,
        config: &AgentConfig,
        view: &'a MeshView,
        remotes: &mut [Remote<'_>],
        notes: &mut Vec<String>,
        now: Time,
    ) -> Vec<Neighbour<'a>> {
        let mut before = self.choices.settle();
        let own = view.own();
        let meets =
            |remote: &Remote<'_>| path(own) == NodePath::Gateways && path(remote.view) == NodePath::Gateways;
        if !remotes.iter().any(meets) {
            return Vec::new();
        }
        let gateway_here = own.tunnel_nodes.get(&config.node).is_some_and(|node| node.gateway);
        let own_gateways = first_gateways(
            own_ends(config, own)
                .filter(|(_, node)| node.gateway)
                .filter_map(|(id, node)| Some((pair_end(id), node.wireguard?.public_key))),
        );
        let here = PairEnd { cluster: config.cluster.id, index: config.index };
        for remote in remotes.iter_mut().filter(|remote| meets(remote)) {
            let theirs = remote.nodes.iter().filter(|node| node.gateway);
            let gateways: BTreeMap<_, _> =
                first_gateways(theirs.map(|node| (pair_end(node.id), node.end.public_key)))
                    .into_iter()
                    .chain(own_gateways.iter().map(|(end, key)| (*end, *key)))
                    .collect();
            let cluster = remote.peer.cluster.clone();
            for node in &mut remote.nodes {
                node.carried = gateway_here && !node.gateway;
                node.dialled = !gateway_here && node.gateway;
                if gateway_here || node.gateway {
                    continue;
                }
                let name = PeerName { cluster: cluster.clone(), node: node.name.clone() };
                let remembered = self.remembered.remove(&name);
                let known = before.remove(&node.id);
                node.way = self.way(here, node, &gateways, known, remembered, now);
            }
            if gateways.is_empty() && !gateway_here {
                notes.push(format!(
                    "{} and {} both say path: gateways, and neither has a gateway that can be used, so no tunnel leads from one to the other. fix: annotate a node of either with hawser.io/gateway: \"true\" and hawser.io/public-endpoint",
                    config.cluster.name, cluster.name
                ));
            }
        }
        self.choices.settled();
        neighbours(config, own, gateway_here, &own_gateways)
    }

    fn way(
        &mut self,
        here: PairEnd,
        node: &RemoteNode<'_>,
        gateways: &BTreeMap<PairEnd, PublicKey>,
        known: Option<GatewayChoice>,
        remembered: Option<PublicKey>,
        now: Time,
    ) -> Way {
        let ends = || gateways.keys().copied();
        let choice = match known {
            Some(mut known) => known.handle_gateways(ends(), now).then_some(known),
            None => {
                let remembered = gateways.iter().find(|(_, key)| Some(**key) == remembered);
                let at = remembered.map(|(end, _)| *end);
                GatewayChoice::new(here, pair_end(node.id), ends(), at, now)
                    .map(|new| self.choices.told(node.id, new, now))
            }
        };
        let Some(choice) = choice else { return Way::Nowhere };
        let way = gateways.get(&choice.gateway()).map_or(Way::Nowhere, |key| Way::Via(*key));
        self.choices.keep(node.id, choice);
        way
    }

    /// When nodes were heard last. True when a pair goes by another gateway now.
    fn handle_heard(&mut self, heard: &BTreeMap<NodeId, Time>, now: Time) -> bool {
        let mut moved = false;
        for node in self.choices.looked(now) {
            let look = |choice: &mut GatewayChoice| {
                heard.get(&node).into_iter().for_each(|at| choice.handle_heard(*at));
                choice.handle_time(now)
            };
            moved |= self.choices.change(node, look).unwrap_or(false);
        }
        moved
    }
}

/// The other nodes of the own cluster that have an end.
fn own_ends<'a>(
    config: &AgentConfig,
    own: &'a ClusterView,
) -> impl Iterator<Item = (NodeId, &'a TunnelNode)> + use<'a> {
    let (cluster, here) = (config.cluster.id, config.node.clone());
    let others = own.tunnel_nodes.values().filter(move |node| node.name != here && node.wireguard.is_some());
    others.map(move |node| (NodeId { cluster, index: node.index }, node))
}

/// At a gateway all that it carries for, elsewhere the gateways. O(nodes), and O(endpoints) at a gateway.
fn neighbours<'a>(
    config: &AgentConfig,
    own: &'a ClusterView,
    gateway_here: bool,
    gateways: &BTreeMap<PairEnd, PublicKey>,
) -> Vec<Neighbour<'a>> {
    let mut neighbours = Vec::new();
    for (id, tunnel) in own_ends(config, own) {
        let wanted = if gateway_here { !tunnel.gateway } else { gateways.contains_key(&pair_end(id)) };
        let node = own.nodes.get(&tunnel.name).filter(|_| wanted);
        let (Some(node), Some(end)) = (node, tunnel.wireguard) else { continue };
        let internal = node.addresses.iter().filter(|address| address.kind == AddressKind::InternalIp);
        let Some(at) = internal.map(|address| address.ip).min_by_key(IpAddr::is_ipv6) else { continue };
        let mut carried = BTreeSet::new();
        if gateway_here {
            let mesh = config.mesh.addresses(config.cluster.id, tunnel.index, &tunnel.name);
            carried.extend([IpAddr::V4(mesh.ipv4), IpAddr::V6(mesh.ipv6)].map(IpNet::from));
            carried.extend(node.pod_cidrs.iter().map(IpNet::trunc));
        }
        neighbours.push(Neighbour {
            name: &tunnel.name,
            key: end.public_key,
            endpoint: end.endpoint(at),
            boot_id: tunnel.boot_id.as_ref(),
            hosts: node.addresses.iter().map(|address| address.ip).collect(),
            pod_cidrs: &node.pod_cidrs,
            carried,
        });
    }
    if gateway_here {
        stray_pods(own, &mut neighbours);
    }
    neighbours
}

/// Pods that none of their node's CIDRs covers are carried by themselves.
fn stray_pods(own: &ClusterView, neighbours: &mut [Neighbour<'_>]) {
    let hosts =
        neighbours.iter().enumerate().flat_map(|(at, node)| node.hosts.iter().map(move |ip| (*ip, at)));
    let by_host: BTreeMap<IpAddr, usize> = hosts.collect();
    for (ip, endpoint) in &own.endpoints {
        let at = endpoint.host.and_then(|host| by_host.get(&host).copied());
        // A host-network pod's address is its node's.
        let Some(node) = at.and_then(|at| neighbours.get_mut(at)).filter(|_| !by_host.contains_key(ip))
        else {
            continue;
        };
        if !admitted(node.pod_cidrs, *ip) {
            node.carried.insert(IpNet::from(*ip));
        }
    }
}

/// At a gateway: whose packets `tunnel_in` sends on, those of the nodes that are carried and of their pods. O(endpoints).
pub(crate) fn carry(
    config: &AgentConfig,
    view: &MeshView,
    remotes: &[Remote<'_>],
    neighbours: &[Neighbour<'_>],
    desired: &mut DesiredDatapath,
) {
    let carries = |node: &&Neighbour<'_>| !node.carried.is_empty();
    if !neighbours.iter().any(|node| carries(&node)) {
        return;
    }
    desired.config.flags |= CONFIG_GATEWAY;
    let key = |net: IpNet| PrefixKey::new(net.addr(), net.prefix_len());
    for remote in remotes {
        let carried = remote.nodes.iter().filter(|node| node.carried);
        let nodes = carried.flat_map(|node| {
            let mesh = [IpAddr::V4(node.mesh.ipv4), IpAddr::V6(node.mesh.ipv6)];
            mesh.map(IpNet::from).into_iter().chain(node.pod_cidrs.iter().copied())
        });
        let behind = |ip: &IpAddr| remote.node_of(*ip).is_some_and(|node| node.carried);
        let pods = remote.endpoints().map(|(ip, _)| ip).filter(behind).map(IpNet::from);
        for entry in nodes.chain(pods).filter_map(key) {
            // What has no entry was left out of the cluster's share.
            desired.ipcache.entry(entry).and_modify(|entry| entry.flags |= IP_CARRIED);
        }
    }
    let hosts: BTreeSet<_> = neighbours.iter().filter(carries).flat_map(|node| &node.hosts).collect();
    let own = view.own().endpoints.iter();
    let pods = own.filter(|(ip, endpoint)| {
        endpoint.host.is_some_and(|host| hosts.contains(&host)) && !hosts.contains(ip)
    });
    let prefixes = neighbours.iter().flat_map(|node| node.carried.iter().copied());
    for net in prefixes.chain(pods.map(|(ip, _)| IpNet::from(*ip))) {
        let Some(entry) = key(net) else { continue };
        // As the range around it: a mesh address is nowhere in clear.
        let flags = if config.mesh.contains(net.addr()) { IP_GUARDED } else { 0 };
        let cluster = config.cluster.id.get();
        let unknown = IpEntry { identity: IdentityId::UNKNOWN.get(), node: 0, cluster, flags };
        desired.ipcache.entry(entry).or_insert(unknown).flags |= IP_CARRIED;
    }
}

impl Agent {
    /// Whether a pair of this node's meets at a gateway.
    pub fn meets_at_gateways(&self) -> bool {
        !self.gateways.choices.is_empty()
    }

    /// The other nodes of the own cluster, by their keys: gateways are among them.
    pub fn own_nodes(&self) -> impl Iterator<Item = (PublicKey, NodeId)> {
        let ends = own_ends(&self.config, self.view.own());
        ends.filter_map(|(id, node)| Some((node.wireguard?.public_key, id)))
    }

    /// When each node was heard last by liveness: asked for with [`crate::Output::LookAtPeers`], and welcome at any time.
    pub fn handle_nodes_heard(&mut self, heard: &BTreeMap<NodeId, Time>, now: Time) {
        if self.gateways.handle_heard(heard, now) {
            self.changed(Changed::Data, now);
        }
    }
}
