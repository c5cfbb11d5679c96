//! Origins, an API server that mirrors them, an agent that reads it: first sync, propagation, bulk, one bad remote, a restart.

use std::net::TcpListener;
use std::path::Path;

use anyhow::{Result, ensure};

use super::delays::Seen;
use super::part::Part;
use super::wire::Pki;
use super::{Shape, Sizes, median, origins, replica, view};
use crate::bench::result::Row;

/// Remotes that change at once, at the fast rate and in bulk.
const CHANGING: u32 = 16;

struct Mesh<'a> {
    pki: &'a Pki,
    shape: Shape,
    origins: Part,
    up: origins::Up,
}

/// A mirroring API server, and how it came up.
struct Replica {
    part: Part,
    up: replica::Up,
    peak_mib: f64,
    cpu_s: f64,
}

impl<'a> Mesh<'a> {
    fn start(pki: &'a Pki, shape: Shape) -> Result<Self> {
        let mut origins = Part::start("origins", &origins::Args { shape, pki: pki.clone() })?;
        let up = origins.hear()?;
        Ok(Self { pki, shape, origins, up })
    }

    fn replica(&self, keep: Option<&Path>, frozen: Option<&TcpListener>) -> Result<Replica> {
        let args = replica::Args {
            pki: self.pki.clone(),
            origins: self.up.address,
            clusters: self.shape.clusters,
            frozen: frozen.map(TcpListener::local_addr).transpose()?,
            keep: keep.map(Path::to_owned),
        };
        let mut part = Part::start("replica", &args)?;
        let up: replica::Up = part.hear()?;
        ensure!(up.refused == 0, "{} entries of the benchmark were refused", up.refused);
        let used = part.usage()?;
        Ok(Replica { part, up, peak_mib: used.peak_mib, cpu_s: used.cpu_s })
    }

    /// Changes, and when they were seen in the mirrors and, if there is one, in the agent's view.
    fn changes(
        &mut self,
        replica: &mut Replica,
        mut agent: Option<&mut Part>,
        (clusters, count, rate): (u32, u32, u32),
    ) -> Result<(origins::Wrote, Seen, Seen)> {
        let clusters = clusters.min(self.shape.clusters - 1).max(1);
        let wanted = count as usize;
        let _: bool = replica.part.ask(&replica::Command::Watch { clusters, count: wanted })?;
        if let Some(agent) = &mut agent {
            let _: bool = agent.ask(&wanted)?;
        }
        let wrote: origins::Wrote = self.origins.ask(&origins::Write { clusters, count, rate })?;
        let mirrored: Seen = replica.part.hear()?;
        ensure!(mirrored.count == wanted, "{} of {wanted} changes reached the mirrors", mirrored.count);
        let viewed: Seen = agent.map_or(Ok(Seen::default()), Part::hear)?;
        Ok((wrote, mirrored, viewed))
    }
}

pub(super) fn measure(sizes: &Sizes, pki: &Pki, dir: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let [.., all] = sizes.growth;
    for clusters in sizes.growth.into_iter().filter(|clusters| *clusters != all) {
        let mesh = Mesh::start(pki, Shape { clusters, ..sizes.mesh })?;
        grown(&mesh, &mesh.replica(None, None)?, &mut rows);
    }
    whole_mesh(sizes, pki, &dir.join("mirrors"), &mut rows)?;
    let mesh = Mesh::start(pki, sizes.large)?;
    let replica = mesh.replica(None, None)?;
    let what = format!("first sync, {} clusters, {} keys", sizes.large.clusters, mesh.up.keys);
    synced(&what, &mesh, &replica, [15.0, 900.0], &mut rows)?;
    Ok(rows)
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
    rows.push(Row::plain(
        "  the origins' CPU, data made included",
        mesh.origins.usage()?.cpu_s,
        "s",
        "lower",
        None,
    ));
    Ok(())
}

/// Points of the picture.
fn grown(mesh: &Mesh<'_>, replica: &Replica, rows: &mut Vec<Row>) {
    let key = |what: &str| format!("{} clusters: {what}", mesh.shape.clusters);
    let per_key = replica.peak_mib * 1024.0 * 1024.0 / mesh.up.keys as f64;
    rows.push(Row::plain(&key("peak RSS"), replica.peak_mib, "MiB", "lower", None));
    rows.push(Row::plain(&key("peak RSS per key"), per_key, "B", "lower", None));
    rows.push(Row::plain(&key("first sync"), replica.up.seconds, "s", "lower", None));
}

