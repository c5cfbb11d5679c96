//! `bench-lb`: what a service costs a connection, by the number of other services: none, Hawser, kube-proxy in both modes.
//!
//! Four nodes of one shape, each with a client and a server of its own, so that no way walks another's rules: one has
//! Hawser, one nothing, two have what kube-proxy would have there.

mod agent;
mod load;
mod programs;
mod rules;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::objects::{self, Place as Endpoint};
use super::part::{self, Part};
use super::plot::{self, Line, Panel};
use super::result::{BenchResult, Row, load as machine_load, turn};
use super::stats::{Estimate, ROUNDS_MIN};
use crate::binaries;
use crate::lab::{Cluster, Lab};
use crate::plan::LabPlan;
use crate::process::run_with_input;
use load::{Ask, Ran, Serve, Took};

/// The service that is asked, on every node.
const FRONT: Ipv4Addr = Ipv4Addr::new(172, 20, 1, 50);
const PORT: u16 = 80;
const UDP_PORT: u16 = 53;
/// Where its one endpoint listens.
const SERVER_PORT: u16 = 9000;
const AT_ONCE: usize = 32;
const PATIENCE: Duration = Duration::from_secs(120);
const MANIFESTS: &str = "/etc/hawser/manifests";
const HAWSER: usize = 0;
const NONE: usize = 1;
/// A cluster for each way: their nodes have nothing to do with each other.
const WAYS: [&str; 4] = ["hawser", "no service", "iptables", "nftables"];
const CLUSTERS: [&str; 4] = ["hawser", "none", "iptables", "nftables"];
/// Over no service, iptables, nftables, from the issue.
const GOALS: [f64; 3] = [0.97, 1.0, 1.0];

/// How much of everything.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// Other services.
    others: &'static [u32],
    rounds: usize,
    /// Of a round: new connections, requests over old ones.
    ms: [u64; 2],
    /// `connect()`s of a round.
    connects: usize,
    /// Of one endpoint.
    changes: usize,
}

const FULL: Sizes = Sizes {
    others: &[0, 1_000, 5_000, 10_000, 20_000, 30_000],
    rounds: 24,
    ms: [200, 80],
    connects: 5_000,
    changes: 15,
};

/// Everything is exercised, nothing is measured.
const QUICK: Sizes = Sizes { others: &[0, 20], rounds: ROUNDS_MIN, ms: [10, 5], connects: 50, changes: 2 };

/// One way to the service.
struct Way {
    client: Part,
    server: Part,
    target: SocketAddrV4,
}

/// What one way did in the rounds of one size.
#[derive(Clone, Debug, Default)]
struct Column {
    connections: Vec<f64>,
    cpu_ns: Vec<f64>,
    requests: Vec<f64>,
}

/// Endpoint `pod` of the other services of cluster `id`: few addresses, many ports, so that a /24 holds them all.
fn other(id: u8, pod: u32) -> Endpoint {
    let last = u8::try_from(100 + pod % 128).unwrap_or(u8::MAX);
    let port = u16::try_from(10_000 + pod / 128).unwrap_or(u16::MAX);
    Endpoint { ip: Ipv4Addr::new(10, id, 1, last), port, node: "node-1".to_owned() }
}

