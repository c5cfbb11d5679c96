//! Kubernetes objects in, as typed events: whichever way they come, a consumer sees [`SourceEvent`]s and nothing else.
//!
//! The directory source reads the YAML that `kubectl get -o yaml` prints; the Kubernetes source lists and watches an API
//! server. Both send `Upsert` and `Remove`, and `Synced` once everything that was there at the start is sent.

mod convert;
mod dir;
mod event;
mod fields;
mod files;
mod kube;
mod left_out;
mod manifest;
mod object;
mod pairs;
mod selector;
mod source;

pub use self::kube::{ConnectError, KubeOptions, KubeSource, Pace, connect};
pub use dir::{DirSource, WatchError};
pub use event::{Problem, SourceEvent};
pub use files::{Change, Files};
pub use left_out::SOCKET_LB;
pub use manifest::{ManifestError, parse};
pub use object::{
    Addresses, Endpoint, Kind, Namespace, Node, Object, ObjectRef, Place, Pod, PodPhase, Policy,
    SOURCE_CLUSTER_LABEL, Service, ServiceExport, Slice, Traffic,
};
pub use pairs::Pairs;
pub use selector::{Expression, Labelled, Selector};
pub use source::Source;
