//! Kubernetes objects in, as typed events: whichever way they come, a consumer sees [`SourceEvent`]s and nothing else.
//!
//! The directory source reads the YAML that `kubectl get -o yaml` prints. A watcher of a Kubernetes API server fits
//! behind the same events: it sends `Upsert` and `Remove`, and `Synced` after its first full list.

mod convert;
mod dir;
mod event;
mod fields;
mod files;
mod manifest;
mod object;
mod selector;

pub use dir::{DirSource, WatchError};
pub use event::{Problem, SourceEvent};
pub use files::{Change, Files};
pub use manifest::{ManifestError, parse};
pub use object::{
    Kind, Namespace, Node, Object, ObjectRef, Pod, PodPhase, Policy, SOURCE_CLUSTER_LABEL, Service, Slice,
};
pub use selector::{Expression, Selector};
