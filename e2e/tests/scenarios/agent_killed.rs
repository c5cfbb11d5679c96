//! A node agent dies at the worst moment: nothing leaves in clear, and its successor carries on.

use std::time::Duration;

use anyhow::{Result, ensure};
use hawser_e2e::lab::Lab;
use hawser_e2e::net::secrecy::Secrecy;
use hawser_e2e::net::sniffer::Sniffer;
use hawser_e2e::plan::LabPlan;
use hawser_e2e::pod::client::Request;
use hawser_e2e::process::run;
use hawser_e2e::{scenario, wait};

const MARKER: &str = "sealed-cargo-51c0";
const PATIENCE: Duration = Duration::from_secs(15);
/// How long the node is without its agent; the flow's packets keep coming all that time.
const DEAD: Duration = Duration::from_secs(1);

fn requests_seen(lab: &Lab) -> Result<usize> {
    Ok(lab.cluster("eu-west").pod("cart-0").server_log()?.lines().count())
}

fn tunnel_index(lab: &Lab) -> Result<String> {
    let node = &lab.cluster("us-east").node("node-1").place;
    run(node.command("cat").arg("/sys/class/net/hawser0/ifindex"))
}

#[test]
fn a_killed_agent_leaks_nothing_and_its_successor_carries_the_same_connections() {
    scenario::run_with_product(|| {
        let plan = LabPlan::regions(&["us-east", "eu-west"], 1);
        let bridges: Vec<String> = plan.clusters.iter().map(|cluster| cluster.bridge()).collect();
        let mut lab = Lab::build(plan)?;
        let capture = Sniffer::start(None, &bridges, Secrecy::watching_for(MARKER))?;
        lab.start_product(hawser_e2e::lab::Store::Embedded)?;
        lab.connect_all()?;
        lab.wait_until_connected(PATIENCE)?;
        lab.cluster_mut("us-east").set_endpoints(false)?;
        lab.wait_until_served()?;

        let target = lab.cluster("us-east").service_address();
        let flow = Request::to(&target)
            .keep_alive()
            .concurrency(4)
            .every(Duration::from_millis(20))
            .timeout(Duration::from_secs(30))
            .marker(MARKER);
        let flow = lab.cluster("us-east").pod("client").keep_asking(&flow)?;
        wait::until("the flow is seen in eu-west", PATIENCE, || {
            let seen = requests_seen(&lab)?;
            ensure!(seen > 40, "{seen} requests");
            Ok(())
        })?;

        let index = tunnel_index(&lab)?;
        lab.cluster_mut("us-east").node_mut("node-1").agent().kill()?;
        let before = requests_seen(&lab)?;
        std::thread::sleep(DEAD);
        let during = requests_seen(&lab)? - before;
        ensure!(during <= 4, "{during} requests passed without an agent to encrypt them");
        ensure!(tunnel_index(&lab)? == index, "the tunnel device went with its process");

        lab.cluster_mut("us-east").node_mut("node-1").start_agent()?;
        lab.cluster("us-east").node("node-1").wait_for_agent()?;
        let resumed = requests_seen(&lab)?;
        lab.wait("the flow goes on", PATIENCE, |lab| {
            let seen = requests_seen(lab)? - resumed;
            ensure!(seen > 100, "{seen} requests since the restart");
            Ok(())
        })?;
        ensure!(tunnel_index(&lab)? == index, "the successor made a new tunnel device");
        let report = flow.stop()?;
        report.all_ok()?;
        let log = lab.cluster("eu-west").pod("cart-0").server_log()?;
        let asked = log.lines().filter(|line| line.contains(MARKER));
        let mut connections: Vec<&str> = asked.filter_map(|line| line.split(' ').next()).collect();
        connections.sort_unstable();
        connections.dedup();
        ensure!(connections.len() == 4, "four connections were opened, and the server saw {connections:?}");

        let seen = capture.stop()?;
        ensure!(seen.marker_seen == 0, "the marker left in clear, {} times", seen.marker_seen);
        ensure!(seen.violation_count == 0, "left in clear: {:#?}", seen.violations);
        ensure!(seen.wireguard.contains_key("data"), "nothing was sent at all");
        Ok(())
    });
}
