//! The lab's instruments see what they are there to see: shown without the product, where everything travels in clear.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use hawser_e2e::lab::Lab;
use hawser_e2e::net::forge::{Forged, Transport, send};
use hawser_e2e::net::frame::{Carried, parse};
use hawser_e2e::net::secrecy::Secrecy;
use hawser_e2e::net::sniffer::Sniffer;
use hawser_e2e::plan::{LabPlan, POD_PORT};
use hawser_e2e::pod::client::{self, Report, Request};
use hawser_e2e::process::Process;
use hawser_e2e::{binaries, scenario, wait};

const MARKER: &str = "cargo-in-the-open";
const PATIENCE: Duration = Duration::from_secs(5);

fn two() -> Result<Lab> {
    Lab::build(LabPlan::regions(&["us-east", "eu-west"], 1))
}

fn serve_on_remote_node(lab: &Lab) -> Result<Process> {
    let mut command = lab.cluster("eu-west").node("node-1").place.command(binaries::find("hawser-lab")?);
    command.args([
        "pod-server",
        "--cluster",
        "eu-west",
        "--node",
        "node-1",
        "--pod",
        "host",
        "--port",
        "8000",
    ]);
    Process::start("underlay-server", command, &lab.inside.dir)
}

fn ask_remote_node(lab: &Lab) -> Result<Report> {
    let request = Request::to("172.16.2.11:8000").requests(1).marker(MARKER);
    client::run(&lab.cluster("us-east").pod("client").place, &request)
}

#[test]
fn the_capture_names_a_request_in_clear() {
    scenario::run(|| {
        let lab = two()?;
        let bridges: Vec<String> = lab.clusters.iter().map(|cluster| cluster.plan.bridge()).collect();
        let capture = Sniffer::start(None, &bridges, Secrecy::watching_for(MARKER))?;
        let _server = serve_on_remote_node(&lab)?;
        wait::until("a remote node answers", PATIENCE, || ask_remote_node(&lab)?.all_ok())?;
        let seen = capture.stop()?;
        ensure!(seen.marker_seen == 1, "the marker was sent once and seen {} times", seen.marker_seen);
        ensure!(seen.violation_count > 0, "a request in clear is no violation");
        Ok(())
    });
}

#[test]
fn a_cut_region_hears_nothing_until_it_is_healed() {
    scenario::run(|| {
        let lab = two()?;
        let _server = serve_on_remote_node(&lab)?;
        wait::until("a remote node answers", PATIENCE, || ask_remote_node(&lab)?.all_ok())?;
        lab.cut("eu-west")?;
        ensure!(ask_remote_node(&lab)?.ok == 0, "eu-west answers although it is cut off");
        lab.heal("eu-west")?;
        ask_remote_node(&lab)?.all_ok()
    });
}

#[test]
fn a_forged_packet_gets_as_far_as_the_node_and_a_hostile_node_drops_it() {
    scenario::run(|| {
        let lab = two()?;
        let node = lab.cluster("us-east").node("node-1");
        let victim = lab.cluster("us-east").pod("cart-0");
        let pretended: Ipv4Addr = lab.cluster("eu-west").pod("cart-0").plan.address;
        let forged = Forged {
            destination_mac: node.mac()?,
            source: pretended,
            destination: victim.plan.address,
            source_port: 40_000,
            port: POD_PORT,
            transport: Transport::Tcp,
            payload: Vec::new(),
        };
        let eth0 = ["eth0".to_owned()];
        let at_node = Sniffer::start(Some(&node.place), &eth0, Vec::new())?;
        let at_pod = Sniffer::start(Some(&victim.place), &eth0, Vec::new())?;
        send(&lab.stranger, &[forged])?;
        let is_it =
            |frame: &Vec<u8>| matches!(parse(frame), Carried::Ipv4(packet) if packet.source == pretended);
        wait::until("the forged packet is at the node", PATIENCE, || {
            let seen = at_node.look().iter().filter(|frame| is_it(frame)).count();
            ensure!(seen == 1, "seen {seen} times");
            Ok(())
        })?;
        ensure!(!at_pod.stop()?.iter().any(is_it), "the node's own rules let it in");
        Ok(())
    });
}
