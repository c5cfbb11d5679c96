//! What many services cost the agent: memory of its own and of its maps, the first programming, one endpoint that changes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{HAWSER, MANIFESTS, other};
use crate::bench::objects::{self, Place as Endpoint};
use crate::bench::part;
use crate::bench::result::Row;
use crate::binaries;
use crate::lab::{Lab, Node};
use crate::process::{Process, run, tail};

const PATIENCE: Duration = Duration::from_secs(120);
const CONFIG: &str = "/etc/hawser/agent.yaml";
/// The line that says how many writes brought the maps up to date.
const FILTER: &str = "info,hawser_node_agent::datapath=debug";
const MIB: f64 = 1024.0 * 1024.0;

/// An agent whose writes to the maps can be read in its log.
struct Watched {
    process: Process,
    began: Instant,
    /// Lines of the log that were read.
    read: usize,
}

/// The writes of a sync, and when they were done, since the agent's start.
#[derive(Clone, Copy, Debug)]
struct Written {
    writes: u64,
    at: Duration,
}

/// `others` services are known. The node's agent ends here.
pub(super) fn measure(lab: &mut Lab, others: u32, changes: usize) -> Result<Vec<Row>> {
    let what = format!("{others} other services x {}", objects::ENDPOINTS);
    let logs = lab.inside.dir.clone();
    let node = &mut lab.clusters[HAWSER].nodes[0];
    node.agent().terminate(Duration::from_secs(20))?;
    let mut remove = node.place.command(binaries::find("hawser-node-agent")?);
    run(remove.args(["--config", CONFIG, "--remove"])).context("removing what the agent made")?;
    let mut agent = Watched::start(node, &logs)?;
    // Everything at once: until then nothing of a service is there.
    let programmed = agent.next(u64::from(others) * u64::from(objects::ENDPOINTS))?;
    let pid = agent.process.id();
    let (used, maps) = (part::usage(pid)?, map_memory(pid)?);

    let one = |n: u32, into: &Path| {
        let last = (others + 1) * objects::ENDPOINTS - 1;
        objects::write(into, others..others + 1, |pod| moved(pod, last, n), [])
    };
    let plain = agent.changes(&node.place.path(format!("{MANIFESTS}/changed.json")), changes, one)?;
    let one = |n: u32, into: &Path| {
        let last = (others + 2) * objects::ENDPOINTS - 1;
        objects::write(
            into,
            0..0,
            |pod| other(1, pod),
            objects::maglev(others + 1, |pod| moved(pod, last, n)),
        )
    };
    let maglev = agent.changes(&node.place.path(format!("{MANIFESTS}/maglev.json")), changes, one)?;
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Ok(vec![
        Row::plain(&format!("{what}: agent, RSS"), resident_mib(pid)?, "MiB", "lower", Some(150.0)),
        Row::plain("  its peak", used.peak_mib, "MiB", "lower", None),
        Row::plain("  memory of its BPF maps", maps.bytes as f64 / MIB, "MiB", "lower", Some(60.0)),
        Row::plain("  maps", maps.count as f64, "", "lower", None),
        Row::plain(
            "  from the agent's start to everything in the maps",
            programmed.at.as_secs_f64(),
            "s",
            "lower",
            Some(3.0),
        ),
        Row::plain("  writes of that", programmed.writes as f64, "", "lower", None),
        Row::plain(
            "  one endpoint changes: from its manifest to the maps",
            median(plain.0),
            "ms",
            "lower",
            Some(5.0),
        ),
        Row::plain("  writes of that", median(plain.1), "", "lower", Some(8.0)),
        Row::plain("  one endpoint of a service with maglev changes", median(maglev.0), "ms", "lower", None),
        Row::plain("  writes of that", median(maglev.1), "", "lower", None),
    ])
}

/// Endpoint `last` is another one each time.
fn moved(pod: u32, last: u32, n: u32) -> Endpoint {
    let place = other(1, pod);
    let ip = if pod == last {
        std::net::Ipv4Addr::new(10, 1, 2, u8::try_from(n % 250 + 1).unwrap_or(1))
    } else {
        place.ip
    };
    Endpoint { ip, ..place }
}

impl Watched {
    fn start(node: &Node, logs: &Path) -> Result<Self> {
        let mut command: Command = node.place.command(binaries::find("hawser-node-agent")?);
        command.args(["--config", CONFIG]).env("RUST_LOG", FILTER);
        let began = Instant::now();
        let process = Process::start("watched-agent", command, logs)?;
        Ok(Self { process, began, read: 0 })
    }

    /// Puts one service into a manifest, and changes it so often: milliseconds until the maps know, and writes.
    fn changes(
        &mut self,
        manifest: &Path,
        changes: usize,
        write: impl Fn(u32, &Path) -> Result<()>,
    ) -> Result<(Vec<f64>, Vec<f64>)> {
        let new = manifest.with_extension("new");
        let (mut took, mut writes) = (Vec::new(), Vec::new());
        for n in 0..=changes {
            let began = self.began.elapsed();
            write(u32::try_from(n)?, &new)?;
            fs::rename(&new, manifest).context("changing an endpoint")?;
            let written = self.next(1)?;
            // The first is new.
            if n > 0 {
                took.push((written.at.saturating_sub(began)).as_secs_f64() * 1e3);
                writes.push(written.writes as f64);
            }
        }
        Ok((took, writes))
    }

    /// The next sync that wrote at least so much, within a millisecond of its end.
    fn next(&mut self, least: u64) -> Result<Written> {
        let asked = Instant::now();
        while asked.elapsed() < PATIENCE {
            let text = fs::read_to_string(self.process.log()).context("the agent's log")?;
            let at = self.began.elapsed();
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            let lines: Vec<&str> = whole.lines().collect();
            for line in lines.iter().skip(self.read) {
                self.read += 1;
                let writes = line.split_once("maps writes=").map(|(_, rest)| rest.trim().parse());
                match writes.transpose().with_context(|| format!("the agent's log: {line}"))? {
                    Some(writes) if writes >= least => return Ok(Written { writes, at }),
                    _ => {}
                }
            }
            self.process.check_alive()?;
            std::thread::sleep(Duration::from_micros(500));
        }
        bail!("the agent wrote no {least} entries\n{}", tail(self.process.log()))
    }
}

#[derive(Clone, Copy, Debug)]
struct MapMemory {
    count: usize,
    bytes: u64,
}

/// What the kernel holds for the maps that a process has open, by its own account (`memlock`).
fn map_memory(pid: u32) -> Result<MapMemory> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).context("the agent's files")? {
        // One may have been closed since.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|value| value.trim().parse::<u64>().ok())
        };
        if let (Some(id), Some(bytes)) = (field("map_id"), field("memlock")) {
            maps.insert(id, bytes);
        }
    }
    ensure!(!maps.is_empty(), "the agent has no maps open");
    Ok(MapMemory { count: maps.len(), bytes: maps.values().sum() })
}

fn resident_mib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the agent's memory")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    Ok(line.context("VmRSS")?.parse::<f64>()? / 1024.0)
}