/// Many changes: at 10,000 a second, and all at once, on to the agent's view.
fn many_changes(
    sizes: &Sizes,
    mesh: &mut Mesh<'_>,
    replica: &mut Replica,
    agent: &mut Part,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let [_, fast] = sizes.changes;
    let before = [mesh.origins.usage()?.cpu_s, replica.part.usage()?.cpu_s, agent.usage()?.cpu_s];
    let (wrote, mirrored, viewed) = mesh.changes(replica, Some(agent), (CHANGING, fast, 10_000))?;
    let rate = f64::from(fast) / wrote.seconds;
    rows.push(Row::plain("10,000 changes/s: so many were written", rate, "1/s", "higher", None));
    rows.push(Row::plain("  visible in the mirror, p50", mirrored.p50_ms, "ms", "lower", None));
    rows.push(Row::plain("  in the agent's view, p50", viewed.p50_ms, "ms", "lower", Some(2.0)));
    rows.push(Row::plain("  in the agent's view, p99", viewed.p99_ms, "ms", "lower", Some(10.0)));
    let after = [mesh.origins.usage()?.cpu_s, replica.part.usage()?.cpu_s, agent.usage()?.cpu_s];
    for (at, who) in ["origins", "API server", "agent"].iter().enumerate() {
        let cpu = (after[at] - before[at]) * 1e6 / f64::from(fast);
        rows.push(Row::plain(&format!("  CPU of the {who} per change"), cpu, "us", "lower", None));
    }

    let (wrote, _, viewed) = mesh.changes(replica, Some(agent), (CHANGING, sizes.bulk, 0))?;
    let seconds = viewed.last_ns.saturating_sub(wrote.began_ns) as f64 / 1e9;
    let what = format!("bulk: {} changes through origin, mirror and view", sizes.bulk);
    rows.push(Row::plain(&what, f64::from(sizes.bulk) / seconds, "keys/s", "higher", Some(50_000.0)));
    Ok(())
}

/// Once to disk, and then from disk, with one remote that takes connections and says nothing.
fn warm_restart(
    sizes: &Sizes,
    mesh: &mut Mesh<'_>,
    keep: &Path,
    healthy: f64,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let [slow, _] = sizes.changes;
    let mut kept = mesh.replica(Some(keep), None)?;
    let _: bool = kept.part.ask(&replica::Command::Settle)?;
    drop(kept);
    let frozen = TcpListener::bind("127.0.0.1:0")?;
    let mut warm = mesh.replica(Some(keep), Some(&frozen))?;
    rows.push(Row::plain(
        "restart with all mirrors on disk: serving after",
        warm.up.seconds,
        "s",
        "lower",
        Some(2.0),
    ));
    let _: bool = warm.part.ask(&replica::Command::Followed { clusters: sizes.mesh.clusters - 1 })?;
    let mut with_frozen = Vec::new();
    for _ in 0..sizes.rounds {
        with_frozen.push(mesh.changes(&mut warm, None, (1, slow, 500))?.1.p99_ms);
    }
    let ratio = median(with_frozen) / healthy.max(f64::MIN_POSITIVE);
    rows.push(Row::plain(
        "one dead remote: p99 of the others, over that without",
        ratio,
        "x",
        "lower",
        Some(1.0),
    ));
    Ok(())
}

fn whole_mesh(sizes: &Sizes, pki: &Pki, keep: &Path, rows: &mut Vec<Row>) -> Result<()> {
    let mut mesh = Mesh::start(pki, sizes.mesh)?;
    let mut replica = mesh.replica(None, None)?;
    let what = format!("first sync, {} clusters, {} keys", sizes.mesh.clusters, mesh.up.keys);
    synced(&what, &mesh, &replica, [5.0, 350.0], rows)?;
    rows.push(Row::plain(
        "  a key and its value",
        mesh.up.bytes as f64 / mesh.up.keys as f64,
        "B",
        "lower",
        None,
    ));
    grown(&mesh, &replica, rows);

    let args = view::Args { pki: pki.clone(), server: replica.up.address, clusters: sizes.mesh.clusters };
    let mut agent = Part::start("view", &args)?;
    let up: view::Up = agent.hear()?;
    ensure!(up.refused == 0, "the view refused {} entries", up.refused);
    let used = agent.usage()?;
    rows.push(Row::plain("the same into an agent's MeshView", up.seconds, "s", "lower", Some(4.0)));
    rows.push(Row::plain("  its peak RSS", used.peak_mib, "MiB", "lower", Some(300.0)));

    let [slow, _] = sizes.changes;
    let (mut p50, mut p99) = (Vec::new(), Vec::new());
    for _ in 0..sizes.rounds {
        let (_, mirrored, _) = mesh.changes(&mut replica, None, (1, slow, 500))?;
        p50.push(mirrored.p50_ms);
        p99.push(mirrored.p99_ms);
    }
    let healthy = median(p99);
    rows.push(Row::plain("500 changes/s, visible in the mirror, p50", median(p50), "ms", "lower", Some(0.3)));
    rows.push(Row::plain("  p99", healthy, "ms", "lower", Some(1.0)));

    many_changes(sizes, &mut mesh, &mut replica, &mut agent, rows)?;
    drop(agent);
    drop(replica);

    warm_restart(sizes, &mut mesh, keep, healthy, rows)
}
