//! Certificates and CAs change while requests run: nobody is cut off, nobody lists anew, and the old CA is worth nothing.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hawser_e2e::lab::Lab;
use hawser_e2e::plan::LabPlan;
use hawser_e2e::pod::client::Request;
use hawser_e2e::process::said;
use hawser_e2e::{binaries, scenario, wait};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| text.to_owned())
}

/// Lists and reconnections of every mirror and every agent so far.
fn begun_anew(lab: &mut Lab) -> Result<Vec<(String, u64)>> {
    let mut counts = Vec::new();
    for cluster in &mut lab.clusters {
        let status = json(&cluster.hawser_ok(&["status", "-o", "json"])?)?;
        for peer in status["apiServer"]["peers"].as_array().context("peers")? {
            let name = format!("{} of {}", cluster.plan.name, peer["name"]);
            let count =
                |field: &str| peer[field].as_str().and_then(|n| n.parse().ok()).or(peer[field].as_u64());
            let (relists, reconnects) = (count("relists"), count("reconnects"));
            counts.push((format!("relists at {name}"), relists.context("relists")?));
            counts.push((format!("reconnects at {name}"), reconnects.context("reconnects")?));
        }
        for node in &mut cluster.nodes {
            let name =
                format!("lists and interruptions at the agent of {}/{}", cluster.plan.name, node.plan.name);
            let log = fs::read_to_string(node.agent().log())?;
            let lists = log
                .lines()
                .filter(|line| line.contains(" listing ") || line.contains("cannot be read for now"));
            counts.push((name, lists.count() as u64));
        }
    }
    Ok(counts)
}

#[test]
fn a_ca_rotates_under_load_and_nobody_is_cut_off_but_the_old_one() {
    scenario::run_with_product(|| {
        let mut lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west", "ap-south"], 1))?;
        let target = lab.cluster("eu-west").service_address();
        let load = Request::to(&target).concurrency(2).every(Duration::from_millis(20));
        let load = lab.cluster("eu-west").pod("client").keep_asking(&load)?;
        let before = begun_anew(&mut lab)?;
        let place = &lab.cluster("us-east").nodes[0].place;
        for name in ["ca.crt", "admin.crt", "admin.key"] {
            place
                .write(format!("/etc/hawser/old/{name}"), &place.read(format!("/etc/hawser/pki/{name}"))?)?;
        }
        let old_ca = place.read("/etc/hawser/pki/ca.crt")?;

        // Killed in the middle, and said again.
        let mut first = place.command(binaries::find("hawser")?).args(["ca", "rotate"]).spawn()?;
        wait::until("the rotation has begun", PATIENCE, || {
            place.read("/etc/hawser/pki/rotation.json").map(drop)
        })?;
        sleep(Duration::from_millis(600));
        first.kill()?;
        first.wait()?;
        let reply = json(&lab.cluster("us-east").hawser_ok(&["ca", "rotate", "-o", "json"])?)?;
        ensure!(reply["phase"] == "" && reply["cas"].as_array().is_some_and(|cas| cas.len() == 1), "{reply}");
        let members = reply["members"].as_array().context("members")?;
        let names: Vec<_> = members.iter().filter_map(|member| member["name"].as_str()).collect();
        ensure!(["node-1", "eu-west", "ap-south"].iter().all(|name| names.contains(name)), "{names:?}");

        let place = &lab.cluster("us-east").nodes[0].place;
        ensure!(place.read("/etc/hawser/pki/ca.crt")? != old_ca, "it is the same CA");
        ensure!(place.read("/etc/hawser/pki/rotation.json").is_err(), "the rotation is left lying about");
        let agents = place.read("/var/lib/hawser/agent/ca.crt")?;
        ensure!(agents == place.read("/etc/hawser/pki/ca.crt")?, "the agent trusts another CA");
        // The old admin is refused by the server, and refuses the server.
        let ask = ["--pki", "/etc/hawser/old", "ca", "rotate", "--status"];
        let refused = lab.cluster("us-east").hawser(&ask)?;
        ensure!(!refused.status.success(), "the new server is believed by the old CA");
        place.write("/etc/hawser/old/ca.crt", &agents)?;
        let refused = lab.cluster("us-east").hawser(&ask)?;
        ensure!(said(&refused).contains("this cluster trusts CN=ca-us-east"), "{}", said(&refused));

        // What comes after it arrives everywhere, on connections that never ended.
        lab.cluster_mut("us-east").set_endpoints(false)?;
        lab.wait_until_served()?;
        lab.cluster_mut("us-east").set_endpoints(true)?;
        lab.wait_until_served()?;
        let after = begun_anew(&mut lab)?;
        ensure!(before == after, "before {before:?}\nafter {after:?}");
        load.stop()?.all_ok()
    });
}

#[test]
fn an_agent_renews_by_itself_and_outlives_an_api_server_that_is_away_when_it_wants_to() {
    scenario::run_with_product(|| {
        let mut lab = Lab::build(LabPlan::regions(&["us-east"], 1))?;
        let cluster = lab.cluster_mut("us-east");
        cluster.prepare()?;
        cluster.write_config(&format!("{}certificateLifetime: 15s\n", cluster.config()))?;
        cluster.start_api_server()?;
        cluster.wait_for_api_server()?;
        cluster.join_agents()?;
        cluster.nodes[0].wait_for_agent()?;
        let certificate = "/var/lib/hawser/agent/agent.crt";
        let first = cluster.nodes[0].place.read(certificate)?;

        cluster.api_server().kill()?;
        wait::until("the agent says that its renewal fails", PATIENCE, || {
            let problems = cluster.nodes[0].status()?.problems;
            let named =
                |problem: &String| problem.contains("agent-us-east-node-1 could not be renewed and ends at");
            ensure!(problems.iter().any(named), "{problems:?}");
            Ok(())
        })?;
        ensure!(cluster.nodes[0].place.read(certificate)? == first, "it was renewed by nobody");
        cluster.write_config(&format!("{}certificateLifetime: 5s\n", cluster.config()))?;
        cluster.start_api_server()?;
        wait::until("the certificate is another one and nothing is wrong", PATIENCE, || {
            ensure!(cluster.nodes[0].place.read(certificate)? != first, "it is the first one still");
            cluster.nodes[0].settled()
        })?;

        // Off for longer than its certificate lives: only a new token helps, and that is said.
        cluster.nodes[0].agent().terminate(PATIENCE)?;
        cluster.nodes[0]
            .place
            .write("/etc/hawser/agent.yaml", "node: node-1\njoin: /etc/hawser/none.yaml\n")?;
        sleep(Duration::from_secs(6));
        cluster.nodes[0].start_agent()?;
        wait::until("the agent ends with a sentence", PATIENCE, || {
            match cluster.nodes[0].agent().check_alive() {
                Ok(()) => bail!("it runs"),
                Err(ended) => Ok(ended.to_string()),
            }
        })
        .and_then(|said| {
            ensure!(said.contains("expired at") && said.contains("hawser ca token --node node-1"), "{said}");
            Ok(())
        })
    });
}
