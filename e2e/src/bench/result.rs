//! What a benchmark found: a table for people, `target/bench/<name>.json` for programs.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::thread::available_parallelism;

use anyhow::{Context, Result};
use serde::Serialize;

use super::stats::Estimate;
use crate::binaries;

/// Of a row below the one that it belongs to.
const INDENT: usize = 2;

#[derive(Clone, Debug, Serialize)]
pub(super) struct BenchResult {
    name: &'static str,
    machine: Machine,
    rounds: usize,
    rows: Vec<Row>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) key: String,
    pub(super) value: f64,
    unit: &'static str,
    better: &'static str,
    goal: Option<f64>,
    peers: BTreeMap<&'static str, f64>,
    /// Of `value`, 95 %; absent where rounds are too few to tell.
    interval: Option<[f64; 2]>,
}

impl Row {
    /// One number, without an interval.
    pub(super) fn plain(
        key: &str,
        value: f64,
        unit: &'static str,
        better: &'static str,
        goal: Option<f64>,
    ) -> Self {
        Self { key: key.to_owned(), value, unit, better, goal, peers: BTreeMap::new(), interval: None }
    }

    /// A median with its interval.
    pub(super) fn estimated(
        key: &str,
        Estimate { median, low, high }: Estimate,
        unit: &'static str,
        better: &'static str,
        goal: Option<f64>,
    ) -> Self {
        Self { interval: Some([low, high]), ..Self::plain(key, median, unit, better, goal) }
    }

    pub(super) fn beside(mut self, peer: &'static str, value: f64) -> Self {
        self.add(peer, value);
        self
    }

    pub(super) fn add(&mut self, peer: &'static str, value: f64) {
        self.peers.insert(peer, value);
    }
}

#[derive(Clone, Debug, Serialize)]
struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
    /// Of our binaries.
    profile: &'static str,
    /// One minute's, before the first round and after the last: above zero at the start, others were at work.
    load: [String; 2],
}

/// The order of `count` columns in a round: each comes first, second, ... equally often.
pub(super) fn turn(round: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |place| (round + place) % count)
}

impl BenchResult {
    /// Of rows that were measured elsewhere.
    pub(super) fn of_rows(name: &'static str, load_before: String, rounds: usize, rows: Vec<Row>) -> Self {
        Self { name, machine: Machine::describe(load_before), rounds, rows }
    }

    pub(super) fn print(&self) {
        let Machine { cpu, cores, kernel, profile, load } = &self.machine;
        let width = self.rows.iter().map(|row| row.key.len()).max().unwrap_or_default().max(24);
        println!("\n{}, on {cpu}, {cores} cores, Linux {kernel}, profile {profile}", self.name);
        println!(
            "{} rounds, interleaved; medians with 95 % intervals; load average {} before, {} after\n",
            self.rounds, load[0], load[1]
        );
        println!("{:<width$} {:>10}  {:<21} {:>6}  unit", "", "median", "95 %", "goal");
        for row in &self.rows {
            let goal = row.goal.map_or_else(|| "-".to_owned(), |goal| goal.to_string());
            let interval = row.interval.map(|[low, high]| format!("{} .. {}", digits(low), digits(high)));
            let interval = interval.unwrap_or_default();
            println!("{:<width$} {:>10}  {interval:<21} {goal:>6}  {}", row.key, digits(row.value), row.unit);
            for (name, value) in &row.peers {
                println!("{name:>width$} {:>10}  {:<21} {:>6}  {}", digits(*value), "", "", row.unit);
            }
        }
    }

    pub(super) fn write(&self) -> Result<PathBuf> {
        let dir = binaries::target_dir()?.join("bench");
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let path = dir.join(format!("{}.json", self.name));
        let text = serde_json::to_string_pretty(&self.with_whole_keys()).context("encoding the result")?;
        fs::write(&path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// In the table a row may be indented below the one that it belongs to; by itself it says both.
    fn with_whole_keys(&self) -> Self {
        let mut whole = self.clone();
        let mut above: Vec<String> = Vec::new();
        for row in &mut whole.rows {
            let own = row.key.trim_start();
            above.truncate((row.key.len() - own.len()) / INDENT);
            above.push(own.to_owned());
            row.key = above.join(": ");
        }
        whole
    }
}

fn digits(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

impl Machine {
    fn describe(load_before: String) -> Self {
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            cpu: model.map_or_else(|| "an unnamed CPU".to_owned(), |(_, name)| name.to_owned()),
            cores: available_parallelism().map_or(0, usize::from),
            kernel: kernel.trim().to_owned(),
            profile: if cfg!(debug_assertions) { "dev" } else { "release" },
            load: [load_before, load()],
        }
    }
}

/// One minute's load average; `?` where the kernel does not tell.
pub(super) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().filter(|load| !load.is_empty()).unwrap_or("?").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_json_says_what_it_belongs_to() {
        let rows = ["detected", "  p99", "held", "  talking", "    p99", "  idle", "other"];
        let rows = rows.map(|key| Row::plain(key, 0.0, "", "lower", None)).to_vec();
        let result = BenchResult::of_rows("x", load(), 1, rows).with_whole_keys();
        let keys: Vec<&str> = result.rows.iter().map(|row| row.key.as_str()).collect();
        let whole = [
            "detected",
            "detected: p99",
            "held",
            "held: talking",
            "held: talking: p99",
            "held: idle",
            "other",
        ];
        assert_eq!(keys, whole);
    }
}
