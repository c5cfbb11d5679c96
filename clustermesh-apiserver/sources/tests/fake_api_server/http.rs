//! The fake's HTTP: paths to lists, watches, objects and reviews.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use super::store::{Filter, Name, RESOURCES, Refusal, Resource};
use super::{Fault, Shared};

type Body = BoxBody<Bytes, std::io::Error>;
/// Bookmarks come every minute from a real server; tests have less time.
const BOOKMARK: Duration = Duration::from_millis(50);

pub(super) async fn serve(listener: TcpListener, shared: Shared) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        let service = hyper::service::service_fn(move |request| {
            let shared = shared.clone();
            async move { Ok::<_, Infallible>(answer(request, shared).await) }
        });
        connections.spawn(async move {
            // A connection that ends early is what these tests are about.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// What a path means.
struct Target {
    resource: Resource,
    namespace: Option<String>,
    name: Option<String>,
}

fn target(path: &str) -> Option<Target> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group_version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ((*version).to_owned(), rest),
        ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
        _ => return None,
    };
    let (namespace, plural, name) = match rest {
        ["namespaces", namespace, plural] => (Some(*namespace), *plural, None),
        ["namespaces", namespace, plural, name] => (Some(*namespace), *plural, Some(*name)),
        [plural] => (None, *plural, None),
        [plural, name] => (None, *plural, Some(*name)),
        _ => return None,
    };
    let known = |r: &Resource| r.plural == plural && r.group_version == group_version;
    let resource = RESOURCES.into_iter().find(known)?;
    Some(Target { resource, namespace: namespace.map(str::to_owned), name: name.map(str::to_owned) })
}

impl Target {
    fn name(&self) -> Option<Name> {
        Some((self.namespace.clone().unwrap_or_default(), self.name.clone()?))
    }
}

