//! Whatever bytes a client sends, the server answers and does not panic.

use bytes::{BufMut, Bytes, BytesMut};
use hawser_etcd::server::{AllowAll, EtcdServer, Keyspaces};
use hawser_kvstore::Limits;
use http_body_util::{BodyExt, Full};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::body::Body;
use tonic::service::Routes;
use tower::ServiceExt;

const MUTATE_FOR: Duration = Duration::from_secs(10);

/// The fuzz target: one request with `message` as its only message to the RPC `path`.
async fn send(routes: Routes, path: &str, message: &[u8]) {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap());
    framed.put_slice(message);
    send_raw(routes, path, framed.freeze()).await;
}

async fn send_raw(routes: Routes, path: &str, body: Bytes) {
    let request = http::Request::post(format!("http://us-east.mesh.hawser.io{path}"))
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .body(Body::new(Full::new(body)))
        .unwrap();
    let response = routes.oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200, "gRPC says everything in its own status");
    let in_headers = response.headers().get("grpc-status").cloned();
    let collected = response.into_body().collect().await.unwrap();
    let status =
        collected.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned().or(in_headers);
    let status = status.expect("every answer ends with a status");
    // A stream task that panicked would leave UNAVAILABLE behind; INTERNAL is malformed protobuf.
    assert_ne!(status, "14", "{path}");
}

/// `/service/Method` and a valid or at least interesting message, from the file `service.Method-what`.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut corpus = Vec::new();
    for file in std::fs::read_dir(&dir).expect("tests/corpus is part of the crate") {
        let file = file.unwrap();
        let name = file.file_name().into_string().unwrap();
        let (service, method) = name.split_once('-').unwrap().0.split_once('.').unwrap();
        corpus.push((format!("/etcdserverpb.{service}/{method}"), std::fs::read(file.path()).unwrap()));
    }
    corpus.sort();
    assert!(corpus.len() >= 10, "the corpus has only {} files", corpus.len());
    corpus
}

/// xorshift64: the same mutations in every run until the time is up.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }

    fn mutate(&mut self, message: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(message.len() + 1);
        match self.below(6) {
            0 => message.insert(at, self.next() as u8),
            1 => message.truncate(at),
            2 => {
                let from = self.below(other.len() + 1);
                message.splice(at..at, other[from..].iter().copied());
            }
            3 if at < message.len() => {
                message.remove(at);
            }
            4 if at < message.len() => message[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
            _ if at < message.len() => message[at] ^= 1 << self.below(8),
            _ => message.push(self.next() as u8),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_bytes_make_the_server_panic() {
    let limits = Limits { quota_bytes: 1 << 20, history_bytes: 1 << 20, ..Limits::default() };
    let keyspaces = Keyspaces::new(crate::harness::memory("us-east", limits));
    let routes = EtcdServer::new(keyspaces, Arc::new(AllowAll), Vec::new()).routes();
    let corpus = corpus();
    for (path, message) in &corpus {
        send(routes.clone(), path, message).await;
        send_raw(routes.clone(), path, Bytes::copy_from_slice(message)).await;
    }
    let mut random = Random(0x4861_7773_6572);
    let (started, mut sent) = (Instant::now(), 0_u32);
    while started.elapsed() < MUTATE_FOR {
        let (path, message) = &corpus[random.below(corpus.len())];
        let mut message = message.clone();
        for _ in 0..=random.below(8) {
            let other = &corpus[random.below(corpus.len())].1;
            random.mutate(&mut message, other);
        }
        // A message may also arrive at an RPC that it was not made for.
        let path = if random.below(10) == 0 { &corpus[random.below(corpus.len())].0 } else { path };
        send(routes.clone(), path, &message).await;
        sent += 1;
    }
    println!("{sent} mutated requests were answered");
}
