//! `bench-failover`: a cluster, and then one node, is cut off under load, many times: how soon nobody is sent there, what
//! fails, and how soon those who are connected hear of it.
//!
//! The victims take turns: one that flaps is held back for longer each time (damping), and that is not the subject.

mod cut;
mod full;
mod held;

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::objects::{self, Place as Endpoint};
use super::part;
use super::plot;
use super::result::{BenchResult, load as machine_load};
use crate::binaries;
use crate::lab::{Cluster, Lab, Store};
use crate::plan::{ClusterPlan, LabPlan};
use crate::wait;
use cut::{Part, one_cut, panels, rows_of};

const HOME: &str = "us-east";
const VICTIMS: [&str; 6] = ["eu-west", "ap-south", "af-south", "sa-east", "me-north", "ca-west"];
const MANIFESTS: &str = "/etc/hawser/manifests";
/// Pods that stand behind the other services, of which none exists.
const OTHER_PODS: u32 = 128;
const DETECT: Duration = Duration::from_secs(10);
/// How long the machine has for becoming calm after the services were loaded.
const CALM: Duration = Duration::from_secs(60);
/// Damping may hold a victim back.
const RETURN: Duration = Duration::from_secs(180);
/// From a verdict to the end of the connections there. 2 s are shipped.
const RESET_AFTER: Duration = Duration::from_secs(1);

/// How much of everything.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    victims: usize,
    cuts: usize,
    /// Of the agents: a silence so long is down.
    detection: &'static str,
    /// Other services, in the home cluster and in the first victim.
    others: u32,
    /// Load before a cut, and after the return.
    settle: Duration,
    /// Connections that are held, of clients that talk, that wait, and of a pool.
    held: [usize; 3],
    /// Processors and links are full.
    full: Duration,
}

const FULL: Sizes = Sizes {
    victims: 6,
    cuts: 20,
    detection: "250ms",
    others: 30_000,
    settle: Duration::from_secs(1),
    held: [40, 40, 60],
    full: Duration::from_secs(300),
};

/// Everything is exercised, nothing is measured: at the shipped detection time, since a busy machine is silent for longer than
/// the fast one, and what flaps is held back.
const QUICK: Sizes = Sizes {
    victims: 2,
    cuts: 2,
    detection: "1s",
    others: 20,
    settle: Duration::from_millis(200),
    held: [6, 6, 12],
    full: Duration::from_secs(3),
};

pub(super) fn measure(quick: bool) -> Result<BenchResult> {
    let (before, sizes) = (machine_load(), if quick { QUICK } else { FULL });
    let victims = VICTIMS[..sizes.victims].iter().zip(2..).map(|(name, id)| ClusterPlan::new(name, id, 2));
    let clusters = std::iter::once(ClusterPlan::new(HOME, 1, 1)).chain(victims).collect();
    let mut lab = Lab::build(LabPlan { clusters })?;
    lab.start_product(Store::Embedded)?;
    lab.connect_all()?;
    lab.wait_until_connected(RETURN)?;
    lab.wait_until_served()?;
    let full = full::measure(&mut lab, sizes.full)?;
    set_detection(&mut lab, sizes.detection)?;
    lab.wait_until_connected(RETURN)?;
    more_services(&mut lab, sizes.others)?;
    let mut rows = Vec::new();
    let mut pictures = Vec::new();
    for part in [Part::Cluster, Part::Node] {
        let mut cuts = Vec::new();
        for n in 0..sizes.cuts {
            let victim = VICTIMS[n % sizes.victims];
            let what = format!("cut {} of {}: {}", n + 1, sizes.cuts, part.about(victim));
            let cut = one_cut(&mut lab, victim, part, &sizes).context(what.clone())?;
            println!("{what}: {cut}");
            cuts.push(cut);
        }
        rows.extend(rows_of(part, sizes.others, &cuts));
        pictures.extend(panels(part, &cuts));
    }
    rows.extend(full);
    let name = if quick { "failover-quick" } else { "failover" };
    plot::draw(&pictures, &binaries::target_dir()?.join("bench").join(format!("{name}.svg")))?;
    Ok(BenchResult::of_rows(name, before, sizes.cuts, rows))
}

