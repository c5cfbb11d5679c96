//! One request to the API server, its answer fed to the state machine as it comes.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, RETRY_AFTER};
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use tokio::sync::mpsc;

use super::decode;
use super::follow::{Ask, Failure, Follow, Output};
use super::resource::Resource;
use super::split::{Lines, ListSplitter};
use crate::SourceEvent;

/// Until an answer begins, and between two pieces of a list.
const PATIENCE: Duration = Duration::from_secs(60);
/// A watch that says nothing for this long is asked for anew: bookmarks come every minute, and a peer that is gone
/// says nothing at all.
const SILENCE: Duration = Duration::from_secs(150);
/// An open watch that is silent this long has nothing to say, rather than nobody who says it.
const QUIET: Duration = Duration::from_secs(5);
/// What is read of a refusal.
const MAX_REFUSAL: usize = 64 << 10;

/// Why an asking ended.
#[derive(Debug)]
pub(crate) enum End {
    Failed(Failure),
    /// Nobody takes the events any more.
    Closed,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Where events go, and who is told that the first list is complete.
#[derive(Debug)]
pub(crate) struct Sink {
    pub events: mpsc::Sender<SourceEvent>,
    pub listed: mpsc::Sender<()>,
}

impl Sink {
    /// Waits while the consumer does: what the API server sends waits in its turn.
    pub(crate) async fn drain(&self, follow: &mut Follow) -> Result<(), End> {
        while let Some(output) = follow.poll_output() {
            match output {
                Output::Say(event) => self.events.send(event).await.map_err(|_| End::Closed)?,
                Output::Listed => self.listed.send(()).await.map_err(|_| End::Closed)?,
            }
        }
        Ok(())
    }
}

/// Asks what is next and feeds the answer.
pub(crate) async fn ask(
    client: &Client,
    resource: &Resource,
    follow: &mut Follow,
    to: &Sink,
) -> Result<(), End> {
    match follow.ask().clone() {
        Ask::List { limit, token } => {
            let mut query = String::new();
            if let Some(limit) = limit {
                _ = write!(query, "limit={limit}&");
            }
            if let Some(token) = token {
                _ = write!(query, "continue={}&", encoded(&token));
            }
            let body = get(client, resource, &query, false).await?;
            list(body, resource, follow, to).await
        }
        Ask::Watch { version } => {
            // Not all clients at once.
            let seconds = 240 + rand::random_range(0..60);
            let version = encoded(&version);
            let query = format!(
                "watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={version}&"
            );
            let body = get(client, resource, &query, true).await?;
            watch(body, resource, follow, to).await
        }
    }
}

async fn get(client: &Client, resource: &Resource, query: &str, watch: bool) -> Result<Body, Failure> {
    let uri = format!("{}?{}{query}", resource.path, resource.filter);
    let request = Request::get(uri.trim_end_matches(['&', '?']))
        .header(ACCEPT, resource.accept(watch))
        .body(Body::empty())
        .map_err(|error| Failure::Unreachable(error.to_string()))?;
    let answer = tokio::time::timeout(PATIENCE, client.send(request)).await;
    let answer = answer.map_err(|_| late())?.map_err(|error| unreachable(&error))?;
    match answer.status().is_success() {
        true => Ok(answer.into_body()),
        false => Err(refusal(answer).await),
    }
}

fn late() -> Failure {
    Failure::Unreachable(format!("no answer within {} s", PATIENCE.as_secs()))
}

/// With its causes: the outermost error says only that something was sent.
fn unreachable(error: &dyn std::error::Error) -> Failure {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    Failure::Unreachable(decode::bounded(&text))
}

async fn refusal(answer: Response<Body>) -> Failure {
    let (code, retry_after) = (answer.status().as_u16(), retry_after(answer.headers()));
    let mut body = answer.into_body();
    let mut text = Vec::new();
    while text.len() < MAX_REFUSAL {
        match tokio::time::timeout(PATIENCE, body.frame()).await {
            Ok(Some(Ok(frame))) => {
                text.extend_from_slice(frame.data_ref().map_or(&[][..], |data: &Bytes| data));
            }
            _ => break,
        }
    }
    text.truncate(MAX_REFUSAL);
    decode::refusal(code, retry_after, &text)
}

fn retry_after(headers: &HeaderMap) -> Option<u64> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()
}

/// The next piece of an answer; none at its end.
async fn piece(body: &mut Body) -> Result<Option<Bytes>, Failure> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Err(error)) => return Err(unreachable(&error)),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => return Ok(Some(data)),
                // Trailers.
                Err(_) => continue,
            },
        }
    }
}

/// Object by object: neither the answer nor its objects are ever held together.
async fn list(mut body: Body, resource: &Resource, follow: &mut Follow, to: &Sink) -> Result<(), End> {
    let mut splitter = ListSplitter::default();
    while let Some(bytes) = tokio::time::timeout(PATIENCE, piece(&mut body)).await.map_err(|_| late())?? {
        splitter.feed(&bytes, |text| {
            follow.handle_item(decode::item(resource.kind, text)?);
            Ok(())
        })?;
        to.drain(follow).await?;
    }
    follow.handle_page(decode::page(splitter.head()?)?);
    Ok(())
}

async fn watch(mut body: Body, resource: &Resource, follow: &mut Follow, to: &Sink) -> Result<(), End> {
    let mut lines = Lines::default();
    let mut patience = QUIET;
    loop {
        let bytes = match tokio::time::timeout(patience, piece(&mut body)).await {
            Ok(piece) => piece?.ok_or(Failure::Ended)?,
            Err(_) if patience == QUIET => {
                follow.handle_silence();
                to.drain(follow).await?;
                patience = SILENCE;
                continue;
            }
            Err(_) => return Err(Failure::Ended.into()),
        };
        patience = SILENCE;
        let fed = lines.feed(&bytes, |line| {
            follow.handle_event(decode::event(resource.kind, line)?);
            Ok(())
        });
        to.drain(follow).await?;
        fed?;
    }
}

/// Percent-encoded for a query (RFC 3986 §2.3: all but the unreserved).
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte.into()),
            _ => _ = write!(encoded, "%{byte:02X}"),
        }
    }
    encoded
}
