//! The nouns of the mesh as values. Construction is parsing: a value that exists is valid, and there is no `validate()`.
//!
//! This crate does no IO, reads no clock, logs nothing and knows no encoding; `model/wire` turns these values into bytes.

mod cluster;
mod epoch;
mod esp;
mod health;
mod identity;
mod mesh;
mod names;
mod node;
mod peer;
mod routing;
mod service;
mod service_export;
mod slice;
mod time;
mod timestamp;
mod trust;

pub use cluster::{ClusterId, ClusterIdWidth, ClusterName, ClusterRef, ParseClusterError};
pub use epoch::Epoch;
pub use esp::{EspEnd, Generation};
pub use health::{ClusterHealth, HealthWord};
pub use identity::{Identity, IdentityError, IdentityId, Label, Labels, ParseLabelsError};
pub use mesh::{
    Encryption, MeshAddresses, MeshPlan, MeshPlanError, NodeIndex, NodePath, ParseEncryptionError,
    ParseNodePathError,
};
pub use names::Names;
pub use node::{
    AddressKind, BootId, MorePorts, Node, NodeAddress, NodeName, ParseNodeError, PublicKey, TunnelEnd,
    TunnelNode,
};
pub use peer::{CiliumPeer, ClusterConfig, ExportMode, ParseServerUrlError, Peer, PeerKind, ServerUrl};
pub use routing::{
    Algorithm, Fallback, MinHealthy, OnLoss, ParseRoutingError, ResetAfter, Routing, ZoneAffinity,
};
pub use service::{
    Affinity, Endpoint, GlobalService, Outside, ParseServiceError, PortMap, PortName, Protocol, ServiceKey,
    ServicePort, SharedService,
};
pub use service_export::{
    ExportedPort, ImportKind, InternalTrafficPolicy, ServiceExport, SessionAffinity, TrafficDistribution,
};
pub use slice::{AddressFamily, EndpointSlice, ParseSliceError, SliceEndpoint, SliceKey, SlicePort};
pub use time::Time;
pub use timestamp::{ParseTimestampError, Timestamp};
pub use trust::{TrustNotice, TrustReceipt};

pub use ipnet::{IpNet, Ipv4Net, Ipv6Net};
