//! The lab: clusters, nodes and pods as network namespaces on one machine, the product's real binaries in them.
//!
//! It talks to the product only through binaries, manifests, configuration files and bundles; `bench-tunnel` links to the engine,
//! and `history` to our etcd client.

pub mod bench;
pub mod binaries;
pub mod cgroup;
pub mod demo;
pub mod enclave;
pub mod enter;
pub mod history;
pub mod lab;
pub mod net;
pub mod place;
pub mod plan;
pub mod pod;
pub mod process;
pub mod scenario;
pub mod status;
pub mod vm;
pub mod wait;
pub mod walk;
