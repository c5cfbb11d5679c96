//! Ways to a node: several addresses, two families, a NAT before it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_e2e::lab::{Lab, Store};
use hawser_e2e::plan::LabPlan;
use hawser_e2e::pod::client::Request;
use hawser_e2e::process::{run, run_with_input};
use hawser_e2e::{scenario, wait};

/// Each address of a node is tried for 6 s.
const PATIENCE: Duration = Duration::from_secs(40);
const NODES: &str = "/etc/hawser/manifests/nodes.yaml";

/// `kubectl get node -o yaml` says these addresses of the cluster's only node, and its own.
fn state_addresses(lab: &Lab, cluster: &str, text: &str) -> Result<()> {
    let node = lab.cluster(cluster).node("node-1");
    // One item of a list: everything is indented once more.
    let own = format!("    - address: {}\n      type: InternalIP\n", node.plan.address);
    let manifest = node.place.read(NODES)?;
    ensure!(manifest.contains(&own), "{manifest}");
    node.place.write(NODES, &manifest.replace(&own, text))
}

fn both_answer(lab: &Lab) -> Result<()> {
    for name in ["us-east", "eu-west"] {
        let target = lab.cluster(name).service_address();
        let request = Request::to(&target).requests(30).timeout(Duration::from_secs(2));
        let report = lab.cluster(name).pod("client").ask(&request)?;
        report.all_ok()?;
        ensure!(report.by_cluster.len() == 2, "both clusters answer {name}: {}", report.shares());
    }
    Ok(())
}

fn endpoint(lab: &Lab, cluster: &str) -> Result<String> {
    let status = lab.cluster(cluster).node("node-1").status()?;
    Ok(status.tunnels.first().context("a tunnel")?.endpoint.clone())
}

fn ipv6(place: Option<&hawser_e2e::place::Place>, batch: &str) -> Result<()> {
    let mut command = place.map_or_else(|| Command::new("ip"), |place| place.command("ip"));
    run_with_input(command.args(["-6", "-batch", "-"]), batch).map(drop)
}

/// The router and the nodes get IPv6 beside IPv4, and the router carries no WireGuard over IPv4.
fn wireguard_over_ipv6_only(lab: &Lab) -> Result<()> {
    run(Command::new("sysctl").args(["-w", "net.ipv6.conf.all.forwarding=1"]))?;
    for cluster in &lab.clusters {
        let id = cluster.plan.id;
        ipv6(None, &format!("addr add fd00:{id}::1/64 dev {} nodad\n", cluster.plan.bridge()))?;
        let own = format!(
            "addr add fd00:{id}::11/64 dev eth0 nodad\nroute add default via fd00:{id}::1 dev eth0\n"
        );
        ipv6(Some(&cluster.node("node-1").place), &own)?;
    }
    run_with_input(
        Command::new("iptables-restore").args(["-w", "--noflush"]),
        "*filter\n-I FORWARD -p udp -m multiport --dports 51871,51880:51886 -j DROP\nCOMMIT\n",
    )?;
    Ok(())
}