pub(super) fn measure(quick: bool) -> Result<BenchResult> {
    let (before, sizes) = (machine_load(), if quick { QUICK } else { FULL });
    let mut lab = Lab::build(LabPlan::regions(&CLUSTERS, 1))?;
    start_hawser(&mut lab)?;
    let pods = |at: usize| lab.clusters[at].plan.pods.to_string();
    let rules =
        [rules::iptables(&pods(2), server_of(&lab, 2)), rules::nftables(&pods(3), server_of(&lab, 3))];
    write_rules(&lab, &rules)?;
    let mut ways = (0..WAYS.len()).map(|at| Way::start(&lab, at)).collect::<Result<Vec<_>>>()?;
    let (mut rows, mut by_size, mut known) = (Vec::new(), Vec::new(), 0);
    for &size in sizes.others {
        if size > known {
            more_services(&mut lab, known..size)?;
            known = size;
        }
        let columns = rounds(&mut ways, &sizes).with_context(|| format!("{size} other services"))?;
        rows.extend(rows_of(size, &columns));
        by_size.push((size, columns));
    }
    rows.extend(flat(&by_size));
    rows.extend(connect_latency(&lab, &mut ways, &sizes)?);
    let agent = lab.clusters[HAWSER].nodes[0].agent().id();
    rows.extend(programs::measure(agent, || ways[HAWSER].round(sizes.ms, &mut Column::default()))?);
    lab.check_alive()?;
    rows.extend(agent::measure(&mut lab, known, sizes.changes)?);
    let name = if quick { "lb-quick" } else { "lb" };
    let picture = binaries::target_dir()?.join("bench").join(format!("{name}.svg"));
    plot::draw(&panels(&by_size), &picture)?;
    Ok(BenchResult::of_rows(name, before, sizes.rounds, rows))
}

pub(super) fn run_part(role: &str, args: &str) -> Result<()> {
    match role {
        "load-server" => load::serve(&part::parse::<Serve>(args)?),
        _ => load::ask(),
    }
}

/// One cluster with the product in it; the others are bare nodes.
fn start_hawser(lab: &mut Lab) -> Result<()> {
    let cluster = &mut lab.clusters[HAWSER];
    cluster.prepare()?;
    let pod = cluster.pod("cart-0").plan.address;
    cluster.nodes[0].place.write(format!("{MANIFESTS}/front.json"), &front(pod).to_string())?;
    cluster.start_api_server()?;
    cluster.wait_for_api_server()?;
    cluster.join_agents()?;
    cluster.nodes[0].wait_for_agent()?;
    served(lab, 2)
}

/// Until the agent has so many services and nothing left to do.
fn served(lab: &mut Lab, services: u32) -> Result<()> {
    lab.wait(&format!("the agent has {services} services in its maps"), PATIENCE, |lab| {
        let node = &lab.clusters[HAWSER].nodes[0];
        let has = node.status()?.services;
        ensure!(has >= services, "it has {has}");
        node.settled()
    })
}

/// The global service that is asked, and its slice.
fn front(pod: Ipv4Addr) -> Value {
    let created = "2026-11-21T00:00:00Z";
    let metadata = |name: &str, uid: &str| json!({"name": name, "namespace": "bench", "creationTimestamp": created, "resourceVersion": "7", "uid": uid});
    let mut service = metadata("front", "00000007-0000-4000-8000-000000000001");
    service["annotations"] = json!({"hawser.io/global": "true"});
    let mut slice = metadata("front-abcde", "00000007-0000-4000-8000-000000000002");
    slice["labels"] = json!({"kubernetes.io/service-name": "front"});
    let ports = [("http", PORT, "TCP"), ("dns", UDP_PORT, "UDP")];
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": service, "spec": {
            "clusterIP": FRONT, "clusterIPs": [FRONT], "type": "ClusterIP", "selector": {"app": "front"},
            "ports": ports.map(|(name, port, protocol)| json!({"name": name, "port": port, "protocol": protocol, "targetPort": SERVER_PORT})),
        }},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": slice, "addressType": "IPv4",
            "endpoints": [{"addresses": [pod], "conditions": {"ready": true, "serving": true, "terminating": false}, "nodeName": "node-1"}],
            "ports": ports.map(|(name, _, protocol)| json!({"name": name, "port": SERVER_PORT, "protocol": protocol})),
        },
    ]})
}

fn server_of(lab: &Lab, at: usize) -> Ipv4Addr {
    lab.clusters[at].pod("cart-0").plan.address
}

