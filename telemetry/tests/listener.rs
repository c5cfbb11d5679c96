//! The port that is scraped and probed: what it answers, and what it does not put up with.
#![allow(clippy::unwrap_used, reason = "a test that unwraps reads better")]

use std::net::SocketAddr;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hawser_telemetry::{Check, Family, Observed, bind, serve};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

struct Ship {
    afloat: bool,
}

impl Observed for Ship {
    fn live(&self) -> BoxFuture<'_, Vec<Check>> {
        futures::future::ready(vec![Check::ok("engine", "")]).boxed()
    }

    fn ready(&self) -> BoxFuture<'_, Vec<Check>> {
        let hull = if self.afloat { Check::ok("hull", "") } else { Check::bad("hull", "leaks: since noon") };
        futures::future::ready(vec![Check::ok("engine", ""), hull]).boxed()
    }

    fn metrics(&self) -> BoxFuture<'_, Result<Vec<Family>, String>> {
        let families = vec![Family::counter("hawser_miles", "Miles sailed.").value(7.0)];
        futures::future::ready(Ok(families)).boxed()
    }
}

async fn sailing(afloat: bool) -> SocketAddr {
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, Arc::new(Ship { afloat })));
    address
}

async fn send(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // It may close before it has read all of a request that it refuses.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

async fn get(address: SocketAddr, path: &str) -> String {
    send(address, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await
}

#[tokio::test]
async fn probes_answer_as_kube_apiserver_does() {
    let (well, leaking) = (sailing(true).await, sailing(false).await);
    assert!(get(well, "/readyz").await.ends_with("\r\n\r\nok"));
    let verbose = get(well, "/readyz?verbose").await;
    assert!(verbose.ends_with("\r\n\r\n[+]engine ok\n[+]hull ok\nreadyz check passed\n"), "{verbose}");
    let failed = get(leaking, "/readyz").await;
    assert!(failed.starts_with("HTTP/1.1 500 "), "{failed}");
    assert!(failed.ends_with("[+]engine ok\n[-]hull leaks: since noon\nreadyz check failed\n"), "{failed}");
    assert!(get(leaking, "/livez").await.starts_with("HTTP/1.1 200 "), "a leak is not mended by a new start");
}

#[tokio::test]
async fn metrics_are_openmetrics_and_everything_else_is_told_where_they_are() {
    let address = sailing(true).await;
    let metrics = get(address, "/metrics").await;
    assert!(metrics.contains("content-type: application/openmetrics-text; version=1.0.0"), "{metrics}");
    assert!(metrics.contains("hawser_miles_total 7") && metrics.ends_with("# EOF\n"), "{metrics}");
    assert!(get(address, "/").await.contains("404") && get(address, "/").await.contains("/metrics, /livez"));
}

#[tokio::test]
async fn the_port_is_only_read_and_headers_are_bounded() {
    let address = sailing(true).await;
    let written = send(address, b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await;
    assert!(written.starts_with("HTTP/1.1 405 "), "{written}");
    let long = format!("GET /livez HTTP/1.1\r\nHost: x\r\nx: {}\r\n\r\n", "y".repeat(64 << 10));
    let refused = send(address, long.as_bytes()).await;
    assert!(!refused.contains(" 200 "), "{refused}");
}

#[tokio::test]
async fn whoever_holds_all_places_holds_no_memory_and_no_more_than_them() {
    let address = sailing(true).await;
    let mut idle = Vec::new();
    for _ in 0..32 {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    // Connections are taken in order: this one is the thirty-third.
    assert_eq!(get(address, "/livez").await, "", "it is closed unanswered");
    drop(idle);
    // Places are given back as the ends are noticed.
    while !get(address, "/livez").await.contains(" 200 ") {
        tokio::task::yield_now().await;
    }
}