#[test]
fn a_node_whose_first_address_does_not_answer_is_found_at_the_next_whatever_its_family() {
    scenario::run_with_product(|| {
        let mut lab = Lab::build(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        wireguard_over_ipv6_only(&lab)?;
        lab.start_product(Store::Embedded)?;
        for cluster in &mut lab.clusters {
            // Peers aim at IPv6 addresses only where the cluster was admitted with them.
            let config = cluster.config();
            let nodes = format!("nodeCIDRs: [\"{}\"]", cluster.plan.region);
            ensure!(config.contains(&nodes), "{config}");
            let wide = format!("nodeCIDRs: [\"{}\", \"fd00:{}::/64\"]", cluster.plan.region, cluster.plan.id);
            cluster.write_config(&config.replace(&nodes, &wide))?;
            cluster.api_server().terminate(PATIENCE)?;
            cluster.start_api_server()?;
            cluster.wait_for_api_server()?;
        }
        for cluster in &lab.clusters {
            let plan = &cluster.plan;
            let [a, b, c, _] = plan.nodes[0].address.octets();
            // One that nobody has, one whose packets the router drops, and the one that works.
            let stated = [
                format!("{a}.{b}.{c}.111"),
                plan.nodes[0].address.to_string(),
                format!("fd00:{}::11", plan.id),
            ]
            .map(|address| format!("    - address: {address}\n      type: InternalIP\n"))
            .concat();
            state_addresses(&lab, &plan.name, &stated)?;
        }
        lab.connect_all()?;
        lab.wait_until_connected(PATIENCE)?;
        lab.wait_until_served()?;
        both_answer(&lab)?;
        ensure!(endpoint(&lab, "us-east")? == "[fd00:2::11]:51871", "{}", endpoint(&lab, "us-east")?);
        ensure!(endpoint(&lab, "eu-west")? == "[fd00:1::11]:51871", "{}", endpoint(&lab, "eu-west")?);

        // The way that works goes, and another one comes: it is found as well.
        run(Command::new("iptables").args(["-w", "-F", "FORWARD"]))?;
        run(Command::new("sysctl").args(["-w", "net.ipv6.conf.all.forwarding=0"]))?;
        lab.wait("the tunnels go over IPv4", PATIENCE, |lab| {
            for (name, due) in [("us-east", "172.16.2.11:51871"), ("eu-west", "172.16.1.11:51871")] {
                let is = endpoint(lab, name)?;
                ensure!(is == due, "{name} sends to {is}");
            }
            Ok(())
        })?;
        lab.wait_until_connected(PATIENCE)?;
        wait::until("both answer again", PATIENCE, || both_answer(&lab))
    });
}

/// us-east is behind a NAT: what its nodes send to eu-west leaves with the router's address and another port, and nothing
/// gets in to them that they did not ask for.
fn nat_before_us_east() -> Result<()> {
    let rules = "table ip behind {
        chain out {
            type nat hook postrouting priority srcnat;
            ip saddr 172.16.1.0/24 oifname \"br-eu-west\" udp sport { 51871, 51880-51886 } masquerade to :20000-30000 random
        }
        chain in {
            type filter hook forward priority filter;
            iifname \"br-eu-west\" oifname \"br-us-east\" udp dport { 51871, 51880-51886 } ct state new drop
        }
    }\n";
    run_with_input(Command::new("nft").args(["-f", "-"]), rules).map(drop)
}

fn keepalives(lab: &Lab, cluster: &str) -> Result<String> {
    let node = &lab.cluster(cluster).node("node-1").place;
    run(node.command("wg").args(["show", "hawser0", "persistent-keepalive"]))
}

#[test]
fn a_node_behind_a_nat_is_kept_where_it_was_heard_from_and_only_it_gets_keepalives() {
    scenario::run_with_product(|| {
        let mut lab = Lab::build(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        nat_before_us_east()?;
        lab.start_product(Store::Embedded)?;
        lab.connect_all()?;
        lab.wait_until_connected(PATIENCE)?;
        lab.wait_until_served()?;
        both_answer(&lab)?;
        let heard_from = |lab: &Lab| -> Result<String> {
            let is = endpoint(lab, "eu-west")?;
            ensure!(is.starts_with("172.16.2.1:") && is != "172.16.2.1:51871", "eu-west sends to {is}");
            Ok(is)
        };
        let before = heard_from(&lab)?;
        lab.wait("the node behind the NAT gets keepalives", PATIENCE, |lab| {
            let said = keepalives(lab, "eu-west")?;
            ensure!(said.trim().ends_with("\t25"), "{said}");
            lab.cluster("eu-west").node("node-1").settled()
        })?;
        let other = keepalives(&lab, "us-east")?;
        ensure!(other.trim().ends_with("\toff"), "eu-west is behind nothing: {other}");
        ensure!(heard_from(&lab)? == before, "it was moved");

        // The next run begins where this one was: it could not reach the node otherwise.
        lab.cluster_mut("eu-west").node_mut("node-1").agent().kill()?;
        lab.cluster_mut("eu-west").node_mut("node-1").start_agent()?;
        lab.cluster("eu-west").node("node-1").wait_for_agent()?;
        lab.wait_until_connected(PATIENCE)?;
        lab.wait_until_served()?;
        ensure!(
            heard_from(&lab)? == before,
            "after a restart eu-west sends to {}",
            endpoint(&lab, "eu-west")?
        );
        both_answer(&lab)
    });
}
