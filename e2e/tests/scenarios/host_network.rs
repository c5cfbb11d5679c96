//! Programs of the host network are clients and backends of global services as pods are.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_e2e::lab::{Lab, recent_logs};
use hawser_e2e::plan::{LabPlan, POD_PORT};
use hawser_e2e::pod::client::{Report, Request, run as ask};
use hawser_e2e::process::Process;
use hawser_e2e::{binaries, scenario, wait};

const PATIENCE: Duration = Duration::from_secs(20);
const SLICES: &str = "/etc/hawser/manifests/endpointslices.yaml";
const PODS: &str = "/etc/hawser/manifests/pods.yaml";

fn from(lab: &Lab, who: &str) -> Result<Report> {
    let us = lab.cluster("us-east");
    let request =
        Request::to(&us.service_address()).requests(40).concurrency(4).timeout(Duration::from_secs(1));
    match who {
        "the node" => ask(&us.node("node-1").place, &request),
        pod => us.pod(pod).ask(&request),
    }
}

/// The backend of eu-west is a pod of its node's host network from now on: its address is the node's.
fn move_to_host_network(lab: &Lab) -> Result<Process> {
    let eu = lab.cluster("eu-west");
    let (node, pod) = (eu.node("node-1"), &eu.pod("cart-0").plan);
    let mut command: Command = node.place.command(binaries::find("hawser-lab")?);
    command.args(["pod-server", "--cluster", "eu-west", "--node", "node-1", "--pod", "host-0"]);
    command.args(["--port", &POD_PORT.to_string()]);
    let server = Process::start("eu-west/node-1/host-0", command, &lab.inside.dir)?;
    let moved = |file: &str| -> Result<String> {
        Ok(node.place.read(file)?.replace(&pod.address.to_string(), &node.plan.address.to_string()))
    };
    node.place.write(SLICES, &moved(SLICES)?)?;
    // The client of that cluster stays where it is.
    let pods =
        moved(PODS)?.replacen("    nodeName: node-1\n", "    hostNetwork: true\n    nodeName: node-1\n", 1);
    node.place.write(PODS, &pods)?;
    Ok(server)
}

#[test]
fn a_program_of_the_host_network_asks_a_global_service_and_is_served_by_every_cluster_and_seen_as_its_mesh_address()
 {
    scenario::run_with_product(|| {
        let lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        let report = from(&lab, "the node")?;
        report.all_ok()?;
        ensure!(report.by_cluster.len() == 2, "{}", report.shares());
        let peers: Vec<_> = report.peers.keys().cloned().collect();
        ensure!(peers == [lab.cluster("us-east").service_address()], "getpeername says {peers:?}");
        let mesh = lab.cluster("us-east").node("node-1").status()?.mesh_ipv4;
        ensure!(
            report.seen_as.contains_key(&mesh),
            "the other cluster sees {:?}, not {mesh}",
            report.seen_as
        );
        Ok(())
    });
}

#[test]
fn a_pod_of_the_host_network_is_a_backend_that_other_clusters_reach_through_the_tunnel() {
    scenario::run_with_product(|| {
        let mut lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        let server = move_to_host_network(&lab)?;
        let mesh: Ipv4Addr = lab.cluster("eu-west").node("node-1").status()?.mesh_ipv4.parse()?;
        lab.wait("us-east knows the backend by its mesh address", PATIENCE, |lab| {
            let view = lab.cluster("us-east").node("node-1").service_view()?;
            let known = view.backends().find(|backend| backend.cluster == "eu-west");
            let address = mesh.to_string();
            ensure!(known.is_some_and(|known| known.address == address), "{known:?}, not {address}");
            lab.nodes().try_for_each(|(_, node)| node.settled())
        })?;
        for who in ["client", "the node"] {
            let report = wait::until(&format!("both clusters answer {who}"), PATIENCE, || {
                let report = from(&lab, who)?;
                report.all_ok()?;
                ensure!(report.by_cluster.len() == 2, "{}", report.shares());
                Ok(report)
            });
            let report = report.with_context(|| recent_logs(&lab.inside.dir))?;
            let pods: Vec<_> = report.by_pod.keys().cloned().collect();
            ensure!(pods == ["eu-west/host-0", "us-east/cart-0"], "{pods:?}");
        }
        // What the service does not export stays closed, also on the host.
        let closed = Request::to(&format!("{mesh}:22")).requests(1).timeout(Duration::from_millis(500));
        let report = lab.cluster("us-east").pod("client").ask(&closed)?;
        ensure!(report.ok == 0, "a port that nobody exports");
        let drops = lab.cluster("eu-west").node("node-1").status()?;
        let dropped = drops.drops().find(|drop| drop.reason == "tunnel-in-node-not-exported");
        ensure!(dropped.is_some_and(|drop| drop.packets > 0), "{dropped:?}");
        drop(server);
        Ok(())
    });
}
