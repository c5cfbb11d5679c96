//! `bench-tunnel`: one TCP flow of iperf3 through our engine, through wireguard-go, and through neither.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::pair::{Engine, Pair};
use super::result::{BenchResult, Column, load, turn};
use crate::enclave::Inside;
use crate::process::run;

const ROUNDS: usize = 6;
const SECONDS: u32 = 3;
/// Over wireguard-go, from the issue; what no tunnel has to itself has no goal.
const GOALS: [Option<f64>; 2] = [Some(7.0), None];

const WAYS: [(&str, Option<Engine>); 3] =
    [("hawser", Some(Engine::Hawser)), ("wireguard-go", Some(Engine::WireguardGo)), ("no tunnel", None)];

pub(super) fn measure() -> Result<BenchResult> {
    let inside = Inside::current().context("a benchmark runs inside of a lab")?;
    let before = load();
    let mut pair = Pair::build(&inside)?;
    let version = run(pair.sides[0].command("wireguard-go").arg("--version"))?;
    println!("peer: {}", version.lines().next().unwrap_or("wireguard-go"));
    let mut columns = WAYS.map(|(name, _)| Column::new(name));
    for round in 0..ROUNDS {
        for index in turn(round, WAYS.len()) {
            let rate = flow(&pair, WAYS[index].1)
                .with_context(|| format!("{}, round {}", WAYS[index].0, round + 1))?;
            columns[index].rounds.push(rate);
        }
        let rates = columns.each_ref().map(|column| format!("{} {:.3}", column.name, column.rounds[round]));
        println!("round {:>2}, Gb/s: {}", round + 1, rates.join(", "));
        pair.check_alive()?;
    }
    Ok(BenchResult::new("tunnel", "one TCP flow", "Gb/s", before, &columns, &GOALS))
}

/// Gb/s as side 2 received them. Checks that they came through the engine that they are credited to.
fn flow(pair: &Pair, engine: Option<Engine>) -> Result<f64> {
    let target = engine.map_or_else(|| Pair::address(2), |engine| engine.address(2));
    let before = engine.map(|engine| pair.received(engine)).transpose()?;
    let seconds = SECONDS.to_string();
    let mut client = pair.sides[0].command("iperf3");
    let text = run(client.args(["--json", "--connect-timeout", "5000", "-t", &seconds, "-c", &target]))?;
    let report: Value = serde_json::from_str(&text).context("iperf3's report")?;
    let sum = &report["end"]["sum_received"];
    let field = |name: &str| sum[name].as_f64().with_context(|| format!("iperf3 states no {name}"));
    let (rate, bytes) = (field("bits_per_second")?, field("bytes")?);
    ensure!(bytes > 0.0, "nothing arrived at {target}");
    if let (Some(engine), Some(before)) = (engine, before) {
        let carried = pair.received(engine)? - before;
        ensure!(carried as f64 >= bytes, "{} carried {carried} of {bytes} bytes", engine.device());
    }
    Ok(rate / 1e9)
}
