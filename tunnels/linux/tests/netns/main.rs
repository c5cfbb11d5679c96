//! Tunnels between real network namespaces. Needs root, `ip`, `ping`, `wg`, `wireguard-go`; fails without.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which clippy.toml exempts only inside #[test]")]

mod allocations;
mod engine;
mod esp;
mod flow;
mod fuzz;
mod interop;
mod kernel;
mod lanes;
mod node;
mod path_mtu;
mod raw;
mod survival;
mod world;
