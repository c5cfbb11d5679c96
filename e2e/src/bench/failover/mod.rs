//! `bench-failover`: a cluster, and then one node, is cut off under load, many times: how soon nobody is sent there, and what fails.
//!
//! The victims take turns: one that flaps is held back for longer each time (damping), and that is not the subject.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::objects::{self, Place as Endpoint};
use super::plot::{self, Line, Panel};
use super::result::{BenchResult, Row, load as machine_load};
use crate::binaries;
use crate::lab::{Cluster, Lab, Store};
use crate::plan::{ClusterPlan, LabPlan};
use crate::pod::client::{Record, Report, Request, unix_ms};
use crate::process::run_with_input;
use crate::wait;

const HOME: &str = "us-east";
const VICTIMS: [&str; 6] = ["eu-west", "ap-south", "af-south", "sa-east", "me-north", "ca-west"];
const MANIFESTS: &str = "/etc/hawser/manifests";
/// Pods that stand behind the other services, of which none exists.
const OTHER_PODS: u32 = 128;
const DETECT: Duration = Duration::from_secs(10);
/// Damping may hold a victim back.
const RETURN: Duration = Duration::from_secs(180);
/// A connection that is opened so long after the verdict may not fail.
const SHIFT_MS: u64 = 5;

/// How much of everything.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    victims: usize,
    cuts: usize,
    /// Of the agents: a silence so long is down.
    detection: &'static str,
    /// Other services, in the home cluster and in the first victim.
    others: u32,
    /// Load before a cut, after the verdict, and after the return.
    settle: Duration,
}

const FULL: Sizes =
    Sizes { victims: 6, cuts: 20, detection: "250ms", others: 30_000, settle: Duration::from_secs(2) };

/// Everything is exercised, nothing is measured: at the shipped detection time, since a busy machine is silent for longer than
/// the fast one, and what flaps is held back.
const QUICK: Sizes =
    Sizes { victims: 2, cuts: 2, detection: "1s", others: 20, settle: Duration::from_millis(200) };

/// What is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Cluster,
    /// The second node: the API server is on the first.
    Node,
}

/// One cut, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Cut {
    detect: f64,
    /// From the verdict to the last connection that was sent there all the same.
    shift: f64,
    failed_before: usize,
    failed_after: usize,
    /// From the heal to the verdict that takes it back, and the requests that failed from there on.
    back: f64,
    failed_back: usize,
    opened: usize,
}

pub(super) fn measure(quick: bool) -> Result<BenchResult> {
    let (before, sizes) = (machine_load(), if quick { QUICK } else { FULL });
    let victims = VICTIMS[..sizes.victims].iter().zip(2..).map(|(name, id)| ClusterPlan::new(name, id, 2));
    let clusters = std::iter::once(ClusterPlan::new(HOME, 1, 1)).chain(victims).collect();
    let mut lab = Lab::build(LabPlan { clusters })?;
    lab.start_product(Store::Embedded)?;
    set_detection(&mut lab, sizes.detection)?;
    lab.connect_all()?;
    lab.wait_until_connected(RETURN)?;
    lab.wait_until_served()?;
    more_services(&mut lab, sizes.others)?;
    let mut rows = Vec::new();
    let mut panels = Vec::new();
    for part in [Part::Cluster, Part::Node] {
        let mut cuts = Vec::new();
        for n in 0..sizes.cuts {
            let victim = VICTIMS[n % sizes.victims];
            let what = format!("cut {} of {}: {}", n + 1, sizes.cuts, part.about(victim));
            let cut = one_cut(&mut lab, victim, part, &sizes).context(what.clone())?;
            println!("{what}: {cut:?}");
            cuts.push(cut);
        }
        rows.extend(rows_of(part, sizes.others, &cuts));
        panels.push(panel(part, &cuts));
    }
    let name = if quick { "failover-quick" } else { "failover" };
    plot::draw(&panels, &binaries::target_dir()?.join("bench").join(format!("{name}.svg")))?;
    Ok(BenchResult::of_rows(name, before, sizes.cuts, rows))
}

/// Every agent is started again with it.
fn set_detection(lab: &mut Lab, detection: &str) -> Result<()> {
    for node in lab.clusters.iter_mut().flat_map(|cluster| &mut cluster.nodes) {
        node.agent().terminate(Duration::from_secs(20))?;
        let name = node.plan.name.clone();
        let config = format!("node: {name}\nhealth: {{ detection: {detection} }}\n");
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
    })
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

impl Part {
    /// As the agents name it.
    fn about(self, victim: &str) -> String {
        match self {
            Self::Cluster => victim.to_owned(),
            Self::Node => format!("{victim}/node-2"),
        }
    }

    fn filter(self, lab: &Lab, victim: &str, verb: &str) -> Result<()> {
        let plan = &lab.cluster(victim).plan;
        let (from, to) = match self {
            Self::Cluster => (format!("-i {}", plan.bridge()), format!("-o {}", plan.bridge())),
            Self::Node => {
                let address = plan.nodes[1].address;
                (format!("-s {address}"), format!("-d {address}"))
            }
        };
        let rules = format!("*filter\n{verb} FORWARD {from} -j DROP\n{verb} FORWARD {to} -j DROP\nCOMMIT\n");
        run_with_input(Command::new("iptables-restore").args(["-w", "--noflush"]), &rules)
            .map(drop)
            .with_context(|| format!("{verb} of {} at the router", self.about(victim)))
    }
}

