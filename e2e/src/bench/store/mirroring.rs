//! Origins, an API server that mirrors them, an agent that reads it: first sync, propagation, bulk, one bad remote, a restart.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::data::Origins;
use super::delays::Seen;
use super::etcd::Server;
use super::growth::grown;
use super::remote::{Middle, Wire};
use super::wire::Pki;
use super::{Shape, Sizes, cache, median, origins, replica, view};
use crate::bench::part::Part;
use crate::bench::result::{Row, turn};

/// Remotes that change at once, at the fast rate and in bulk.
const CHANGING: u32 = 16;

/// The second column's name.
const CACHED: &str = "from a real etcd, cached layout";

pub(super) struct Mesh<'a> {
    pki: &'a Pki,
    pub(super) shape: Shape,
    /// Writes: into itself, or into `etcd`.
    origins: Part,
    etcd: Option<Server>,
    pub(super) up: origins::Up,
    /// What the origins had used when everything was in them.
    filled_s: f64,
}

/// A mirroring API server, and how it came up.
pub(super) struct Replica {
    pub(super) part: Part,
    pub(super) up: replica::Up,
    pub(super) peak_mib: f64,
    cpu_s: f64,
}

/// A reading agent, and how it came up.
pub(super) struct Agent {
    pub(super) part: Part,
    pub(super) up: view::Up,
    pub(super) peak_mib: f64,
}

/// What is to be changed, and how fast.
#[derive(Clone, Copy, Debug)]
pub(super) struct Changes {
    /// Of so many remotes, in turn.
    pub(super) clusters: u32,
    pub(super) count: u32,
    /// A second; 0: as fast as they are taken.
    pub(super) rate: u32,
}

impl<'a> Mesh<'a> {
    pub(super) fn start(pki: &'a Pki, shape: Shape) -> Result<Self> {
        let origins = Part::start("origins", &origins::Args { shape, pki: pki.clone() })?;
        Self::filled(pki, shape, origins, None)
    }

    /// The same remotes, left in a real etcd by KVStoreMesh.
    fn cached(pki: &'a Pki, shape: Shape) -> Result<Self> {
        let etcd = super::runtime()?.block_on(Server::etcd(pki))?;
        let args = cache::Args { shape, pki: pki.clone(), etcd: etcd.address };
        Self::filled(pki, shape, Part::start("cache", &args)?, Some(etcd))
    }

    fn filled(pki: &'a Pki, shape: Shape, mut origins: Part, etcd: Option<Server>) -> Result<Self> {
        let up = origins.hear()?;
        let mut mesh = Self { pki, shape, origins, etcd, up, filled_s: 0.0 };
        mesh.filled_s = mesh.origins_cpu()?;
        Ok(mesh)
    }

    /// Of whoever serves the remotes: a real etcd without its writer.
    fn origins_cpu(&self) -> Result<f64> {
        let used = self.etcd.as_ref().map_or_else(|| self.origins.usage(), Server::usage)?;
        Ok(used.cpu_s - self.filled_s)
    }

    fn remotes(&self) -> Origins {
        if self.etcd.is_some() { Origins::Cached } else { Origins::Hawser }
    }

    /// `last`: where the last remote is dialled, if not at the origins.
    pub(super) fn replica(&self, keep: Option<&Path>, last: Option<SocketAddr>) -> Result<Replica> {
        let args = replica::Args {
            pki: self.pki.clone(),
            origins: self.up.address,
            clusters: self.shape.clusters,
            remotes: self.remotes(),
            last,
            keep: keep.map(Path::to_owned),
        };
        let mut part = Part::start("replica", &args)?;
        let up: replica::Up = part.hear()?;
        ensure!(up.refused == 0, "{} entries of the benchmark were refused", up.refused);
        let used = part.usage()?;
        Ok(Replica { part, up, peak_mib: used.peak_mib, cpu_s: used.cpu_s })
    }

    pub(super) fn agent(&self, replica: &Replica) -> Result<Agent> {
        let args = view::Args {
            pki: self.pki.clone(),
            server: replica.up.address,
            clusters: self.shape.clusters,
            remotes: self.remotes(),
        };
        let mut part = Part::start("view", &args)?;
        let up: view::Up = part.hear()?;
        ensure!(up.refused == 0, "the view refused {} entries", up.refused);
        let peak_mib = part.usage()?.peak_mib;
        Ok(Agent { part, up, peak_mib })
    }

