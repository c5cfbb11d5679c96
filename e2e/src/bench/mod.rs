//! Numbers that we claim: us and the peers in one run, interleaved, as ratios (`make bench-*`).

mod engine;
mod lb;
mod pair;
mod result;
mod stats;
mod tunnel;

use anyhow::Result;

pub use engine::{EngineArgs, run as run_engine};

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Bench {
    /// Short connections through a service: no service, Hawser, iptables as kube-proxy writes it.
    Lb,
    /// One TCP flow through a tunnel: our engine, wireguard-go, no tunnel.
    Tunnel,
}

/// A number below its goal is a finding, not a failure: the exit code says only whether everything was measured.
pub fn run(bench: Bench) -> Result<u8> {
    let result = match bench {
        Bench::Lb => lb::measure()?,
        Bench::Tunnel => tunnel::measure()?,
    };
    result.print();
    println!("\nwritten: {}", result.write()?.display());
    Ok(0)
}
