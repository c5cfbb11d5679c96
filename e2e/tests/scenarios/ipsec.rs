//! A mesh that encrypts with IPsec, by the real binaries: in user space here, in the kernel where `HAWSER_LAB_IPSEC` says so
//! (`make test-vm`).

use std::time::Duration;

use anyhow::ensure;
use hawser_e2e::lab::{Lab, Store};
use hawser_e2e::net::secrecy::Secrecy;
use hawser_e2e::net::sniffer::Sniffer;
use hawser_e2e::plan::LabPlan;
use hawser_e2e::pod::client::Request;
use hawser_e2e::scenario;

const MARKER: &str = "cargo-under-esp-51c0";
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn services_are_reached_over_esp_and_nothing_else_is_on_the_wire() {
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
        let status = us.node("node-1").status_table()?;
        ensure!(status.contains("IPsec by") && status.contains("tunnel MTU 1420"), "{status}");

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
