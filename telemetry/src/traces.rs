//! Spans to an OpenTelemetry collector. Off without `--otlp-endpoint`: then no span is ever made.

use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter as Export};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

/// Of all spans that are exported, and of no others: those of libraries stay here.
pub const TARGET: &str = "hawser_trace";
/// One export, and the last one at the end.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where a collector listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpEndpoint(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseEndpointError {
    #[error("{0:?} is not http://HOST:PORT; fix: write it like http://127.0.0.1:4317")]
    Malformed(String),
    #[error(
        "{0:?} wants TLS, which traces do not speak; fix: run a collector on this node and name it, as http://127.0.0.1:4317"
    )]
    Tls(String),
}

impl FromStr for OtlpEndpoint {
    type Err = ParseEndpointError;

    fn from_str(text: &str) -> Result<Self, ParseEndpointError> {
        let shown = || text.chars().take(200).collect();
        let uri: http::Uri = text.parse().map_err(|_| ParseEndpointError::Malformed(shown()))?;
        match uri.scheme_str() {
            Some("http") if uri.port_u16().is_some() => Ok(Self(text.to_owned())),
            Some("https") => Err(ParseEndpointError::Tls(shown())),
            _ => Err(ParseEndpointError::Malformed(shown())),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("traces cannot be sent to {endpoint}: {source}; fix: correct --otlp-endpoint, or leave it out")]
pub struct TraceError {
    endpoint: String,
    #[source]
    source: ExporterBuildError,
}

#[derive(Debug)]
pub(crate) struct Traces(SdkTracerProvider);

impl Traces {
    /// Must be called in a runtime. A collector that is not there is no error: spans are dropped, within bounds.
    pub(crate) fn start(endpoint: &OtlpEndpoint, service: &'static str) -> Result<Self, TraceError> {
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(&endpoint.0)
            .with_timeout(PATIENCE)
            .build()
            .map_err(|source| TraceError { endpoint: endpoint.0.clone(), source })?;
        let exporter = Told { exporter, endpoint: endpoint.0.clone(), failing: AtomicBool::new(false) };
        let resource = Resource::builder().with_service_name(service).build();
        Ok(Self(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build()))
    }

    pub(crate) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let only_ours = Targets::new().with_target(TARGET, LevelFilter::DEBUG);
        tracing_opentelemetry::layer().with_tracer(self.0.tracer("hawser")).with_filter(only_ours)
    }

    pub(crate) fn end(self) {
        // What a collector that is gone does not take is lost, and was said to be.
        let _ = self.0.shutdown_with_timeout(PATIENCE);
    }
}

/// Says once that spans are lost, and once that they are not any more.
#[derive(Debug)]
struct Told<E> {
    exporter: E,
    endpoint: String,
    failing: AtomicBool,
}

impl<E: Export> Export for Told<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.exporter.export(batch).await;
        let failed = self.failing.swap(result.is_err(), Ordering::Relaxed);
        let endpoint = &self.endpoint;
        match &result {
            Err(error) if !failed => {
                tracing::warn!(endpoint, %error, "traces are lost: the collector does not take them")
            }
            Ok(()) if failed => tracing::info!(endpoint, "traces are sent again"),
            _ => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
