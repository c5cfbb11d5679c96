//! Many watchers of one prefix, each over a TLS connection of its own: what an event costs the server, and how all come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hawser_etcd::client::Client;
use hawser_etcd::pb;
use hawser_etcd::pb::watch_client::WatchClient;
use hawser_etcd::pb::watch_request::RequestUnion;
use hawser_kvstore::KeyRange;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::etcd::Server;

const PREFIX: &str = "cilium/state/ip/v1/default/";
/// About what an endpoint's value weighs.
const VALUE: usize = 180;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fanout {
    /// Events delivered per second of the server's CPU.
    pub(super) bursts: f64,
    pub(super) singles: f64,
    /// From the cut to everything missed having come, of the slowest in a hundred.
    pub(super) back_p99_s: f64,
}

/// One watcher: it counts, and holds every event against the one before.
async fn watch(channel: Channel, from: i64, until: i64, seen: Arc<AtomicU64>) -> Result<i64> {
    let (key, range_end) = KeyRange::prefix(PREFIX).to_wire();
    let create = pb::WatchCreateRequest { key, range_end, start_revision: from, ..Default::default() };
    let (requests, receiver) = mpsc::channel(1);
    requests.send(pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }).await?;
    let mut client = WatchClient::new(channel).max_decoding_message_size(64 << 20);
    let mut responses = client.watch(ReceiverStream::new(receiver)).await?.into_inner();
    let mut last = from - 1;
    while last < until {
        let response = responses.message().await?.context("the stream ended")?;
        ensure!(!response.canceled, "a watch was canceled: {response:?}");
        for event in &response.events {
            let revision = event.kv.as_ref().context("an event without a key")?.mod_revision;
            // One change a revision: whatever is lost or doubled leaves a hole or a step back.
            ensure!(revision == last + 1, "after revision {last} came {revision}");
            last = revision;
        }
        seen.fetch_add(response.events.len() as u64, Ordering::Relaxed);
    }
    Ok(last)
}

async fn put(client: &Client, n: u32) -> Result<i64> {
    let key = format!("{PREFIX}10.0.{}.{}", n >> 8 & 0xff, n & 0xff);
    let put = pb::PutRequest { key: key.into(), value: vec![b'v'; VALUE].into(), ..Default::default() };
    Ok(client.put(put).await?.header.context("a header")?.revision)
}

/// `count` changes, 64 on their way at a time.
async fn burst(client: &Client, count: u32) -> Result<()> {
    let mut puts = JoinSet::new();
    for n in 0..count {
        if puts.len() >= 64 {
            puts.join_next().await.context("a put")???;
        }
        let client = client.clone();
        puts.spawn(async move { put(&client, n).await });
    }
    while let Some(done) = puts.join_next().await {
        done??;
    }
    Ok(())
}

async fn all_seen(seen: &AtomicU64, count: u64) -> Result<()> {
    let began = Instant::now();
    while seen.load(Ordering::Relaxed) < count {
        ensure!(began.elapsed() < Duration::from_secs(120), "events are missing: {seen:?} of {count}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

pub(super) async fn measure(server: &Server, watchers: usize, changes: u32, singles: u32) -> Result<Fanout> {
    let client = Client::new(server.channel()?);
    let start = put(&client, 0).await? + 1;
    let rounds = 2;
    let end = start + i64::from(rounds * changes + singles) - 1;
    let seen = Arc::new(AtomicU64::new(0));
    let mut running = JoinSet::new();
    for channel in server.channels(watchers)? {
        running.spawn(watch(channel, start, end, Arc::clone(&seen)));
    }
    // All have come when all have this one.
    let (each, mut events) = (watchers as u64, 0);
    put(&client, 0).await?;
    events += each;
    all_seen(&seen, events).await?;

    let before = server.usage()?.cpu_s;
    for _ in 0..rounds {
        burst(&client, changes).await?;
        events += each * u64::from(changes);
        all_seen(&seen, events).await?;
    }
    let between = server.usage()?.cpu_s;
    for n in 0..singles - 1 {
        put(&client, n).await?;
        events += each;
        all_seen(&seen, events).await?;
    }
    let after = server.usage()?.cpu_s;
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    let per_cpu = |events: u32, cpu: f64| f64::from(events) * watchers as f64 / cpu.max(0.01);
    let back_p99_s = come_back(server, &client, watchers).await?;
    Ok(Fanout {
        bursts: per_cpu(rounds * changes, between - before),
        singles: per_cpu(singles - 1, after - between),
        back_p99_s,
    })
}

/// All connections are gone, 100 changes later all come at once and ask for what they missed: each a new connection
/// with its handshake, a watch from its last revision and no list.
async fn come_back(server: &Server, client: &Client, watchers: usize) -> Result<f64> {
    let from = put(client, 0).await? + 1;
    burst(client, 100).await?;
    let until = from + 99;
    let channels = server.channels(watchers)?;
    let mut running = JoinSet::new();
    let began = Instant::now();
    for channel in channels {
        running
            .spawn(async move { watch(channel, from, until, Arc::default()).await.map(|_| began.elapsed()) });
    }
    let mut took = Vec::new();
    while let Some(ended) = running.join_next().await {
        took.push(ended??);
    }
    took.sort_unstable();
    Ok(took[(took.len() * 99 / 100).min(took.len() - 1)].as_secs_f64())
}

/// Acknowledged durable writes a second: `writers` at a time, each over a connection of its own, for so long.
pub(super) async fn durable(server: &Server, writers: usize, time: Duration) -> Result<f64> {
    let written = Arc::new(AtomicU64::new(0));
    let mut running = JoinSet::new();
    let mut clients: Vec<Client> = server.channels(writers)?.into_iter().map(Client::new).collect();
    for client in &clients {
        put(client, 0).await?;
    }
    let began = Instant::now();
    for (n, client) in clients.drain(..).enumerate() {
        let written = Arc::clone(&written);
        running.spawn(async move {
            while began.elapsed() < time {
                put(&client, u32::try_from(n)?).await?;
                written.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok(written.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
}
