//! Numbers that we claim: us and the peers in one run, interleaved, as ratios (`make bench-*`).

mod failover;
mod lb;
mod objects;
mod part;
mod plot;
mod probes;
mod result;
mod stats;
mod store;
mod tunnel;

use anyhow::Result;

pub use store::Share;
pub use tunnel::{EngineArgs, run_engine};

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Bench {
    /// Connections through a service, by the number of others: no service, Hawser, kube-proxy's two modes. QUICK=1 shows only that it runs.
    Lb,
    /// A cluster and a node cut off under load, many times. QUICK=1 shows only that it runs.
    Failover,
    /// What liveness costs one node among 25,400: packets and CPU. QUICK=1 shows only that it runs.
    Probes,
    /// TCP, UDP and round trips through a tunnel: our engine, wireguard-go, boringtun-cli if it is there, no tunnel. QUICK=1 shows only that it runs.
    Tunnel,
    /// The mesh store: first sync, propagation, fan-out, durable writes, beside a real etcd. QUICK=1 shows only that it runs.
    Store,
}

/// A number below its goal is a finding, not a failure: the exit code says only whether everything was measured.
///
/// `only`: one share of [`Bench::Store`] alone.
pub fn run(bench: Bench, only: Option<Share>) -> Result<u8> {
    let quick = std::env::var_os("QUICK").is_some_and(|quick| quick == "1");
    let (result, complete) = match bench {
        Bench::Lb => (lb::measure(quick)?, true),
        Bench::Failover => (failover::measure(quick)?, true),
        Bench::Probes => (probes::measure(quick)?, true),
        Bench::Tunnel => (tunnel::measure(quick)?, true),
        Bench::Store => store::measure(quick, only)?,
    };
    result.print();
    println!("\nwritten: {}", result.write()?.display());
    Ok(u8::from(!complete))
}

/// A part of a benchmark, as the process that it is: `hawser-lab bench-part ROLE ARGS`.
pub fn run_part(role: &str, args: &str) -> Result<()> {
    match role {
        "held" => failover::run_part(args),
        "probes" => probes::run_part(args),
        "reflect" => probes::run_reflector(),
        "tunnel-many" => tunnel::run_part(args),
        _ if role.starts_with("load-") => lb::run_part(role, args),
        _ => store::run_part(role, args),
    }
}
