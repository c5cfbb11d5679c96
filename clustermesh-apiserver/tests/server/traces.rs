//! What the real binary sends to an OpenTelemetry collector. The collector is a fake: it keeps what it is sent.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::cluster::{Cluster, eventually};

struct FakeCollector(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for FakeCollector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send(request.into_inner()).map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn attributes(span: &Span) -> BTreeMap<&str, String> {
    span.attributes.iter().map(|it| (it.key.as_str(), format!("{:?}", it.value))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_span_of_the_docs_reaches_a_fake_collector_as_they_say() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sent, mut received) = mpsc::unbounded_channel();
    let server =
        tonic::transport::Server::builder().add_service(TraceServiceServer::new(FakeCollector(sent)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let (mut east, mut west) = (Cluster::with_shop("us-east", 1), Cluster::with_shop("eu-west", 2));
    west.start(&[]).await;
    east.start(&["--otlp-endpoint", &endpoint]).await;
    east.connect_with(&west).await;
    for cluster in [&east, &west] {
        eventually("each mirrors the other", async || {
            let peers = cluster.status().await.peers;
            peers.iter().any(|peer| peer.state == "synced").then_some(()).ok_or(format!("{peers:?}"))
        })
        .await;
    }
    assert_eq!(east.stop(), Some(0), "and what was not sent yet is sent");

    let mut spans = Vec::new();
    while let Ok(batch) = received.try_recv() {
        for of in batch.resource_spans {
            let service = format!("{:?}", of.resource);
            assert!(service.contains("clustermesh-apiserver"), "{service}");
            spans.extend(of.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    let named = |name: &str| -> Vec<&Span> { spans.iter().filter(|span| span.name == name).collect() };
    let synced = named("mirror.sync");
    assert!(synced.iter().any(|span| attributes(span)["cluster"].contains("eu-west")), "{spans:?}");
    let rpcs: Vec<_> = named("rpc").into_iter().map(attributes).collect();
    let rpc = |method: &str, caller: &str| {
        rpcs.iter().any(|rpc| rpc["method"].contains(method) && rpc["caller"].contains(caller))
    };
    assert!(rpc("/etcdserverpb.KV/Range", "Admin") && rpc("Admin/Connect", "Admin"), "{rpcs:?}");
    assert!(rpc("/etcdserverpb.Watch/Watch", "eu-west"), "{rpcs:?}");
    let reconciled = named("export.reconcile");
    let inside = |commit: &&Span| reconciled.iter().any(|outer| outer.span_id == commit.parent_span_id);
    assert!(named("store.commit").iter().any(inside), "{spans:?}");
    let known = ["mirror.sync", "rpc", "export.reconcile", "store.commit"];
    assert!(spans.iter().all(|span| known.contains(&span.name.as_str())), "no library's: {spans:?}");
}
