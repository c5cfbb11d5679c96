//! Act 6: a cluster is cut off without a word, and comes back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::report::Facts;
use super::{HOME, LOST, Stage};
use crate::lab::Lab;
use crate::pod::client::{Report, Request, unix_ms};
use crate::status::AgentStatus;

/// The verdict comes after 1 s of silence; the rest is for busy machines.
const DETECT: Duration = Duration::from_secs(10);
const RECOVER: Duration = Duration::from_secs(15);
/// Load goes on for this long after the flip.
const AFTER_FLIP: Duration = Duration::from_secs(2);
const REQUESTS: u64 = 150;

/// Of one agent: health words written for clusters and for nodes, and how many verdicts changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Writes {
    cluster: u64,
    node: u64,
    transitions: usize,
}

impl Writes {
    fn of(status: &AgentStatus) -> Self {
        Self {
            cluster: status.cluster_word_writes,
            node: status.node_word_writes,
            transitions: status.transitions.len(),
        }
    }
}

fn all_writes(lab: &Lab) -> Result<BTreeMap<String, Writes>> {
    lab.nodes().map(|(_, node)| Ok((node.name().to_owned(), Writes::of(&node.status()?)))).collect()
}

pub(super) fn play(stage: &mut Stage) -> Result<Facts> {
    let idle = stage.options.idle();
    let lab = &mut stage.lab;
    let before = stay_idle(lab, idle)?;

    let target = lab.cluster(HOME).service_address();
    let load =
        Request::to(&target).concurrency(16).every(Duration::from_millis(50)).timeout(Duration::from_secs(1));
    let running = lab.cluster(HOME).pod("client").keep_asking(&load)?;
    lab.cut(LOST)?;
    let cut_ms = unix_ms();
    wait_for_verdict(lab, "down", DETECT)?;
    let flip_ms = flip_time(lab, cut_ms)?;
    let settled = Instant::now();
    check_writes(lab, &before)?;
    std::thread::sleep(AFTER_FLIP.saturating_sub(settled.elapsed()));
    let report = running.stop()?;
    let failed_before = judge(&report, flip_ms)?;
    let views = lab.cluster(HOME).node("node-1").service_view()?;
    let listed = views.backends_of(LOST);
    ensure!(listed == 2, "nothing was withdrawn, but {listed} of 2 endpoints of {LOST} are listed");

    lab.heal(LOST)?;
    let healed = Instant::now();
    wait_for_verdict(lab, "up", RECOVER)?;
    let recovered = healed.elapsed();
    let again =
        lab.cluster(HOME).pod("client").ask(&Request::to(&target).requests(REQUESTS).concurrency(8))?;
    again.all_ok()?;
    ensure!(again.from_cluster(LOST) > 0, "{LOST} does not take its share again: {}", again.shares());
    let detect_ms = flip_ms - cut_ms;
    Ok(Facts {
        lines: vec![
            format!("idle for {} s: nothing flipped", idle.as_secs()),
            format!("{LOST} cut off: detected in {:.1} s on the client's node", detect_ms as f64 / 1000.0),
            format!("{} requests, {failed_before} failed before the flip, 0 opened after it", report.total()),
            "map writes for the flip, on each agent: 1 per node and 1 for the cluster".to_owned(),
            format!("healed: up again after {:.1} s: {}", recovered.as_secs_f64(), again.shares()),
        ],
        details: json!({
            "idleSeconds": idle.as_secs(),
            "detectMs": detect_ms,
            "requests": report.total(),
            "failedBeforeFlip": failed_before,
            "failedAfterFlip": 0,
            "recoverMs": recovered.as_millis() as u64,
            "sharesAfter": again.by_cluster,
        }),
    })
}

/// The product's own time is the subject here: an idle mesh flips nothing.
fn stay_idle(lab: &mut Lab, idle: Duration) -> Result<BTreeMap<String, Writes>> {
    let before = all_writes(lab)?;
    std::thread::sleep(idle);
    let after = all_writes(lab)?;
    ensure!(before == after, "an idle mesh flipped:\nbefore {before:?}\nafter  {after:?}");
    Ok(after)
}

/// Until every agent outside says `verdict` of the lost cluster, and every agent inside says it of the others.
fn wait_for_verdict(lab: &mut Lab, verdict: &str, patience: Duration) -> Result<()> {
    lab.wait(&format!("{LOST} is {verdict} everywhere"), patience, |lab| {
        for (cluster, node) in lab.nodes() {
            let status = node.status()?;
            for other in lab.clusters.iter().map(|other| other.plan.name.as_str()) {
                let apart = (other == LOST) != (cluster.plan.name == LOST);
                let said = status.data_plane_of(other);
                ensure!(!apart || said == verdict, "{} says {other} is {said}", node.name());
            }
        }
        Ok(())
    })
}

/// When the client's node gave up the cluster, by its own account.
fn flip_time(lab: &Lab, cut_ms: u64) -> Result<u64> {
    let status = lab.cluster(HOME).node("node-1").status()?;
    let flip = status.transitions.iter().rev().find(|flip| flip.about == LOST && flip.to == "down");
    let flip_ms = flip.context("no transition of the lost cluster is recorded")?.unix_ms as u64;
    ensure!(flip_ms >= cut_ms, "{LOST} flipped before it was cut off");
    Ok(flip_ms)
}

/// One write per node that was lost, one per cluster, on every agent.
fn check_writes(lab: &Lab, before: &BTreeMap<String, Writes>) -> Result<()> {
    let after = all_writes(lab)?;
    for (cluster, node) in lab.nodes() {
        let lost: Vec<_> = lab
            .clusters
            .iter()
            .filter(|other| (other.plan.name == LOST) != (cluster.plan.name == LOST))
            .collect();
        let nodes: usize = lost.iter().map(|cluster| cluster.nodes.len()).sum();
        let (before, after) = (before[node.name()], after[node.name()]);
        let written = (after.node - before.node, after.cluster - before.cluster);
        let due = (nodes as u64, lost.len() as u64);
        ensure!(
            written == due,
            "{} wrote {written:?} words (nodes, clusters), and {due:?} are due",
            node.name()
        );
    }
    Ok(())
}

/// Failures of connections opened before the flip are counted; after it there may be none.
fn judge(report: &Report, flip_ms: u64) -> Result<usize> {
    let failed = |after: bool| {
        let of_time = report.records.iter().filter(move |record| (record.opened_ms > flip_ms) == after);
        of_time.filter(|record| record.error.is_some()).collect::<Vec<_>>()
    };
    let late = failed(true);
    let opened = report.records.iter().filter(|record| record.opened_ms > flip_ms).count();
    ensure!(opened > 0, "no connection was opened after the flip");
    ensure!(
        late.is_empty(),
        "{} of {opened} connections opened after the flip failed: {:?}",
        late.len(),
        late[0]
    );
    Ok(failed(false).len())
}
