//! Where logs and traces go, chosen once at start. What the levels mean: docs/src/development/logging.md.

use std::io::IsTerminal as _;
use std::net::SocketAddr;

use clap::ValueEnum;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry};

use crate::traces::{OtlpEndpoint, TraceError, Traces};

/// The same flags for every binary.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "What it says of itself")]
#[group(id = "telemetry")]
pub struct Args {
    /// Serve /metrics, /livez and /readyz over plain HTTP here; overrides `metrics:` in the configuration
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics: Option<SocketAddr>,
    /// How log lines look
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Which log lines there are: error, warn, info, debug, trace, or a filter like info,hawser_etcd=debug
    #[arg(long, value_name = "LEVEL", env = "RUST_LOG", default_value = "info", value_parser = parse_filter)]
    pub log_level: String,
    /// Send traces to this OpenTelemetry collector (OTLP over gRPC), like http://127.0.0.1:4317; without it there are none
    #[arg(long, value_name = "URL", env = "HAWSER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<OtlpEndpoint>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Takes the filter apart to see whether it is one; an empty variable is no filter.
fn parse_filter(text: &str) -> Result<String, String> {
    let text = if text.trim().is_empty() { "info" } else { text };
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => {
            Err(format!("{error}; fix: write a level like info, or a filter like info,hawser_etcd=debug"))
        }
    }
}

/// Logs and traces at work. Ended before the runtime, so that the last spans are sent.
#[derive(Debug)]
pub struct Telemetry {
    traces: Option<Traces>,
}

impl Telemetry {
    /// Called once, in a runtime when there is an endpoint. `service` is the name that traces carry.
    pub fn start(args: &Args, service: &'static str) -> Result<Self, TraceError> {
        let traces =
            args.otlp_endpoint.as_ref().map(|endpoint| Traces::start(endpoint, service)).transpose()?;
        // It was parsed when the arguments were. kube's client logs each answer that is an error as one of its own; what
        // comes of it is said by whoever asked.
        let filter = EnvFilter::new(format!("kube_client::client::builder=off,{}", args.log_level));
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        // Colours are for terminals; in a file they are noise. NO_COLOR is heeded there too.
        let lines = match std::io::stderr().is_terminal() {
            true => lines,
            false => lines.with_ansi(false),
        };
        let lines = match args.log_format {
            LogFormat::Text => lines.boxed(),
            LogFormat::Json => lines.json().boxed(),
        };
        let spans = traces.as_ref().map(Traces::layer);
        Registry::default().with(lines.with_filter(filter)).with(spans).init();
        Ok(Self { traces })
    }

    /// Sends what is left, within a moment.
    pub fn end(self) {
        if let Some(traces) = self.traces {
            traces.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        telemetry: Args,
    }

    #[test]
    fn what_is_no_filter_is_refused_with_a_fix() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["x"], args].concat());
        let good =
            parse(&["--log-level", "info,hawser_etcd=debug", "--otlp-endpoint", "http://127.0.0.1:4317"]);
        assert_eq!(good.unwrap().telemetry.log_level, "info,hawser_etcd=debug");
        assert_eq!(parse(&["--log-level", ""]).unwrap().telemetry.log_level, "info");
        let refused = parse(&["--log-level", "info,=,loud=9x"]).unwrap_err().to_string();
        assert!(refused.contains("fix: write a level"), "{refused}");
        let refused = parse(&["--otlp-endpoint", "https://collector:4317"]).unwrap_err().to_string();
        assert!(refused.contains("fix: run a collector on this node"), "{refused}");
    }
}
