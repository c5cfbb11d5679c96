//! The two servers that are compared as servers: ours over the embedded store on disk, and the real etcd. Both speak TLS.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hawser_etcd::client::Client;
use hawser_etcd::durable::{Embedded, EmbeddedConfig};
use hawser_etcd::pb;
use hawser_etcd::server::{KeyspaceHandle, Keyspaces};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tonic::transport::Channel;

use super::wire::{self, Pki};
use crate::bench::part::{self, Part, Usage};

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Args {
    pki: Pki,
    dir: PathBuf,
}

/// The part's own process.
pub(super) async fn run(args: Args) -> Result<()> {
    let mut told = part::told();
    let runtime = tokio::runtime::Handle::current();
    let open = move || Embedded::open(&args.dir, "home", EmbeddedConfig::default(), &runtime);
    let store = tokio::task::spawn_blocking(open).await??;
    let own = KeyspaceHandle::new("home", store.keyspace, store.writer);
    part::say(&wire::serve(&args.pki, Keyspaces::new(own)).await?)?;
    while told.recv().await.is_some() {}
    Ok(())
}

/// A server under comparison, with its data on the same disk.
pub(super) struct Server {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    pki: Pki,
    process: Process,
    _data: TempDir,
}

enum Process {
    Ours(Part),
    Etcd(Child),
}

impl Server {
    pub(super) fn ours(pki: &Pki) -> Result<Self> {
        let data = TempDir::new()?;
        let mut part = Part::start("server", &Args { pki: pki.clone(), dir: data.path().join("store") })?;
        let address = part.hear()?;
        Ok(Self { name: "hawser", address, pki: pki.clone(), process: Process::Ours(part), _data: data })
    }

    pub(super) async fn etcd(pki: &Pki) -> Result<Self> {
        let data = TempDir::new()?;
        let free = || std::net::TcpListener::bind("127.0.0.1:0")?.local_addr();
        let (address, peer) = (free()?, free()?);
        let (client, peer) = (format!("https://{address}"), format!("http://{peer}"));
        let child = Command::new("etcd")
            .args(["--name", "home", "--data-dir"])
            .arg(data.path())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("home={peer}")])
            // Its default of 2 GB is too small for a million keys and their revisions.
            .args(["--quota-backend-bytes", "8589934592"])
            .arg("--cert-file")
            .arg(pki.certificate())
            .arg("--key-file")
            .arg(pki.key())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("/usr/bin/etcd cannot be run; fix: apt-get install etcd-server")?;
        let server =
            Self { name: "etcd", address, pki: pki.clone(), process: Process::Etcd(child), _data: data };
        let client = Client::new(server.channel()?);
        for _ in 0..200 {
            if client.status(pb::StatusRequest {}).await.is_ok() {
                return Ok(server);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("etcd does not answer at {address}")
    }

    /// A connection of its own.
    pub(super) fn channel(&self) -> Result<Channel> {
        wire::channel(self.address, "localhost", self.pki.client()?)
    }

    /// Many connections that share one configuration.
    pub(super) fn channels(&self, count: usize) -> Result<Vec<Channel>> {
        let tls = self.pki.client()?;
        (0..count).map(|_| wire::channel(self.address, "localhost", Arc::clone(&tls))).collect()
    }

    pub(super) fn usage(&self) -> Result<Usage> {
        match &self.process {
            Process::Ours(part) => part.usage(),
            Process::Etcd(child) => part::usage(child.id()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Process::Etcd(child) = &mut self.process {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
