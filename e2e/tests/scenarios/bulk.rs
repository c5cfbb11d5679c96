//! Much data on one connection, in superpackets all the way: pod, eBPF, tunnel, eBPF, pod.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use hawser_e2e::lab::Lab;
use hawser_e2e::plan::{LabPlan, POD_PORT};
use hawser_e2e::pod::server::pattern;
use hawser_e2e::scenario;

const BYTES: usize = 32 << 20;

/// Downloads from a pod of another cluster, past every MTU check that `bpf_redirect` skips.
fn download(lab: &Lab, from: &str, to: &str) -> Result<()> {
    let remote = lab.cluster(from).pod("cart-0").plan.address;
    let url = format!("http://{remote}:{POD_PORT}/bytes/{BYTES}");
    let mut curl: Command = lab.cluster(to).pod("client").place.command("curl");
    let answer = curl.args(["--silent", "--show-error", "--max-time", "60", &url]).output();
    let answer = answer.context("curl is needed for this test")?;
    ensure!(answer.status.success(), "curl: {}", String::from_utf8_lossy(&answer.stderr));
    ensure!(answer.stdout == pattern(BYTES), "what arrived is not what was sent");
    Ok(())
}

#[test]
fn much_data_arrives_as_it_was_sent_in_both_directions() {
    scenario::run_with_product(|| {
        let lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        download(&lab, "eu-west", "us-east")?;
        download(&lab, "us-east", "eu-west")?;
        for (cluster, node) in lab.nodes() {
            let status = node.status()?;
            let too_big =
                status.drops().find(|reason| reason.packets > 0 && reason.reason.contains("too-big"));
            ensure!(too_big.is_none(), "{}: {too_big:?}", cluster.plan.name);
        }
        Ok(())
    });
}
