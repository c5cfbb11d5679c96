//! An API server dies and comes back: nothing is lost, nobody notices.

use std::time::Duration;

use anyhow::{Result, ensure};
use hawser_e2e::lab::Lab;
use hawser_e2e::plan::LabPlan;
use hawser_e2e::pod::client::Request;
use hawser_e2e::scenario;

const PATIENCE: Duration = Duration::from_secs(20);

/// The revision of us-east that the agent of `cluster` has seen.
fn revision_seen_in(lab: &Lab, cluster: &str) -> Result<i64> {
    let status = lab.cluster(cluster).node("node-1").status()?;
    Ok(status.clusters.iter().find(|c| c.name == "us-east").map_or(0, |c| c.revision))
}

#[test]
fn an_api_server_that_is_killed_loses_nothing_and_everyone_resumes() {
    scenario::run_with_product(|| {
        let mut lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        let before = revision_seen_in(&lab, "eu-west")?;
        ensure!(before > 0, "eu-west has seen nothing of us-east");
        let target = lab.cluster("us-east").service_address();
        let load = Request::to(&target).concurrency(2).every(Duration::from_millis(20));
        let load = lab.cluster("us-east").pod("client").keep_asking(&load)?;

        lab.cluster_mut("us-east").api_server().kill()?;
        // What changes while it is away is not lost either.
        lab.cluster_mut("us-east").set_endpoints(false)?;
        lab.cluster_mut("us-east").start_api_server()?;
        lab.cluster_mut("us-east").wait_for_api_server()?;
        lab.wait_until_served()?;
        lab.wait_until_connected(PATIENCE)?;
        lab.wait("eu-west has seen a newer revision of us-east", PATIENCE, |lab| {
            let after = revision_seen_in(lab, "eu-west")?;
            ensure!(after > before, "revisions went from {before} to {after}");
            Ok(())
        })?;

        lab.cluster_mut("us-east").set_endpoints(true)?;
        lab.wait_until_served()?;
        let report = load.stop()?;
        report.all_ok()?;
        ensure!(report.by_cluster.len() == 2, "both clusters answered: {}", report.shares());
        Ok(())
    });
}