/// To iptables and to nftables, each on its node; what is there stays.
fn write_rules(lab: &Lab, rules: &[String; 2]) -> Result<()> {
    let node = |at: usize| &lab.clusters[at].nodes[0].place;
    run_with_input(node(2).command("iptables-restore").args(["-w", "--noflush"]), &rules[0])
        .context("rules in the shape of kube-proxy's iptables mode")?;
    run_with_input(node(3).command("nft").args(["-f", "-"]), &rules[1])
        .context("rules in the shape of kube-proxy's nftables mode")?;
    Ok(())
}

/// Hawser's by the whole way: a manifest, the API server, the agent, its maps.
fn more_services(lab: &mut Lab, others: std::ops::Range<u32>) -> Result<()> {
    let pods = |at: usize| lab.clusters[at].plan.pods.to_string();
    let rules =
        [rules::iptables_more(&pods(2), others.clone()), rules::nftables_more(&pods(3), others.clone())];
    write_rules(lab, &rules)?;
    let place = &lab.clusters[HAWSER].nodes[0].place;
    let file = place.path(format!("{MANIFESTS}/others-{}.json", others.end));
    objects::write(&file, others.clone(), |pod| other(1, pod), [])?;
    served(lab, others.end + 2)
}

impl Way {
    fn start(lab: &Lab, at: usize) -> Result<Self> {
        let cluster: &Cluster = &lab.clusters[at];
        let (pod, client) = (cluster.pod("cart-0"), cluster.pod("client"));
        // Ports of connections that are over are taken again: thousands a second would use them all up.
        client.place.in_network(|| {
            std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1").context("tcp_tw_reuse")?;
            std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535").context("ports")
        })?;
        let mut server = Part::start_in(&pod.place, "load-server", &Serve { port: SERVER_PORT })?;
        let _: bool = server.hear()?;
        let client = Part::start_in(&client.place, "load-client", &())?;
        let target = match at {
            NONE => SocketAddrV4::new(pod.plan.address, SERVER_PORT),
            _ => SocketAddrV4::new(FRONT, PORT),
        };
        Ok(Self { client, server, target })
    }

    /// Answers a second, and what one cost both ends together.
    fn run(&mut self, ask: Ask) -> Result<(f64, f64)> {
        let before = self.client.cpu_ns()? + self.server.cpu_ns()?;
        let ran: Ran = self.client.ask(&ask)?;
        let used = self.client.cpu_ns()? + self.server.cpu_ns()? - before;
        Ok((ran.done as f64 * 1e9 / ran.ns as f64, used as f64 / ran.done as f64))
    }

    fn round(&mut self, ms: [u64; 2], column: &mut Column) -> Result<()> {
        let (target, at_once) = (self.target, AT_ONCE);
        let (rate, cpu) = self.run(Ask::Connections { target, at_once, ms: ms[0] })?;
        column.connections.push(rate);
        column.cpu_ns.push(cpu);
        let (rate, _) = self.run(Ask::Requests { target, at_once, ms: ms[1] })?;
        column.requests.push(rate);
        Ok(())
    }
}

/// All ways in turns. The first round warms up and is not counted.
fn rounds(ways: &mut [Way], sizes: &Sizes) -> Result<Vec<Column>> {
    let mut columns = vec![Column::default(); ways.len()];
    for round in 0..=sizes.rounds {
        for at in turn(round, ways.len()) {
            let mut cold = Column::default();
            let column = if round == 0 { &mut cold } else { &mut columns[at] };
            ways[at].round(sizes.ms, column).context(WAYS[at])?;
        }
    }
    Ok(columns)
}

