//! `hawser-node-agent`: arguments, exit codes, logs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use hawser_node_agent::causes::chain;
use hawser_node_agent::config::{Config, DEFAULT_PATH};
use hawser_node_agent::{heap, run};
use hawser_telemetry::Telemetry;

const EXAMPLES: &str = "\
Examples:
  hawser-node-agent                                   run with /etc/hawser/agent.yaml
  hawser-node-agent --config ./agent.yaml --check-config
                                                      print the configuration in effect, change nothing
  hawser-node-agent --metrics 127.0.0.1:9881          and then: curl '127.0.0.1:9881/readyz?verbose'
  hawser-node-agent --remove                          take programs, maps, tunnels, routes and rules off this node

SIGTERM stops the agent and leaves all of that in place: connections go on, and the next start adopts it.
Exit codes: 0 done, 1 failed at run time (start it again), 64 bad arguments or bad configuration.";

/// Moors this node to the mesh: tunnels, routes and eBPF programs, as the cluster's API server says.
#[derive(Debug, Parser)]
#[command(name = "hawser-node-agent", version, after_help = EXAMPLES)]
struct Args {
    /// The configuration; without this, /etc/hawser/agent.yaml if it is there
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// This node's name when the configuration has none; without this, the host's
    #[arg(long, value_name = "NAME", env = "HAWSER_NODE")]
    node: Option<String>,
    /// Print the configuration in effect and exit
    #[arg(long, conflicts_with = "remove")]
    check_config: bool,
    /// Remove everything this agent made on this node and exit
    #[arg(long)]
    remove: bool,
    #[command(flatten)]
    telemetry: hawser_telemetry::Args,
}

const BAD_INPUT: u8 = 64;

fn main() -> ExitCode {
    heap::share_arenas();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let code = if error.use_stderr() { ExitCode::from(BAD_INPUT) } else { ExitCode::SUCCESS };
            let _ = error.print();
            return code;
        }
    };
    let host = || nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let node = args.node.or_else(host).unwrap_or_default();
    let path = args.config.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
    let config = match Config::load(path, args.config.is_some(), &node) {
        Ok(config) => Config { metrics: args.telemetry.metrics.or(config.metrics), ..config },
        Err(error) => {
            eprintln!("hawser-node-agent: {error}");
            return ExitCode::from(BAD_INPUT);
        }
    };
    if args.check_config {
        print!("{config}");
        return ExitCode::SUCCESS;
    }
    match act(config, args.remove, &args.telemetry) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hawser-node-agent: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn act(config: Config, remove: bool, telemetry: &hawser_telemetry::Args) -> anyhow::Result<()> {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a crypto provider was installed before main"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let telemetry = {
        let _runtime = runtime.enter();
        Telemetry::start(telemetry, "hawser-node-agent")?
    };
    let result = runtime.block_on(async {
        match remove {
            true => run::remove(config).await,
            false => run::run(config).await,
        }
    });
    telemetry.end();
    // A blocking reconcile may be under way; each of its steps is whole by itself.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}
