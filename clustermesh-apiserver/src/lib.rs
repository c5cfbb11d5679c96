//! The API server of one cluster: exports its objects, mirrors its peers, serves both as etcd, and lets nodes join.
//!
//! The pure parts (`annotations`, `config`, `export`, `exposure`, `identity`, `nodes`, `objects`) decide; the rest
//! carries out. It is a library so that tests can hold it by its parts; beside them only the binary of the same name uses it, and the
//! benchmark that mirrors clusters on Cilium as it does.

pub mod admin;
pub mod agent;
pub mod annotations;
pub mod authorize;
pub mod board;
pub mod cached;
pub mod chart;
pub mod cilium;
pub mod config;
pub mod dial;
pub mod events;
pub mod export;
pub mod exporter;
pub mod exports;
pub mod exposure;
pub mod heartbeat;
pub mod identity;
pub mod leader;
pub mod limits;
pub mod listen;
pub mod metrics;
pub mod mirrors;
pub mod node_annotations;
pub mod nodes;
pub mod objects;
pub mod own;
pub mod peers;
pub mod pki_dir;
pub mod places;
pub mod probes;
pub mod repair;
pub mod replicas;
pub mod reports;
pub mod rotation;
pub mod server;
pub mod session;
pub mod sharing;
pub mod source;
pub mod status;
pub mod tokenreview;
pub mod trust;
pub mod writeback;
