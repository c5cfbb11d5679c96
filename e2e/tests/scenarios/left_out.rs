//! A pod whose sockets must keep seeing the service's address: its packets are translated at its interface.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_e2e::lab::Lab;
use hawser_e2e::plan::LabPlan;
use hawser_e2e::pod::client::{Report, Request};
use hawser_e2e::process::{Process, run};
use hawser_e2e::scenario;

const PATIENCE: Duration = Duration::from_secs(20);

fn ask(lab: &Lab) -> Result<Report> {
    let us = lab.cluster("us-east");
    let report = us.pod("client").ask(&Request::to(&us.service_address()).requests(20).concurrency(2))?;
    report.all_ok()?;
    let (peers, service) = (report.peers.keys().collect::<Vec<_>>(), us.service_address());
    ensure!(peers == [&service], "its sockets show {peers:?}");
    Ok(report)
}

fn only(report: &Report, cluster: &str) -> Result<()> {
    ensure!(report.from_cluster(cluster) == report.ok, "not only {cluster} answered: {}", report.shares());
    Ok(())
}

fn count(lab: &Lab, reason: &str) -> Result<u64> {
    Ok(lab.cluster("us-east").node("node-1").status()?.count(reason))
}

#[test]
fn an_annotated_pod_reaches_backends_of_both_clusters_by_translation_and_sees_the_service() {
    scenario::run_with_product(|| {
        let mut lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        ask(&lab)?;
        ensure!(count(&lab, "nat-made")? == 0, "nobody is left out yet");
        lab.cluster_mut("us-east").set_clients_left_out(true)?;
        lab.wait("the client's sockets are left alone", PATIENCE, |lab| {
            let before = count(lab, "socket-left-out")?;
            ask(lab)?;
            ensure!(count(lab, "socket-left-out")? >= before + 20);
            Ok(())
        })?;
        for (affinity, cluster) in [("remote", "eu-west"), ("local", "us-east")] {
            lab.cluster_mut("us-east").set_affinity(Some(affinity))?;
            lab.wait(&format!("only {cluster} answers"), PATIENCE, |lab| only(&ask(lab)?, cluster))?;
            let (made, chosen) = (count(&lab, "nat-made")?, count(&lab, "connect-chosen")?);
            let report = ask(&lab)?;
            only(&report, cluster)?;
            ensure!(report.seen_as.keys().all(|seen| seen == "10.1.1.20"), "seen as {:?}", report.seen_as);
            ensure!(count(&lab, "nat-made")? >= made + 20, "not translated at the interface");
            ensure!(count(&lab, "connect-chosen")? >= chosen + 20, "the same choice as a socket's");
        }
        // A connection stays with its backend, whatever becomes of the service.
        let us = lab.cluster("us-east");
        let kept = Request::to(&us.service_address()).keep_alive().every(Duration::from_millis(20));
        let kept = us.pod("client").keep_asking(&kept)?;
        lab.wait("it is made", PATIENCE, |lab| {
            let before = count(lab, "nat-shown")?;
            std::thread::sleep(Duration::from_millis(100));
            ensure!(count(lab, "nat-shown")? > before);
            Ok(())
        })?;
        lab.cluster_mut("us-east").set_affinity(Some("remote"))?;
        lab.wait("only eu-west answers", PATIENCE, |lab| only(&ask(lab)?, "eu-west"))?;
        let report = kept.stop()?;
        report.all_ok()?;
        only(&report, "us-east")?;

        lab.cluster_mut("us-east").set_clients_left_out(false)?;
        lab.wait("its sockets are balanced again", PATIENCE, |lab| {
            let before = count(lab, "nat-made")?;
            ask(lab)?;
            ensure!(count(lab, "nat-made")? == before);
            Ok(())
        })
    })
}

/// A pod's sidecar: what its program asks the service is redirected to it, and it asks in its own name (uid 1337, as Istio's).
struct Sidecar {
    _proxy: Process,
}

impl Sidecar {
    fn inject(lab: &Lab) -> Result<Self> {
        let us = lab.cluster("us-east");
        let (pod, service) = (&us.pod("client").place, us.service_address());
        let (address, port) = service.split_once(':').context("address:port")?;
        let mut redirect = pod.command("iptables");
        redirect.args(["-w", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-d", address, "--dport", port]);
        redirect.args(["-m", "owner", "!", "--uid-owner", "1337", "-j", "REDIRECT", "--to-ports", "15001"]);
        run(&mut redirect)?;
        let mut proxy = pod.command("setpriv");
        proxy.args(["--reuid=1337", "--regid=1337", "--clear-groups", "socat"]);
        proxy.args(["TCP-LISTEN:15001,fork,reuseaddr,bind=127.0.0.1", &format!("TCP:{service}")]);
        Ok(Self { _proxy: Process::start("us-east/node-1/client/sidecar", proxy, &lab.inside.dir)? })
    }

    /// Connections of the program that came by it.
    fn passed(lab: &Lab) -> Result<u64> {
        let pod = &lab.cluster("us-east").pod("client").place;
        let listed = run(pod.command("iptables").args(["-w", "-t", "nat", "-vnxL", "OUTPUT"]))?;
        let rule = listed.lines().find(|line| line.contains("15001")).context("the redirection")?;
        Ok(rule.split_whitespace().next().context("its packets")?.parse()?)
    }
}

#[test]
fn a_sidecar_that_a_balanced_socket_goes_past_gets_what_its_pod_asks_once_the_pod_is_left_out() {
    scenario::run_with_product(|| {
        let mut lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        lab.cluster_mut("us-east").set_affinity(Some("remote"))?;
        lab.wait("only eu-west answers", PATIENCE, |lab| only(&ask(lab)?, "eu-west"))?;
        let _sidecar = Sidecar::inject(&lab)?;
        ask(&lab)?;
        ensure!(Sidecar::passed(&lab)? == 0, "the socket has a backend's address already");

        lab.cluster_mut("us-east").set_clients_left_out(true)?;
        lab.wait("what the pod asks comes by its sidecar", PATIENCE, |lab| {
            let before = Sidecar::passed(lab)?;
            ask(lab)?;
            ensure!(Sidecar::passed(lab)? >= before + 20);
            Ok(())
        })?;
        let made = count(&lab, "nat-made")?;
        let report = ask(&lab)?;
        only(&report, "eu-west")?;
        ensure!(
            count(&lab, "nat-made")? >= made + 20,
            "what the sidecar asks is translated at the interface"
        );
        ensure!(report.seen_as.keys().all(|seen| seen == "10.1.1.20"), "seen as {:?}", report.seen_as);
        Ok(())
    })
}
