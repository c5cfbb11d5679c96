//! We are the one cut off: every other cluster is down from here, what is local goes on, and nothing is ended that waits for our return.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_e2e::lab::Lab;
use hawser_e2e::plan::LabPlan;
use hawser_e2e::pod::client::{Report, Request};
use hawser_e2e::scenario;

const PATIENCE: Duration = Duration::from_secs(20);
const MANIFESTS: &str = "/etc/hawser/manifests";
const US: &str = "us-east";
/// The product's own time is the subject: connections to what is down are ended after 2 s, the silent ones soon after.
const RESET_AFTER: Duration = Duration::from_secs(4);

/// A second global service, `shop/away`, made of what `shop/cart` is made of; it has backends in the other clusters only.
fn another_service(lab: &Lab) -> Result<String> {
    for cluster in &lab.clusters {
        let node = &cluster.nodes[0].place;
        let ip = cluster.plan.service_ip().to_string();
        let renamed = |file: &str| -> Result<String> {
            let text = node.read(format!("{MANIFESTS}/{file}"))?;
            // The pods keep their names; the numbers of its own uids are others.
            let text = text.replace("name: cart\n", "name: away\n").replace("cart-x7k2p", "away-x7k2p");
            let text = text.replace("service-name: cart", "service-name: away").replace("-0004", "-0014");
            Ok(text.replace("-0005", "-0015").replace(&ip, &away(&ip)))
        };
        node.write(format!("{MANIFESTS}/service-away.yaml"), &renamed("service-cart.yaml")?)?;
        if cluster.plan.name != US {
            node.write(format!("{MANIFESTS}/endpointslices-away.yaml"), &renamed("endpointslices.yaml")?)?;
        }
    }
    Ok(format!("{}:80", away(&lab.cluster(US).plan.service_ip().to_string())))
}

fn away(ip: &str) -> String {
    format!("{ip}1")
}

fn ask(lab: &Lab, target: &str) -> Result<Report> {
    let request = Request::to(target).requests(30).concurrency(6).timeout(Duration::from_secs(1));
    lab.cluster(US).pod("client").ask(&request)
}

fn panics(lab: &Lab) -> Result<u64> {
    Ok(lab.cluster(US).node("node-1").status()?.count("connect-panic"))
}

fn standings(lab: &Lab) -> Result<Vec<String>> {
    let status = lab.cluster(US).node("node-1").status()?;
    Ok(status
        .clusters
        .iter()
        .filter(|cluster| !cluster.own)
        .map(|cluster| cluster.standing.clone())
        .collect())
}

fn the_next_agent_knows(lab: &mut Lab) -> Result<()> {
    let node = lab.cluster_mut(US).node_mut("node-1");
    node.agent().kill()?;
    node.start_agent()?;
    node.wait_for_agent()?;
    lab.wait("the next agent knows it too", PATIENCE, |lab| {
        let standings = standings(lab)?;
        ensure!(standings == ["cut-off", "cut-off"], "{standings:?}");
        lab.cluster(US).node("node-1").settled()
    })?;
    let status = lab.cluster(US).node("node-1").status()?;
    let first = status.transitions.iter().find(|said| said.about == "eu-west");
    ensure!(
        first.is_some_and(|said| said.to == "down" && said.reason.contains("last run")),
        "{:?}",
        status.transitions
    );
    Ok(())
}

#[test]
fn a_cluster_that_is_cut_off_itself_serves_what_is_local_still_tries_the_rest_and_ends_no_connection() {
    scenario::run_with_product(|| {
        let mut lab = Lab::connected(LabPlan::regions(&[US, "eu-west", "ap-south"], 1))?;
        let (cart, away) = (lab.cluster(US).service_address(), another_service(&lab)?);
        lab.wait("both other clusters answer for shop/away", PATIENCE, |lab| {
            let report = ask(lab, &away)?;
            report.all_ok()?;
            ensure!(report.by_cluster.len() == 2, "{}", report.shares());
            Ok(())
        })?;
        let forever = Duration::from_secs(60);
        let kept =
            Request::to(&away).keep_alive().concurrency(6).every(Duration::from_millis(50)).timeout(forever);
        let kept = lab.cluster(US).pod("client").keep_asking(&kept)?;
        ask(&lab, &cart)?.all_ok()?;
        let before = panics(&lab)?;
        lab.cut(US)?;
        lab.wait("it is known that it is us", PATIENCE, |lab| {
            let standings = standings(lab)?;
            ensure!(standings == ["cut-off", "cut-off"], "{standings:?}");
            Ok(())
        })?;

        let report = ask(&lab, &cart)?;
        report.all_ok().context("there is a local backend")?;
        ensure!(report.from_cluster(US) == report.ok, "{}", report.shares());
        ensure!(panics(&lab)? == before, "a local backend is no panic");
        let tried = ask(&lab, &away)?;
        ensure!(tried.ok == 0, "cut off, and {} were answered", tried.ok);
        ensure!(panics(&lab)? >= before + tried.failed, "{} tried, and that was not counted", tried.failed);
        std::thread::sleep(RESET_AFTER);
        let ended = lab.cluster(US).node("node-1").status()?.stuck_connections;
        ensure!(ended.reset == 0 && ended.swept == 0, "{ended:?}");

        // Nor does an agent that begins meanwhile end any.
        the_next_agent_knows(&mut lab)?;
        std::thread::sleep(RESET_AFTER);
        let ended = lab.cluster(US).node("node-1").status()?.stuck_connections;
        ensure!(ended.reset == 0 && ended.swept == 0, "after the restart: {ended:?}");

        lab.heal(US)?;
        lab.wait("all is as before", PATIENCE, |lab| {
            let standings = standings(lab)?;
            ensure!(standings == ["serving", "serving"], "{standings:?}");
            let report = ask(lab, &away)?;
            report.all_ok()?;
            ensure!(report.by_cluster.len() == 2, "{}", report.shares());
            let report = ask(lab, &cart)?;
            report.all_ok()?;
            ensure!(report.by_cluster.len() == 3, "{}", report.shares());
            Ok(())
        })?;
        let report = kept.stop()?;
        report.all_ok().context("the connections that were there all the time")?;
        let ended = lab.cluster(US).node("node-1").status()?.stuck_connections;
        ensure!(ended.reset == 0 && ended.swept == 0, "{ended:?}");
        Ok(())
    });
}
