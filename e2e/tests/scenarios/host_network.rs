//! Programs of the host network are clients and backends of global services as pods are.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_e2e::lab::{Lab, Store, recent_logs};
use hawser_e2e::place::Place;
use hawser_e2e::plan::{LabPlan, POD_PORT};
use hawser_e2e::pod::client::{Report, Request, Udp, run as ask};
use hawser_e2e::process::{Process, run};
use hawser_e2e::{binaries, scenario, wait};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);
const SLICES: &str = "/etc/hawser/manifests/endpointslices.yaml";
const PODS: &str = "/etc/hawser/manifests/pods.yaml";
const NODES: &str = "/etc/hawser/manifests/nodes.yaml";
/// Of eu-west's node on its own network, and of `shop/six`.
const NODE_6: &str = "fd16:2::11";
const SIX: &str = "fd20::10";
/// Of services by UDP.
const ASK: &str = "172.20.0.77";
const ASK_6: &str = "fd20::77";
const UDP_PORT: u16 = 8053;

fn from(lab: &Lab, who: &str) -> Result<Report> {
    let us = lab.cluster("us-east");
    let request =
        Request::to(&us.service_address()).requests(40).concurrency(4).timeout(Duration::from_secs(1));
    match who {
        "the node" => ask(&us.node("node-1").place, &request),
        pod => us.pod(pod).ask(&request),
    }
}

/// A server that is a program of eu-west's node.
fn serve_from_the_node(lab: &Lab, listen: &str) -> Result<Process> {
    let place = &lab.cluster("eu-west").node("node-1").place;
    serve(lab, place, "host-0", &["--port", &POD_PORT.to_string(), "--listen", listen])
}

fn serve(lab: &Lab, place: &Place, pod: &str, how: &[&str]) -> Result<Process> {
    let mut command: Command = place.command(binaries::find("hawser-lab")?);
    command.args(["pod-server", "--cluster", "eu-west", "--node", "node-1", "--pod", pod]).args(how);
    Process::start(&format!("eu-west/node-1/{pod}-more"), command, &lab.inside.dir)
}

/// The backend of eu-west is a pod of its node's host network from now on: its address is the node's.
fn move_to_host_network(lab: &Lab) -> Result<Process> {
    let eu = lab.cluster("eu-west");
    let (node, pod) = (eu.node("node-1"), &eu.pod("cart-0").plan);
    let server = serve_from_the_node(lab, "0.0.0.0")?;
    let moved = |file: &str| -> Result<String> {
        Ok(node.place.read(file)?.replace(&pod.address.to_string(), &node.plan.address.to_string()))
    };
    node.place.write(SLICES, &moved(SLICES)?)?;
    // The client of that cluster stays where it is.
    let pods =
        moved(PODS)?.replacen("    nodeName: node-1\n", "    hostNetwork: true\n    nodeName: node-1\n", 1);
    node.place.write(PODS, &pods)?;
    Ok(server)
}

#[test]
fn a_program_of_the_host_network_asks_a_global_service_and_is_served_by_every_cluster_and_seen_as_its_mesh_address()
 {
    scenario::run_with_product(|| {
        let lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        let report = from(&lab, "the node")?;
        report.all_ok()?;
        ensure!(report.by_cluster.len() == 2, "{}", report.shares());
        let peers: Vec<_> = report.peers.keys().cloned().collect();
        ensure!(peers == [lab.cluster("us-east").service_address()], "getpeername says {peers:?}");
        let mesh = lab.cluster("us-east").node("node-1").status()?.mesh_ipv4;
        ensure!(
            report.seen_as.contains_key(&mesh),
            "the other cluster sees {:?}, not {mesh}",
            report.seen_as
        );
        Ok(())
    });
}

