//! An act for kernels that carry the tunnels themselves (`--lose-agents`): one cluster's agents are killed, another's are stopped, and
//! no peer changes its verdict, because the programs that they leave behind answer the probes. Nor does it when one comes back.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::report::Facts;
use super::{HOME, LOST, Stage};
use crate::lab::{Lab, Node};
use crate::pod::client::{Request, unix_ms};

const KILLED: &str = "ap-south";
const STOPPED: &str = LOST;
/// The product's own time is the subject: silence is a verdict after 1 s.
const AWAY: Duration = Duration::from_secs(4);
const STOP: Duration = Duration::from_secs(60);
const START: Duration = Duration::from_secs(20);
const REQUESTS: u64 = 40;

pub(super) fn play(stage: &mut Stage) -> Result<Facts> {
    let lab = &mut stage.lab;
    for (_, node) in lab.nodes() {
        let who = node.status()?.wireguard;
        ensure!(
            who == "kernel",
            "{} encrypts in the {who:?} engine, which ends with its agent\nfix: play this act where the kernel has WireGuard (make test-vm)",
            node.name()
        );
    }
    let since_ms = unix_ms();
    for node in &mut lab.cluster_mut(KILLED).nodes {
        node.lose_agent(|agent| agent.kill())?;
    }
    for node in &mut lab.cluster_mut(STOPPED).nodes {
        node.lose_agent(|agent| agent.terminate(STOP).map(drop))?;
    }
    let before = replies(lab)?;
    std::thread::sleep(AWAY);
    let answers = replies(lab)? - before;
    unmoved(lab, since_ms)?;
    told_by_the_stopped(lab)?;
    let target = lab.cluster(HOME).service_address();
    let request = Request::to(&target).requests(REQUESTS).concurrency(4);
    let report = lab.cluster(HOME).pod("client").ask(&request)?;
    report.all_ok()?;
    for cluster in [KILLED, STOPPED] {
        ensure!(report.from_cluster(cluster) > 0, "{cluster} answers nobody: {}", report.shares());
    }
    lab.cluster_mut(KILLED).nodes[0].start_agent()?;
    lab.wait("the agent that was started again has nothing left to do", START, |lab| {
        lab.cluster(KILLED).nodes[0].settled()
    })?;
    unmoved(lab, since_ms)?;
    let away = AWAY.as_secs();
    let lines = vec![
        format!(
            "{KILLED}'s agents killed and {STOPPED}'s stopped for {away} s: no peer changed a verdict, {answers} probes were answered"
        ),
        format!("{STOPPED}'s nodes say AdminDown; {}", report.shares()),
        format!("an agent of {KILLED} came back: no peer changed a verdict"),
    ];
    let details = json!({ "awaySeconds": away, "answers": answers, "shares": report.by_cluster });
    Ok(Facts { lines, details })
}

/// Everybody with an agent: nothing was said of the others or of their nodes since then.
fn unmoved(lab: &Lab, since_ms: u64) -> Result<()> {
    for cluster in [KILLED, STOPPED] {
        let nodes = lab.cluster(cluster).nodes.iter().map(|node| format!("{cluster}/{}", node.plan.name));
        let gone: Vec<String> = nodes.chain([cluster.to_owned()]).collect();
        for node in watching(lab) {
            let status = node.status()?;
            for about in &gone {
                let said = status.said(about, since_ms);
                ensure!(said.is_empty(), "{} says of {about}: {said:?}", node.name());
            }
            let verdict = status.data_plane_of(cluster);
            ensure!(verdict == "up", "{} says that {cluster} is {verdict}", node.name());
        }
    }
    Ok(())
}

/// Only who was stopped says so.
fn told_by_the_stopped(lab: &Lab) -> Result<()> {
    for node in watching(lab) {
        let status = node.status()?;
        for tunnel in &status.tunnels {
            let said = tunnel.health_reason.contains("stopped on purpose");
            ensure!(said == (tunnel.cluster == STOPPED), "{} was told {tunnel:?}", node.name());
        }
    }
    Ok(())
}

/// Probes that were answered.
fn replies(lab: &Lab) -> Result<u64> {
    watching(lab).map(|node| Ok(node.status()?.probing.map_or(0, |probing| probing.replies))).sum()
}

fn watching(lab: &Lab) -> impl Iterator<Item = &Node> {
    lab.cluster(HOME).nodes.iter()
}
