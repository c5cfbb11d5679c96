//! Clients outside enter a global service at a node that was opted in: by its NodePort, and by the ClusterIP as a gateway sends it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_e2e::lab::Lab;
use hawser_e2e::plan::LabPlan;
use hawser_e2e::pod::client::{Report, Request, run as ask};
use hawser_e2e::process::{run, run_with_input};
use hawser_e2e::scenario;

const PATIENCE: Duration = Duration::from_secs(20);
const NODE_PORT: u16 = 30_080;

/// What kube-proxy has for packets with its mark, in each of its modes; and a CNI lets nodes reach pods.
const KUBE_PROXY: &str = "*filter\n-A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
    -A FORWARD -i eth0 -o cali+ -s 172.16.1.0/24 -j ACCEPT\nCOMMIT\n\
    *nat\n-A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE\nCOMMIT\n";

fn from_outside(lab: &Lab, target: &str) -> Result<Report> {
    ask(&lab.stranger, &Request::to(target).requests(60).concurrency(4).timeout(Duration::from_secs(1)))
}

fn opt_in(lab: &mut Lab) -> Result<()> {
    for node in ["node-1", "node-2"] {
        let place = &lab.cluster("us-east").node(node).place;
        run_with_input(place.command("iptables-restore").args(["-w", "--noflush"]), KUBE_PROXY)?;
    }
    let node = lab.cluster_mut("us-east").node_mut("node-1");
    node.agent().terminate(Duration::from_secs(20))?;
    node.place.write("/etc/hawser/agent.yaml", "node: node-1\nnodePort: { devices: [eth0] }\n")?;
    node.start_agent()?;
    node.wait_for_agent()
}

#[test]
fn a_client_outside_is_served_by_all_clusters_at_a_nodes_port_and_through_a_gateway_once_the_node_is_opted_in()
 {
    scenario::run_with_product(|| {
        let mut lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 2))?;
        lab.cluster_mut("us-east").set_node_port(Some(NODE_PORT))?;
        let (node, by_ip) = {
            let us = lab.cluster("us-east");
            (us.node("node-1").plan.address.to_string(), us.service_address())
        };
        let by_port = format!("{node}:{NODE_PORT}");
        let one = Request::to(&by_port).requests(1).timeout(Duration::from_millis(500));
        ensure!(ask(&lab.stranger, &one)?.ok == 0, "nobody has opted in");
        opt_in(&mut lab)?;
        let ip = lab.cluster("us-east").plan.service_ip().to_string();
        run(lab.stranger.command("ip").args(["route", "add", &ip, "via", &node]))?;
        for target in [&by_port, &by_ip] {
            lab.wait(&format!("every pod of both clusters answers at {target}"), PATIENCE, |lab| {
                let report = from_outside(lab, target)?;
                report.all_ok().with_context(|| format!("{:?} answered", report.by_pod))?;
                ensure!(report.by_pod.len() == 4, "{:?}", report.by_pod);
                Ok(())
            })?;
        }
        let mesh = lab.cluster("us-east").node("node-1").status()?.mesh_ipv4;
        for (affinity, cluster, seen) in [("remote", "eu-west", mesh), ("local", "us-east", node)] {
            lab.cluster_mut("us-east").set_affinity(Some(affinity))?;
            let report = lab.wait(&format!("only {cluster} answers"), PATIENCE, |lab| {
                let report = from_outside(lab, &by_port)?;
                report.all_ok()?;
                ensure!(report.from_cluster(cluster) == report.ok, "{}", report.shares());
                Ok(report)
            })?;
            ensure!(report.seen_as.keys().eq([&seen]), "seen as {:?}, not {seen}", report.seen_as);
        }
        Ok(())
    });
}