#[test]
fn a_pod_of_the_host_network_is_a_backend_that_other_clusters_reach_through_the_tunnel() {
    scenario::run_with_product(|| {
        let mut lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        let server = move_to_host_network(&lab)?;
        let mesh: Ipv4Addr = lab.cluster("eu-west").node("node-1").status()?.mesh_ipv4.parse()?;
        lab.wait("us-east knows the backend by its mesh address", PATIENCE, |lab| {
            let view = lab.cluster("us-east").node("node-1").service_view()?;
            let known = view.backends().find(|backend| backend.cluster == "eu-west");
            let address = mesh.to_string();
            ensure!(known.is_some_and(|known| known.address == address), "{known:?}, not {address}");
            lab.nodes().try_for_each(|(_, node)| node.settled())
        })?;
        for who in ["client", "the node"] {
            let report = wait::until(&format!("both clusters answer {who}"), PATIENCE, || {
                let report = from(&lab, who)?;
                report.all_ok()?;
                ensure!(report.by_cluster.len() == 2, "{}", report.shares());
                Ok(report)
            });
            let report = report.with_context(|| recent_logs(&lab.inside.dir))?;
            let pods: Vec<_> = report.by_pod.keys().cloned().collect();
            ensure!(pods == ["eu-west/host-0", "us-east/cart-0"], "{pods:?}");
        }
        // What the service does not export stays closed, also on the host.
        let closed = Request::to(&format!("{mesh}:22")).requests(1).timeout(Duration::from_millis(500));
        let report = lab.cluster("us-east").pod("client").ask(&closed)?;
        ensure!(report.ok == 0, "a port that nobody exports");
        let drops = lab.cluster("eu-west").node("node-1").status()?;
        let dropped = drops.drops().find(|drop| drop.reason == "tunnel-in-node-not-exported");
        ensure!(dropped.is_some_and(|drop| drop.packets > 0), "{dropped:?}");
        drop(server);
        Ok(())
    });
}

/// A global service of one port, as `cluster` has it.
fn service(name: &str, address: &str, protocol: &str, cluster: u8, backends: &[&str]) -> Result<Value> {
    let kind: u32 = name.bytes().map(u32::from).sum();
    let about = |name: &str, kind: u32| {
        json!({
            "name": name, "namespace": "shop", "resourceVersion": "77", "creationTimestamp": "2026-11-21T00:00:00Z",
            "uid": format!("{kind:08x}-0000-4000-8000-{cluster:012x}"),
        })
    };
    let family = if address.parse::<IpAddr>()?.is_ipv6() { "IPv6" } else { "IPv4" };
    let port = if protocol == "UDP" { UDP_PORT } else { POD_PORT };
    let mut service = about(name, kind);
    service["annotations"] = json!({ "hawser.io/global": "true" });
    let mut slice = about(&format!("{name}-x7k2p"), kind + 10_000);
    slice["labels"] = json!({ "kubernetes.io/service-name": name });
    let endpoint = |ip| json!({ "addresses": [ip], "conditions": { "ready": true }, "nodeName": "node-1" });
    let endpoints: Vec<_> = backends.iter().map(endpoint).collect();
    Ok(json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "Service", "metadata": service, "spec": {
            "clusterIP": address, "clusterIPs": [address], "ipFamilies": [family],
            "ipFamilyPolicy": "SingleStack", "type": "ClusterIP", "selector": { "app": name },
            "ports": [{ "name": "main", "port": 80, "protocol": protocol, "targetPort": port }],
        } },
        { "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": slice,
          "addressType": family, "endpoints": endpoints,
          "ports": [{ "name": "main", "port": port, "protocol": protocol }] },
    ] }))
}

/// eu-west's node has an address of IPv6 as well, which its cluster states and is admitted with, and serves by it and by UDP.
fn state_ipv6(lab: &mut Lab) -> Result<()> {
    for name in ["us-east", "eu-west"] {
        let eu = lab.cluster("eu-west");
        let (node, pod) =
            (eu.node("node-1").plan.address.to_string(), eu.pod("cart-0").plan.address.to_string());
        let cluster = lab.cluster(name);
        for (service, address, protocol, backends) in [
            ("six", SIX, "TCP", vec![NODE_6]),
            ("ask", ASK, "UDP", vec![node.as_str(), pod.as_str()]),
            ("ask-six", ASK_6, "UDP", vec![NODE_6]),
        ] {
            let backends = if name == "eu-west" { backends } else { Vec::new() };
            let manifest = self::service(service, address, protocol, cluster.plan.id, &backends)?;
            let file = format!("/etc/hawser/manifests/{service}.json");
            cluster.node("node-1").place.write(&file, &manifest.to_string())?;
        }
    }
    let eu = lab.cluster_mut("eu-west");
    let (region, node) = (eu.plan.region, eu.node("node-1"));
    run(node.place.command("ip").args(["address", "add", &format!("{NODE_6}/64"), "dev", "eth0", "nodad"]))?;
    let v4 = format!("  - address: {}\n", node.plan.address);
    let stated = node
        .place
        .read(NODES)?
        .replace(&v4, &format!("  - address: {NODE_6}\n      type: InternalIP\n  {v4}"));
    node.place.write(NODES, &stated)?;
    let config = eu.config().replace(&format!("\"{region}\""), &format!("\"{region}\", \"fd16:2::/64\""));
    eu.write_config(&config)?;
    eu.api_server().kill()?;
    eu.start_api_server()?;
    eu.wait_for_api_server()
}

