//! Backends that end: new connections go elsewhere, established ones stay, and who is refused hears so.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_e2e::lab::Lab;
use hawser_e2e::plan::LabPlan;
use hawser_e2e::pod::client::{Report, Request, Running};
use hawser_e2e::{scenario, wait};

const PATIENCE: Duration = Duration::from_secs(20);

fn ask(lab: &Lab) -> Result<Report> {
    let us = lab.cluster("us-east");
    let report = us.pod("client").ask(&Request::to(&us.service_address()).requests(30).concurrency(2))?;
    report.all_ok()?;
    Ok(report)
}

/// One connection, a request every 20 ms; it is there when this returns.
fn established(lab: &Lab) -> Result<Running> {
    let us = lab.cluster("us-east");
    let request = Request::to(&us.service_address()).keep_alive().every(Duration::from_millis(20));
    let client = us.pod("client");
    let running = client.keep_asking(&request)?;
    wait::until("the connection is established", PATIENCE, || {
        let sockets =
            client.place.in_network(|| Ok(std::fs::read_to_string("/proc/thread-self/net/tcp")?))?;
        // The fourth column: TCP_ESTABLISHED.
        let open = sockets.lines().any(|line| line.split_whitespace().nth(3) == Some("01"));
        ensure!(open, "it is not:\n{sockets}");
        Ok(())
    })?;
    Ok(running)
}

/// Until us-east's agent says so of the backends of `cluster`, one each.
fn wait_for_health(lab: &mut Lab, cluster: &str, expected: &[&str]) -> Result<()> {
    lab.wait(&format!("the backends of {cluster} are {expected:?}"), PATIENCE, |lab| {
        let view = lab.cluster("us-east").node("node-1").service_view()?;
        let of_cluster = view.backends().filter(|backend| backend.cluster == cluster);
        let health: Vec<_> = of_cluster.map(|backend| backend.health.as_str()).collect();
        ensure!(health == expected, "they are {health:?}");
        lab.cluster("us-east").node("node-1").settled()
    })
}

fn only(report: &Report, cluster: &str) -> Result<()> {
    ensure!(report.from_cluster(cluster) == report.ok, "not only {cluster} answered: {}", report.shares());
    Ok(())
}

#[test]
fn pods_that_terminate_keep_their_connections_and_get_new_ones_only_when_nothing_else_is_left() {
    scenario::run_with_product(|| {
        let mut lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        lab.cluster_mut("us-east").set_affinity(Some("local"))?;
        lab.wait("all requests stay at home", PATIENCE, |lab| only(&ask(lab)?, "us-east"))?;
        let kept = established(&lab)?;
        lab.cluster_mut("us-east").set_terminating(true)?;
        wait_for_health(&mut lab, "us-east", &["draining"])?;
        only(&ask(&lab)?, "eu-west").context("affinity local, and home drains")?;
        // The others see it too.
        lab.cluster_mut("eu-west").set_endpoints(false)?;
        wait_for_health(&mut lab, "eu-west", &[])?;
        only(&ask(&lab)?, "us-east").context("what drains is all that is left")?;
        lab.cluster_mut("us-east").set_terminating(false)?;
        wait_for_health(&mut lab, "us-east", &["up"])?;
        let report = kept.stop()?;
        report.all_ok()?;
        only(&report, "us-east").context("the connection that was kept")
    })
}

#[test]
fn an_established_connection_outlives_the_withdrawal_of_its_backend_in_another_cluster() {
    scenario::run_with_product(|| {
        let mut lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        lab.cluster_mut("us-east").set_affinity(Some("remote"))?;
        lab.wait("all requests go to the other cluster", PATIENCE, |lab| only(&ask(lab)?, "eu-west"))?;
        let kept = established(&lab)?;
        lab.cluster_mut("eu-west").set_endpoints(false)?;
        wait_for_health(&mut lab, "eu-west", &[])?;
        lab.wait_until_served()?;
        only(&ask(&lab)?, "us-east")?;
        let report = kept.stop()?;
        report.all_ok()?;
        only(&report, "eu-west")
    })
}

#[test]
fn a_connected_udp_socket_whose_backend_is_withdrawn_or_gone_gets_an_error_and_no_silence() {
    scenario::run_with_product(|| {
        let lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        let client = &lab.cluster("us-east").pod("client").place;
        // A pod that is there, at a port that nobody exports; and an address that is no pod's any more.
        for target in ["10.2.1.10:5353", "10.2.1.77:5353"] {
            let error = client.in_network(|| {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.set_read_timeout(Some(Duration::from_secs(5)))?;
                socket.connect(target)?;
                socket.send(b"anybody?")?;
                Ok(socket.recv(&mut [0; 64]).err().map(|error| error.kind()))
            })?;
            ensure!(error == Some(ErrorKind::ConnectionRefused), "{target}: {error:?}");
        }
        let status = lab.cluster("eu-west").node("node-1").status()?;
        let refused = status.reasons.iter().find(|reason| reason.reason == "tunnel-in-refused");
        ensure!(refused.is_some_and(|reason| reason.packets >= 2), "{refused:?}");
        Ok(())
    })
}
