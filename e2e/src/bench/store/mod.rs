//! `make bench-store`: what a mesh costs its control plane, each part a process, a real etcd beside it in the same run.

mod cache;
mod data;
mod delays;
mod etcd;
mod export;
mod fanout;
mod growth;
mod mirroring;
mod origins;
mod picture;
mod remote;
mod replica;
mod view;
mod wire;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum as _;
use tempfile::TempDir;

use super::part::parse;
use super::plot;
use super::result::{BenchResult, Row, load};
use crate::binaries;
use data::Shape;
use etcd::Server;
use wire::Pki;

/// How much of everything.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    mesh: Shape,
    large: Shape,
    growth: [u32; 4],
    /// Changes at the slow and at the fast rate.
    changes: [u32; 2],
    bulk: u32,
    /// Of a healthy remote, beside one that is not.
    beside: u32,
    /// In the exported list.
    services: u32,
    watchers: usize,
    burst: u32,
    singles: u32,
    durable: Duration,
    rounds: usize,
}

const FULL: Sizes = Sizes {
    mesh: Shape { clusters: 254, nodes: 100, identities: 100, endpoints: 1000, services: 100, backends: 8 },
    large: Shape { clusters: 50, nodes: 50, identities: 2000, endpoints: 20_000, services: 200, backends: 8 },
    growth: [1, 16, 64, 254],
    changes: [2_500, 30_000],
    bulk: 50_000,
    beside: 1_500,
    services: 30_000,
    watchers: 1000,
    burst: 1000,
    singles: 30,
    durable: Duration::from_secs(3),
    rounds: 3,
};

/// Everything is exercised, nothing is measured.
const QUICK: Sizes = Sizes {
    mesh: Shape { clusters: 4, nodes: 5, identities: 5, endpoints: 50, services: 5, backends: 3 },
    large: Shape { clusters: 2, nodes: 5, identities: 20, endpoints: 200, services: 5, backends: 3 },
    growth: [1, 2, 3, 4],
    changes: [50, 200],
    bulk: 400,
    beside: 50,
    services: 30,
    watchers: 8,
    burst: 20,
    singles: 3,
    durable: Duration::from_millis(100),
    rounds: 1,
};

/// What can be measured alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Share {
    /// Memory, first sync and bytes on the wire at 1, 16 and 64 clusters.
    Growth,
    /// 254 clusters: first sync, changes, one bad remote, a restart.
    Mesh,
    /// 50 large clusters.
    Large,
    /// The export of a Kubernetes list by the real API server.
    Export,
    /// Durable writes, fan-out and reconnects, beside a real etcd.
    Servers,
}

/// Measures; `quick` shows only that everything can be measured. False: a share failed, and the others are in the result.
pub(super) fn measure(quick: bool, only: Option<Share>) -> Result<(BenchResult, bool)> {
    let before = load();
    let sizes = if quick { QUICK } else { FULL };
    wire::raise_open_files()?;
    let dir = TempDir::new()?;
    let pki = Pki::make(dir.path())?;
    let (mut rows, mut complete) = (Vec::new(), true);
    for share in Share::value_variants().iter().filter(|share| only.is_none_or(|only| only == **share)) {
        let measured = match share {
            Share::Growth => growth::measure(&sizes, &pki).map(|measured| rows.extend(measured)),
            Share::Mesh => mirroring::whole(&sizes, &pki, &dir.path().join("mirrors"), &mut rows),
            Share::Large => mirroring::large(&sizes, &pki, &mut rows),
            Share::Export => {
                runtime()?.block_on(export::measure(&sizes, dir.path())).map(|measured| rows.extend(measured))
            }
            Share::Servers => {
                runtime()?.block_on(servers(&sizes, &pki)).map(|measured| rows.extend(measured))
            }
        };
        if let Err(error) = measured {
            eprintln!("{share:?} was not measured: {error:#}");
            complete = false;
        }
    }
    let name = match (quick, only) {
        (true, _) => "store-quick",
        (false, Some(_)) => "store-share",
        (false, None) => "store",
    };
    plot::draw(&picture::panels(&rows), &binaries::target_dir()?.join("bench").join(format!("{name}.svg")))?;
    Ok((BenchResult::of_rows(name, before, sizes.rounds, rows), complete))
}

/// The two servers in turns, each first equally often.
async fn servers(sizes: &Sizes, pki: &Pki) -> Result<Vec<Row>> {
    let mut columns: BTreeMap<&str, Vec<[f64; 4]>> = BTreeMap::new();
    for round in 0..sizes.rounds {
        for turn in 0..2 {
            let server = match (round + turn) % 2 {
                0 => Server::ours(pki)?,
                _ => Server::etcd(pki).await?,
            };
            let writes = fanout::durable(&server, 64, sizes.durable).await?;
            let fan = fanout::measure(&server, sizes.watchers, sizes.burst, sizes.singles)
                .await
                .with_context(|| format!("fan-out of {}", server.name))?;
            eprintln!("{}: {writes:.0} writes/s, {fan:.1?}", server.name);
            columns.entry(server.name).or_default().push([writes, fan.bursts, fan.singles, fan.back_p99_s]);
        }
    }
    let row = |at: usize, key: &str, unit, better, goal| {
        let of = |name: &str| median(columns[name].iter().map(|round| round[at]).collect());
        Row::plain(key, of("hawser"), unit, better, goal).beside("etcd", of("etcd"))
    };
    let (ours, theirs) = (&columns["hawser"], &columns["etcd"]);
    let ratio =
        |at: usize| median(ours.iter().zip(theirs).map(|(ours, theirs)| ours[at] / theirs[at]).collect());
    Ok(vec![
        row(0, "durable writes, 64 writers", "1/s", "higher", None),
        Row::plain("  over etcd's", ratio(0), "x", "higher", Some(1.0)),
        row(1, "fan-out, bursts: events per CPU second", "1/s", "higher", None),
        Row::plain("  over etcd's", ratio(1), "x", "higher", Some(8.0)),
        row(2, "fan-out, single changes: events per CPU second", "1/s", "higher", None),
        Row::plain("  over etcd's", ratio(2), "x", "higher", Some(2.0)),
        row(3, "all watchers come back, p99", "s", "lower", Some(2.0)),
    ])
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("a runtime")
}

/// A part, as the process that it is.
pub(super) fn run_part(role: &str, args: &str) -> Result<()> {
    let runtime = runtime()?;
    match role {
        "cache" => runtime.block_on(cache::run(parse(args)?)),
        "origins" => runtime.block_on(origins::run(parse(args)?)),
        "replica" => runtime.block_on(replica::run(parse(args)?)),
        "view" => runtime.block_on(view::run(parse(args)?)),
        "server" => runtime.block_on(etcd::run(parse(args)?)),
        other => bail!("there is no part {other:?}"),
    }
}
