//! A mesh that encrypts with IPsec, by the real binaries: in user space here, in the kernel where `HAWSER_LAB_IPSEC` says so
//! (in QEMU: docs/src/development/lab.md).

use std::time::Duration;

use anyhow::{Result, ensure};
use hawser_e2e::lab::{Lab, Store};
use hawser_e2e::net::echo::Echoes;
use hawser_e2e::net::secrecy::Secrecy;
use hawser_e2e::net::sniffer::Sniffer;
use hawser_e2e::plan::LabPlan;
use hawser_e2e::pod::client::Request;
use hawser_e2e::{scenario, wait};

const MARKER: &str = "cargo-under-esp-51c0";
const PATIENCE: Duration = Duration::from_secs(30);
const EVERY: Duration = Duration::from_millis(20);

#[test]
fn services_are_reached_over_esp_alone_and_secrets_change_meanwhile_without_a_packet_lost() {
    scenario::run_with_product(|| {
        let plan = LabPlan::regions(&["us-east", "eu-west"], 1);
        let bridges: Vec<String> = plan.clusters.iter().map(|cluster| cluster.bridge()).collect();
        let mut lab = Lab::build(plan)?;
        for cluster in &mut lab.clusters {
            cluster.ipsec.get_or_insert_with(|| "userspace".to_owned());
        }
        let capture = Sniffer::start(None, &bridges, Secrecy::watching_for(MARKER).over_ipsec())?;
        lab.start_product(Store::Embedded)?;
        lab.connect_all()?;
        lab.wait_until_connected(PATIENCE)?;
        lab.wait_until_served()?;
        let us = lab.cluster("us-east");
        let request = Request::to(&us.service_address()).requests(40).concurrency(4).marker(MARKER);
        let report = us.pod("client").ask(&request)?;
        report.all_ok()?;
        ensure!(report.by_cluster.len() == 2, "both clusters answer: {}", report.shares());
        says(&mut lab, &["IPsec by", "tunnel MTU 1418", "sends to 1 tunnels by epoch 1 alone"])?;

        change_secrets(&mut lab)?;

        // What the last run left is what the next one wants, whoever carried meanwhile.
        let node = lab.cluster_mut("us-east").node_mut("node-1");
        node.agent().terminate(PATIENCE)?;
        node.start_agent()?;
        node.wait_for_agent()?;
        lab.wait_until_connected(PATIENCE)?;
        lab.wait_until_served()?;
        lab.cluster("us-east").pod("client").ask(&request)?.all_ok()?;

        let seen = capture.stop()?;
        ensure!(seen.violation_count == 0, "left in clear: {:#?}", seen.violations);
        ensure!(seen.esp > 0 && seen.marker_seen == 0, "{} packets of ESP", seen.esp);
        Ok(())
    });
}

/// The operator's whole way from one secret to the next, and an agent that is replaced in the middle of it: under connections
/// that are kept, new ones, and a flow of which every packet counts.
fn change_secrets(lab: &mut Lab) -> Result<()> {
    let us = lab.cluster("us-east");
    let load = Request::to(&us.service_address()).every(EVERY).marker(MARKER);
    // So many that some of them are to the other cluster.
    let kept = load.clone().keep_alive().concurrency(8).every(EVERY * 8);
    let (kept, new) = (us.pod("client").keep_asking(&kept)?, us.pod("client").keep_asking(&load)?);
    let there = lab.cluster("eu-west").node("node-1").status()?.mesh_ipv4;
    let echoes = Echoes::start(&us.node("node-1").place, &there, EVERY, &lab.inside.dir)?;

    lab.change_secret("rotate")?;
    let node = lab.cluster_mut("us-east").node_mut("node-1");
    let mut before = node.succeed_agent()?;
    wait::until("the agent is superseded", PATIENCE, || {
        before.check_alive()?;
        ensure!(std::fs::read_to_string(before.log())?.contains("superseded"), "it has not said so");
        Ok(())
    })?;
    node.wait_for_agent()?;
    before.terminate(PATIENCE)?;
    says(lab, &["sends to 1 tunnels by epoch 2 alone; receives by 1.1, 2.2 (epoch.turn)"])?;
    lab.change_secret("retire")?;
    says(lab, &["epoch 2 alone; receives by 2.2 (epoch.turn), and until they are silent by 1.1"])?;

    let seen = echoes.end()?;
    ensure!(seen.lost == 0, "{} of {} packets were lost, {:?} long", seen.lost, seen.sent, seen.gap);
    kept.stop()?.all_ok()?;
    let new = new.stop()?;
    new.all_ok()?;
    ensure!(new.from_cluster("eu-west") > 0, "eu-west answered nothing: {}", new.shares());
    Ok(())
}

/// Waits until `hawser status` on both nodes does.
fn says(lab: &mut Lab, parts: &[&str]) -> Result<()> {
    lab.wait("both nodes' status says so", PATIENCE, |lab| {
        for (_, node) in lab.nodes() {
            let status = node.status_table()?;
            for part in parts {
                ensure!(status.contains(part), "{part:?} is not in what {} says: {status}", node.name());
            }
        }
        Ok(())
    })
}

#[test]
fn a_mixed_mesh_is_refused_at_connect_and_both_sides_are_named() {
    scenario::run_with_product(|| {
        let mut lab = Lab::build(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        lab.cluster_mut("us-east").ipsec.get_or_insert_with(|| "userspace".to_owned());
        lab.cluster_mut("eu-west").ipsec = None;
        lab.start_product(Store::Embedded)?;
        lab.cluster("eu-west").carry_bundle(lab.cluster("us-east"))?;
        let refused = lab.cluster("us-east").hawser(&["connect", "/etc/hawser/bundles/eu-west.yaml"])?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(!refused.status.success(), "it was let in");
        for part in ["encryption is wireguard at cluster eu-west", "ipsec here"] {
            ensure!(said.contains(part), "{part:?} is not in: {said}");
        }
        Ok(())
    });
}
