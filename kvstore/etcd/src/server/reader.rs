//! What one reader may ask, all its connections together and each of them. Whoever knows the caller leaves its
//! [`Connection`] in the request's extensions; a caller without one may ask for anything.
//!
//! A refusal is `ResourceExhausted` with a sentence: whoever honours it waits and asks again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use hawser_model::Time;
use tonic::Status;

use crate::limits::{Bucket, Rate};

/// Of all connections of one reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReaderLimits {
    pub connections: usize,
    pub requests_per_second: u64,
    /// Keys and values of lists; what watches are sent is the writers' doing.
    pub list_bytes_per_second: u64,
    pub watches: usize,
}

/// A burst is what the rate gives in so many seconds: a reader that begins lists everything at once.
const BURST_SECONDS: u64 = 10;
/// One connection is one process: a list in pages of 256 keys, twenty a second, is what Cilium's do.
const CONNECTION: Rate = Rate { per_second: 500, burst: 5_000 };
const CONNECTION_WATCHES: usize = 1_000;

/// Why not now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    #[error(
        "cluster {reader} has {most} connections here, its limit; fix: close some, or raise limits.peers.{reader}.connections here"
    )]
    Connections { reader: String, most: usize },
    #[error(
        "cluster {reader} makes more than {most} requests a second here, its limit; fix: ask less often, or raise limits.peers.{reader}.requestsPerSecond here"
    )]
    Requests { reader: String, most: u64 },
    #[error(
        "this connection of cluster {reader} makes more than {most} requests a second, the limit of one; fix: ask less often"
    )]
    ConnectionRequests { reader: String, most: u64 },
    #[error(
        "cluster {reader} lists more than {most} bytes a second here, its limit; fix: watch instead of listing, or raise limits.peers.{reader}.listBytesPerSecond here"
    )]
    ListBytes { reader: String, most: u64 },
    #[error(
        "cluster {reader} has {most} watches here, its limit; fix: cancel some, or raise limits.peers.{reader}.watches here"
    )]
    Watches { reader: String, most: usize },
    #[error("this connection of cluster {reader} has {most} watches, the limit of one; fix: cancel some")]
    ConnectionWatches { reader: String, most: usize },
}

impl Exhausted {
    /// A short steady name for metrics and status.
    fn reason(&self) -> &'static str {
        match self {
            Self::Connections { .. } => "connections",
            Self::Requests { .. } | Self::ConnectionRequests { .. } => "requests",
            Self::ListBytes { .. } => "list_bytes",
            Self::Watches { .. } | Self::ConnectionWatches { .. } => "watches",
        }
    }
}

impl From<Exhausted> for Status {
    fn from(why: Exhausted) -> Self {
        Self::resource_exhausted(why.to_string())
    }
}

/// One reader, of any number of connections.
#[derive(Debug)]
pub struct Reader {
    name: String,
    limits: ReaderLimits,
    started: Instant,
    requests: Mutex<Bucket>,
    listed: Mutex<Bucket>,
    connections: AtomicUsize,
    watches: AtomicUsize,
    refused: Mutex<BTreeMap<&'static str, u64>>,
}

/// How much of its limits a reader uses, and what was refused by limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReaderStatus {
    pub limits: ReaderLimits,
    pub connections: usize,
    pub watches: usize,
    pub refused: BTreeMap<&'static str, u64>,
}

impl Reader {
    pub fn new(name: &str, limits: ReaderLimits) -> Arc<Self> {
        let bucket = |per_second: u64| {
            Mutex::new(Bucket::new(
                Rate { per_second, burst: per_second.saturating_mul(BURST_SECONDS) },
                Time::ZERO,
            ))
        };
        Arc::new(Self {
            name: name.to_owned(),
            limits,
            started: Instant::now(),
            requests: bucket(limits.requests_per_second),
            listed: bucket(limits.list_bytes_per_second),
            connections: AtomicUsize::new(0),
            watches: AtomicUsize::new(0),
            refused: Mutex::default(),
        })
    }

    pub fn limits(&self) -> ReaderLimits {
        self.limits
    }

    /// Counted until the result is dropped.
    pub fn connect(self: &Arc<Self>) -> Result<Arc<Connection>, Exhausted> {
        let most = self.limits.connections;
        let connection = Connection {
            reader: Arc::clone(self),
            requests: Mutex::new(Bucket::new(CONNECTION, self.now())),
            watches: Arc::default(),
        };
        if self.connections.fetch_add(1, Ordering::Relaxed) >= most {
            return Err(self.refuse(Exhausted::Connections { reader: self.name.clone(), most }));
        }
        Ok(Arc::new(connection))
    }

