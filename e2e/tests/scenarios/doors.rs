//! A mesh opens no door: only exported ports can be reached from another cluster.

use std::time::Duration;

use anyhow::{Result, ensure};
use hawser_e2e::lab::Lab;
use hawser_e2e::plan::{LabPlan, POD_PORT, PRIVATE_PORT};
use hawser_e2e::pod::client::{self, Report, Request};
use hawser_e2e::process::Process;
use hawser_e2e::{binaries, scenario, wait};

const HOST_PORT: u16 = 8000;

fn ask(lab: &Lab, target: &str) -> Result<Report> {
    let request = Request::to(target).requests(3).timeout(Duration::from_secs(1));
    lab.cluster("us-east").pod("client").ask(&request)
}

#[test]
fn only_exported_ports_of_a_pod_can_be_reached_from_another_cluster() {
    scenario::run_with_product(|| {
        let lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        let remote = lab.cluster("eu-west").pod("cart-0").plan.address;
        let exported = ask(&lab, &format!("{remote}:{POD_PORT}"))?;
        exported.all_ok()?;
        let seen: Vec<_> = exported.seen_as.keys().collect();
        ensure!(seen == ["10.1.1.20"], "the pod's own address arrives, not {seen:?}");

        let dropped = |lab: &Lab| -> Result<u64> {
            let status = lab.cluster("eu-west").node("node-1").status()?;
            Ok(status.drops().map(|reason| reason.packets).sum())
        };
        let before = dropped(&lab)?;
        let private = ask(&lab, &format!("{remote}:{PRIVATE_PORT}"))?;
        ensure!(private.ok == 0, "a port that no service exports answered {} times", private.ok);
        let after = dropped(&lab)?;
        ensure!(after > before, "the refused packets are not counted: {before}, then {after}");

        // The same port within the cluster is nobody's business but its own.
        let own = Request::to(&format!("{remote}:{PRIVATE_PORT}")).requests(1);
        lab.cluster("eu-west").pod("client").ask(&own)?.all_ok()
    });
}

#[test]
fn a_host_port_on_a_mesh_address_stays_closed() {
    scenario::run_with_product(|| {
        let lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        let remote = lab.cluster("eu-west").node("node-1");
        let mut command = remote.place.command(binaries::find("hawser-lab")?);
        command.args(["pod-server", "--cluster", "eu-west", "--node", "node-1", "--pod", "host"]);
        command.args(["--port", &HOST_PORT.to_string()]);
        let _server = Process::start("host-server", command, &lab.inside.dir)?;
        let on_underlay = Request::to(&format!("{}:{HOST_PORT}", remote.plan.address)).requests(1);
        let neighbour = &lab.cluster("us-east").node("node-1").place;
        wait::until("the host's server answers on the underlay", Duration::from_secs(5), || {
            client::run(neighbour, &on_underlay)?.all_ok()
        })?;

        let mesh = remote.status()?.mesh_ipv4;
        ensure!(!mesh.is_empty(), "eu-west/node-1 has no mesh address");
        let request =
            Request::to(&format!("{mesh}:{HOST_PORT}")).requests(2).timeout(Duration::from_millis(400));
        let from_host = client::run(neighbour, &request)?;
        ensure!(from_host.ok == 0, "a node reached a host port through the mesh");
        let from_pod = client::run(&lab.cluster("us-east").pod("client").place, &request)?;
        ensure!(from_pod.ok == 0, "a pod reached a host port through the mesh");
        Ok(())
    });
}

#[test]
fn a_program_on_the_host_network_can_be_a_client() {
    scenario::run_with_product(|| {
        let lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        let us = lab.cluster("us-east");
        let request = Request::to(&us.service_address()).requests(30).concurrency(2);
        let report = client::run(&us.node("node-1").place, &request)?;
        report.all_ok()?;
        ensure!(report.by_cluster.len() == 2, "both clusters answer a node: {}", report.shares());
        Ok(())
    });
}
