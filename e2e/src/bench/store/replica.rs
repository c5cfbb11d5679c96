//! The API server's half that mirrors: every remote over a TLS connection of its own, every entry decoded and admitted as
//! the product does it, served to agents from memory.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clustermesh_apiserver::chart::CiliumChart;
use hawser_etcd::client::{Client, Pace};
use hawser_etcd::mirror::{
    Admit, ForeignConfig, Intake, Mirror, MirrorConfig, MirrorDir, MirrorState, Refusal,
};
use hawser_etcd::server::{KeyspaceHandle, Keyspaces, MemoryWriter, SharedKeyspace};
use hawser_kvstore::{Identity, KeyRange, Keyspace, Limits, PullLimits, Pulled};
use hawser_model::MeshPlan;
use hawser_wire::{Key, PeerRecord, admit, decode, prefix};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::data::{self, Origins, WIDTH};
use super::delays::Delays;
use super::wire::{self, Pki};
use crate::bench::part;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Args {
    pub(super) pki: Pki,
    pub(super) origins: SocketAddr,
    pub(super) clusters: u32,
    pub(super) remotes: Origins,
    /// The last remote is dialled here instead.
    pub(super) last: Option<SocketAddr>,
    /// Where mirrors outlive the process.
    pub(super) keep: Option<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Up {
    pub(super) address: SocketAddr,
    /// From the first dial to every remote being served.
    pub(super) seconds: f64,
    pub(super) refused: u64,
    pub(super) keys: usize,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Command {
    /// Tell when this many timed changes of the first `clusters` remotes have been seen.
    Watch { clusters: u32, count: usize },
    /// Write everything to disk.
    Settle,
    /// Say when the first so many remotes are followed, too.
    Followed { clusters: u32 },
    /// Say how many bytes came from the remotes.
    Received,
}

fn admission(n: u32, remotes: Origins) -> Result<Arc<dyn Admit>> {
    let record = PeerRecord::new(&data::peer(n, remotes)?, WIDTH, MeshPlan::default());
    let context = record.context();
    Ok(Arc::new(move |key: &[u8], value: &[u8]| {
        let refuse = |reason, detail: String| Err(Refusal { reason, detail });
        let key = match Key::parse(key) {
            Ok(key) => key,
            Err(error) => return refuse("malformed", error.to_string()),
        };
        match decode(&key, value, &context) {
            Err(error) => refuse("malformed", error.to_string()),
            Ok(entry) => {
                admit(&record, &key, &entry).or_else(|error| refuse(error.metric(), error.to_string()))
            }
        }
    }))
}

pub(super) async fn run(args: Args) -> Result<()> {
    let mut told = part::told();
    let began = Instant::now();
    let keep = args.keep.as_deref().map(MirrorDir::take).transpose()?;
    let own = SharedKeyspace::new(Keyspace::new(Identity::new("home", 1, 0), Limits::default()));
    let keyspaces = Keyspaces::new(KeyspaceHandle::new("home", own.clone(), MemoryWriter::spawn(own)));
    let mirrors = match args.remotes {
        Origins::Hawser => follow(&args, keep.as_ref(), &keyspaces)?,
        Origins::Cached => follow_cached(&args, keep.as_ref(), &keyspaces)?,
    };
    let address = wire::serve(&args.pki, keyspaces.clone()).await?;
    // A dead remote is served from disk alone.
    let served = |n: u32| data::cluster(n).is_ok_and(|of| keyspaces.get(of.name.as_str()).is_some());
    while !(1..=args.clusters).all(served) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    let statuses: Vec<_> = mirrors.iter().map(Mirror::status).collect();
    let refused = statuses.iter().flat_map(|status| status.refused.values()).sum();
    let keys = statuses.iter().map(|status| status.keys).sum();
    part::say(&Up { address, seconds, refused, keys })?;
    while let Some(command) = told.recv().await {
        match serde_json::from_value(command)? {
            Command::Settle => {
                for mirror in &mirrors {
                    mirror.settle().await;
                }
                part::say(&true)?;
            }
            Command::Followed { clusters } => {
                let followed = |mirror: &Mirror| mirror.state() == MirrorState::Synced;
                while !mirrors.iter().take(clusters as usize).all(followed) {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                part::say(&true)?;
            }
            Command::Received => part::say(&wire::received())?,
            Command::Watch { clusters, count } => watch(&keyspaces, clusters, count).await?,
        }
    }
    Ok(())
}

/// A connection to each remote, as to a Hawser API server of its own.
fn follow(args: &Args, keep: Option<&MirrorDir>, keyspaces: &Keyspaces) -> Result<Vec<Mirror>> {
    let tls = args.pki.client()?;
    let mut configs = Vec::new();
    for n in 1..=args.clusters {
        let of = data::cluster(n)?;
        let address = args.last.filter(|_| n == args.clusters).unwrap_or(args.origins);
        let channel = wire::channel(address, &format!("{}.mesh.hawser.io", of.name), Arc::clone(&tls))?;
        configs.push(MirrorConfig {
            cluster: of.name.to_string(),
            client: Client::new(channel),
            ranges: data::ranges(&of.name),
            admit: admission(n, args.remotes)?,
            limits: Limits::default(),
            intake: Intake::default(),
            afresh: false,
            pace: Pace::default(),
            keep: keep.cloned(),
        });
    }
    let mirrors = Mirror::start_all(configs, keyspaces);
    Ok(mirrors.into_iter().collect::<Result<Vec<_>, _>>()?)
}

/// A connection for each remote, too: all lead to the one etcd, as Cilium's client configurations do beside KVStoreMesh.
fn follow_cached(args: &Args, keep: Option<&MirrorDir>, keyspaces: &Keyspaces) -> Result<Vec<Mirror>> {
    let tls = args.pki.client()?;
    let mut mirrors = Vec::new();
    for n in 1..=args.clusters {
        let cluster = data::cluster(n)?;
        let channel = wire::channel(args.origins, "localhost", Arc::clone(&tls))?;
        let config = ForeignConfig {
            cluster: cluster.name.to_string(),
            connect: Box::new(move || Client::new(channel.clone())),
            chart: Box::new(CiliumChart { cluster, width: WIDTH }),
            admit: admission(n, args.remotes)?,
            limits: Limits::default(),
            intake: Intake::default(),
            pace: Pace::default(),
            keep: keep.cloned(),
        };
        mirrors.push(Mirror::start_foreign(config, keyspaces));
    }
    Ok(mirrors)
}

/// What is visible in the mirrors, to a reader that is woken as a watch stream is.
async fn watch(keyspaces: &Keyspaces, clusters: u32, count: usize) -> Result<()> {
    let (sender, mut seen) = mpsc::channel(1024);
    for n in 1..=clusters {
        let handle = keyspaces.get(data::cluster(n)?.name.as_str()).context("a mirror is not served")?;
        let mut progress = handle.keyspace().subscribe();
        let mut cursor = handle.keyspace().read(|keyspace| keyspace.watch(0)).ok().context("a cursor")?;
        let sender = sender.clone();
        tokio::spawn(async move {
            let keys = KeyRange::prefix(prefix::STATE);
            while progress.changed().await.is_ok() {
                loop {
                    let pulled =
                        handle.keyspace().read(|k| k.pull(&mut cursor, &keys, PullLimits::default()));
                    let Pulled::Events { events, more, .. } = pulled else { return };
                    if !events.is_empty() && sender.send(events).await.is_err() {
                        return;
                    }
                    if !more {
                        break;
                    }
                }
            }
        });
    }
    drop(sender);
    part::say(&true)?;
    tokio::spawn(async move {
        let mut delays = Delays::of(count);
        while !delays.is_complete() {
            let Some(events) = seen.recv().await else { break };
            events.iter().for_each(|event| delays.see(&event.kv().value));
        }
        part::say(&delays.seen())
    });
    Ok(())
}
