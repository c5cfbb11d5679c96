//! The API server of one cluster: exports its objects, mirrors its peers, serves both as etcd, and lets nodes join.
//!
//! The pure parts (`config`, `identity`, `nodes`, `objects`, `annotations`, `exposure`, `export`) decide; the rest
//! carries out.

pub mod annotations;
pub mod board;
pub mod config;
pub mod export;
pub mod exporter;
pub mod exposure;
pub mod heartbeat;
pub mod identity;
pub mod nodes;
pub mod objects;
pub mod own;
