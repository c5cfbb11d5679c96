//! View -> eBPF maps, all but health.
//!
//! Cost: O(backends + endpoints), twice a logarithm; made once per plan. The loader writes differences only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hawser_ebpf_abi::{
    Addr, BackendSpec, CONFIG_KERNEL_IPSEC, CONFIG_LEFT_OUT, CONFIG_UPLINKS, Config, DesiredDatapath,
    ENDPOINT_TRANSLATED, EXPORTED_CLOSING, Endpoint, Exported, FewMap, FewSet, IP_MESH_ADDRESS, IP_REMOTE,
    IpEntry, LeftOut, MAX_SLICES, Port, PrefixKey, ServiceKey, ServiceSpec, SliceSpec,
};
use hawser_model::{Algorithm, ClusterRef, IdentityId, OnLoss, Peer, Routing};
use ipnet::IpNet;

use crate::budget::IpcacheShare;
use crate::config::AgentConfig;
use crate::drains::Closing;
use crate::kept::KeptEndpoint;
use crate::services::{MergedBackend, MergedPort, MergedService, State};
use crate::slots::NodeSlots;
use crate::spread::{Group, Share, spread};
use crate::topology::Remote;
use crate::view::MeshView;

/// What only the kernel knows, as the shell found it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// 0 while there is none.
    pub tunnel: u32,
    /// Where traffic from outside is to be served.
    pub uplinks: BTreeSet<u32>,
    /// The host side of each local pod's interface.
    pub pods: BTreeMap<IpAddr, u32>,
    /// The cookie of the network namespace of each left-out pod that has one.
    pub namespaces: BTreeMap<IpAddr, u64>,
}

/// Addresses of this node, as its own cluster states them.
fn own_addresses<'a>(config: &AgentConfig, view: &'a MeshView) -> impl Iterator<Item = IpAddr> + 'a {
    let own = view.own().nodes.get(&config.node);
    own.into_iter().flat_map(|node| node.addresses.iter().map(|address| address.ip))
}

/// The pods of this node: endpoints of the own cluster whose host is one of this node's addresses.
pub(crate) fn local_pods(config: &AgentConfig, view: &MeshView) -> BTreeMap<IpAddr, KeptEndpoint> {
    let own: Vec<_> = own_addresses(config, view).collect();
    let here = |(ip, endpoint): &(&IpAddr, &KeptEndpoint)| {
        // A host-network pod has no interface of its own.
        endpoint.host.is_some_and(|host| own.contains(&host)) && !own.contains(ip)
    };
    let pods = view.own().endpoints.iter().filter(here);
    pods.map(|(ip, endpoint)| (*ip, *endpoint)).collect()
}

/// Where the mesh reaches a backend of the own cluster, if it is on this node: a pod at its own address; a program of the host
/// network, whose address is the node's, at the node's mesh address.
pub(crate) fn reached_at(config: &AgentConfig, view: &MeshView, is_pod: bool, ip: IpAddr) -> Option<IpAddr> {
    if is_pod {
        return Some(ip);
    }
    own_addresses(config, view).find(|own| *own == ip).map(|_| config.mesh_addresses().of_family(ip))
}

