//! A pod whose sockets must keep seeing the service's address: its packets are translated at its interface.

use std::time::Duration;

use anyhow::{Result, ensure};
use hawser_e2e::lab::Lab;
use hawser_e2e::plan::LabPlan;
use hawser_e2e::pod::client::{Report, Request};
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
    let status = lab.cluster("us-east").node("node-1").status()?;
    Ok(status.reasons.iter().find(|found| found.reason == reason).map_or(0, |found| found.packets))
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
