//! A cluster is cut off under open connections: theirs end, the others' do not, and whoever tries again is served.

use std::io::Read as _;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_e2e::lab::Lab;
use hawser_e2e::plan::LabPlan;
use hawser_e2e::pod::client::Request;
use hawser_e2e::process::run;
use hawser_e2e::{scenario, wait};

const PATIENCE: Duration = Duration::from_secs(20);
/// Connections that never say anything.
const SILENT: usize = 16;
/// What a client that asks waits for an answer: longer than the test.
const FOREVER: Duration = Duration::from_secs(60);

/// Clients that connect, say nothing, and wait.
struct Silent(Vec<Child>);

impl Silent {
    fn start(lab: &Lab, target: &str) -> Result<Self> {
        let pod = &lab.cluster("us-east").pod("client").place;
        let one = |_| {
            let mut command = pod.command("socat");
            command.args(["-u", &format!("TCP:{target}"), "-"]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()
        };
        Ok(Self((0..SILENT).map(one).collect::<std::io::Result<_>>().context("starting socat")?))
    }

    /// What those said that have ended, and how many have not.
    fn ended(&mut self) -> Result<(Vec<String>, usize)> {
        let (mut said, mut running) = (Vec::new(), 0);
        for child in &mut self.0 {
            let Some(status) = child.try_wait()? else {
                running += 1;
                continue;
            };
            let mut text = String::new();
            child.stderr.as_mut().context("piped")?.read_to_string(&mut text)?;
            said.push(format!("{status}: {text}"));
        }
        Ok((said, running))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Established connections of the client, by the real address of their other end.
fn established(lab: &Lab, to: &str) -> Result<usize> {
    let pod = &lab.cluster("us-east").pod("client").place;
    let listed = run(pod.command("ss").args(["-Htn", "state", "established"]))?;
    Ok(listed
        .lines()
        .filter(|line| line.split_whitespace().last().is_some_and(|peer| peer.starts_with(to)))
        .count())
}

#[test]
fn connections_to_a_cluster_that_is_cut_off_end_and_those_to_others_do_not() {
    scenario::run_with_product(|| {
        let mut lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west", "ap-south"], 1))?;
        lab.cluster_mut("us-east").set_endpoints(false)?;
        lab.wait_until_served()?;
        let target = lab.cluster("us-east").service_address();
        let mut silent = Silent::start(&lab, &target)?;
        let asking = Request::to(&target)
            .keep_alive()
            .concurrency(8)
            .every(Duration::from_millis(50))
            .timeout(FOREVER);
        let asking = lab.cluster("us-east").pod("client").keep_asking(&asking)?;
        let (lost, kept) = lab.wait("all are connected", PATIENCE, |lab| {
            let (lost, kept) = (established(lab, "10.2.")?, established(lab, "10.3.")?);
            ensure!(lost + kept == SILENT + 8 && lost > 0 && kept > 0, "{lost} and {kept} connections");
            Ok((lost, kept))
        })?;

        lab.cut("eu-west")?;
        lab.wait("every connection to the lost cluster has ended", PATIENCE, |lab| {
            let left = established(lab, "10.2.")?;
            ensure!(left == 0, "{left} of {lost} are left");
            Ok(())
        })?;
        let still = established(&lab, "10.3.")?;
        ensure!(still >= kept, "{kept} connections to the other cluster, and {still} are left");
        let said = wait::until("the silent ones have heard", PATIENCE, || {
            let (said, running) = silent.ended()?;
            // One that ended is not connected anew; one that asks is.
            ensure!(running + 8 == established(&lab, "10.3.")?, "{running} run on: {said:?}");
            Ok(said)
        })?;
        for text in &said {
            ensure!(text.contains("reset by peer") || text.contains("connection abort"), "{text}");
        }
        let report = asking.stop()?;
        let errors: Vec<_> = report.records.iter().filter_map(|record| record.error.as_deref()).collect();
        ensure!(
            errors.len() + said.len() == lost,
            "{lost} were lost, and {errors:?} and {said:?} came of it"
        );
        for error in &errors {
            ensure!(error.contains("os error 104") || error.contains("os error 103"), "{error}");
        }
        // Each lost one failed once, so whoever tried again was served; and that is elsewhere.
        let served = report.records.iter().rfind(|record| record.error.is_none());
        let served = served.and_then(|record| record.cluster.as_deref());
        ensure!(served == Some("ap-south"), "{served:?}");

        let status = lab.cluster("us-east").node("node-1").status()?;
        let ended = &status.stuck_connections;
        ensure!(ended.sweep && ended.missing.is_empty(), "{ended:?}");
        ensure!(ended.swept as usize + ended.reset as usize >= lost, "{ended:?} for {lost}");
        let standings: Vec<_> =
            status.clusters.iter().map(|c| (c.name.as_str(), c.standing.as_str())).collect();
        ensure!(
            standings.contains(&("eu-west", "down")) && standings.contains(&("ap-south", "serving")),
            "{standings:?}"
        );
        let table = lab.cluster("us-east").node("node-1").status_table()?;
        ensure!(table.contains("! eu-west/node-1: nothing heard for"), "{table}");
        Ok(())
    });
}
