//! The keyspace codec: keys and values of Cilium's cluster mesh schema and of ours, to and from values of the model.
//!
//! Everything here may have been written by another cluster: it is bounded ([`limits`]), checked against its key and its
//! keyspace while it is decoded, and [`admit`] then asks whether a remote may say it at all.

mod admission;
mod cidr;
mod config;
mod entry;
mod error;
pub mod fuzz;
mod hawser;
mod identity;
mod ip;
mod json;
pub mod key;
pub mod limits;
mod node;
mod peer;
mod service;
mod service_export;
mod slice;
mod trust;

pub use admission::{PeerRecord, Refusal, admit};
pub use config::encode as encode_cluster_config;
pub use entry::{Context, Entry, decode, encode_heartbeat, encode_synced};
pub use error::{DecodeError, Fault, Reason};
pub use hawser::{encode_node as encode_tunnel_node, encode_service as encode_local_service};
pub use identity::encode as encode_identity;
pub use ip::encode as encode_endpoint;
pub use key::{Key, KeyError, KeyErrorKind, Resource, prefix};
pub use node::encode as encode_node;
pub use peer::encode as encode_local_peer;
pub use service::encode as encode_service;
pub use service_export::{derived, encode as encode_service_export};
pub use slice::encode as encode_slice;