/// A query's fields, decoded.
fn query(text: &str) -> BTreeMap<String, String> {
    let decoded = |text: &str| {
        let (mut bytes, mut at) = (Vec::new(), 0);
        let text = text.as_bytes();
        while at < text.len() {
            let hex = (text[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
            let byte = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
            bytes.push(byte.unwrap_or(if text[at] == b'+' { b' ' } else { text[at] }));
            at += if byte.is_some() { 3 } else { 1 };
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (decoded(key), decoded(value))).collect()
}

fn full(code: u16, value: &Value) -> Response<Body> {
    let bytes = Bytes::from(serde_json::to_vec(value).expect("JSON of JSON"));
    let mut response = Response::new(Full::new(bytes).map_err(|never| match never {}).boxed());
    *response.status_mut() = StatusCode::from_u16(code).expect("a status code");
    response.headers_mut().insert("content-type", "application/json".parse().expect("a header"));
    response
}

fn refused(refusal: &Refusal) -> Response<Body> {
    let mut response = full(refusal.code, &refusal.status());
    if let Some(seconds) = refusal.retry_after {
        response.headers_mut().insert("retry-after", seconds.to_string().parse().expect("a header"));
    }
    response
}

async fn answer(request: Request<Incoming>, shared: Shared) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let (path, text) = (parts.uri.path().to_owned(), parts.uri.query().unwrap_or_default().to_owned());
    let query = query(&text);
    let watch = query.get("watch").is_some_and(|watch| watch == "true" || watch == "1");
    let fault = {
        let mut inner = shared.lock();
        inner.requests.push(format!("{} {path}?{text}", parts.method));
        if let Some(code) = inner.down {
            return refused(&Refusal::new(code, "ServiceUnavailable", "the fake is down"));
        }
        inner.fault(&path, watch)
    };
    match fault {
        Some(Fault::Refuse { code, retry_after }) => {
            let reason = if code == 429 { "TooManyRequests" } else { "InternalError" };
            return refused(&Refusal { retry_after, ..Refusal::new(code, reason, "as the test said") });
        }
        Some(Fault::Gone) => {
            return refused(&Refusal::new(410, "Expired", "too old resource version: 1 (2)"));
        }
        _ => {}
    }
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    if path == "/apis/authentication.k8s.io/v1/tokenreviews" && parts.method == Method::POST {
        return full(201, &shared.lock().review(&body));
    }
    let Some(target) = target(&path) else {
        return refused(&Refusal::new(404, "NotFound", "the server could not find the requested resource"));
    };
    let accept = parts.headers.get("accept").and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let partial = accept.contains("as=PartialObjectMetadata");
    if parts.method == Method::GET && target.name.is_none() {
        let empty = String::new();
        let selector = |name: &str| query.get(name).unwrap_or(&empty).clone();
        let Some(filter) = Filter::parse(&selector("fieldSelector"), &selector("labelSelector")) else {
            return refused(&Refusal::new(400, "BadRequest", "unable to parse the selector"));
        };
        return match watch {
            true => watched(shared, target, filter, &query, partial, fault),
            false => listed(&shared, &target, &filter, &query, partial, fault),
        };
    }
    object(&shared, &parts.method, &target, body)
}

/// One object: read or written.
fn object(shared: &Shared, method: &Method, target: &Target, mut body: Value) -> Response<Body> {
    if body.is_object() && matches!(*method, Method::POST | Method::PUT) {
        body["kind"] = json!(target.resource.kind);
        body["apiVersion"] = json!(target.resource.group_version);
        if let Some(namespace) = &target.namespace {
            body["metadata"]["namespace"] = json!(namespace);
        }
    }
    let mut inner = shared.lock();
    let name = target.name();
    let result = match (method, &name) {
        (&Method::GET, Some(name)) => inner.store.get(target.resource, name).map(|object| (200, object)),
        (&Method::POST, None) => inner.store.create(body).map(|object| (201, object)),
        (&Method::PUT, Some(_)) => inner.store.update(body).map(|object| (200, object)),
        (&Method::DELETE, Some(name)) => {
            let version = body["preconditions"]["resourceVersion"].as_str();
            inner.store.delete(target.resource, name, version).map(|_| {
                let done =
                    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" });
                (200, Arc::new(done))
            })
        }
        _ => Err(Refusal::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )),
    };
    let revision = inner.store.revision;
    drop(inner);
    shared.changed.send_replace(revision);
    match result {
        Ok((code, object)) => full(code, &object),
        Err(refusal) => refused(&refusal),
    }
}

/// An object as an answer holds it; within a list it carries no kind of its own.
fn shown(object: &Value, partial: bool, within_list: bool) -> Value {
    let mut shown = match partial {
        true => json!({
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"],
        }),
        false => object.clone(),
    };
    if let (true, false, Some(fields)) = (within_list, partial, shown.as_object_mut()) {
        fields.remove("kind");
        fields.remove("apiVersion");
    }
    shown
}

fn listed(
    shared: &Shared,
    target: &Target,
    filter: &Filter,
    query: &BTreeMap<String, String>,
    partial: bool,
    fault: Option<Fault>,
) -> Response<Body> {
    let limit = query.get("limit").and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
    let token = query.get("continue").map(String::as_str);
    let namespace = target.namespace.as_deref();
    let page =
        shared.lock().store.list(target.resource, namespace, filter, limit.unwrap_or(usize::MAX), token);
    let (revision, items, more) = match page {
        Ok(page) => page,
        Err(refusal) => return refused(&refusal),
    };
    let mut meta = json!({ "resourceVersion": revision.to_string() });
    if let Some((token, count)) = more {
        meta["continue"] = json!(token);
        // A real server does not count what a selector would leave out.
        if !query.contains_key("fieldSelector") && !query.contains_key("labelSelector") {
            meta["remainingItemCount"] = json!(count);
        }
    }
    let (kind, version) = match partial {
        true => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1"),
        false => (format!("{}List", target.resource.kind), target.resource.group_version),
    };
    let items: Vec<Value> = items.iter().map(|object| shown(object, partial, true)).collect();
    let list = json!({ "kind": kind, "apiVersion": version, "metadata": meta, "items": items });
    match fault {
        Some(Fault::Cut | Fault::Slow) => {
            let text = serde_json::to_vec(&list).expect("JSON of JSON");
            pieces(text, fault == Some(Fault::Cut))
        }
        _ => full(200, &list),
    }
}

/// In pieces; cut in the middle, or slowly to the end.
fn pieces(text: Vec<u8>, cut: bool) -> Response<Body> {
    let (to, body) = stream();
    tokio::spawn(async move {
        let end = if cut { text.len() / 2 } else { text.len() };
        let piece = if cut { end.max(1) } else { 97 };
        for piece in text[..end].chunks(piece) {
            if to.send(Ok(Frame::data(Bytes::copy_from_slice(piece)))).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        if cut {
            let _ = to.send(Err(std::io::Error::other("cut, as the test said"))).await;
        }
    });
    body
}

type Pieces = mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>;

fn stream() -> (Pieces, Response<Body>) {
    let (to, from) = mpsc::channel(16);
    let mut response = Response::new(StreamBody::new(ReceiverStream::new(from)).boxed());
    response.headers_mut().insert("content-type", "application/json".parse().expect("a header"));
    (to, response)
}

fn watched(
    shared: Shared,
    target: Target,
    filter: Filter,
    query: &BTreeMap<String, String>,
    partial: bool,
    fault: Option<Fault>,
) -> Response<Body> {
    let version = query.get("resourceVersion").and_then(|version| version.parse().ok());
    let bookmarks = query.get("allowWatchBookmarks").is_some_and(|wanted| wanted == "true");
    let (to, response) = stream();
    let Some(position) = version else {
        return refused(&Refusal::new(400, "BadRequest", "the fake wants a resourceVersion"));
    };
    let watch = Watch { shared, target, filter, partial, bookmarks, fault, position, to };
    tokio::spawn(async move {
        // The client went, or was made to.
        let _ = watch.run().await;
    });
    response
}

struct Watch {
    shared: Shared,
    target: Target,
    filter: Filter,
    partial: bool,
    bookmarks: bool,
    fault: Option<Fault>,
    position: u64,
    to: Pieces,
}

/// The stream is over.
struct Over;

impl Watch {
    async fn run(mut self) -> Result<(), Over> {
        let mut changed = self.shared.changed.subscribe();
        let mut cut = self.shared.cut.subscribe();
        match self.fault {
            Some(Fault::End) => return Ok(()),
            Some(Fault::ErrorGone) => return self.error(&gone(self.position)).await,
            Some(Fault::ErrorInternal) => {
                return self.error(&Refusal::new(500, "InternalError", "etcdserver: leader changed")).await;
            }
            _ => {}
        }
        loop {
            changed.mark_unchanged();
            self.send_changes().await?;
            if self.fault == Some(Fault::Cut) {
                return self.cut().await;
            }
            tokio::select! {
                _ = changed.changed() => {}
                _ = cut.changed() => return self.cut().await,
                () = self.to.closed() => return Err(Over),
                () = tokio::time::sleep(BOOKMARK), if self.bookmarks => {
                    let (resource, version) = (self.target.resource, self.position.to_string());
                    let meta = json!({ "resourceVersion": version, "creationTimestamp": null });
                    let bookmark = json!({
                        "kind": resource.kind, "apiVersion": resource.group_version, "metadata": meta,
                    });
                    self.event("BOOKMARK", shown(&bookmark, self.partial, false)).await?;
                }
            }
        }
    }

    async fn send_changes(&mut self) -> Result<(), Over> {
        let (events, position, compacted) = {
            let inner = self.shared.lock();
            let compacted = self.position < inner.store.compacted;
            let changes =
                inner.store.history.iter().filter(|change| {
                    change.revision > self.position && change.resource == self.target.resource
                });
            let events: Vec<_> = changes.filter_map(|change| self.seen(change)).collect();
            (events, inner.store.revision, compacted)
        };
        if compacted {
            self.error(&gone(self.position)).await?;
            return Err(Over);
        }
        for (index, (kind, object)) in events.into_iter().enumerate() {
            if self.fault == Some(Fault::Garbage) && index == 1 {
                self.line(b"{\"type\":\"ADDED\",\"object\":{\"metad\n").await?;
                return Err(Over);
            }
            self.event(kind, shown(&object, self.partial, false)).await?;
        }
        self.position = position;
        Ok(())
    }

    /// A change as this watch's selectors show it.
    fn seen(&self, change: &super::store::Change) -> Option<(&'static str, Value)> {
        let fits = |object: &Option<Arc<Value>>| {
            object.as_ref().filter(|object| self.filter.matches(object)).cloned()
        };
        let (before, after) = (fits(&change.before), fits(&change.after));
        match (before, after) {
            (None, Some(after)) => Some(("ADDED", (*after).clone())),
            (Some(_), Some(after)) => Some(("MODIFIED", (*after).clone())),
            (Some(before), None) => {
                // Its last state, at the version of its going.
                let mut last = (*before).clone();
                last["metadata"]["resourceVersion"] = json!(change.revision.to_string());
                Some(("DELETED", last))
            }
            (None, None) => None,
        }
    }

    async fn event(&self, kind: &str, object: Value) -> Result<(), Over> {
        let mut line = serde_json::to_vec(&json!({ "type": kind, "object": object })).expect("JSON of JSON");
        line.push(b'\n');
        if self.fault == Some(Fault::Twice) {
            self.line(&line).await?;
        }
        self.line(&line).await
    }

    async fn line(&self, line: &[u8]) -> Result<(), Over> {
        let piece = if self.fault == Some(Fault::Slow) { 97 } else { line.len() };
        for piece in line.chunks(piece) {
            self.to.send(Ok(Frame::data(Bytes::copy_from_slice(piece)))).await.map_err(|_| Over)?;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn error(&self, refusal: &Refusal) -> Result<(), Over> {
        self.event("ERROR", refusal.status()).await
    }

    async fn cut(&self) -> Result<(), Over> {
        // Half a line first: what is not whole was not said.
        self.line(b"{\"type\":\"DELETED\",\"object\":{").await?;
        self.to.send(Err(std::io::Error::other("cut, as the test said"))).await.map_err(|_| Over)
    }
}

fn gone(position: u64) -> Refusal {
    Refusal::new(410, "Expired", format!("too old resource version: {position} ({})", position + 1))
}
