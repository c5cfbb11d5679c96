//! Acts 1 to 3: up, connect, serve.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::report::Facts;
use super::{HOME, MARKER, Options, Stage, set_stage};
use crate::lab::Lab;
use crate::plan::POD_PORT;
use crate::pod::client::Request;

const CONNECT: Duration = Duration::from_secs(20);

/// Act 1: three clusters, each by itself.
pub(super) fn up(options: Options) -> Result<(Stage, Facts)> {
    let mut stage = set_stage(options)?;
    let lab = &mut stage.lab;
    lab.start_product(options.store())?;
    let nodes = lab.nodes().count();
    let pods = lab.nodes().map(|(_, node)| node.pods.len()).sum::<usize>();
    let names =
        lab.clusters.iter().map(|c| format!("{} (id {})", c.plan.name, c.plan.id)).collect::<Vec<_>>();
    let facts = Facts {
        lines: vec![
            format!("{}: {nodes} nodes, {pods} pods", names.join(", ")),
            "an API server in each cluster, an agent on each node; no pod reaches a remote pod".to_owned(),
        ],
        details: json!({ "clusters": names.len(), "nodes": nodes, "pods": pods }),
    };
    Ok((stage, facts))
}

/// Without Hawser no pod reaches a remote one.
pub(super) fn check_apart(lab: &Lab) -> Result<()> {
    let client = lab.cluster(HOME).pod("client");
    for cluster in lab.clusters.iter().filter(|cluster| cluster.plan.name != HOME) {
        let target = format!("{}:{POD_PORT}", cluster.pod("cart-0").plan.address);
        let report = client.ask(&Request::to(&target).requests(1).timeout(Duration::from_millis(500)))?;
        ensure!(report.ok == 0, "{target} of {} can be reached without Hawser", cluster.plan.name);
    }
    Ok(())
}

/// Act 2: bundles both ways for every pair, then everything synced and every tunnel answering.
pub(super) fn connect(stage: &mut Stage) -> Result<Facts> {
    let lab = &mut stage.lab;
    lab.connect_all()?;
    lab.wait_until_connected(CONNECT)?;
    let node = lab.cluster(HOME).node("node-1");
    let status = node.status()?;
    for cluster in &status.clusters {
        ensure!(cluster.revision > 0, "{} has no synced revision", cluster.name);
    }
    let tunnels = status.tunnels.iter().map(|t| {
        format!("{}/{}: {} us, handshake {} ms ago", t.cluster, t.node, t.rtt_us, t.last_handshake_ms_ago)
    });
    let tunnels: Vec<String> = tunnels.collect();
    let shakes = status.tunnels.iter().filter(|tunnel| tunnel.last_handshake_ms_ago >= 0).count();
    ensure!(shakes == status.tunnels.len(), "{shakes} of {} tunnels had a handshake", status.tunnels.len());
    let table = node.status_table()?;
    ensure!(
        table.contains("eu-west") && table.contains("ap-south"),
        "`hawser status` shows no peers:\n{table}"
    );
    Ok(Facts {
        lines: vec![format!("hawser status on {}:", node.name()), table],
        details: json!({ "tunnels": tunnels }),
    })
}

/// Act 3: one global service, asked for in one cluster, answered by all.
pub(super) fn serve(stage: &mut Stage) -> Result<Facts> {
    let requests = stage.options.requests();
    let lab = &mut stage.lab;
    lab.wait_until_served()?;
    let home = lab.cluster(HOME);
    let target = home.service_address();
    let request = Request::to(&target).requests(requests).concurrency(8).marker(MARKER);
    let report = home.pod("client").ask(&request)?;
    report.all_ok()?;
    ensure!(report.ok == requests, "{} of {requests} requests were made", report.ok);
    for cluster in &lab.clusters {
        let name = &cluster.plan.name;
        ensure!(report.from_cluster(name) > 0, "{name} answered nothing: {}", report.shares());
    }
    let peers: Vec<_> = report.peers.keys().collect();
    ensure!(peers == [&target], "getpeername says {peers:?}, and the client connected to {target}");
    let asker = home.pod("client").plan.address.to_string();
    let seen: Vec<_> = report.seen_as.keys().collect();
    ensure!(seen == [&asker], "servers saw {seen:?}, and the client is {asker}");
    let details = serde_json::to_value(&report.by_pod).context("the shares")?;
    Ok(Facts {
        lines: vec![
            format!("{requests} requests to {target}, a new connection each: none failed"),
            format!("answered by {}", report.shares()),
        ],
        details: json!({ "requests": requests, "byCluster": report.by_cluster, "byPod": details }),
    })
}
