//! `bench-tunnel`: TCP, UDP and round trips through our engine, through other people's, and through none.

mod engine;
mod many;
mod measure;
mod pair;
mod picture;
mod restart;
mod sizes;

use std::path::Path;

use anyhow::{Context, Result};

use super::plot;
use super::result::{BenchResult, Row, load, turn};
use super::stats::Estimate;
use crate::binaries;
use crate::enclave::Inside;
use crate::lab::Lab;
use crate::plan::LabPlan;
use crate::process::run;
use pair::{Cable, Engine, Pair};

pub use engine::{EngineArgs, run as run_engine};
pub(super) use many::run_part;

const ROUNDS: usize = 6;
/// Of TCP and of UDP, which has no window to open.
const SECONDS: [u32; 2] = [2, 1];
const QUICK: [u32; 2] = [1, 1];
/// Of UDP, so that the packet in the tunnel has 1,400.
const LARGE: u32 = 1400 - 28;
const SMALL: u32 = 64;

const HAWSER: &str = "hawser";
const ESP: &str = "hawser, ESP with AES-256-GCM";
const NONE: &str = "no tunnel";

/// What is measured of every way, in this order.
const ONE: usize = 0;
const FOUR: usize = 1;
const CPU: usize = 2;
const UDP_LARGE: usize = 3;
const UDP_SMALL: usize = 4;
const P50: usize = 5;
const P99: usize = 6;
const WHATS: [What; 7] = [
    What { key: "one TCP flow", unit: "Gb/s", better: "higher" },
    What { key: "four TCP flows", unit: "Gb/s", better: "higher" },
    What { key: "CPU of both engines, one flow", unit: "s/GB", better: "lower" },
    What { key: "UDP, packets of 1400 B", unit: "k/s", better: "higher" },
    What { key: "UDP, 64 B", unit: "k/s", better: "higher" },
    What { key: "round trip, p50", unit: "us", better: "lower" },
    What { key: "round trip, p99", unit: "us", better: "lower" },
];

struct What {
    key: &'static str,
    unit: &'static str,
    better: &'static str,
}

/// A way from side 1 to side 2, and what it did in each round.
struct Way {
    name: &'static str,
    engine: Option<Engine>,
    rounds: [Vec<f64>; WHATS.len()],
}

impl Way {
    fn new(name: &'static str, engine: Option<Engine>) -> Self {
        Self { name, engine, rounds: Default::default() }
    }

    fn round(&mut self, pair: &Pair, [tcp, udp]: [u32; 2]) -> Result<()> {
        let (one, cpu) = measure::tcp(pair, self.engine, 1, tcp)?;
        let (four, _) = measure::tcp(pair, self.engine, 4, tcp)?;
        let large = measure::udp(pair, self.engine, LARGE, udp)?;
        let small = measure::udp(pair, self.engine, SMALL, udp)?;
        let (p50, p99) = measure::ping_pong(pair, self.engine)?;
        let numbers = [one, four, cpu, large, small, p50, p99];
        self.rounds.iter_mut().zip(numbers).for_each(|(rounds, number)| rounds.push(number));
        Ok(())
    }

    fn median(&self, what: usize) -> f64 {
        Estimate::of(&self.rounds[what]).median
    }
}

pub(super) fn measure(quick: bool) -> Result<BenchResult> {
    let seconds = if quick { QUICK } else { SECONDS };
    let inside = Inside::current().context("a benchmark runs inside of a lab")?;
    let before = load();
    let mut ways = ways();
    let engines: Vec<_> = ways.iter().filter_map(|way| way.engine).collect();
    let mut pair = Pair::build(&inside, &engines)?;
    say_versions(&pair, &ways)?;
    let mut cables = [Cable::CutAndJoined, Cable::Cut].map(|cable| (cable, Vec::new()));
    for round in 0..ROUNDS {
        for index in turn(round, ways.len()) {
            let name = ways[index].name;
            ways[index].round(&pair, seconds).with_context(|| format!("{name}, round {}", round + 1))?;
        }
        for (cable, rates) in &mut cables {
            pair.cable(*cable)?;
            let (rate, _) = measure::tcp(&pair, Some(Engine::Hawser), 1, seconds[0])
                .with_context(|| format!("{cable:?}, round {}", round + 1))?;
            rates.push(rate);
        }
        pair.cable(Cable::Whole)?;
        let rates = ways.iter().map(|way| format!("{} {:.3}", way.name, way.rounds[ONE][round]));
        println!("round {:>2}, one flow, Gb/s: {}", round + 1, rates.collect::<Vec<_>>().join(", "));
        pair.check_alive()?;
    }
    let mut rows = rows(&ways);
    let ours = &ways[0].rounds[ONE];
    for ((_, rates), (key, goal)) in cables
        .iter()
        .zip([("cut in software, joined again / whole", 0.8), ("cut in software, not joined / whole", 0.6)])
    {
        let ratio = Estimate::of_ratios(rates, ours);
        rows.push(Row::estimated(key, ratio, "ratio", "higher", Some(goal)));
    }
    rows.extend(strangers(&pair, seconds[0], quick)?);
    rows.extend(many::measure(&pair.sides[0], quick)?);
    drop(pair);
    let mut lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
    rows.extend(sizes::measure(&mut lab, quick)?);
    rows.extend(restart::measure(&mut lab, quick)?);
    drop(lab);
    let name = if quick { "tunnel-quick" } else { "tunnel" };
    plot::draw(&picture::panels(&ways), &binaries::target_dir()?.join("bench").join(format!("{name}.svg")))?;
    Ok(BenchResult::of_rows(name, before, ROUNDS, rows))
}

