//! One process that is every cluster's KVStoreMesh: it leaves them in a real etcd, in the cached layout, and changes them there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, ensure};
use bytes::Bytes;
use hawser_etcd::client::Client;
use hawser_etcd::pb;
use hawser_etcd::pb::request_op::Request;
use hawser_model::Timestamp;
use hawser_wire::{Entry, prefix};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::data::{self, Shape};
use super::origins::{Up, Write, Wrote, clock};
use super::wire::{self, Pki};
use crate::bench::part;

/// What etcd takes in a transaction, by default (`--max-txn-ops`).
const TRANSACTION: usize = 128;
/// Transactions on their way at a time.
const UNDERWAY: usize = 64;
/// Twice as often as KVStoreMesh's.
const BEAT: Duration = Duration::from_secs(30);

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Args {
    pub(super) shape: Shape,
    pub(super) pki: Pki,
    pub(super) etcd: SocketAddr,
}

pub(super) async fn run(args: Args) -> Result<()> {
    let mut told = part::told();
    let writer = Writer::new(Client::new(wire::channel(args.etcd, "localhost", args.pki.client()?)?));
    let (mut keys, mut bytes) = (0, 0);
    let mut running = JoinSet::new();
    for n in 1..=args.shape.clusters {
        let entries = data::cached(n, &args.shape)?;
        // Every mirror has the one heartbeat, too.
        keys += entries.len() as u64 + 1;
        bytes += entries.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum::<u64>();
        for puts in entries.chunks(TRANSACTION) {
            writer.begin(puts.to_vec(), &mut running).await?;
        }
    }
    all(&mut running).await?;
    writer.beat().await?;
    let heart = writer.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(BEAT).await;
            if heart.beat().await.is_err() {
                return;
            }
        }
    });
    part::say(&Up { address: args.etcd, keys, bytes })?;
    while let Some(what) = told.recv().await {
        part::say(&write(serde_json::from_value(what)?, &args.shape, &writer).await?)?;
    }
    Ok(())
}

/// Many transactions at a time, over one connection.
#[derive(Clone)]
struct Writer {
    client: Client,
    room: Arc<Semaphore>,
}

impl Writer {
    fn new(client: Client) -> Self {
        Self { client, room: Arc::new(Semaphore::new(UNDERWAY)) }
    }

    /// Waits for room, not for the answer.
    async fn begin(&self, puts: Vec<(String, Bytes)>, running: &mut JoinSet<Result<()>>) -> Result<()> {
        let room = Arc::clone(&self.room).acquire_owned().await?;
        let client = self.client.clone();
        running.spawn(async move {
            let put = |(key, value): (String, Bytes)| pb::RequestOp {
                request: Some(Request::RequestPut(pb::PutRequest {
                    key: key.into(),
                    value,
                    ..Default::default()
                })),
            };
            let success = puts.into_iter().map(put).collect();
            client.txn(pb::TxnRequest { success, ..Default::default() }).await?;
            drop(room);
            Ok(())
        });
        // What has been answered is not kept.
        while let Some(done) = running.try_join_next() {
            done??;
        }
        Ok(())
    }

    async fn beat(&self) -> Result<()> {
        let put = pb::PutRequest {
            key: prefix::HEARTBEAT.into(),
            value: Entry::Heartbeat(Timestamp::from_system(SystemTime::now())).encode(),
            ..Default::default()
        };
        self.client.put(put).await?;
        Ok(())
    }
}

async fn all(running: &mut JoinSet<Result<()>>) -> Result<()> {
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(())
}

/// Each change is a put; those that are due together go as one transaction.
async fn write(what: Write, shape: &Shape, writer: &Writer) -> Result<Wrote> {
    ensure!(what.besides.is_none(), "no cluster of a cache can be slow alone");
    let (began, began_ns) = (Instant::now(), clock());
    let due = |n: u32| match what.rate {
        0 => Duration::ZERO,
        rate => Duration::from_secs_f64(f64::from(n) / f64::from(rate)),
    };
    let (mut n, mut running) = (0, JoinSet::new());
    while n < what.count {
        tokio::time::sleep(due(n).saturating_sub(began.elapsed())).await;
        let mut puts = Vec::new();
        while n < what.count && puts.len() < TRANSACTION && due(n) <= began.elapsed() {
            let (cluster, at) = (n % what.clusters + 1, (n / what.clusters) % shape.endpoints);
            let entry = data::endpoint(cluster, at, shape, format!("t{}", clock()))?;
            let key = data::cached_key(&data::cluster(cluster)?, &entry)?;
            // etcd refuses a transaction that writes a key twice.
            if puts.iter().any(|(other, _)| *other == key) {
                break;
            }
            puts.push((key, entry.encode()));
            n += 1;
        }
        writer.begin(puts, &mut running).await?;
    }
    all(&mut running).await?;
    Ok(Wrote { began_ns, seconds: began.elapsed().as_secs_f64() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawser_wire::Key;

    #[test]
    fn a_cached_cluster_reads_back_as_the_cluster_it_is() {
        let shape = Shape { clusters: 1, nodes: 2, identities: 2, endpoints: 3, services: 1, backends: 2 };
        let plain: Vec<String> =
            data::entries(3, &shape).unwrap().iter().map(|entry| key(entry).to_string()).collect();
        for (cached, _) in data::cached(3, &shape).unwrap() {
            let (cluster, key) = Key::parse_cached(cached.as_bytes()).unwrap();
            assert_eq!(cluster, Some(data::cluster(3).unwrap().name), "{cached}");
            assert!(plain.contains(&key.to_string()), "{cached}");
        }
    }

    fn key(entry: &Entry) -> Key {
        entry.key(&data::cluster(3).unwrap())
    }
}
