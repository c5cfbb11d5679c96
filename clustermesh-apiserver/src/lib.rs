//! The API server of one cluster: exports its objects, mirrors its peers, serves both as etcd, and lets nodes join.
//!
//! The pure parts (`config`, `identity`, `nodes`, `objects`, `annotations`, `export`) decide; the rest carries out.

pub mod annotations;
pub mod config;
pub mod export;
pub mod identity;
pub mod nodes;
pub mod objects;
