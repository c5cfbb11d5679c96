//! Kubernetes objects reduced to what a mesh needs, with every address and name already parsed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use hawser_model::{
    AddressFamily, BootId, EndpointSlice, InternalTrafficPolicy, IpNet, NodeAddress, NodeName, PortName,
    ServiceKey, ServicePort, SessionAffinity, SliceEndpoint, SliceKey, SlicePort, Timestamp,
    TrafficDistribution,
};

use crate::Selector;

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

/// Kind, namespace (empty where the kind has none) and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
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

/// What there are many of is shared: the source and its consumer hold one copy.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Namespace(Namespace),
    Node(Arc<Node>),
    Pod(Arc<Pod>),
    Service(Arc<Service>),
    EndpointSlice(Arc<Slice>),
    NetworkPolicy(Policy),
    ServiceExport(ServiceExport),
}

impl Object {
    pub fn reference(&self) -> ObjectRef {
        let (kind, namespace, name) = match self {
            Self::Namespace(o) => (Kind::Namespace, "", o.name.as_str()),
            Self::Node(o) => (Kind::Node, "", o.name.as_str()),
            Self::Pod(o) => (Kind::Pod, o.namespace.as_str(), o.name.as_str()),
            Self::Service(o) => (Kind::Service, o.key.namespace(), o.key.name()),
            Self::EndpointSlice(o) => (Kind::EndpointSlice, o.key.namespace(), o.key.name()),
            Self::NetworkPolicy(o) => (Kind::NetworkPolicy, o.namespace.as_str(), o.name.as_str()),
            Self::ServiceExport(o) => (Kind::ServiceExport, o.key.namespace(), o.key.name()),
        };
        ObjectRef { kind, namespace: namespace.into(), name: name.into() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub name: String,
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: NodeName,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
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
    pub labels: BTreeMap<String, String>,
    pub ips: Vec<IpAddr>,
    pub node: Option<NodeName>,
    pub service_account: String,
    pub host_network: bool,
    pub phase: PodPhase,
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
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub selector: BTreeMap<String, String>,
    /// Empty for a headless service.
    pub cluster_ips: Vec<IpAddr>,
    pub ports: BTreeMap<PortName, ServicePort>,
    /// A name elsewhere (`type: ExternalName`): there is nothing to share.
    pub external_name: bool,
    pub traffic: Traffic,
}

/// What the services of a clusterset take over of a Service that is exported to it (MCS-API).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Traffic {
    pub session_affinity: SessionAffinity,
    pub ip_families: Vec<AddressFamily>,
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
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    pub key: SliceKey,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// None for `addressType: FQDN`: its addresses are names, and no endpoint is kept.
    pub family: Option<AddressFamily>,
    pub endpoints: Vec<SliceEndpoint>,
    pub ports: Vec<SlicePort>,
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
