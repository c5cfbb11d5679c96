//! What a process says of itself: metrics, probes, logs, traces. Shared by the binaries, so that all speak alike.
//!
//! It knows no mesh: each binary says what its metrics and checks are, and this crate how they look and who may ask.

mod http;
mod lint;
mod log;
mod metrics;
mod news;
mod probes;
mod process;
mod traces;
mod watchdog;

pub use http::{ListenError, Observed, bind, serve};
pub use lint::{documented, lint};
pub use log::{Args, LogFormat, Telemetry};
pub use metrics::{Family, Histogram, Labels, render, seconds_histogram};
pub use news::News;
pub use probes::{Check, report};
pub use process::families as process_families;
pub use traces::{OtlpEndpoint, TARGET as TRACE_TARGET, TraceError};
pub use watchdog::{Pulse, Watchdog};

/// A span that is exported when `--otlp-endpoint` is given, and costs one comparison when it is not.
#[macro_export]
macro_rules! span {
    ($name:literal $(, $($fields:tt)*)?) => {
        ::tracing::debug_span!(target: "hawser_trace", $name $(, $($fields)*)?)
    };
}