/// The maps, and what was left out of them and why.
pub(crate) fn plan_datapath(
    config: &AgentConfig,
    view: &MeshView,
    remotes: &[Remote<'_>],
    services: &[MergedService],
    closing: &Closing,
    slots: &NodeSlots,
    interfaces: &Interfaces,
) -> (DesiredDatapath, Vec<String>) {
    let pods = local_pods(config, view);
    let endpoints = pods.iter().filter_map(|(ip, pod)| {
        let ifindex = *interfaces.pods.get(ip)?;
        let flags = if pod.left_out { ENDPOINT_TRANSLATED } else { 0 };
        Some((Addr::from(*ip), Endpoint { ifindex, identity: pod.identity.get(), flags }))
    });
    let mut desired = DesiredDatapath {
        config: header(config, interfaces),
        endpoints: endpoints.collect(),
        uplinks: interfaces.uplinks.clone(),
        ..DesiredDatapath::default()
    };
    leave_out(&pods, interfaces, &mut desired);
    for service in services {
        plan_service(
            &config.cluster,
            service,
            |ip| reached_at(config, view, pods.contains_key(&ip), ip),
            &mut desired,
        );
    }
    let from_outside = services.iter().filter(|_| !interfaces.uplinks.is_empty());
    from_outside.for_each(|service| enter(config, view, service, &mut desired));
    for (ip, port, protocol) in closing.iter().filter(|(ip, _, _)| pods.contains_key(ip)) {
        let key = ServiceKey::new((*ip).into(), Port::new(*port), protocol.number());
        desired.exported.entry(key).or_insert(Exported { flags: EXPORTED_CLOSING });
    }
    own_ipcache(config, view, &mut desired);
    // Complete or not, what an admitted cluster may say is behind the tunnel and nowhere else.
    let leaving = remotes.iter().filter(|remote| remote.leaving).map(|remote| remote.peer);
    for peer in view.peers().map(|(peer, _)| peer).chain(leaving) {
        claim_ranges(config, peer, &mut desired);
    }
    let over = remotes.iter().filter_map(|remote| remote_ipcache(config, remote, slots, &mut desired));
    let over = over.collect();
    (desired, over)
}

/// Sockets are left alone only where an interface translates in their place.
fn leave_out(pods: &BTreeMap<IpAddr, KeptEndpoint>, interfaces: &Interfaces, desired: &mut DesiredDatapath) {
    let translated = pods.iter().filter(|(ip, pod)| pod.left_out && interfaces.pods.contains_key(ip));
    for (ip, _) in translated {
        desired.config.flags |= CONFIG_LEFT_OUT;
        desired.left_out.extend(interfaces.namespaces.get(ip).map(|cookie| (*cookie, LeftOut::default())));
    }
}

fn header(config: &AgentConfig, interfaces: &Interfaces) -> Config {
    let mesh = config.mesh_addresses();
    let mut flags = if config.kernel_ipsec { CONFIG_KERNEL_IPSEC } else { 0 };
    if !interfaces.uplinks.is_empty() {
        flags |= CONFIG_UPLINKS;
    }
    Config {
        tunnel_ifindex: interfaces.tunnel,
        tunnel_mtu: config.mtu.into(),
        own_mesh_v4: mesh.ipv4.into(),
        own_mesh_v6: mesh.ipv6.into(),
        probe_port: Port::new(config.probe_port),
        flags,
        masquerade_mark: config.masquerade_mark,
        ..Config::new(config.cluster.id.get())
    }
}

/// A service's frontends, and what the mesh may reach behind it on this node.
pub(crate) fn plan_service(
    own: &ClusterRef,
    service: &MergedService,
    reached_at: impl Fn(IpAddr) -> Option<IpAddr>,
    desired: &mut DesiredDatapath,
) {
    frontends(own, service, desired);
    for port in service.ports.values().filter(|port| service.shared && port.is_programmed()) {
        let backends = port.slices.get(own).into_iter().flatten();
        let stated = backends.filter(|backend| backend.state != State::Withdrawn);
        for (ip, to) in stated.filter_map(|backend| Some((reached_at(backend.ip)?, backend.port))) {
            let proto = port.port.protocol.number();
            let key = ServiceKey::new(ip.into(), Port::new(to), proto);
            desired.exported.insert(key, Exported { flags: 0 });
        }
    }
}

/// One entry per ClusterIP and TCP or UDP port. A frontend and its backends are of one family.
fn frontends(own: &ClusterRef, service: &MergedService, desired: &mut DesiredDatapath) {
    for port in service.ports.values().filter(|port| port.is_programmed()) {
        for ip in &service.cluster_ips {
            let key = ServiceKey::new((*ip).into(), Port::new(port.port.port), port.port.protocol.number());
            let slices = slices(own, &service.routing, port, *ip);
            let session_seconds = service.routing.session_seconds.unwrap_or(0);
            let maglev = service.routing.algorithm == Algorithm::Maglev;
            desired.services.insert(key, ServiceSpec { session_seconds, maglev, slices });
        }
    }
}

/// Where else a service is entered at this node: its external addresses, and its NodePorts at this node's own. Each leads to the
/// ClusterIP of its family.
fn enter(config: &AgentConfig, view: &MeshView, service: &MergedService, desired: &mut DesiredDatapath) {
    for (name, port) in service.ports.iter().filter(|(_, port)| port.is_programmed()) {
        let number = port.port.port;
        let external = service.outside.ips.iter().map(|ip| (*ip, number));
        let node_port = service.outside.node_ports.get(name).copied();
        let of_node =
            node_port.into_iter().flat_map(|port| own_addresses(config, view).map(move |ip| (ip, port)));
        for (ip, port_there) in external.chain(of_node) {
            let of_family = |to: &&IpAddr| to.is_ipv4() == ip.is_ipv4();
            let Some(to) = service.cluster_ips.iter().find(of_family) else { continue };
            let key = |ip: IpAddr, number| {
                ServiceKey::new(ip.into(), Port::new(number), port.port.protocol.number())
            };
            desired.frontends.insert(key(ip, port_there), key(*to, number));
        }
    }
}

fn slices(
    own: &ClusterRef,
    routing: &Routing,
    port: &MergedPort,
    frontend: IpAddr,
) -> FewMap<(u16, u8), SliceSpec> {
    let mut shares: Vec<_> = spread(own, routing, port, frontend.is_ipv4()).into_iter().collect();
    // Where there is no room for all, those that drain are left out first.
    shares.sort_by_key(|((_, group), _)| *group);
    let of_family = |backend: &&MergedBackend| backend.ip.is_ipv4() == frontend.is_ipv4();
    let slice = |((cluster, group), share): ((ClusterRef, Group), Share)| {
        let spec = |backend: &MergedBackend| BackendSpec {
            addr: backend.ip.into(),
            port: Port::new(backend.port),
            node: backend.slot,
            draining: backend.is_draining(),
        };
        let backends = port.slices.get(&cluster).into_iter().flatten();
        let of_group = backends.filter(of_family).filter(|backend| Group::of(backend) == group);
        let backends: FewSet<_> = of_group.map(spec).collect();
        let ignores_health = routing.on_data_plane_loss == OnLoss::Keep && cluster != *own;
        let of = (cluster.id.get(), group.number());
        (of, SliceSpec { weight: share.weight, tier: share.tier, ignores_health, backends })
    };
    shares.into_iter().map(slice).take(MAX_SLICES as usize).collect()
}

/// Own pods are known by identity, and not behind the tunnel.
fn own_ipcache(config: &AgentConfig, view: &MeshView, desired: &mut DesiredDatapath) {
    let cluster = config.cluster.id.get();
    for (ip, endpoint) in &view.own().endpoints {
        let key = PrefixKey::host((*ip).into());
        desired
            .ipcache
            .insert(key, IpEntry { identity: endpoint.identity.get(), node: 0, cluster, flags: 0 });
    }
}

fn set(desired: &mut DesiredDatapath, net: IpNet, entry: IpEntry) {
    if let Some(key) = PrefixKey::new(net.addr(), net.prefix_len()) {
        desired.ipcache.insert(key, entry);
    }
}

/// Everything a remote cluster was admitted with, whoever is there.
fn claim_ranges(config: &AgentConfig, peer: &Peer, desired: &mut DesiredDatapath) {
    let cluster = peer.cluster.id.get();
    let of = |identity: IdentityId| IpEntry { identity: identity.get(), node: 0, cluster, flags: IP_REMOTE };
    for cidr in &peer.pod_cidrs {
        set(desired, *cidr, of(IdentityId::WORLD));
    }
    for range in config.mesh_ranges(peer.cluster.id) {
        set(desired, range, of(IdentityId::UNKNOWN));
    }
}

/// What is known better than its cluster's ranges, as far as its share goes: mesh addresses before the nodes' ranges
/// before pods. Says what was left out.
fn remote_ipcache(
    config: &AgentConfig,
    remote: &Remote<'_>,
    slots: &NodeSlots,
    desired: &mut DesiredDatapath,
) -> Option<String> {
    let of = &remote.peer.cluster;
    let mut share = IpcacheShare::new(remote.peer.pod_cidrs.len() + config.mesh_ranges(of.id).len());
    let mut add = |net: IpNet, identity: IdentityId, node: u32, flags: u16| {
        if share.take() {
            let (identity, flags) = (identity.get(), IP_REMOTE | flags);
            set(desired, net, IpEntry { identity, node, cluster: of.id.get(), flags });
        }
    };
    for node in &remote.nodes {
        for mesh in [IpAddr::V4(node.mesh.ipv4), IpAddr::V6(node.mesh.ipv6)] {
            add(mesh.into(), IdentityId::REMOTE_NODE, slots.get(node.id), IP_MESH_ADDRESS);
        }
    }
    for node in &remote.nodes {
        for cidr in &node.pod_cidrs {
            add(*cidr, IdentityId::WORLD, slots.get(node.id), 0);
        }
    }
    for (ip, endpoint) in remote.endpoints() {
        let slot = remote.node_of(ip).map_or(0, |node| slots.get(node.id));
        add(ip.into(), endpoint.identity, slot, 0);
    }
    share.note(of)
}
