//! `hawser-node-agent`: arguments, exit codes, logs.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use hawser_node_agent::causes::chain;
use hawser_node_agent::config::{Config, DEFAULT_PATH};
use hawser_node_agent::run;
use tracing_subscriber::EnvFilter;

const EXAMPLES: &str = "\
Examples:
  hawser-node-agent                                   run with /etc/hawser/agent.yaml
  hawser-node-agent --config ./agent.yaml --check-config
                                                      print the configuration in effect, change nothing
  hawser-node-agent --remove                          take programs, maps, tunnels, routes and rules off this node

SIGTERM stops the agent and leaves all of that in place: connections go on, and the next start adopts it.
Exit codes: 0 done, 1 failed at run time (start it again), 64 bad arguments or bad configuration.
RUST_LOG sets the log level (info).";

/// Moors this node to the mesh: tunnels, routes and eBPF programs, as the cluster's API server says.
#[derive(Debug, Parser)]
#[command(name = "hawser-node-agent", version, after_help = EXAMPLES)]
struct Args {
    /// The configuration; without this, /etc/hawser/agent.yaml if it is there
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the configuration in effect and exit
    #[arg(long, conflicts_with = "remove")]
    check_config: bool,
    /// Remove everything this agent made on this node and exit
    #[arg(long)]
    remove: bool,
    /// How log lines look; which ones there are is said by RUST_LOG (default "info")
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

const BAD_INPUT: u8 = 64;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let code = if error.use_stderr() { ExitCode::from(BAD_INPUT) } else { ExitCode::SUCCESS };
            let _ = error.print();
            return code;
        }
    };
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let path = args.config.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
    let config = match Config::load(path, args.config.is_some(), &host) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("hawser-node-agent: {error}");
            return ExitCode::from(BAD_INPUT);
        }
    };
    if args.check_config {
        print!("{config}");
        return ExitCode::SUCCESS;
    }
    log(args.log_format);
    match act(config, args.remove) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hawser-node-agent: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Colours are for terminals; in a file they are noise. NO_COLOR is heeded there too.
    let builder = match std::io::stderr().is_terminal() {
        true => builder,
        false => builder.with_ansi(false),
    };
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

fn act(config: Config, remove: bool) -> anyhow::Result<()> {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a crypto provider was installed before main"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(async {
        match remove {
            true => run::remove(config).await,
            false => run::run(config).await,
        }
    });
    // A blocking reconcile may be under way; each of its steps is whole by itself.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}
