//! Stop is not remove: two verbs, two tests. And an agent serves before its API server is back (fail static).

use std::time::Duration;

use anyhow::{Result, ensure};
use hawser_e2e::lab::{Lab, Node};
use hawser_e2e::plan::LabPlan;
use hawser_e2e::pod::client::Request;
use hawser_e2e::process::{output, run, said};
use hawser_e2e::{binaries, scenario, wait};

const PATIENCE: Duration = Duration::from_secs(20);

/// Device, routes, rules and pins of the agent on this node, each in a line. A TUN device without a process has no carrier,
/// which its routes show and which does not matter.
fn kernel_state(node: &Node) -> Result<String> {
    let script = "ip -o link show hawser0 2>/dev/null | cut -d: -f2; \
        ip route show proto 72 | sed 's/ linkdown//'; ip -6 route show proto 72 | sed 's/ linkdown//'; \
        find /sys/fs/bpf/hawser -type f 2>/dev/null | sort";
    let text = run(node.place.command("sh").args(["-c", &format!("{script}; true")]))?;
    Ok(text.trim().to_owned())
}

fn both_answer(lab: &Lab) -> Result<()> {
    let target = lab.cluster("us-east").service_address();
    let request = Request::to(&target).requests(40).concurrency(4).timeout(Duration::from_secs(2));
    let report = lab.cluster("us-east").pod("client").ask(&request)?;
    report.all_ok()?;
    ensure!(report.by_cluster.len() == 2, "both clusters answer: {}", report.shares());
    Ok(())
}

/// While nobody can say who is at home, local picks are kube-proxy's (decision 8), which this lab has not.
fn the_other_answers(lab: &Lab) -> Result<()> {
    let us = lab.cluster("us-east");
    let request = Request::to(&us.service_address()).requests(20).concurrency(4);
    let report = us.pod("client").ask(&request.timeout(Duration::from_millis(500)))?;
    ensure!(report.from_cluster("eu-west") > 0, "{} of {} failed", report.failed, report.total());
    Ok(())
}

#[test]
fn a_stopped_agent_leaves_everything_and_its_successor_serves_without_the_api_server() {
    scenario::run_with_product(|| {
        let mut lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        both_answer(&lab)?;
        let before = kernel_state(lab.cluster("us-east").node("node-1"))?;
        lab.cluster_mut("us-east").node_mut("node-1").agent().terminate(PATIENCE)?;
        let after = kernel_state(lab.cluster("us-east").node("node-1"))?;
        ensure!(before == after, "stopping changed the kernel's state:\nbefore\n{before}\nafter\n{after}");
        ensure!(before.contains("hawser0") && before.contains("/links/"), "nothing was there: {before}");

        lab.cluster_mut("us-east").api_server().kill()?;
        lab.cluster_mut("us-east").node_mut("node-1").start_agent()?;
        wait::until("the other cluster answers without the API server", PATIENCE, || {
            the_other_answers(&lab)
        })?;
        // A device that is told of before the first look has the guard of any device until then.
        wait::until("the kernel's state is what it was", PATIENCE, || {
            let now = kernel_state(lab.cluster("us-east").node("node-1"))?;
            ensure!(before == now, "the start changed it:\nbefore\n{before}\nnow\n{now}");
            Ok(())
        })?;

        lab.cluster_mut("us-east").start_api_server()?;
        lab.cluster_mut("us-east").wait_for_api_server()?;
        lab.wait_until_connected(PATIENCE)?;
        lab.wait_until_served()?;
        both_answer(&lab)
    });
}

#[test]
fn a_removed_agent_leaves_nothing_and_can_come_back() {
    scenario::run_with_product(|| {
        let mut lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        let remove = |lab: &Lab| {
            let node = lab.cluster("us-east").node("node-1");
            let mut command = node.place.command(binaries::find("hawser-node-agent")?);
            output(command.args(["--config", "/etc/hawser/agent.yaml", "--remove"]))
        };
        let refused = remove(&lab)?;
        ensure!(!refused.status.success(), "removed under a running agent: {}", said(&refused));
        ensure!(said(&refused).contains("another hawser-node-agent is running"), "{}", said(&refused));

        lab.cluster_mut("us-east").node_mut("node-1").agent().terminate(PATIENCE)?;
        let removed = remove(&lab)?;
        ensure!(removed.status.success(), "{}", said(&removed));
        let left = kernel_state(lab.cluster("us-east").node("node-1"))?;
        ensure!(left.is_empty(), "left behind:\n{left}");

        lab.cluster_mut("us-east").node_mut("node-1").start_agent()?;
        lab.wait_until_connected(PATIENCE)?;
        lab.wait_until_served()?;
        both_answer(&lab)
    });
}
