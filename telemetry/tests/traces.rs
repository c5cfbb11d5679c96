//! Spans reach a collector. The collector is a fake: a gRPC service of the OTLP protocol that keeps what it is sent.
#![allow(clippy::unwrap_used, reason = "a test that unwraps reads better")]

use hawser_telemetry::{Args, LogFormat, Telemetry, span};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

struct FakeCollector(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for FakeCollector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send(request.into_inner()).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fake_collector_is_sent_our_spans_with_their_parents_and_nobody_elses() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sent, mut received) = mpsc::channel(16);
    let server =
        tonic::transport::Server::builder().add_service(TraceServiceServer::new(FakeCollector(sent)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let args = Args {
        metrics: None,
        log_format: LogFormat::Text,
        log_level: "error".into(),
        otlp_endpoint: Some(endpoint.parse().unwrap()),
    };
    let telemetry = Telemetry::start(&args, "hawser-test").unwrap();
    {
        let _outer = span!("export.reconcile", keys = 3).entered();
        let _inner = span!("store.commit").entered();
        let _foreign = tracing::info_span!("of a library").entered();
    }
    tokio::task::spawn_blocking(|| telemetry.end()).await.unwrap();

    let batch = received.recv().await.unwrap();
    let resource = &batch.resource_spans[0];
    let service = format!("{:?}", resource.resource);
    assert!(service.contains("hawser-test"), "{service}");
    let spans: Vec<_> = resource.scope_spans.iter().flat_map(|scope| &scope.spans).collect();
    let named = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    let (outer, inner) = (named("export.reconcile"), named("store.commit"));
    assert_eq!(inner.parent_span_id, outer.span_id);
    assert!(outer.attributes.iter().any(|attribute| attribute.key == "keys"));
    assert_eq!(spans.len(), 2, "{spans:?}");
}