    /// Changes, and when they were seen in the mirrors and, if there is one, in the agent's view.
    pub(super) fn changes(
        &mut self,
        replica: &mut Replica,
        mut agent: Option<&mut Agent>,
        what: Changes,
    ) -> Result<(origins::Wrote, Seen, Seen)> {
        let clusters = what.clusters.min(self.shape.clusters);
        let (count, wanted) = (what.count, what.count as usize);
        let _: bool = replica.part.ask(&replica::Command::Watch { clusters, count: wanted })?;
        if let Some(agent) = &mut agent {
            let _: bool = agent.part.ask(&view::Command::Watch { count: wanted })?;
        }
        let write = origins::Write { clusters, count, rate: what.rate, besides: None };
        let wrote: origins::Wrote = self.origins.ask(&write)?;
        let mirrored: Seen = replica.part.hear()?;
        ensure!(mirrored.count == wanted, "{} of {wanted} changes reached the mirrors", mirrored.count);
        let viewed: Seen = agent.map_or(Ok(Seen::default()), |agent| agent.part.hear())?;
        Ok((wrote, mirrored, viewed))
    }

    /// 99 in 100 changes of the first remote were seen within so many milliseconds, while the last one has a tenth as many.
    fn beside_the_last(&mut self, replica: &mut Replica, count: u32) -> Result<f64> {
        let wanted = count as usize;
        let _: bool = replica.part.ask(&replica::Command::Watch { clusters: 1, count: wanted })?;
        let besides = Some(self.shape.clusters);
        let _: origins::Wrote =
            self.origins.ask(&origins::Write { clusters: 1, count, rate: 500, besides })?;
        let seen: Seen = replica.part.hear()?;
        ensure!(seen.count == wanted, "{} of {wanted} changes reached the mirror", seen.count);
        Ok(seen.p99_ms)
    }
}

/// 50 clusters of 20,000 pods each.
pub(super) fn large(sizes: &Sizes, pki: &Pki, rows: &mut Vec<Row>) -> Result<()> {
    let what = |mesh: &Mesh<'_>| format!("first sync, {} large clusters", mesh.shape.clusters);
    let measured = |mesh: &Mesh<'_>| {
        let (replica, mut rows) = (mesh.replica(None, None)?, Vec::new());
        synced(&what(mesh), mesh, &replica, [15.0, 900.0], &mut rows)?;
        Ok::<_, anyhow::Error>(rows)
    };
    let of_hawser = measured(&Mesh::start(pki, sizes.large)?)?;
    let at = rows.len();
    rows.extend(of_hawser);
    let cached = measured(&Mesh::cached(pki, sizes.large)?).context(CACHED)?;
    beside(&mut rows[at..], cached)
}

/// The same rows, of the second column.
fn beside(rows: &mut [Row], cached: Vec<Row>) -> Result<()> {
    for (row, cached) in rows.iter_mut().zip(cached) {
        ensure!(row.key == cached.key, "{} and {} are not one row", row.key, cached.key);
        row.add(CACHED, cached.value);
    }
    Ok(())
}

fn synced(
    what: &str,
    mesh: &Mesh<'_>,
    replica: &Replica,
    [wall, rss]: [f64; 2],
    rows: &mut Vec<Row>,
) -> Result<()> {
    ensure!(replica.up.keys as u64 == mesh.up.keys, "{} of {} keys", replica.up.keys, mesh.up.keys);
    eprintln!("{what}: {:.2} s, {:.0} MiB", replica.up.seconds, replica.peak_mib);
    rows.push(Row::plain(what, replica.up.seconds, "s", "lower", Some(wall)));
    rows.push(Row::plain("  peak RSS", replica.peak_mib, "MiB", "lower", Some(rss)));
    rows.push(Row::plain("  its CPU", replica.cpu_s, "s", "lower", None));
    rows.push(Row::plain("  the origins' CPU", mesh.origins_cpu()?, "s", "lower", None));
    rows.push(Row::plain("  keys", replica.up.keys as f64, "", "lower", None));
    let per_key = mesh.up.bytes as f64 / mesh.up.keys as f64;
    rows.push(Row::plain("  a key and its value, at the origins", per_key, "B", "lower", None));
    Ok(())
}

/// Many changes: at 10,000 a second, and all at once, on to the agent's view.
fn many_changes(
    sizes: &Sizes,
    mesh: &mut Mesh<'_>,
    replica: &mut Replica,
    agent: &mut Agent,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let [_, fast] = sizes.changes;
    let before = [mesh.origins_cpu()?, replica.part.usage()?.cpu_s, agent.part.usage()?.cpu_s];
    let changes = Changes { clusters: CHANGING, count: fast, rate: 10_000 };
    let (wrote, mirrored, viewed) = mesh.changes(replica, Some(agent), changes)?;
    let rate = f64::from(fast) / wrote.seconds;
    rows.push(Row::plain("10,000 changes/s: so many were written", rate, "1/s", "higher", None));
    rows.push(Row::plain("  visible in the mirror, p50", mirrored.p50_ms, "ms", "lower", None));
    rows.push(Row::plain("  in the agent's view, p50", viewed.p50_ms, "ms", "lower", Some(2.0)));
    rows.push(Row::plain("  in the agent's view, p99", viewed.p99_ms, "ms", "lower", Some(10.0)));
    let after = [mesh.origins_cpu()?, replica.part.usage()?.cpu_s, agent.part.usage()?.cpu_s];
    for (at, who) in ["origins", "API server", "agent"].iter().enumerate() {
        let cpu = (after[at] - before[at]) * 1e6 / f64::from(fast);
        rows.push(Row::plain(&format!("  CPU of the {who} per change"), cpu, "us", "lower", None));
    }

    let changes = Changes { clusters: CHANGING, count: sizes.bulk, rate: 0 };
    let (wrote, _, viewed) = mesh.changes(replica, Some(agent), changes)?;
    let seconds = viewed.last_ns.saturating_sub(wrote.began_ns) as f64 / 1e9;
    let what = format!("bulk: {} changes through origin, mirror and view", sizes.bulk);
    rows.push(Row::plain(&what, f64::from(sizes.bulk) / seconds, "keys/s", "higher", Some(50_000.0)));
    Ok(())
}

