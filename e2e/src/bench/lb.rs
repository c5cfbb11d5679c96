//! `bench-lb`: short connections from a pod to one backend on its node, by three ways.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::result::{BenchResult, Column, load, turn};
use crate::lab::Lab;
use crate::plan::{LabPlan, NAMESPACE, POD_PORT, SERVICE, SERVICE_PORT};
use crate::pod::client::{Report, Request};
use crate::process::run_with_input;

const HOME: &str = "us-east";
/// Many and short: what else happens on the machine then meets all ways alike.
const ROUNDS: usize = 200;
const ROUNDS_A_LINE: usize = 20;
const REQUESTS: u64 = 500;
const WARM_UP: u64 = 100;
const CONCURRENCY: u32 = 8;
const PATIENCE: Duration = Duration::from_secs(20);
/// Over no service, and over iptables, from the issue.
const GOALS: [Option<f64>; 2] = [Some(0.97), Some(1.0)];
/// A range of source ports for each way: a connection never meets what another way left in conntrack.
const PORTS: [&str; 3] = ["1024 22527", "22528 44031", "44032 65535"];
/// A ClusterIP that Hawser has never heard of.
const IPTABLES_IP: &str = "172.20.1.99";

pub(super) fn measure() -> Result<BenchResult> {
    let before = load();
    let mut lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
    keep_home(&mut lab)?;
    kube_proxy_rules(&lab)?;
    let home = lab.cluster(HOME);
    let pod = format!("{}:{POD_PORT}", home.pod("cart-0").plan.address);
    let iptables = format!("{IPTABLES_IP}:{SERVICE_PORT}");
    let ways = [("hawser", home.service_address()), ("no service", pod), ("iptables", iptables)];
    let mut columns = ways.each_ref().map(|(name, _)| Column::new(name));
    for index in 0..ways.len() {
        ask(&lab, &ways[index].1, PORTS[index], WARM_UP).with_context(|| ways[index].0)?;
    }
    for round in 0..ROUNDS {
        for index in turn(round, ways.len()) {
            let (name, target) = &ways[index];
            let report = ask(&lab, target, PORTS[index], REQUESTS)
                .with_context(|| format!("{name}, round {}", round + 1))?;
            columns[index].rounds.push(rate(&report)?);
        }
        if (round + 1) % ROUNDS_A_LINE == 0 {
            let rates =
                columns.each_ref().map(|column| format!("{} {:.0}", column.name, column.rounds[round]));
            println!("round {:>3}, connections/s: {}", round + 1, rates.join(", "));
        }
    }
    lab.check_alive()?;
    Ok(BenchResult::new("lb", "short connections", "connections/s", before, &columns, &GOALS))
}

/// All three ways end at the same backend.
fn keep_home(lab: &mut Lab) -> Result<()> {
    lab.cluster_mut(HOME).set_affinity(Some("local"))?;
    lab.wait("the affinity is known on the client's node", PATIENCE, |lab| {
        let node = lab.cluster(HOME).node("node-1");
        let affinity = node.service_view()?.affinity;
        ensure!(affinity == "local", "`hawser service get` shows {affinity}");
        node.settled()
    })
}

/// One service with one endpoint, chain by chain as kube-proxy in iptables mode writes it.
fn kube_proxy_rules(lab: &Lab) -> Result<()> {
    let home = lab.cluster(HOME);
    let (pods, pod) = (home.plan.pods, home.pod("cart-0").plan.address);
    let comment = |text: &str| format!("-m comment --comment \"{text}\"");
    let (portals, service) = (comment("kubernetes service portals"), format!("{NAMESPACE}/{SERVICE}:http"));
    let (cluster_ip, endpoint) =
        (comment(&format!("{service} cluster IP")), comment(&format!("{service} -> {pod}:{POD_PORT}")));
    let (service, postrouting) = (comment(&service), comment("kubernetes postrouting rules"));
    let to_service = format!("-d {IPTABLES_IP}/32 -p tcp {cluster_ip} -m tcp --dport {SERVICE_PORT}");
    let rules = format!(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
         :KUBE-SVC-HAWSERBENCHCART1 - [0:0]\n:KUBE-SEP-HAWSERBENCHCART1 - [0:0]\n\
         -I PREROUTING {portals} -j KUBE-SERVICES\n\
         -I OUTPUT {portals} -j KUBE-SERVICES\n\
         -I POSTROUTING {postrouting} -j KUBE-POSTROUTING\n\
         -A KUBE-SERVICES {to_service} -j KUBE-SVC-HAWSERBENCHCART1\n\
         -A KUBE-SVC-HAWSERBENCHCART1 ! -s {pods} {to_service} -j KUBE-MARK-MASQ\n\
         -A KUBE-SVC-HAWSERBENCHCART1 {endpoint} -j KUBE-SEP-HAWSERBENCHCART1\n\
         -A KUBE-SEP-HAWSERBENCHCART1 -s {pod}/32 {service} -j KUBE-MARK-MASQ\n\
         -A KUBE-SEP-HAWSERBENCHCART1 -p tcp {service} -m tcp -j DNAT --to-destination {pod}:{POD_PORT}\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING {postrouting} -j MASQUERADE --random-fully\n\
         COMMIT\n"
    );
    let mut restore = home.node("node-1").place.command("iptables-restore");
    run_with_input(restore.args(["-w", "--noflush"]), &rules).map(drop).context("rules in kube-proxy's shape")
}

/// One way, once. Checks that the client saw the address it asked for and that the same backend answered.
fn ask(lab: &Lab, target: &str, ports: &str, requests: u64) -> Result<Report> {
    let client = lab.cluster(HOME).pod("client");
    client.place.in_network(|| {
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", ports).context("setting the range of ports")
    })?;
    let report = client.ask(&Request::to(target).requests(requests).concurrency(CONCURRENCY))?;
    report.all_ok()?;
    let (peers, pods): (Vec<_>, Vec<_>) = (report.peers.keys().collect(), report.by_pod.keys().collect());
    ensure!(peers == [target], "asked {target}, and getpeername says {peers:?}");
    ensure!(pods == [&format!("{HOME}/cart-0")], "answered by {pods:?}");
    Ok(report)
}

/// From the first connection's begin to the last answer, in the client's own clock: starting the client is not counted.
fn rate(report: &Report) -> Result<f64> {
    let begun = report.records.iter().map(|record| record.opened_ms).min();
    let ended = report.records.iter().map(|record| record.opened_ms + record.took_ms).max();
    let span = ended.zip(begun).map_or(0, |(ended, begun)| ended.saturating_sub(begun));
    ensure!(span > 0, "{} requests took no time: a round is too short", report.total());
    Ok(report.ok as f64 * 1000.0 / span as f64)
}
