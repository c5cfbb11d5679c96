//! Kubernetes objects reduced to what a mesh needs, with every address and name already parsed.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use hawser_model::{
    AddressFamily, BootId, EndpointSlice, InternalTrafficPolicy, IpNet, Names, NodeAddress, NodeName,
    Outside, PortName, ServiceKey, ServicePort, SessionAffinity, SliceEndpoint, SliceKey, SlicePort,
    Timestamp, TrafficDistribution,
};

use crate::{Pairs, Selector};

/// MCS-API's label of an imported slice; Cilium's and ours carry it.
pub const SOURCE_CLUSTER_LABEL: &str = "multicluster.kubernetes.io/source-cluster";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    EndpointSlice,
    NetworkPolicy,
    ServiceExport,
}

impl Kind {
    /// None for what a mesh has no use for, other groups' kinds of the same name included.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        match (api_version, kind) {
            ("v1", "Namespace") => Some(Self::Namespace),
            ("v1", "Node") => Some(Self::Node),
            ("v1", "Pod") => Some(Self::Pod),
            ("v1", "Service") => Some(Self::Service),
            ("discovery.k8s.io/v1", "EndpointSlice") => Some(Self::EndpointSlice),
            ("networking.k8s.io/v1", "NetworkPolicy") => Some(Self::NetworkPolicy),
            ("multicluster.x-k8s.io/v1beta1" | "multicluster.x-k8s.io/v1alpha1", "ServiceExport") => {
                Some(Self::ServiceExport)
            }
            _ => None,
        }
    }
}

/// Kind, namespace (empty where the kind has none) and name. Copies share their texts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    pub kind: Kind,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ", self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// Shared: the source and its consumer hold one copy.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Namespace(Arc<Namespace>),
    Node(Arc<Node>),
    Pod(Arc<Pod>),
    Service(Arc<Service>),
    EndpointSlice(Arc<Slice>),
    NetworkPolicy(Arc<Policy>),
    ServiceExport(Arc<ServiceExport>),
}

impl Object {
    /// Shares the texts of a Service, an EndpointSlice and a ServiceExport; of the others it copies them.
    pub fn reference(&self) -> ObjectRef {
        let (kind, [namespace, name]) = match self {
            Self::Namespace(o) => (Kind::Namespace, ["".into(), o.name.as_str().into()]),
            Self::Node(o) => (Kind::Node, ["".into(), o.name.as_str().into()]),
            Self::Pod(o) => (Kind::Pod, [o.namespace.as_str().into(), o.name.as_str().into()]),
            Self::Service(o) => (Kind::Service, o.key.texts().map(Arc::clone)),
            Self::EndpointSlice(o) => (Kind::EndpointSlice, o.key.texts().map(Arc::clone)),
            Self::NetworkPolicy(o) => {
                (Kind::NetworkPolicy, [o.namespace.as_str().into(), o.name.as_str().into()])
            }
            Self::ServiceExport(o) => (Kind::ServiceExport, o.key.texts().map(Arc::clone)),
        };
        ObjectRef { kind, namespace, name }
    }

    /// What many objects have becomes one that they share. Cost: its ports and endpoints.
    pub(crate) fn share(&mut self, known: &mut Known) {
        match self {
            Self::Service(service) => {
                let Some(service) = Arc::get_mut(service) else { return };
                service.key.share(&mut known.names);
                service.ports.iter_mut().for_each(|(name, _)| name.share(&mut known.names));
            }
            Self::EndpointSlice(slice) => {
                let Some(slice) = Arc::get_mut(slice) else { return };
                slice.key.share(&mut known.names);
                slice.ports.iter_mut().for_each(|port| port.name.share(&mut known.names));
                slice.endpoints.iter_mut().for_each(|endpoint| known.share(&mut endpoint.place));
            }
            _ => {}
        }
    }
}

/// What many objects have. Bounded, so that it holds no more than it saves.
#[derive(Debug, Default)]
pub(crate) struct Known {
    names: Names,
    places: HashSet<Arc<Place>>,
}

impl Known {
    const MOST: usize = 10_000;

