//! Asking from a pod: the request, the running client, and what it reports.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::binaries;
use crate::place::Place;
use crate::wait;

/// What a client shall do.
#[derive(Clone, Debug)]
pub struct Request {
    target: String,
    path: String,
    requests: Option<u64>,
    concurrency: u32,
    timeout: Duration,
    interval: Duration,
    keep_alive: bool,
    udp: Option<Udp>,
}

/// Whether a socket that sends a message is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Udp {
    Connected,
    Unconnected,
}

impl Request {
    /// `target` is `address:port`.
    pub fn to(target: &str) -> Self {
        Self {
            target: target.to_owned(),
            path: "/".to_owned(),
            requests: None,
            concurrency: 1,
            timeout: Duration::from_secs(2),
            interval: Duration::ZERO,
            keep_alive: false,
            udp: None,
        }
    }

    #[must_use]
    pub fn requests(mut self, requests: u64) -> Self {
        self.requests = Some(requests);
        self
    }

    #[must_use]
    pub fn concurrency(mut self, concurrency: u32) -> Self {
        self.concurrency = concurrency;
        self
    }

    /// For the connection and again for the answer.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Between the starts of two requests of one worker.
    #[must_use]
    pub fn every(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// A string that travels in every request.
    #[must_use]
    pub fn marker(mut self, marker: &str) -> Self {
        self.path = format!("/?marker={marker}");
        self
    }

    /// One connection for all requests of a worker, instead of a new one each.
    #[must_use]
    pub fn keep_alive(mut self) -> Self {
        self.keep_alive = true;
        self
    }

    /// A message in place of each request, from a socket of its own.
    #[must_use]
    pub fn by_udp(mut self, how: Udp) -> Self {
        self.udp = Some(how);
        self
    }

    fn command(&self, place: &Place) -> Result<Command> {
        let mut command = place.command(binaries::find("hawser-lab")?);
        command.args(["pod-client", "--target", &self.target, "--path", &self.path]);
        command.args(["--concurrency", &self.concurrency.to_string()]);
        command.args(["--timeout-ms", &wait::scaled(self.timeout).as_millis().to_string()]);
        command.args(["--interval-ms", &self.interval.as_millis().to_string()]);
        if let Some(requests) = self.requests {
            command.args(["--requests", &requests.to_string()]);
        }
        if self.keep_alive {
            command.arg("--keep-alive");
        }
        if let Some(how) = self.udp {
            let how = if how == Udp::Connected { "connected" } else { "unconnected" };
            command.args(["--udp", how]);
        }
        Ok(command)
    }
}

/// One request, as the client lived it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Unix time at which its connection was begun (or, kept alive, the request).
    pub opened_ms: u64,
    pub took_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub ok: u64,
    pub failed: u64,
    pub by_cluster: BTreeMap<String, u64>,
    pub by_pod: BTreeMap<String, u64>,
    /// What `getpeername` said, and how often.
    pub peers: BTreeMap<String, u64>,
    /// Who the servers saw asking, without the port.
    pub seen_as: BTreeMap<String, u64>,
    /// In the order of their ends.
    pub records: Vec<Record>,
}

impl Report {
    /// An error that quotes the first failures, unless every request succeeded.
    pub fn all_ok(&self) -> Result<()> {
        let mut failures = self.records.iter().filter_map(|record| record.error.as_deref());
        match failures.next() {
            None if self.ok > 0 => Ok(()),
            None => bail!("no request was made"),
            Some(first) => {
                bail!("{} of {} requests failed, the first with: {first}", self.failed, self.total())
            }
        }
    }

    pub fn total(&self) -> u64 {
        self.ok + self.failed
    }

    pub fn from_cluster(&self, cluster: &str) -> u64 {
        self.by_cluster.get(cluster).copied().unwrap_or(0)
    }

    /// `us-east 34 %, eu-west 33 %, ...`
    pub fn shares(&self) -> String {
        let share = |(name, count): (&String, &u64)| {
            format!("{name} {} %", (count * 100 + self.ok / 2) / self.ok.max(1))
        };
        self.by_cluster.iter().map(share).collect::<Vec<_>>().join(", ")
    }
}

/// Milliseconds since 1970, the clock of [`Record::opened_ms`].
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Makes requests and waits for their end.
pub fn run(place: &Place, request: &Request) -> Result<Report> {
    if request.requests.is_none() {
        bail!("a request without an end");
    }
    start(place, request)?.finish()
}

/// Begins to make requests.
pub fn start(place: &Place, request: &Request) -> Result<Running> {
    let child = request
        .command(place)?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting a client in {}", place.name()))?;
    Ok(Running { child })
}

/// A client at work. It stops when its standard input closes.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Running {
    /// No new requests; what is under way is waited for.
    pub fn stop(mut self) -> Result<Report> {
        drop(self.child.stdin.take());
        self.finish()
    }

    fn finish(mut self) -> Result<Report> {
        let mut text = String::new();
        let mut stdout = self.child.stdout.take().context("the client's output")?;
        stdout.read_to_string(&mut text).context("reading the client's report")?;
        let status = self.child.wait().context("waiting for the client")?;
        serde_json::from_str(&text).with_context(|| format!("the client's report ({status}): {text:?}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