/// One flow beside many peers that are never spoken to, and without them, in turns.
fn strangers(pair: &Pair, seconds: u32, quick: bool) -> Result<Vec<Row>> {
    let peers = if quick { many::PEERS / 100 } else { many::PEERS };
    let (mut with, mut without, mut told) = (Vec::new(), Vec::new(), 0.0_f64);
    for _ in 0..ROUNDS {
        without.push(measure::tcp(pair, Some(Engine::Hawser), 1, seconds)?.0);
        told = told.max(pair.strangers(peers, true)?);
        with.push(measure::tcp(pair, Some(Engine::Hawser), 1, seconds)?.0);
        pair.strangers(peers, false)?;
    }
    let kept = Estimate::of_ratios(&with, &without);
    Ok(vec![
        Row::estimated(
            "25,400 more peers x 8 prefixes: one flow, with / without",
            kept,
            "ratio",
            "higher",
            Some(0.95),
        ),
        Row::plain("  told of them by UAPI", told * 1e3, "ms", "lower", Some(5000.0)),
        Row::plain("  peak memory of the engine", pair.peak_mib()?, "MiB", "lower", Some(128.0)),
    ])
}

/// Ours first.
fn ways() -> Vec<Way> {
    let mut ways =
        vec![Way::new(HAWSER, Some(Engine::Hawser)), Way::new("wireguard-go", Some(Engine::WireguardGo))];
    ways.insert(1, Way::new(ESP, Some(Engine::HawserEsp)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| Path::new(&dir).join("boringtun-cli").is_file()) {
        ways.push(Way::new("boringtun-cli", Some(Engine::Boringtun)));
    }
    ways.push(Way::new(NONE, None));
    ways
}

fn say_versions(pair: &Pair, ways: &[Way]) -> Result<()> {
    for program in ways.iter().map(|way| way.name).filter(|name| ![HAWSER, ESP, NONE].contains(name)) {
        let version = run(pair.sides[0].command(program).arg("--version"))?;
        println!("peer: {program}: {}", version.lines().next().unwrap_or_default());
    }
    Ok(())
}

/// Goals are the issue's; a way that has none of its own is there to be seen beside ours.
fn rows(ways: &[Way]) -> Vec<Row> {
    let ours = &ways[0];
    let mut rows = Vec::new();
    for (index, what) in WHATS.iter().enumerate() {
        let goal = (index == ONE).then_some(5.0);
        let mut row =
            Row::estimated(what.key, Estimate::of(&ours.rounds[index]), what.unit, what.better, goal);
        // Without a tunnel there is no engine to spend anything.
        let others = ways[1..].iter().filter(|way| index != CPU || way.engine.is_some());
        others.for_each(|way| row.add(way.name, way.median(index)));
        rows.push(row);
        for way in &ways[1..] {
            let goal = match (index, way.name) {
                (ONE, "wireguard-go") => 7.0,
                (ONE, "boringtun-cli") => 8.0,
                (P50, NONE) => 2.0,
                // It is ours, too: what it has to reach is below.
                (_, ESP) => continue,
                (ONE | CPU | P50, _) | (_, NONE) => continue,
                (FOUR | UDP_LARGE | UDP_SMALL | P99, _) => 1.0,
                _ => continue,
            };
            let ratio = Estimate::of_ratios(&ours.rounds[index], &way.rounds[index]);
            let key = format!("{}: {HAWSER} / {}", what.key, way.name);
            rows.push(Row::estimated(&key, ratio, "ratio", what.better, Some(goal)));
        }
    }
    let esp = ways.iter().find(|way| way.name == ESP);
    rows.extend(esp.map(|esp| {
        let ratio = Estimate::of_ratios(&esp.rounds[ONE], &ours.rounds[ONE]);
        Row::estimated(&format!("one TCP flow: {ESP} / {HAWSER}"), ratio, "ratio", "higher", Some(1.5))
    }));
    let more = Estimate::of_ratios(&ours.rounds[FOUR], &ours.rounds[ONE]);
    rows.push(Row::estimated("four TCP flows / one", more, "ratio", "higher", Some(1.1)));
    rows
}