    fn share(&mut self, place: &mut Arc<Place>) {
        if let Some(known) = self.places.get(&**place) {
            *place = Arc::clone(known);
            return;
        }
        if self.places.len() >= Self::MOST {
            self.places.clear();
        }
        self.places.insert(Arc::clone(place));
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub name: String,
    pub labels: Pairs,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: NodeName,
    /// Changes when the node is deleted and made again.
    pub uid: Box<str>,
    pub labels: Pairs,
    /// Those of Hawser's prefix.
    pub annotations: Pairs,
    pub addresses: Vec<NodeAddress>,
    pub pod_cidrs: Vec<IpNet>,
    pub boot_id: Option<BootId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum PodPhase {
    Pending,
    Running,
    Succeeded,
    Failed,
    #[default]
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub labels: Pairs,
    pub ips: Vec<IpAddr>,
    pub node: Option<NodeName>,
    pub service_account: String,
    pub host_network: bool,
    pub phase: PodPhase,
    /// Its sockets must keep the addresses that they ask for, or are not this kernel's.
    pub left_out: bool,
    /// What its annotation [`crate::SOCKET_LB`] says, when that is neither yes nor no.
    pub unknown_socket_lb: Option<Box<str>>,
}

impl Pod {
    /// A pod that has ended may still name the address that another pod has by now.
    pub fn holds_its_addresses(&self) -> bool {
        !matches!(self.phase, PodPhase::Succeeded | PodPhase::Failed)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub key: ServiceKey,
    /// What an object that belongs to it names; empty where a manifest leaves it out.
    pub uid: Box<str>,
    pub labels: Pairs,
    /// Those that are for a mesh to read.
    pub annotations: Pairs,
    pub selector: Pairs,
    /// Empty for a headless service.
    pub cluster_ips: Addresses,
    /// In the order of their names, each once.
    pub ports: Box<[(PortName, ServicePort)]>,
    /// A name elsewhere (`type: ExternalName`): there is nothing to share.
    pub external_name: bool,
    /// Where kube-proxy lets any client in, at any node, and sends it to any backend.
    pub outside: Option<Box<Outside>>,
    pub traffic: Traffic,
}

impl Service {
    pub fn port_map(&self) -> BTreeMap<PortName, ServicePort> {
        self.ports.iter().cloned().collect()
    }
}

/// What the services of a clusterset take over of a Service that is exported to it (MCS-API).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Traffic {
    pub session_affinity: SessionAffinity,
    /// In the order of preference.
    pub ip_families: [Option<AddressFamily>; 2],
    pub internal_policy: Option<InternalTrafficPolicy>,
    /// None also for a distribution that is newer than this.
    pub distribution: Option<TrafficDistribution>,
    /// Of the ports that have one.
    pub app_protocols: BTreeMap<PortName, String>,
}

/// Exports the Service of its name to the clusterset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceExport {
    pub key: ServiceKey,
    /// None where a manifest leaves it out: then nobody could say who was first.
    pub created: Option<Timestamp>,
    /// Those that go with it; its own never do.
    pub labels: Pairs,
    pub annotations: Pairs,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    pub key: SliceKey,
    pub labels: Pairs,
    /// None for `addressType: FQDN`: its addresses are names, and no endpoint is kept.
    pub family: Option<AddressFamily>,
    pub endpoints: Box<[Endpoint]>,
    pub ports: Box<[SlicePort]>,
}

/// Addresses of one thing: nearly always one, which needs no allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addresses {
    One(IpAddr),
    Others(Box<[IpAddr]>),
}

impl Default for Addresses {
    fn default() -> Self {
        Self::Others(Box::default())
    }
}

impl From<Vec<IpAddr>> for Addresses {
    fn from(addresses: Vec<IpAddr>) -> Self {
        match addresses[..] {
            [one] => Self::One(one),
            _ => Self::Others(addresses.into()),
        }
    }
}

impl Deref for Addresses {
    type Target = [IpAddr];

    fn deref(&self) -> &[IpAddr] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Others(others) => others,
        }
    }
}

/// A [`SliceEndpoint`] of which there are many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub addresses: Addresses,
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
    pub hostname: Option<Box<str>>,
    pub place: Arc<Place>,
}

/// Where an endpoint is: mostly the same for all on a node, and then one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Place {
    pub node_name: Option<String>,
    pub zone: Option<String>,
    pub hint_zones: Vec<String>,
}

impl Endpoint {
    /// As [`SliceEndpoint::is_backend`].
    pub fn is_backend(&self) -> bool {
        let ready = self.ready.unwrap_or(true);
        ready || self.serving.unwrap_or(ready)
    }

    /// As [`SliceEndpoint::is_draining`].
    pub fn is_draining(&self) -> bool {
        self.is_backend() && !self.ready.unwrap_or(true)
    }
}

impl From<&Endpoint> for SliceEndpoint {
    fn from(from: &Endpoint) -> Self {
        let Place { node_name, zone, hint_zones } = (*from.place).clone();
        Self {
            addresses: from.addresses.to_vec(),
            ready: from.ready,
            serving: from.serving,
            terminating: from.terminating,
            hostname: from.hostname.as_deref().map(str::to_owned),
            node_name,
            zone,
            hint_zones,
        }
    }
}

impl Slice {
    /// The service that it belongs to. None for a slice that some mesh wrote for another cluster's endpoints: read back
    /// as this cluster's own, they would be told to the cluster they came from.
    pub fn service(&self) -> Option<ServiceKey> {
        if self.labels.contains_key(SOURCE_CLUSTER_LABEL) {
            return None;
        }
        ServiceKey::new(self.key.namespace(), self.labels.get(EndpointSlice::SERVICE_LABEL)?).ok()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub namespace: String,
    pub name: String,
    pub pods: Selector,
    /// Whether it restricts what reaches the pods it selects.
    pub ingress: bool,
}