fn one_cut(lab: &mut Lab, victim: &str, part: Part, sizes: &Sizes) -> Result<Cut> {
    let about = part.about(victim);
    takes_its_share(lab, victim, part)?;
    let target = lab.cluster(HOME).service_address();
    // Enough workers that those who wait for the victim do not silence the rest.
    let load = Request::to(&target)
        .concurrency(48)
        .every(Duration::from_millis(120))
        .timeout(Duration::from_secs(1));
    let running = lab.cluster(HOME).pod("client").keep_asking(&load)?;
    std::thread::sleep(sizes.settle);
    let cut_ms = unix_ms();
    part.filter(lab, victim, "-I")?;
    let down_ms = verdict(lab, &about, "down", cut_ms, DETECT)?;
    std::thread::sleep(sizes.settle);
    part.filter(lab, victim, "-D")?;
    let healed_ms = unix_ms();
    let up_ms = verdict(lab, &about, "up", healed_ms, RETURN)?;
    std::thread::sleep(sizes.settle);
    let report = running.stop()?;
    lab.check_alive()?;
    judge(&report, cut_ms, down_ms, healed_ms, up_ms)
}

/// Until connections go there again: a victim that is back begins with little weight.
fn takes_its_share(lab: &Lab, victim: &str, part: Part) -> Result<()> {
    let target = lab.cluster(HOME).service_address();
    let pod = format!("{victim}/cart-1");
    wait::until(&format!("{} answers", part.about(victim)), RETURN, || {
        let report =
            lab.cluster(HOME).pod("client").ask(&Request::to(&target).requests(100).concurrency(8))?;
        let answers = match part {
            Part::Cluster => report.from_cluster(victim),
            Part::Node => report.by_pod.get(&pod).copied().unwrap_or(0),
        };
        ensure!(answers > 0, "it has no share: {}", report.shares());
        Ok(())
    })
}

/// When the client's node said so, by its own account.
fn verdict(lab: &mut Lab, about: &str, to: &str, since_ms: u64, patience: Duration) -> Result<u64> {
    lab.wait(&format!("{about} is {to}"), patience, |lab| {
        let status = lab.cluster(HOME).node("node-1").status()?;
        let said = status.transitions.iter().rev().find(|said| said.about == about && said.to == to);
        match said.map(|said| said.unix_ms.unsigned_abs()).filter(|at| *at >= since_ms) {
            Some(at) => Ok(at),
            None => bail!("it is not said yet"),
        }
    })
}

fn judge(report: &Report, cut_ms: u64, down_ms: u64, healed_ms: u64, up_ms: u64) -> Result<Cut> {
    let failed = |from: u64, until: u64| {
        let within = move |record: &&Record| (from..until).contains(&record.opened_ms);
        report.records.iter().filter(|record| record.error.is_some()).filter(within)
    };
    ensure!(down_ms >= cut_ms && up_ms >= healed_ms, "a verdict came before its cause");
    let last = failed(down_ms, healed_ms).map(|record| record.opened_ms).max();
    let after = failed(down_ms + SHIFT_MS + 1, healed_ms);
    let opened = report.records.iter().filter(|record| (down_ms..healed_ms).contains(&record.opened_ms));
    Ok(Cut {
        detect: (down_ms - cut_ms) as f64,
        shift: last.map_or(0.0, |last| (last - down_ms) as f64),
        // One that was open when the wire went fails, too.
        failed_before: failed(0, down_ms).count(),
        failed_after: after.count(),
        back: (up_ms - healed_ms) as f64,
        failed_back: failed(healed_ms, u64::MAX).count(),
        opened: opened.count(),
    })
}

fn rows_of(part: Part, others: u32, cuts: &[Cut]) -> Vec<Row> {
    let who = match part {
        Part::Cluster => "a cluster",
        Part::Node => "one node",
    };
    let at = |share: usize, of: fn(&Cut) -> f64| {
        let mut values: Vec<f64> = cuts.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[(values.len() * share / 100).min(values.len() - 1)]
    };
    let sum = |of: fn(&Cut) -> usize| cuts.iter().map(of).sum::<usize>() as f64;
    let key = format!("{who} is cut off, {others} services: detected, p50");
    vec![
        Row::plain(&key, at(50, |cut| cut.detect), "ms", "lower", Some(250.0)),
        Row::plain("  p99", at(99, |cut| cut.detect), "ms", "lower", Some(400.0)),
        Row::plain("  shift after the verdict, longest", at(100, |cut| cut.shift), "ms", "lower", Some(5.0)),
        Row::plain("  connections opened after the verdict", sum(|cut| cut.opened), "", "higher", None),
        Row::plain("  failed, opened after the shift", sum(|cut| cut.failed_after), "", "lower", Some(0.0)),
        Row::plain(
            "  failed, opened before the verdict, a cut",
            sum(|cut| cut.failed_before) / cuts.len() as f64,
            "",
            "lower",
            None,
        ),
        Row::plain("  healed: taken back after, p50", at(50, |cut| cut.back), "ms", "lower", None),
        Row::plain("  failed, opened after the heal", sum(|cut| cut.failed_back), "", "lower", Some(0.0)),
    ]
}

/// The cuts by how soon they were detected.
fn panel(part: Part, cuts: &[Cut]) -> Panel {
    let mut detected: Vec<f64> = cuts.iter().map(|cut| cut.detect).collect();
    detected.sort_by(f64::total_cmp);
    let points = (1..).zip(detected).map(|(n, ms)| (f64::from(n), ms)).collect();
    let who = if part == Part::Cluster { "a cluster" } else { "one node" };
    Panel {
        title: format!("{who} is cut off: detected (ms), cuts in the order of it"),
        lines: vec![Line { name: "ms from the cut to the verdict".to_owned(), points }],
    }
}