/// Once to disk, and then from disk, while one remote is dead; then the others beside it, healthy, slow and dead in turns.
fn warm_restart(sizes: &Sizes, mesh: &mut Mesh<'_>, keep: &Path, rows: &mut Vec<Row>) -> Result<()> {
    let mut kept = mesh.replica(Some(keep), None)?;
    let _: bool = kept.part.ask(&replica::Command::Settle)?;
    drop(kept);
    let middle = Middle::start(mesh.up.address, Wire::Dead)?;
    let mut warm = mesh.replica(Some(keep), Some(middle.address))?;
    let what = "restart with all mirrors on disk: serving after";
    rows.push(Row::plain(what, warm.up.seconds, "s", "lower", Some(2.0)));
    middle.set(Wire::Good);
    let _: bool = warm.part.ask(&replica::Command::Followed { clusters: sizes.mesh.clusters })?;

    let wires = [Wire::Good, Wire::Slow, Wire::Dead];
    let mut p99 = [const { Vec::new() }; 3];
    for round in 0..2 * sizes.rounds {
        for at in turn(round, wires.len()) {
            middle.set(wires[at]);
            p99[at].push(mesh.beside_the_last(&mut warm, sizes.beside)?);
        }
    }
    let [good, slow, dead] = p99;
    for (what, bad) in [("slow", slow), ("dead", dead)] {
        let ratios = bad.iter().zip(&good).map(|(bad, good)| bad / good.max(f64::MIN_POSITIVE));
        let what = format!("one {what} remote: p99 of another, over that without");
        rows.push(Row::plain(&what, median(ratios.collect()), "x", "lower", Some(1.0)));
    }
    rows.push(Row::plain("  p99 without", median(good), "ms", "lower", None));
    Ok(())
}

/// 254 clusters, one after the other: first sync, an agent, changes, a restart. Then, without the restart, from a real etcd.
pub(super) fn whole(sizes: &Sizes, pki: &Pki, keep: &Path, rows: &mut Vec<Row>) -> Result<()> {
    let mut mesh = Mesh::start(pki, sizes.mesh)?;
    let at = rows.len();
    rows.extend(followed(sizes, &mut mesh)?);
    warm_restart(sizes, &mut mesh, keep, rows)?;
    drop(mesh);
    let cached = followed(sizes, &mut Mesh::cached(pki, sizes.mesh)?).context(CACHED)?;
    beside(&mut rows[at..], cached)
}

/// From the first sync to the bulk, of remotes whatever they are.
fn followed(sizes: &Sizes, mesh: &mut Mesh<'_>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut replica = mesh.replica(None, None)?;
    let what = format!("first sync, {} clusters", sizes.mesh.clusters);
    synced(&what, mesh, &replica, [5.0, 350.0], &mut rows)?;

    let mut agent = mesh.agent(&replica)?;
    rows.push(Row::plain("the same into an agent's MeshView", agent.up.seconds, "s", "lower", Some(4.0)));
    rows.push(Row::plain("  its peak RSS", agent.peak_mib, "MiB", "lower", Some(300.0)));
    grown(mesh, &mut replica, &mut agent, &mut rows)?;

    let [slow, _] = sizes.changes;
    let (mut p50, mut p99) = (Vec::new(), Vec::new());
    for _ in 0..sizes.rounds {
        let changes = Changes { clusters: 1, count: slow, rate: 500 };
        let (_, mirrored, _) = mesh.changes(&mut replica, None, changes)?;
        p50.push(mirrored.p50_ms);
        p99.push(mirrored.p99_ms);
    }
    rows.push(Row::plain("500 changes/s, visible in the mirror, p50", median(p50), "ms", "lower", Some(0.3)));
    rows.push(Row::plain("  p99", median(p99), "ms", "lower", Some(1.0)));
    many_changes(sizes, mesh, &mut replica, &mut agent, &mut rows)?;
    Ok(rows)
}
