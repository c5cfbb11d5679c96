//! Global services merged over all clusters by namespace and name: what the datapath is given and what status shows.
//!
//! A service exists here when the own cluster has it; each cluster adds a slice of backends per port, matched by the
//! port's *name*. Cost: O(backends), made once per plan.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hawser_discovery::NodeId;
use hawser_ebpf_abi::FewMap;
use hawser_model::{
    ClusterName, ClusterRef, NodeName, OnLoss, Outside, PortName, Protocol, Routing, ServiceKey, ServicePort,
    ZoneAffinity,
};

use crate::config::AgentConfig;
use crate::kept::{KeptGlobal, Served};
use crate::slots::NodeSlots;
use crate::topology::{Origin, Remote};
use crate::view::MeshView;

/// One global service as this node serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedService {
    pub key: ServiceKey,
    pub routing: Routing,
    pub shared: bool,
    pub cluster_ips: Box<[IpAddr]>,
    pub outside: Outside,
    pub ports: FewMap<PortName, MergedPort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedPort {
    pub port: ServicePort,
    /// By cluster name, the own one included. Clusters without backends are not in it.
    pub slices: FewMap<ClusterRef, Vec<MergedBackend>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedBackend {
    pub ip: IpAddr,
    pub port: u16,
    /// The remote node it is behind; none in the own cluster, whose nodes' health is Kubernetes' affair.
    pub node: Option<(NodeId, NodeName)>,
    /// Its health word's place; 0 = none.
    pub slot: u32,
    pub state: State,
    /// The Service asks for the client's own zone, and this is another one, or none is known.
    pub elsewhere: bool,
}

/// What a backend takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Ready,
    /// It is about to end, or its cluster cannot be read: nothing new while another one is ready.
    Draining,
    /// It is no longer stated, and in its grace: as above.
    Withdrawn,
}

impl MergedBackend {
    /// Takes nothing new while another one is ready.
    pub fn is_draining(&self) -> bool {
        self.state != State::Ready
    }
}

/// The zone of this node, by Kubernetes' label.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// All of them, by their keys. `unread`: clusters whose keyspace cannot be read. Remote backends that are neither pods nor nodes of the cluster they were stated by are left out: no tunnel leads there.
pub(crate) fn merge_services(
    config: &AgentConfig,
    view: &MeshView,
    remotes: &[Remote<'_>],
    slots: &NodeSlots,
    unread: &BTreeSet<ClusterName>,
) -> Vec<MergedService> {
    let origins: Vec<_> =
        remotes.iter().filter(|remote| !remote.leaving).map(|remote| remote.origin()).collect();
    let own = view.own().local_services.iter();
    own.map(|(key, service)| merge_service(config, view, &origins, slots, unread, key, service)).collect()
}

/// One of them. O(its backends × clusters).
pub(crate) fn merge_service(
    config: &AgentConfig,
    view: &MeshView,
    origins: &[Origin<'_>],
    slots: &NodeSlots,
    unread: &BTreeSet<ClusterName>,
    key: &ServiceKey,
    service: &KeptGlobal,
) -> MergedService {
    let zone = view.own().nodes.get(&config.node).and_then(|node| node.labels.get(ZONE_LABEL));
    let zone = zone.map(String::as_str).filter(|zone| !zone.is_empty());
    let zone = zone.filter(|_| service.routing.zone_affinity == ZoneAffinity::Local);
    let drained = service.routing.on_control_plane_loss == OnLoss::Drain;
    let ports = service.ports.iter().map(|(name, port)| {
        let mut slices = Vec::with_capacity(1 + origins.len());
        let local = service.backends.of_port(name).filter_map(|served| {
            let port = target(&served.port, *port)?;
            let elsewhere = zone.is_some() && served.zone != zone;
            let state = if served.draining { State::Draining } else { State::Ready };
            Some(MergedBackend { ip: served.ip, port, node: None, slot: 0, state, elsewhere })
        });
        add(&mut slices, &config.cluster, local.collect());
        for origin in origins {
            let mut slice = remote_slice(config, origin, key, name, *port, slots, zone);
            if drained && unread.contains(&origin.peer.cluster.name) {
                slice.iter_mut().for_each(|backend| backend.state = State::Draining);
            }
            add(&mut slices, &origin.peer.cluster, slice);
        }
        (name.clone(), MergedPort { port: *port, slices: slices.into_iter().collect() })
    });
    MergedService {
        key: key.clone(),
        routing: service.routing.clone(),
        shared: service.shared,
        cluster_ips: service.cluster_ips.clone(),
        outside: service.outside.clone(),
        ports: ports.collect(),
    }
}

fn add(
    slices: &mut Vec<(ClusterRef, Vec<MergedBackend>)>,
    of: &ClusterRef,
    mut backends: Vec<MergedBackend>,
) {
    if !backends.is_empty() {
        backends.shrink_to_fit();
        slices.push((of.clone(), backends));
    }
}

fn remote_slice(
    config: &AgentConfig,
    origin: &Origin<'_>,
    key: &ServiceKey,
    name: &PortName,
    port: ServicePort,
    slots: &NodeSlots,
    zone: Option<&str>,
) -> Vec<MergedBackend> {
    let backend = |served: Served<'_>| {
        let port = target(&served.port, port)?;
        let (ip, node) = match origin.admits_pod(served.ip) {
            true => (served.ip, origin.node_of(served.ip)),
            // A node's own address is the underlay's: programs of its host network are reached at its mesh address.
            false => {
                let node = origin.host(served.ip)?;
                let mesh = config.mesh.addresses(origin.peer.cluster.id, node.0.index, &node.1);
                (mesh.of_family(served.ip), Some(node))
            }
        };
        // Of a cluster whose nodes speak Cilium's tunnels: what no tunnel of ours leads to is never chosen.
        if node.is_none() && origin.view.cilium {
            return None;
        }
        let slot = node.map_or(0, |(id, _)| slots.get(*id));
        let node = node.cloned();
        let state = if served.draining { State::Draining } else { State::Ready };
        let elsewhere = zone.is_some() && served.zone != zone;
        Some(MergedBackend { ip, port, node, slot, state, elsewhere })
    };
    origin.view.backends(key, name).into_iter().filter_map(backend).collect()
}

/// The backend's port, if it speaks the service's protocol.
fn target(backend: &ServicePort, service: ServicePort) -> Option<u16> {
    (backend.protocol == service.protocol).then_some(backend.port)
}

impl MergedPort {
    /// SCTP is kept in the view, and left to kube-proxy.
    pub fn is_programmed(&self) -> bool {
        matches!(self.port.protocol, Protocol::Tcp | Protocol::Udp)
    }
}