/// Two clusters, of which eu-west serves by IPv6 and by UDP as well.
fn of_both_families() -> Result<Lab> {
    let mut lab = Lab::build(LabPlan::regions(&["us-east", "eu-west"], 1))?;
    lab.start_product(Store::Embedded)?;
    state_ipv6(&mut lab)?;
    lab.connect_all()?;
    lab.wait_until_connected(PATIENCE)?;
    Ok(lab)
}

/// us-east's node speaks by its mesh address.
fn is_its_mesh_address(lab: &Lab, seen: &str) -> Result<()> {
    let node = &lab.cluster("us-east").node("node-1").place;
    let mesh = run(node.command("ip").args(["-o", "address", "show", "dev", "hawser0"]))?;
    ensure!(mesh.contains(&format!(" {seen}/")), "seen as {seen}, and its own is {mesh}");
    Ok(())
}

#[test]
fn over_ipv6_as_well_a_program_of_one_clusters_host_network_is_served_by_one_of_anothers() {
    scenario::run_with_product(|| {
        let mut lab = of_both_families()?;
        let server = serve_from_the_node(&lab, "::")?;
        let target = format!("[{SIX}]:80");
        let request = Request::to(&target).requests(20).concurrency(4).timeout(Duration::from_secs(1));
        let report = lab.wait("the node's program is served", PATIENCE, |lab| {
            let report = ask(&lab.cluster("us-east").node("node-1").place, &request)?;
            report.all_ok()?;
            Ok(report)
        })?;
        let pods: Vec<_> = report.by_pod.keys().collect();
        ensure!(pods == ["eu-west/host-0"], "{pods:?}");
        let peers: Vec<_> = report.peers.keys().collect();
        ensure!(peers == [&target], "getpeername says {peers:?}");
        let seen: Vec<_> = report.seen_as.keys().collect();
        ensure!(seen.len() == 1, "seen as {seen:?}");
        is_its_mesh_address(&lab, seen[0])?;
        drop(server);
        Ok(())
    });
}

#[test]
fn by_udp_as_well_connected_or_not_over_both_families_programs_of_the_host_network_are_served_and_serve() {
    scenario::run_with_product(|| {
        let mut lab = of_both_families()?;
        let eu = lab.cluster("eu-west");
        let port = UDP_PORT.to_string();
        let udp = |listen| ["--udp", "--port", port.as_str(), "--listen", listen];
        let servers = [
            serve(&lab, &eu.node("node-1").place, "host-0", &udp("::"))?,
            serve(&lab, &eu.pod("cart-0").place, "cart-0", &udp("0.0.0.0"))?,
        ];
        let target = format!("{ASK}:80");
        let target_6 = format!("[{ASK_6}]:80");
        let both: &[&str] = &["eu-west/cart-0", "eu-west/host-0"];
        // The lab's pods have no address of IPv6.
        for (who, target, due) in
            [("the node", &target, both), ("client", &target, both), ("the node", &target_6, &both[1..])]
        {
            for how in [Udp::Connected, Udp::Unconnected] {
                let request = Request::to(target).requests(40).timeout(Duration::from_secs(1)).by_udp(how);
                let report = lab.wait(&format!("{who} is served by UDP, {how:?}"), PATIENCE, |lab| {
                    let us = lab.cluster("us-east");
                    let report = match who {
                        "the node" => ask(&us.node("node-1").place, &request)?,
                        pod => us.pod(pod).ask(&request)?,
                    };
                    report.all_ok()?;
                    Ok(report)
                })?;
                ensure!(report.by_pod.keys().eq(due), "{:?} answered {who}, {how:?}", report.by_pod);
                ensure!(report.peers.keys().eq([target]), "answers seem to come from {:?}", report.peers);
                let seen: Vec<_> = report.seen_as.keys().map(|ip| ip.trim_start_matches("::ffff:")).collect();
                if who == "the node" {
                    seen.iter().try_for_each(|ip| is_its_mesh_address(&lab, ip))?;
                }
            }
        }
        drop(servers);
        Ok(())
    });
}
