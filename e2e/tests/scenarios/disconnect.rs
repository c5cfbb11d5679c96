//! Leaving the mesh is orderly: first no new connections, then no routes and tunnels.

use std::time::Duration;

use anyhow::ensure;
use hawser_e2e::lab::Lab;
use hawser_e2e::plan::LabPlan;
use hawser_e2e::pod::client::Request;
use hawser_e2e::process::run;
use hawser_e2e::scenario;

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_disconnected_cluster_is_drained_and_no_new_connection_fails() {
    scenario::run_with_product(|| {
        let mut lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        let target = lab.cluster("us-east").service_address();
        let load = Request::to(&target).concurrency(4).every(Duration::from_millis(10));
        let load = lab.cluster("us-east").pod("client").keep_asking(&load)?;
        lab.cluster("us-east").hawser_ok(&["disconnect", "eu-west"])?;
        lab.wait("eu-west is gone from us-east", PATIENCE, |lab| {
            let node = lab.cluster("us-east").node("node-1");
            ensure!(node.service_view()?.backends_of("eu-west") == 0, "backends of eu-west are listed");
            let status = node.status()?;
            ensure!(status.clusters.iter().all(|cluster| cluster.name != "eu-west"), "eu-west is listed");
            ensure!(status.tunnels.is_empty(), "there are tunnels: {:?}", status.tunnels);
            let routes = run(node.place.command("ip").args(["route", "show", "table", "all"]))?;
            let mut to_pods = routes.lines().filter(|route| route.contains("10.2."));
            // What still speaks to them does not leave in clear.
            let guarded = to_pods.all(|route| route.starts_with("unreachable "));
            ensure!(guarded && routes.contains("10.2."), "there are routes to its pods:\n{routes}");
            node.settled()
        })?;
        let report = load.stop()?;
        report.all_ok()?;
        ensure!(report.from_cluster("eu-west") > 0, "eu-west never answered, so nothing was drained");

        let home = Request::to(&target).requests(30);
        let report = lab.cluster("us-east").pod("client").ask(&home)?;
        report.all_ok()?;
        ensure!(report.from_cluster("us-east") == 30, "{}", report.shares());
        Ok(())
    });
}
