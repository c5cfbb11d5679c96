//! Decision 8: the own API server is down and local pods are rolled. Hawser adds no new way for local traffic to fail.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_e2e::lab::{Lab, Node};
use hawser_e2e::plan::{LabPlan, POD_PORT};
use hawser_e2e::pod::client::{Report, Request};
use hawser_e2e::process::run;
use hawser_e2e::{scenario, wait};

const PATIENCE: Duration = Duration::from_secs(40);

/// What kube-proxy writes on a node for a service with one endpoint. Its API server is another one than ours.
fn kube_proxy(node: &Node, service: &str, pod: &str) -> Result<()> {
    let (address, port) = service.split_once(':').context("address:port")?;
    let rule = ["-d", address, "-p", "tcp", "--dport", port, "-j", "DNAT", "--to-destination", pod];
    let mut command = node.place.command("iptables");
    run(command.args(["-w", "-t", "nat", "-A", "PREROUTING"]).args(rule)).map(drop)
}

fn ask(lab: &Lab) -> Result<Report> {
    let us = lab.cluster("us-east");
    let request = Request::to(&us.service_address()).requests(40).timeout(Duration::from_millis(500));
    us.pod("client").ask(&request)
}

fn own_stale(lab: &Lab) -> Result<u64> {
    let status = lab.cluster("us-east").node("node-1").status()?;
    Ok(status.reasons.iter().find(|r| r.reason == "connect-own-stale").map_or(0, |r| r.packets))
}

#[test]
fn while_the_own_api_server_is_down_and_local_pods_are_rolled_local_traffic_goes_as_without_hawser() {
    scenario::run_with_product(|| {
        let mut lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 2))?;
        lab.cluster_mut("us-east").set_affinity(Some("local"))?;
        lab.wait("all requests stay at home", PATIENCE, |lab| {
            let report = ask(lab)?;
            report.all_ok()?;
            ensure!(report.by_pod.len() == 2 && report.by_cluster.len() == 1, "{:?}", report.by_pod);
            Ok(())
        })?;
        ensure!(own_stale(&lab)? == 0, "Hawser left a connection alone while all was well");

        lab.cluster_mut("us-east").api_server().kill()?;
        lab.cluster_mut("us-east").kill_server("cart-0")?;
        let us = lab.cluster("us-east");
        let left = format!("{}:{POD_PORT}", us.pod("cart-1").plan.address);
        kube_proxy(us.node("node-1"), &us.service_address(), &left)?;
        let report = wait::until("the pod that is left answers everything", PATIENCE, || {
            let report = ask(&lab)?;
            report.all_ok()?;
            Ok(report)
        })?;
        let pods: Vec<_> = report.by_pod.keys().collect();
        ensure!(pods == ["us-east/cart-1"], "{pods:?} answered");
        ensure!(own_stale(&lab)? >= 40, "that was not by leaving it to kube-proxy");

        // Whoever spreads over all clusters goes on using the others, as before.
        lab.cluster_mut("us-east").start_api_server()?;
        lab.cluster_mut("us-east").wait_for_api_server()?;
        lab.wait("the agent speaks for the own cluster again", PATIENCE, |lab| {
            let before = own_stale(lab)?;
            ask(lab)?;
            ensure!(own_stale(lab)? == before, "connections are still left alone");
            Ok(())
        })
    })
}
