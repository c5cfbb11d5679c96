//! Global services merged over all clusters by namespace and name: what the datapath is given and what status shows.
//!
//! A service exists here when the own cluster has it; each cluster adds a slice of backends per port, matched by the
//! port's *name*. Cost: O(backends), made once per plan.

use std::collections::BTreeMap;
use std::net::IpAddr;

use hawser_discovery::NodeId;
use hawser_model::{ClusterRef, NodeName, PortName, Protocol, Routing, ServiceKey, ServicePort};

use crate::config::AgentConfig;
use crate::slots::NodeSlots;
use crate::topology::Remote;
use crate::view::MeshView;

/// One global service as this node serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedService {
    pub key: ServiceKey,
    pub routing: Routing,
    pub shared: bool,
    pub cluster_ips: Vec<IpAddr>,
    pub ports: BTreeMap<PortName, MergedPort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedPort {
    pub port: ServicePort,
    /// By cluster name, the own one included. Clusters without backends are not in it.
    pub slices: BTreeMap<ClusterRef, Vec<MergedBackend>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedBackend {
    pub ip: IpAddr,
    pub port: u16,
    /// The remote node it is behind; none in the own cluster, whose nodes' health is Kubernetes' affair.
    pub node: Option<(NodeId, NodeName)>,
    /// Its health word's place; 0 = none.
    pub slot: u32,
}

/// All of them. Remote backends that are not pods of the cluster they were stated by are left out: no tunnel leads there.
pub(crate) fn merge_services(
    config: &AgentConfig,
    view: &MeshView,
    remotes: &[Remote<'_>],
    slots: &NodeSlots,
) -> Vec<MergedService> {
    let own = view.own().local_services.values();
    own.map(|service| {
        let ports = service.ports.iter().map(|(name, port)| {
            let mut slices = BTreeMap::new();
            let local = service.backends.iter().filter_map(|(ip, ports)| {
                let port = target(ports.get(name)?, *port)?;
                Some(MergedBackend { ip: *ip, port, node: None, slot: 0 })
            });
            add(&mut slices, &config.cluster, local.collect());
            for remote in remotes.iter().filter(|remote| !remote.leaving) {
                add(
                    &mut slices,
                    &remote.peer.cluster,
                    remote_slice(remote, &service.key, name, *port, slots),
                );
            }
            (name.clone(), MergedPort { port: *port, slices })
        });
        MergedService {
            key: service.key.clone(),
            routing: service.routing.clone(),
            shared: service.shared,
            cluster_ips: service.cluster_ips.clone(),
            ports: ports.collect(),
        }
    })
    .collect()
}

fn add(slices: &mut BTreeMap<ClusterRef, Vec<MergedBackend>>, of: &ClusterRef, backends: Vec<MergedBackend>) {
    if !backends.is_empty() {
        slices.insert(of.clone(), backends);
    }
}

fn remote_slice(
    remote: &Remote<'_>,
    key: &ServiceKey,
    name: &PortName,
    port: ServicePort,
    slots: &NodeSlots,
) -> Vec<MergedBackend> {
    let backend = |(ip, given)| {
        let port = target(&given, port).filter(|_| remote.admits_pod(ip))?;
        let node = remote.node_of(ip);
        // Of a cluster whose nodes speak Cilium's tunnels: what no tunnel of ours leads to is never chosen.
        if node.is_none() && remote.view.cilium {
            return None;
        }
        let slot = node.map_or(0, |node| slots.get(node.id));
        Some(MergedBackend { ip, port, node: node.map(|node| (node.id, node.name.clone())), slot })
    };
    remote.view.backends(key, name).into_iter().filter_map(backend).collect()
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