fn rows_of(size: u32, columns: &[Column]) -> Vec<Row> {
    let absolute = |what: &str, unit, better, of: fn(&Column) -> &Vec<f64>| {
        let key = format!("{size} other services: {what}");
        let mut row = Row::estimated(&key, Estimate::of(of(&columns[HAWSER])), unit, better, None);
        for (name, column) in WAYS.iter().zip(columns).skip(1) {
            row.add(name, Estimate::of(of(column)).median);
        }
        row
    };
    let over = |what: &str, at: usize, of: fn(&Column) -> &Vec<f64>, goal| {
        let ratio = Estimate::of_ratios(of(&columns[HAWSER]), of(&columns[at]));
        let key = format!("{size} other services: {what}, over {}", WAYS[at]);
        Row::estimated(&key, ratio, "x", "higher", goal)
    };
    let mut rows = vec![absolute("short connections", "1/s", "higher", |c| &c.connections)];
    for (at, goal) in (1..).zip(GOALS) {
        rows.push(over("short connections", at, |c| &c.connections, Some(goal)));
    }
    rows.push(absolute("CPU of a connection, both ends", "ns", "lower", |c| &c.cpu_ns));
    rows.push(absolute("keep-alive requests", "1/s", "higher", |c| &c.requests));
    rows.push(over("keep-alive requests", NONE, |c| &c.requests, Some(0.99)));
    rows
}

/// What becomes of the ratio to no service from none to all of the others.
fn flat(by_size: &[(u32, Vec<Column>)]) -> Option<Row> {
    let ratios = |columns: &[Column]| -> Vec<f64> {
        let both = columns[HAWSER].connections.iter().zip(&columns[NONE].connections);
        both.map(|(ours, none)| ours / none).collect()
    };
    let ((few, first), (many, last)) = (by_size.first()?, by_size.last()?);
    let kept = Estimate::of_ratios(&ratios(last), &ratios(first));
    let key = format!("short connections over no service: {many} others over {few}");
    Some(Row::estimated(&key, kept, "x", "higher", Some(0.97)))
}

/// `connect()` of UDP sockets in one pod's network: from the pod, and from a cgroup that has no programs.
fn connect_latency(lab: &Lab, ways: &mut [Way], sizes: &Sizes) -> Result<Vec<Row>> {
    let pod = &lab.clusters[HAWSER].pod("client").place;
    let mut bare = pod.in_network(|| Part::start("load-client", &()))?;
    let attached = Ask::Connects { target: SocketAddrV4::new(FRONT, UDP_PORT), count: sizes.connects };
    let target = SocketAddrV4::new(server_of(lab, HAWSER), SERVER_PORT);
    let detached = Ask::Connects { target, count: sizes.connects };
    let (mut with, mut without) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for round in 0..=sizes.rounds {
        for at in turn(round, 2) {
            let (took, into): (Took, _) = match at {
                0 => (ways[HAWSER].client.ask(&attached)?, &mut with),
                _ => (bare.ask(&detached)?, &mut without),
            };
            if round > 0 {
                into[0].push(took.p50_ns / 1e3);
                into[1].push(took.p99_ns / 1e3);
            }
        }
    }
    let row = |at: usize, what: &str, goal| {
        let added: Vec<f64> =
            with[at].iter().zip(&without[at]).map(|(with, without)| with - without).collect();
        let key = format!("connect() of a UDP socket, {what}: added by the programs");
        let without = Estimate::of(&without[at]).median;
        Row::estimated(&key, Estimate::of(&added), "us", "lower", Some(goal)).beside("without them", without)
    };
    Ok(vec![row(0, "p50", 1.0), row(1, "p99", 3.0)])
}

fn panels(by_size: &[(u32, Vec<Column>)]) -> Vec<Panel> {
    let panel = |title: &str, of: fn(&Column) -> &Vec<f64>| Panel {
        title: format!("{title}, by other services"),
        lines: (0..WAYS.len())
            .map(|at| Line {
                name: WAYS[at].to_owned(),
                points: by_size
                    .iter()
                    .map(|(size, columns)| (f64::from(*size), Estimate::of(of(&columns[at])).median))
                    .collect(),
            })
            .collect(),
    };
    vec![
        panel("short connections a second", |c| &c.connections),
        panel("CPU of a connection (ns)", |c| &c.cpu_ns),
    ]
}
