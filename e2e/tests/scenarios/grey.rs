//! Grey failures: probes are answered, and users' connections or their large packets are not. The node weighs less until it is well.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_e2e::lab::Lab;
use hawser_e2e::plan::{ClusterPlan, LabPlan, POD_PORT};
use hawser_e2e::pod::client::{self, Report, Request, unix_ms};
use hawser_e2e::process::{output, run};
use hawser_e2e::scenario;
use hawser_e2e::status::TunnelStatus;

/// Large packets are tried every 10 s, and a step back takes as long without a failure.
const PATIENCE: Duration = Duration::from_secs(40);
const US: &str = "us-east";
const EU: &str = "eu-west";
/// Its pod hears no user; what is on the way to the other loses packets as large as users', and says nothing about it.
const DEAF: (&str, &str) = ("node-2", "cart-1");
const HOLE: (&str, &str) = ("node-3", "cart-2");
/// Weights: all of it, and the first and the last step down.
const STEPS: [u32; 3] = [256, 64, 16];

fn deaf(lab: &Lab, verb: &str) -> Result<()> {
    let mut command = lab.cluster(EU).pod(DEAF.1).place.command("iptables");
    let port = POD_PORT.to_string();
    run(command.args(["-w", verb, "INPUT", "-p", "tcp", "--dport", &port, "-j", "DROP"])).map(drop)
}

/// The router drops, both ways, what is larger than 1,400 octets: an ICMP error that would say so is filtered as well.
fn black_hole(lab: &Lab, verb: &str) -> Result<()> {
    let address = lab.cluster(EU).node(HOLE.0).plan.address.to_string();
    for way in ["-s", "-d"] {
        let mut command = Command::new("iptables");
        command
            .args(["-w", verb, "FORWARD", way, &address, "-m", "length", "--length", "1401:", "-j", "DROP"]);
        run(&mut command)?;
    }
    Ok(())
}

fn tunnel(lab: &Lab, node: &str) -> Result<TunnelStatus> {
    let status = lab.cluster(US).node("node-1").status()?;
    status.tunnels.into_iter().find(|tunnel| tunnel.node == node).context("a tunnel to every node")
}

fn weighs(lab: &Lab, node: &str, at_most: u32, why: &str) -> Result<()> {
    let tunnel = tunnel(lab, node)?;
    let so = tunnel.health == "up" && tunnel.weight <= at_most && tunnel.health_reason.contains(why);
    ensure!(so, "{tunnel:?}");
    Ok(())
}

fn is_well(lab: &Lab, node: &str) -> Result<()> {
    let tunnel = tunnel(lab, node)?;
    ensure!(tunnel.health == "up" && tunnel.weight == STEPS[0], "{tunnel:?}");
    Ok(())
}

/// 150 connections, begun from now on.
fn ask(lab: &Lab) -> Result<Report> {
    let us = lab.cluster(US);
    let request = Request::to(&us.service_address()).requests(150).concurrency(16);
    us.pod("client").ask(&request.timeout(Duration::from_millis(1_200)))
}

/// Whether a user gets a large answer from the pod behind the black hole.
fn large_arrive(lab: &Lab) -> Result<bool> {
    let url = format!("http://{}:{POD_PORT}/bytes/50000", lab.cluster(EU).pod(HOLE.1).plan.address);
    let mut curl = lab.cluster(US).pod("client").place.command("curl");
    Ok(output(curl.args(["--silent", "--max-time", "2", "--output", "/dev/null", &url]))?.status.success())
}

#[test]
fn a_node_that_fails_its_users_and_one_behind_an_mtu_black_hole_answer_probes_and_weigh_less_until_they_are_well()
 {
    scenario::run_with_product(|| {
        let clusters = vec![ClusterPlan::new(US, 1, 1), ClusterPlan::new(EU, 2, 3)];
        let mut lab = Lab::connected(LabPlan { clusters })?;
        lab.cluster_mut(US).set_endpoints(false)?;
        lab.wait_until_served()?;
        ensure!(large_arrive(&lab)?, "while all is well");
        let began_ms = unix_ms();
        deaf(&lab, "-I")?;
        black_hole(&lab, "-I")?;
        ensure!(!large_arrive(&lab)?, "it is no black hole");
        // One client that is not let out speaks for no node: two ask, a pod and the node itself.
        let us = lab.cluster(US);
        let load = Request::to(&us.service_address()).concurrency(4).every(Duration::from_millis(200));
        let load = load.timeout(Duration::from_millis(1_500));
        let of_pod = us.pod("client").keep_asking(&load)?;
        let of_node = client::start(&us.node("node-1").place, &load)?;
        lab.wait("the one whose users fail weighs less", PATIENCE, |lab| {
            weighs(lab, DEAF.0, STEPS[1], "users' connections time out")
        })?;
        let report = ask(&lab)?;
        // A third is its share, and a ninth what is left of it.
        ensure!(report.failed <= 150 / 5, "{} of 150 were sent to it: {:?}", report.failed, report.by_pod);
        deaf(&lab, "-D")?;

        lab.wait("the one that large packets do not reach weighs least", PATIENCE, |lab| {
            weighs(lab, HOLE.0, STEPS[2], "MTU black hole")
        })?;
        let small = ask(&lab)?.by_pod.get("eu-west/cart-2").copied().unwrap_or(0);
        ensure!(small <= 150 / 6, "{small} of 150 were sent to it");
        black_hole(&lab, "-D")?;
        lab.wait("both are well", PATIENCE, |lab| {
            is_well(lab, DEAF.0)?;
            is_well(lab, HOLE.0)
        })?;
        of_pod.stop()?;
        of_node.stop()?;
        let report = ask(&lab)?;
        report.all_ok()?;
        let shares: Vec<_> = report.by_pod.values().collect();
        ensure!(shares.len() == 3 && shares.iter().all(|share| **share >= 150 / 6), "{:?}", report.by_pod);
        ensure!(large_arrive(&lab)?, "healed");
        for about in [EU, "eu-west/node-2", "eu-west/node-3"] {
            let said = lab.cluster(US).node("node-1").status()?.said(about, began_ms);
            ensure!(!said.iter().any(|to| to == "down"), "it was given up: {about}: {said:?}");
        }
        Ok(())
    });
}
