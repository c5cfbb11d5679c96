//! One process that is every remote cluster: all keyspaces on one listener, and a writer that is told what to change.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use hawser_etcd::server::{KeyspaceHandle, Keyspaces, MemoryWriter, SharedKeyspace};
use hawser_kvstore::{Keyspace, Limits, Op, Put};
use serde::{Deserialize, Serialize};

use super::data::{self, Shape};
use super::wire::{self, Pki};
use crate::bench::part;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Args {
    pub(super) shape: Shape,
    pub(super) pki: Pki,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Up {
    pub(super) address: SocketAddr,
    /// That mirrors of them all have to hold.
    pub(super) keys: u64,
    /// Of keys and values, at the origins.
    pub(super) bytes: u64,
}

/// Changes endpoints of the first `clusters` remotes, in turn.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Write {
    pub(super) clusters: u32,
    pub(super) count: u32,
    /// A second; 0: as fast as they are taken.
    pub(super) rate: u32,
    /// Every tenth change is one more of this remote, which nobody waits for.
    pub(super) besides: Option<u32>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Wrote {
    pub(super) began_ns: u64,
    pub(super) seconds: f64,
}

/// Nanoseconds of the wall clock: the parts share one machine.
pub(super) fn clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(0))
}

pub(super) async fn run(args: Args) -> Result<()> {
    let mut told = part::told();
    let (mut handles, mut keys, mut bytes) = (Vec::new(), 0, 0);
    for n in 1..=args.shape.clusters {
        let snapshot = data::snapshot(n, &args.shape)?;
        keys += snapshot.kvs.len() as u64;
        bytes += snapshot.kvs.iter().map(|kv| (kv.key.len() + kv.value.len()) as u64).sum::<u64>();
        let keyspace = Keyspace::restore(&snapshot, Limits::default(), Duration::ZERO)?;
        let keyspace = SharedKeyspace::new(keyspace);
        handles.push(KeyspaceHandle::new(
            data::cluster(n)?.name.as_str(),
            keyspace.clone(),
            MemoryWriter::spawn(keyspace),
        ));
    }
    let keyspaces = Keyspaces::new(handles[0].clone());
    handles[1..].iter().for_each(|handle| keyspaces.add(handle.clone()));
    let address = wire::serve(&args.pki, keyspaces).await?;
    part::say(&Up { address, keys, bytes })?;
    while let Some(what) = told.recv().await {
        part::say(&write(serde_json::from_value(what)?, &args.shape, &handles).await?)?;
    }
    Ok(())
}

/// Changes one endpoint's name to what `name` makes of the time just before the write.
async fn put(
    cluster: u32,
    at: u32,
    shape: &Shape,
    handles: &[KeyspaceHandle],
    name: impl Fn(u64) -> String,
) -> Result<()> {
    let entry = data::endpoint(cluster, at, shape, name(clock()))?;
    let put = Op::Put(Put::new(entry.key(&data::cluster(cluster)?).to_string(), entry.encode()));
    handles[cluster as usize - 1].writer().write(put).await?;
    Ok(())
}

async fn write(what: Write, shape: &Shape, handles: &[KeyspaceHandle]) -> Result<Wrote> {
    let (began, began_ns) = (Instant::now(), clock());
    for n in 0..what.count {
        if what.rate > 0 {
            let due = Duration::from_secs_f64(f64::from(n) / f64::from(what.rate));
            // The timer's grain is a millisecond: what is due within it goes together.
            let early = due.saturating_sub(began.elapsed());
            if !early.is_zero() {
                tokio::time::sleep(early).await;
            }
        } else if n % 64 == 0 {
            tokio::task::yield_now().await;
        }
        let at = (n / what.clusters) % shape.endpoints;
        if let Some(besides) = what.besides.filter(|_| n % 10 == 0) {
            put(besides, at, shape, handles, |_| format!("beside-{n}")).await?;
        }
        put(n % what.clusters + 1, at, shape, handles, |now| format!("t{now}")).await?;
    }
    Ok(Wrote { began_ns, seconds: began.elapsed().as_secs_f64() })
}
