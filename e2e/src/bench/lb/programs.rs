//! What one run of each program costs, by the kernel's own count (`kernel.bpf_stats_enabled`), which itself costs some of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::bench::result::Row;
use crate::process::run;

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// Those that a connection within a node runs.
const PROGRAMS: [&str; 4] = ["connect4", "getpeername4", "sock_ops", "pod_from"];

/// Nanoseconds and runs, by name.
type Spent = BTreeMap<String, (u64, u64)>;

/// Puts back what the switch was.
struct Counting(String);

impl Counting {
    fn begin() -> Result<Self> {
        let was = fs::read_to_string(SWITCH).context(SWITCH)?;
        fs::write(SWITCH, "1").context(SWITCH)?;
        Ok(Self(was))
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // Nothing but time is lost when it stays on.
        let _ = fs::write(SWITCH, self.0.trim());
    }
}

/// Of the agent `pid`, while `load` runs.
pub(super) fn measure(pid: u32, load: impl FnOnce() -> Result<()>) -> Result<Vec<Row>> {
    let _counting = Counting::begin()?;
    let before = spent(pid)?;
    load()?;
    let after = spent(pid)?;
    let row = |name: &&str| {
        let [was, is] = [&before, &after].map(|spent| spent.get(*name).copied().unwrap_or_default());
        let runs = is.1.saturating_sub(was.1);
        ensure!(runs > 0, "{name} did not run");
        let each = is.0.saturating_sub(was.0) as f64 / runs as f64;
        Ok(Row::plain(&format!("one run of {name}"), each, "ns", "lower", None))
    };
    PROGRAMS.iter().map(row).collect()
}

fn spent(pid: u32) -> Result<Spent> {
    let mut ours = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).context("the agent's files")? {
        // One may have been closed since.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let id = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
        ours.extend(id.and_then(|id| id.trim().parse::<u64>().ok()));
    }
    let all = run(Command::new("bpftool").args(["-j", "prog", "show"])).context("bpftool")?;
    let all: Vec<Value> = serde_json::from_str(&all).context("what bpftool says")?;
    let number = |program: &Value, key: &str| program[key].as_u64().unwrap_or(0);
    let mine = all.iter().filter(|program| ours.contains(&number(program, "id")));
    Ok(mine
        .filter_map(|program| {
            let name = program["name"].as_str()?.to_owned();
            Some((name, (number(program, "run_time_ns"), number(program, "run_cnt"))))
        })
        .collect())
}
