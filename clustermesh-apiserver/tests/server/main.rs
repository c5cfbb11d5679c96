//! The server as a whole: the real binary on loopback, real TLS, real certificates.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that unwraps reads better")]

mod certificates;
mod cilium;
mod cilium_origin;
mod cluster;
mod connections;
mod exports;
#[path = "../../sources/tests/fake_api_server/mod.rs"]
mod fake_api_server;
mod fake_cilium_agent;
mod join;
mod kubernetes;
mod limits;
mod mesh;
mod observed;
mod policies;
mod replicas;
mod roles;
mod startup;
mod traces;
