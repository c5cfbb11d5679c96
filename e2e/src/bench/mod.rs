//! Numbers that we claim: us and the peers in one run, interleaved, as ratios (`make bench-*`).

mod engine;
mod lb;
mod pair;
mod result;
mod stats;
mod store;
mod tunnel;

use anyhow::Result;

pub use engine::{EngineArgs, run as run_engine};
pub use store::{Share, run_part as run_store_part};

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Bench {
    /// Short connections through a service: no service, Hawser, iptables as kube-proxy writes it.
    Lb,
    /// One TCP flow through a tunnel: our engine, wireguard-go, no tunnel.
    Tunnel,
    /// The mesh store: first sync, propagation, fan-out, durable writes, beside a real etcd. QUICK=1 shows only that it runs.
    Store,
}

/// A number below its goal is a finding, not a failure: the exit code says only whether everything was measured.
///
/// `only`: one share of [`Bench::Store`] alone.
pub fn run(bench: Bench, only: Option<Share>) -> Result<u8> {
    let (result, complete) = match bench {
        Bench::Lb => (lb::measure()?, true),
        Bench::Tunnel => (tunnel::measure()?, true),
        Bench::Store => store::measure(std::env::var_os("QUICK").is_some_and(|quick| quick == "1"), only)?,
    };
    result.print();
    println!("\nwritten: {}", result.write()?.display());
    Ok(u8::from(!complete))
}
