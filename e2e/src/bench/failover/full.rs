//! Processors and links are full and something is always lost: how often is somebody said to be down who is not?

use std::process::{Child, Command, Stdio};
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context, Result};

use super::RETURN;
use crate::bench::result::Row;
use crate::lab::Lab;
use crate::plan::POD_PORT;
use crate::pod::client::unix_ms;
use crate::process::{run, run_with_input};

/// Of each region's link. Less than the tunnels carry on a busy machine, so that the link is full as well.
const RATE: &str = "50mbit";
/// Packets of a hundred that are lost, each way.
const LOST: u8 = 1;
const TABLE: &str = "bench_loss";
/// What a client asks for, again and again.
const BYTES: usize = 8 << 20;
const TIMES: usize = 500;

/// Killed with the value.
struct Load(Vec<Child>);

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Agents have the shipped settings.
pub(super) fn measure(lab: &mut Lab, during: Duration) -> Result<Vec<Row>> {
    let load = make_full(lab)?;
    let (began_ms, sent) = (unix_ms(), probes_sent(lab)?);
    std::thread::sleep(during);
    let (mut wrong, mut worst) = (0, 0);
    for (_, node) in lab.nodes() {
        let status = node.status()?;
        let downs = status.transitions.iter().filter(|said| said.to == "down");
        for said in downs.filter(|said| said.unix_ms.unsigned_abs() >= began_ms) {
            println!("{} says of {}: {}", node.name(), said.about, said.reason);
            wrong += 1;
        }
        let lost = status.tunnels.iter().map(|tunnel| tunnel.probes_lost_per_mille).max();
        worst = worst.max(lost.unwrap_or(0));
    }
    let sent = probes_sent(lab)? - sent;
    drop(load);
    for cluster in &lab.clusters {
        run(Command::new("tc").args(["qdisc", "del", "dev", &cluster.plan.bridge(), "root"]))?;
    }
    run(Command::new("nft").args(["delete", "table", "inet", TABLE]))?;
    lab.check_alive()?;
    lab.wait_until_connected(RETURN).context("after the load")?;
    let seconds = during.as_secs();
    let key = format!("CPU and links full, {LOST} % lost each way, {seconds} s: false verdicts");
    Ok(vec![
        Row::plain(&key, f64::from(wrong), "", "lower", Some(0.0)),
        Row::plain("  probes sent meanwhile, all agents", sent as f64, "", "higher", None),
        Row::plain("  lost on the worst path, of 1000", f64::from(worst), "", "lower", None),
    ])
}

fn make_full(lab: &Lab) -> Result<Load> {
    for cluster in &lab.clusters {
        let bridge = cluster.plan.bridge();
        let shape = ["root", "tbf", "rate", RATE, "burst", "64kb", "latency", "50ms"];
        run(Command::new("tc").args(["qdisc", "replace", "dev", &bridge]).args(shape))?;
    }
    let rules = format!(
        "table inet {TABLE} {{ chain forward {{ type filter hook forward priority -10; \
         numgen random mod 100 < {LOST} drop; }}; }}\n"
    );
    run_with_input(Command::new("nft").args(["-f", "-"]), &rules)?;
    let mut load = Load(Vec::new());
    for _ in 0..available_parallelism().map_or(2, usize::from) {
        let spin = Command::new("sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn();
        load.0.push(spin.context("a process that spins")?);
    }
    // Each cluster's client asks the next cluster, so every link is full both ways.
    for (at, cluster) in lab.clusters.iter().enumerate() {
        let next = &lab.clusters[(at + 1) % lab.clusters.len()];
        let url = format!("http://{}:{POD_PORT}/bytes/{BYTES}", next.pod("cart-0").plan.address);
        let mut curl = cluster.pod("client").place.command("curl");
        curl.arg("--silent").args(std::iter::repeat_n(&url, TIMES));
        let curl = curl.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        load.0.push(curl.context("curl fills the links")?);
    }
    Ok(load)
}

fn probes_sent(lab: &Lab) -> Result<u64> {
    lab.nodes().map(|(_, node)| Ok(node.status()?.probing.map_or(0, |probing| probing.sent))).sum()
}
