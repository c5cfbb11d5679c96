//! `hawser-lab`: the lab's front door, and the small programs that run inside it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use hawser_e2e::enclave::{self, Inside};
use hawser_e2e::{bench, demo, enter, history, place, pod, vm, walk};

#[derive(Debug, Parser)]
#[command(
    name = "hawser-lab",
    version,
    about = "Clusters in namespaces on this machine, with Hawser in them"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The main job in six acts; exit code 0 only if every act held.
    Demo(demo::Options),
    /// The bare topology, without the product: shows that remote pods cannot be reached, and stays up with --keep.
    Topology {
        #[arg(long)]
        keep: bool,
    },
    /// Measures us and the peers side by side; writes `target/bench/NAME.json`.
    Bench {
        which: bench::Bench,
        /// One share of `store` alone.
        #[arg(long)]
        only: Option<bench::Share>,
    },
    /// Writers, watchers and faults from a seed: is every acknowledged write seen exactly once and in order?
    Soak(history::Options),
    /// Runs a command on Debian's own kernel, emulated: `hawser-lab vm -- hawser-lab demo --acts 3`.
    Vm(vm::Options),
    /// Runs a command in a node or pod of a lab that is up: `hawser-lab enter us-east/node-1/client curl ...`.
    Enter {
        /// cluster/node or cluster/node/pod; of the newest lab unless --lab says which.
        place: String,
        /// The pid in a lab's name.
        #[arg(long)]
        lab: Option<u32>,
        #[arg(trailing_var_arg = true)]
        command: Vec<OsString>,
    },
    /// Runs a command as PID 1 of a new lab.
    #[command(hide = true)]
    Inside {
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// Holds the namespaces of a place.
    #[command(hide = true)]
    Pause {
        #[arg(long, requires = "cgroup")]
        host_name: Option<String>,
        #[arg(long)]
        cgroup: Option<PathBuf>,
    },
    #[command(hide = true)]
    PodServer(pod::ServerArgs),
    #[command(hide = true)]
    PodClient(pod::ClientArgs),
    #[command(hide = true)]
    TunnelEngine(bench::EngineArgs),
    #[command(hide = true)]
    BenchPart { role: String, args: String },
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("hawser-lab: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn run(cli: Cli) -> Result<u8> {
    match cli.verb {
        Verb::Demo(options) => in_enclave(|| demo::run(options)),
        Verb::Topology { keep } => in_enclave(|| walk::topology(keep)),
        // Loopback alone, and processes of its own: nothing to shut in.
        Verb::Bench { which: bench::Bench::Store, only } => bench::run(bench::Bench::Store, only),
        Verb::Bench { which, only } => in_enclave(|| bench::run(which, only)),
        Verb::Soak(options) => in_enclave(|| history::run(&options)),
        Verb::Vm(options) => vm::run(&options),
        Verb::Enter { place, lab, command } => enter::run(&place, lab, &command),
        Verb::Inside { command } => enclave::run(&command),
        Verb::Pause { host_name, cgroup } => {
            place::pause(host_name.as_deref().zip(cgroup.as_deref())).map(|()| 0)
        }
        Verb::PodServer(args) => pod::run_server(&args).map(|()| 0),
        Verb::PodClient(args) => pod::run_client(&args).map(|()| 0),
        Verb::TunnelEngine(args) => bench::run_engine(&args).map(|()| 0),
        Verb::BenchPart { role, args } => bench::run_part(&role, &args).map(|()| 0),
    }
}

/// Runs `body` inside of a lab; called outside, starts one with the same arguments.
fn in_enclave(body: impl FnOnce() -> Result<u8>) -> Result<u8> {
    if Inside::current().is_some() {
        return body();
    }
    let mut command = vec![std::env::current_exe().context("the own path")?.into_os_string()];
    command.extend(std::env::args_os().skip(1));
    enclave::run(&command)
}
