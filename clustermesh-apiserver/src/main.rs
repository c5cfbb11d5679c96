//! `clustermesh-apiserver`: reads its configuration, refuses or serves.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand, ValueEnum};
use clustermesh_apiserver::config::Config;
use clustermesh_apiserver::repair;
use clustermesh_apiserver::server::{self, Server, StartError};
use clustermesh_apiserver::source::OpenSourceError;
use hawser_etcd::store::StoreTls;
use hawser_telemetry::Telemetry;
use rustls::crypto::CryptoProvider;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

const REFUSED: u8 = 64;
const FAILED: u8 = 1;

#[derive(Debug, Parser)]
#[command(
    name = "clustermesh-apiserver",
    version,
    about = "The API server of one cluster in a Hawser mesh",
    after_help = "Examples:\n  \
        clustermesh-apiserver --config /etc/hawser/cluster.yaml --check-config\n  \
        clustermesh-apiserver --log-level debug --log-format json\n  \
        clustermesh-apiserver --metrics 127.0.0.1:9880    and then: curl '127.0.0.1:9880/readyz?verbose'\n  \
        clustermesh-apiserver repair --store /var/lib/hawser/store\n\n\
        Exit codes: 0 done, 1 failed at run time, 64 bad arguments or bad configuration (nothing was changed).",
    args_conflicts_with_subcommands = true
)]
struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// The cluster's configuration
    #[arg(long, default_value = "/etc/hawser/cluster.yaml")]
    config: PathBuf,
    /// Read the configuration and the CA, say whether they are good, and end
    #[arg(long)]
    check_config: bool,
    /// Let more than half of all exported keys be deleted at once
    #[arg(long)]
    accept_mass_delete: bool,
    /// For tests: a file with the seconds by which this process's clock is off
    #[arg(long, hide = true, value_name = "FILE")]
    test_clock: Option<PathBuf>,
    #[command(flatten)]
    telemetry: hawser_telemetry::Args,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Say what of a damaged embedded store can be saved; with --yes, save it
    #[command(after_help = "\
The server must be stopped. Without --yes nothing is changed, and damage is exit code 64. A repaired store lacks writes that were
acknowledged, so it is a new store to its readers: they list it anew by themselves. The files as they were are kept beside it.

Examples:
  clustermesh-apiserver repair --store /var/lib/hawser/store
  clustermesh-apiserver repair --store /var/lib/hawser/store --yes
  clustermesh-apiserver repair --store /var/lib/hawser/store -o json | jq .lost")]
    Repair {
        /// The directory of `store: embedded:DIR`
        #[arg(long, value_name = "DIR")]
        store: PathBuf,
        /// Give up what cannot be read
        #[arg(long)]
        yes: bool,
        /// Text for people, JSON for programs
        #[arg(long, short, value_enum, default_value_t = Format::Text)]
        output: Format,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Memory that one thread lets go is of use to the others only within an arena, and glibc makes eight of them for each
/// core: what a list of many services takes for a moment would stay beside what is kept of it.
#[cfg(target_env = "gnu")]
fn share_arenas() {
    // SAFETY: it sets one number in the allocator, under the allocator's own lock.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
}

#[cfg(not(target_env = "gnu"))]
fn share_arenas() {}

fn main() -> ExitCode {
    share_arenas();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(REFUSED) } else { ExitCode::SUCCESS };
        }
    };
    if let Some(Verb::Repair { store, yes, output }) = args.verb {
        return match repair::run(&store, yes, output == Format::Json) {
            Ok(outcome) => {
                println!("{}", outcome.report);
                if outcome.refused { ExitCode::from(REFUSED) } else { ExitCode::SUCCESS }
            }
            Err(error) => fail(FAILED, &error),
        };
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    if CryptoProvider::install_default((*provider).clone()).is_err() {
        return fail(FAILED, &"a crypto provider was installed before main");
    }
    let config = match Config::load(&args.config) {
        Ok(config) => Config { metrics: args.telemetry.metrics.or(config.metrics), ..config },
        Err(error) => return fail(REFUSED, &error),
    };
    if args.check_config {
        if let Some(Err(error)) = config.store_tls.as_ref().map(StoreTls::check) {
            return fail(REFUSED, &error);
        }
        return match server::certificates(Arc::new(config.clone()), provider) {
            Ok(_) => {
                println!("{}: good, for cluster {}", args.config.display(), config.cluster);
                ExitCode::SUCCESS
            }
            Err(error) => fail(REFUSED, &error),
        };
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(FAILED, &format!("the runtime cannot start: {error}")),
    };
    let telemetry = {
        let _runtime = runtime.enter();
        Telemetry::start(&args.telemetry, "clustermesh-apiserver")
    };
    let telemetry = match telemetry {
        Ok(telemetry) => telemetry,
        Err(error) => return fail(REFUSED, &error),
    };
    if let Some(file) = args.test_clock {
        hawser_etcd::clock::follow_file(file);
    }
    let ended = runtime.block_on(run(config, provider, args.accept_mass_delete));
    telemetry.end();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ (StartError::Pki(_) | StartError::Source(OpenSourceError::Kubernetes(_)))) => {
            fail(REFUSED, &error)
        }
        Err(error) => fail(FAILED, &error),
    }
}

async fn run(
    config: Config,
    provider: Arc<CryptoProvider>,
    accept_mass_delete: bool,
) -> Result<(), StartError> {
    let server = Server::open(config, provider, accept_mass_delete).await?;
    let stop = CancellationToken::new();
    tokio::spawn(stop_at_signal(stop.clone()));
    server.run(stop).await?;
    tracing::info!("stopped");
    Ok(())
}

async fn stop_at_signal(stop: CancellationToken) {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else { return };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("told to stop");
    stop.cancel();
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("clustermesh-apiserver: {error}");
    ExitCode::from(code)
}
