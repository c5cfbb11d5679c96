//! Packets of one direction are lost, and those of the other arrive: both ends say the same, once, and nobody is sent there.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use hawser_e2e::lab::Lab;
use hawser_e2e::plan::LabPlan;
use hawser_e2e::pod::client::{Request, unix_ms};
use hawser_e2e::process::run;
use hawser_e2e::scenario;

const PATIENCE: Duration = Duration::from_secs(20);
/// The product's own time is the subject: a verdict that flaps does so within a hold-down and a detection time, 1 s each.
const STEADY: Duration = Duration::from_secs(3);
const US: &str = "us-east";
const EU: &str = "eu-west";

/// The router loses what `from` sends to `to`, and nothing else; or no longer.
fn lose(lab: &Lab, verb: &str, from: &str, to: &str) -> Result<()> {
    let address = |cluster: &str| lab.cluster(cluster).plan.nodes[0].address.to_string();
    let mut command = Command::new("iptables");
    command.args(["-w", verb, "FORWARD", "-s", &address(from), "-d", &address(to), "-j", "DROP"]);
    run(&mut command).map(drop)
}

/// What `at` has said of `about` since then.
fn said(lab: &Lab, at: &str, about: &str, since_ms: u64) -> Result<Vec<String>> {
    Ok(lab.cluster(at).node("node-1").status()?.said(about, since_ms))
}

#[test]
fn packets_of_one_direction_are_lost_and_both_ends_give_each_other_up_once_until_they_arrive_again() {
    scenario::run_with_product(|| {
        let mut lab = Lab::connected(LabPlan::regions(&[US, EU, "ap-south"], 1))?;
        for (from, to) in [(US, EU), (EU, US)] {
            let lost_ms = unix_ms();
            lose(&lab, "-I", from, to)?;
            // A probe needs both ways, so whose packets are lost makes no difference.
            lab.wait(&format!("both give each other up, as {from} is not heard by {to}"), PATIENCE, |lab| {
                let (here, there) = (said(lab, US, EU, lost_ms)?, said(lab, EU, US, lost_ms)?);
                ensure!(here == ["down"] && there == ["down"], "{US} says {here:?}, {EU} {there:?}");
                Ok(())
            })?;
            for cluster in [US, EU] {
                let target = lab.cluster(cluster).service_address();
                let request = Request::to(&target).requests(60).concurrency(4);
                let report = lab.cluster(cluster).pod("client").ask(&request)?;
                report.all_ok()?;
                let other = if cluster == US { EU } else { US };
                ensure!(report.from_cluster(other) == 0, "{cluster} still asks {other}: {}", report.shares());
                ensure!(
                    report.from_cluster("ap-south") > 0,
                    "ap-south is asked by {cluster}: {}",
                    report.shares()
                );
            }
            std::thread::sleep(STEADY);
            let (here, there) = (said(&lab, US, EU, lost_ms)?, said(&lab, EU, US, lost_ms)?);
            ensure!(here == ["down"] && there == ["down"], "it flaps: {US} says {here:?}, {EU} {there:?}");
            lose(&lab, "-D", from, to)?;
            lab.wait("both take each other back", PATIENCE, |lab| {
                let (here, there) = (said(lab, US, EU, lost_ms)?, said(lab, EU, US, lost_ms)?);
                let back = ["down", "up"];
                ensure!(here == back && there == back, "{US} says {here:?}, {EU} {there:?}");
                Ok(())
            })?;
            let bystander = said(&lab, "ap-south", EU, lost_ms)?;
            ensure!(bystander.is_empty(), "ap-south hears both, and says {bystander:?} of {EU}");
        }
        Ok(())
    });
}