    pub fn status(&self) -> ReaderStatus {
        ReaderStatus {
            limits: self.limits,
            connections: self.connections.load(Ordering::Relaxed),
            watches: self.watches.load(Ordering::Relaxed),
            refused: self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    fn now(&self) -> Time {
        Time::from_duration(self.started.elapsed())
    }

    fn refuse(&self, why: Exhausted) -> Exhausted {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused.entry(why.reason()).or_default() += 1;
        why
    }
}

/// One connection of a reader.
#[derive(Debug)]
pub struct Connection {
    reader: Arc<Reader>,
    requests: Mutex<Bucket>,
    watches: Arc<AtomicUsize>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connection {
    /// Counts a request, whatever it asks. O(1).
    pub fn request(&self) -> Result<(), Exhausted> {
        let (reader, now) = (&self.reader, self.reader.now());
        let name = || reader.name.clone();
        if take(&self.requests, 1, now).is_err() {
            return Err(
                reader.refuse(Exhausted::ConnectionRequests { reader: name(), most: CONNECTION.per_second })
            );
        }
        if take(&reader.requests, 1, now).is_err() {
            let most = reader.limits.requests_per_second;
            return Err(reader.refuse(Exhausted::Requests { reader: name(), most }));
        }
        Ok(())
    }

    /// Counts what a list is about to give. A list of any size passes when nothing is owed for those before it.
    pub(crate) fn list(&self, bytes: usize) -> Result<(), Exhausted> {
        let reader = &self.reader;
        take(&reader.listed, bytes as u64, reader.now()).map_err(|_| {
            let most = reader.limits.list_bytes_per_second;
            reader.refuse(Exhausted::ListBytes { reader: reader.name.clone(), most })
        })
    }

    /// A watch counts until the result is dropped.
    pub(crate) fn watch(&self) -> Result<WatchPlace, Exhausted> {
        let reader = &self.reader;
        let name = || reader.name.clone();
        let place = WatchPlace { reader: Arc::clone(reader), connection: Arc::clone(&self.watches) };
        let here = place.connection.fetch_add(1, Ordering::Relaxed);
        let all = reader.watches.fetch_add(1, Ordering::Relaxed);
        if here >= CONNECTION_WATCHES {
            return Err(
                reader.refuse(Exhausted::ConnectionWatches { reader: name(), most: CONNECTION_WATCHES })
            );
        }
        if all >= reader.limits.watches {
            return Err(reader.refuse(Exhausted::Watches { reader: name(), most: reader.limits.watches }));
        }
        Ok(place)
    }
}

#[derive(Debug)]
pub(crate) struct WatchPlace {
    reader: Arc<Reader>,
    connection: Arc<AtomicUsize>,
}

impl Drop for WatchPlace {
    fn drop(&mut self) {
        self.connection.fetch_sub(1, Ordering::Relaxed);
        self.reader.watches.fetch_sub(1, Ordering::Relaxed);
    }
}

fn take(bucket: &Mutex<Bucket>, tokens: u64, now: Time) -> Result<(), std::time::Duration> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner).try_take(tokens, now)
}

/// Counts what a list is about to give, for a caller that is counted.
pub(crate) fn listed(caller: &http::Extensions, bytes: impl FnOnce() -> usize) -> Result<(), Status> {
    let connection = caller.get::<Arc<Connection>>();
    connection.map_or(Ok(()), |connection| connection.list(bytes()).map_err(Status::from))
}

/// A place for a watch of a caller that is counted; none is needed otherwise.
pub(crate) fn watched(caller: &http::Extensions) -> Result<Option<WatchPlace>, Exhausted> {
    caller.get::<Arc<Connection>>().map(|connection| connection.watch()).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(limits: ReaderLimits) -> Arc<Reader> {
        Reader::new("eu-west", limits)
    }

    const FEW: ReaderLimits =
        ReaderLimits { connections: 2, requests_per_second: 1, list_bytes_per_second: 1, watches: 2 };

    #[test]
    fn places_are_counted_over_all_connections_and_are_free_again_when_they_are_left() {
        let reader = reader(FEW);
        let (first, second) = (reader.connect().unwrap(), reader.connect().unwrap());
        let refused = reader.connect().unwrap_err().to_string();
        assert!(refused.contains("eu-west has 2 connections") && refused.contains("fix: "), "{refused}");
        let (_a, b) = (first.watch().unwrap(), second.watch().unwrap());
        assert_eq!(first.watch().unwrap_err().reason(), "watches");
        drop((b, second));
        assert!(first.watch().is_ok() && reader.connect().is_ok());
        let status = reader.status();
        assert_eq!((status.connections, status.watches), (1, 1));
        assert_eq!(status.refused, BTreeMap::from([("connections", 1), ("watches", 1)]));
    }

    #[test]
    fn requests_and_lists_have_a_burst_and_then_a_rate() {
        let reader = reader(FEW);
        let connection = reader.connect().unwrap();
        let passed = (0..100).take_while(|_| connection.request().is_ok()).count();
        assert!((10..15).contains(&passed), "{passed}");
        assert!(connection.request().unwrap_err().to_string().contains("more than 1 requests a second"));
        connection.list(1_000).unwrap();
        assert_eq!(connection.list(1).unwrap_err().reason(), "list_bytes", "the first one is owed for");
    }

    #[test]
    fn one_connection_cannot_take_what_a_whole_cluster_may() {
        let limits = ReaderLimits { connections: 9, requests_per_second: 100_000, watches: 100_000, ..FEW };
        let reader = reader(limits);
        let (busy, other) = (reader.connect().unwrap(), reader.connect().unwrap());
        let passed = (0..20_000).take_while(|_| busy.request().is_ok()).count();
        assert!(passed < 20_000, "{passed}");
        assert!(other.request().is_ok());
        let watches: Vec<_> = (0..2_000).map_while(|_| busy.watch().ok()).collect();
        assert_eq!(watches.len(), CONNECTION_WATCHES);
        assert!(other.watch().is_ok());
    }
}
