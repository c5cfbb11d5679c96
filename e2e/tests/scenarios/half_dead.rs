//! Half the nodes of a cluster are dead: it stays up, and the other half gets its traffic.

use std::time::Duration;

use anyhow::ensure;
use hawser_e2e::lab::Lab;
use hawser_e2e::plan::{ClusterPlan, LabPlan};
use hawser_e2e::pod::client::{Request, unix_ms};
use hawser_e2e::process::run;
use hawser_e2e::scenario;

const PATIENCE: Duration = Duration::from_secs(20);
const DEAD: [&str; 2] = ["node-3", "node-4"];

#[test]
fn half_the_nodes_of_a_cluster_die_and_the_other_half_serves_what_is_opened_from_then_on() {
    scenario::run_with_product(|| {
        let clusters = vec![ClusterPlan::new("us-east", 1, 1), ClusterPlan::new("eu-west", 2, 4)];
        let mut lab = Lab::connected(LabPlan { clusters })?;
        // All that there is, is there.
        lab.cluster_mut("us-east").set_endpoints(false)?;
        lab.wait_until_served()?;
        let target = lab.cluster("us-east").service_address();
        let load = Request::to(&target).concurrency(16).every(Duration::from_millis(50));
        let load = lab.cluster("us-east").pod("client").keep_asking(&load)?;
        let died_ms = unix_ms();
        for node in DEAD {
            let place = &lab.cluster("eu-west").node(node).place;
            run(place.command("ip").args(["link", "set", "eth0", "down"]))?;
        }
        lab.wait("both dead nodes are down", PATIENCE, |lab| {
            let status = lab.cluster("us-east").node("node-1").status()?;
            for node in DEAD {
                let tunnel = status.tunnels.iter().find(|tunnel| tunnel.node == node);
                ensure!(tunnel.is_some_and(|tunnel| tunnel.health == "down"), "{tunnel:?}");
            }
            Ok(())
        })?;
        let shifted_ms = unix_ms();
        let request = Request::to(&target).requests(400).concurrency(8).every(Duration::from_millis(20));
        let report = lab.cluster("us-east").pod("client").ask(&request)?;
        report.all_ok()?;
        let mut pods: Vec<_> = report.by_pod.keys().map(String::as_str).collect();
        pods.sort_unstable();
        ensure!(pods == ["eu-west/cart-0", "eu-west/cart-1"], "{:?}", report.by_pod);
        let load = load.stop()?;
        let late: Vec<_> = load.records.iter().filter(|record| record.opened_ms > shifted_ms).collect();
        let failed = late.iter().find(|record| record.error.is_some());
        ensure!(!late.is_empty() && failed.is_none(), "opened after the shift: {failed:?} of {}", late.len());

        let status = lab.cluster("us-east").node("node-1").status()?;
        let eu = status.clusters.iter().find(|cluster| cluster.name == "eu-west");
        ensure!(eu.is_some_and(|eu| eu.data_plane == "up" && eu.standing == "degraded"), "{eu:?}");
        let of_cluster = status.said("eu-west", died_ms);
        ensure!(of_cluster.is_empty(), "the cluster was given up: {of_cluster:?}");
        Ok(())
    });
}
