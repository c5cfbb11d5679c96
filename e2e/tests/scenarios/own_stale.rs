//! Decision 8: the own API server is down and local pods are rolled. Hawser adds no new way for local traffic to fail.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_e2e::lab::{Cluster, Lab};
use hawser_e2e::plan::{LabPlan, POD_PORT};
use hawser_e2e::pod::client::{Report, Request};
use hawser_e2e::process::{run, run_with_input};
use hawser_e2e::scenario;

const PATIENCE: Duration = Duration::from_secs(40);
const US: &str = "us-east";
/// What a pod that was taken out of the endpoints still has for those that it serves.
const GRACE: Duration = Duration::from_millis(500);

/// What kube-proxy writes on a node for a service, all at once. Its API server is another one than ours.
fn kube_proxy(cluster: &Cluster, pods: &[Ipv4Addr]) -> Result<()> {
    let service = cluster.service_address();
    let (address, port) = service.split_once(':').context("address:port")?;
    let mut rules = format!(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-CART - [0:0]\n\
         -A KUBE-SERVICES -d {address} -p tcp --dport {port} -j KUBE-SVC-CART\n"
    );
    for (at, pod) in pods.iter().enumerate() {
        let share = 1.0 / (pods.len() - at) as f64;
        rules += &format!(
            "-A KUBE-SVC-CART -p tcp -m statistic --mode random --probability {share:.5} -j DNAT --to-destination {pod}:{POD_PORT}\n"
        );
    }
    let node = &cluster.node("node-1").place;
    run_with_input(node.command("iptables-restore").args(["-w", "--noflush"]), &(rules + "COMMIT\n"))
        .map(drop)
}

/// A pod's successor at its address is there, or its predecessor at its address is no more. Only the cluster's own nodes know.
fn address(cluster: &Cluster, pod: &str, verb: &str, address: Ipv4Addr) -> Result<()> {
    let of_pod = cluster.pod(pod);
    run(of_pod.place.command("ip").args(["address", verb, &format!("{address}/32"), "dev", "eth0"]))?;
    let node =
        cluster.nodes.iter().find(|node| node.pods.iter().any(|pod| pod.plan.name == of_pod.plan.name));
    let (node, device) = (node.context("a pod has a node")?, of_pod.plan.host_interface());
    let route = ["route", verb, &format!("{address}/32"), "dev", &device, "scope", "link"];
    run(node.place.command("ip").args(route)).map(drop)
}

fn ask(lab: &Lab) -> Result<Report> {
    let us = lab.cluster(US);
    let request = Request::to(&us.service_address()).requests(40);
    us.pod("client").ask(&request)
}

fn own_stale(lab: &Lab) -> Result<u64> {
    Ok(lab.cluster(US).node("node-1").status()?.count("connect-own-stale"))
}

#[test]
fn while_the_own_api_server_is_down_and_local_pods_are_rolled_local_traffic_goes_as_without_hawser() {
    scenario::run_with_product(|| {
        let mut lab = Lab::connected(LabPlan::regions(&[US, "eu-west"], 2))?;
        lab.cluster_mut(US).set_affinity(Some("local"))?;
        lab.wait("all requests stay at home", PATIENCE, |lab| {
            let report = ask(lab)?;
            report.all_ok()?;
            ensure!(report.by_pod.len() == 2 && report.by_cluster.len() == 1, "{:?}", report.by_pod);
            Ok(())
        })?;
        ensure!(own_stale(&lab)? == 0, "Hawser left a connection alone while all was well");
        let us = lab.cluster(US);
        let mut pods = ["cart-0", "cart-1"].map(|pod| us.pod(pod).plan.address);
        kube_proxy(us, &pods)?;
        run(us.node("node-1").place.command("iptables").args([
            "-w",
            "-t",
            "nat",
            "-A",
            "PREROUTING",
            "-j",
            "KUBE-SERVICES",
        ]))?;

        let load = Request::to(&us.service_address()).concurrency(4).every(Duration::from_millis(10));
        let load = us.pod("client").keep_asking(&load)?;
        lab.cluster_mut(US).api_server().kill()?;
        hawser_e2e::wait::until("the agent leaves the choice to kube-proxy", PATIENCE, || {
            ensure!(own_stale(&lab)? > 0);
            Ok(())
        })?;
        // Each pod has a successor at another address; the old one goes when nobody is sent there any more.
        let us = lab.cluster(US);
        for (at, pod) in ["cart-0", "cart-1"].into_iter().enumerate() {
            let [a, b, c, d] = pods[at].octets();
            let (old, new) = (pods[at], Ipv4Addr::new(a, b, c, d + 100));
            address(us, pod, "add", new)?;
            pods[at] = new;
            kube_proxy(us, &pods)?;
            std::thread::sleep(GRACE);
            address(us, pod, "del", old)?;
            std::thread::sleep(GRACE);
        }
        let report = load.stop()?;
        report.all_ok().context("the API server went and both pods were rolled")?;
        ensure!(report.total() > 200 && report.by_cluster.len() == 1, "{}", report.shares());
        let before = own_stale(&lab)?;
        let report = ask(&lab)?;
        report.all_ok()?;
        ensure!(report.by_pod.len() == 2 && own_stale(&lab)? >= before + 40, "{:?}", report.by_pod);

        lab.cluster_mut(US).start_api_server()?;
        lab.cluster_mut(US).wait_for_api_server()?;
        lab.wait("the agent speaks for the own cluster again", PATIENCE, |lab| {
            let before = own_stale(lab)?;
            ask(lab)?;
            ensure!(own_stale(lab)? == before, "connections are still left alone");
            Ok(())
        })
    })
}