pub(super) fn run_part(args: &str) -> Result<()> {
    held::hold(&part::parse(args)?)
}

/// Every agent is started again with it.
fn set_detection(lab: &mut Lab, detection: &str) -> Result<()> {
    for node in lab.clusters.iter_mut().flat_map(|cluster| &mut cluster.nodes) {
        node.agent().terminate(Duration::from_secs(20))?;
        let name = node.plan.name.clone();
        let reset = RESET_AFTER.as_secs();
        let config = format!("node: {name}\nhealth: {{ detection: {detection}, resetAfter: {reset}s }}\n");
        node.place.write("/etc/hawser/agent.yaml", &config)?;
        node.start_agent()?;
    }
    lab.nodes().try_for_each(|(_, node)| node.wait_for_agent())
}

/// The home cluster and the first victim have them: in the home node's maps each has a slice of both.
fn more_services(lab: &mut Lab, others: u32) -> Result<()> {
    for cluster in &lab.clusters[..2] {
        let id = cluster.plan.id;
        let file = cluster.nodes[0].place.path(format!("{MANIFESTS}/others.json"));
        let pods = (0..OTHER_PODS).filter(|_| id != 1).map(|n| pod(cluster, n));
        objects::write(&file, 0..others, |pod| other(id, pod), pods)?;
    }
    lab.wait("the home agent has all services, with the backends of both clusters", RETURN, |lab| {
        let status = lab.clusters[0].nodes[0].status()?;
        ensure!(status.services > others, "{} services", status.services);
        let last = lab.clusters[0].nodes[0].hawser_ok(&["plan", "-o", "json"])?;
        let left = crate::status::operations(&last)?.len();
        ensure!(left == 0, "{left} operations are left");
        Ok(())
    })?;
    // The other agents and API servers read them as well; who is busy sees jitter, and gives probes more time. A machine that is
    // never calm is measured as it is.
    let calm = wait::until("a calm machine", CALM, || {
        let taken = machine_taken(Duration::from_secs(1))?;
        ensure!(taken < 0.5, "{:.0} % of its time is taken", taken * 100.0);
        Ok(())
    });
    if let Err(busy) = calm {
        println!("{busy:#}");
    }
    Ok(())
}

/// The part of all cores' time that was not idle, over `during`.
fn machine_taken(during: Duration) -> Result<f64> {
    let look = || -> Result<(u64, u64)> {
        let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        let first = text.lines().next().unwrap_or_default();
        let times: Vec<u64> = first.split_whitespace().filter_map(|time| time.parse().ok()).collect();
        ensure!(times.len() >= 4, "/proc/stat: {first}");
        Ok((times[3], times.iter().take(8).sum()))
    };
    let (idle, all) = look()?;
    std::thread::sleep(during);
    let (idle_then, all_then) = look()?;
    let passed = all_then.saturating_sub(all).max(1);
    Ok(1.0 - idle_then.saturating_sub(idle) as f64 / passed as f64)
}

fn other(id: u8, pod: u32) -> Endpoint {
    let last = u8::try_from(100 + pod % OTHER_PODS).unwrap_or(u8::MAX);
    let port = u16::try_from(10_000 + pod / OTHER_PODS).unwrap_or(u16::MAX);
    Endpoint { ip: Ipv4Addr::new(10, id, 1, last), port, node: "node-1".to_owned() }
}

/// A remote backend counts only as a pod of its cluster.
fn pod(cluster: &Cluster, n: u32) -> Value {
    let (at, host) = (other(cluster.plan.id, n), cluster.plan.nodes[0].address);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("other-{n}"), "namespace": "shop", "creationTimestamp": "2026-11-21T00:00:00Z",
            "labels": {"app": "other"}, "resourceVersion": "9", "uid": format!("00000009-0000-4000-8000-{n:012x}"),
        },
        "spec": {"nodeName": at.node, "containers": [], "serviceAccountName": "default"},
        "status": {"phase": "Running", "hostIP": host, "podIP": at.ip, "podIPs": [{"ip": at.ip}]},
    })
}
