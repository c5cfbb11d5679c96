//! The listener of `/metrics`, `/livez` and `/readyz`: plain HTTP, read only, bounded in everything a client can hold.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::metrics::{Family, render};
use crate::probes::{Check, report};

/// Clients at a time; one more is closed at once.
const CONNECTIONS: usize = 32;
/// From the first byte to the last of one request and its answer: a connection serves one.
const WHOLE: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// hyper's least.
const BUFFER: usize = 8 << 10;
const HEADERS: usize = 64;
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
const PAGES: &str = "there are /metrics, /livez and /readyz (both with ?verbose)\n";

/// What is asked. Answers are made anew for each request and may be awaited for less than ten seconds.
pub trait Observed: Send + Sync + 'static {
    /// Whether it would help to begin the process anew.
    fn live(&self) -> BoxFuture<'_, Vec<Check>>;
    /// Whether clients should be sent here.
    fn ready(&self) -> BoxFuture<'_, Vec<Check>>;
    /// Or why they cannot be had now.
    fn metrics(&self) -> BoxFuture<'_, Result<Vec<Family>, String>>;
}

#[derive(Debug, thiserror::Error)]
#[error(
    "metrics: cannot listen on {address}: {source}; fix: free it (see `ss -ltnp`), or choose another address:port"
)]
pub struct ListenError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

pub async fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| ListenError { address, source })
}

/// Answers for as long as the process lives: probes are asked while it starts and while it stops, too.
pub async fn serve(listener: TcpListener, observed: Arc<dyn Observed>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection to the metrics port could not be accepted");
                // Out of file descriptors, most likely: it takes a moment until some are free.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let observed = Arc::clone(&observed);
        tokio::spawn(async move {
            // Too slow: whoever it is may come again.
            let _ = tokio::time::timeout(WHOLE, answer_one(stream, observed)).await;
            drop(place);
        });
    }
}

async fn answer_one(stream: TcpStream, observed: Arc<dyn Observed>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let observed = Arc::clone(&observed);
        async move { Ok::<_, Infallible>(answer(&request, &*observed).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(BUFFER)
        .max_headers(HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "a request to the metrics port failed");
    }
}

async fn answer<B>(request: &Request<B>, observed: &dyn Observed) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, TEXT, "this port is only read\n".to_owned());
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    let verbose =
        request.uri().query().is_some_and(|query| query.split('&').any(|word| word.starts_with("verbose")));
    match request.uri().path() {
        "/livez" => probe("livez", &observed.live().await, verbose),
        "/readyz" => probe("readyz", &observed.ready().await, verbose),
        "/metrics" => match observed.metrics().await.map(render) {
            Ok(Ok(text)) => plain(StatusCode::OK, OPENMETRICS, text),
            Ok(Err(_)) => {
                plain(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "the metrics cannot be written\n".to_owned())
            }
            Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, TEXT, why + "\n"),
        },
        _ => plain(StatusCode::NOT_FOUND, TEXT, PAGES.to_owned()),
    }
}

/// As kube-apiserver answers: `ok` when all is well and nobody asked for more, else every check.
fn probe(page: &str, checks: &[Check], verbose: bool) -> Response<Full<Bytes>> {
    match report(page, checks) {
        (true, text) => plain(StatusCode::OK, TEXT, if verbose { text } else { "ok".to_owned() }),
        (false, text) => plain(StatusCode::INTERNAL_SERVER_ERROR, TEXT, text),
    }
}

fn plain(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
