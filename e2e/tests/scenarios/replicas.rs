//! Three API servers over an etcd of three: whoever is killed, traffic and watches go on, and nobody lists anew.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_e2e::enclave::Inside;
use hawser_e2e::history::world::{Store as SoakStore, World};
use hawser_e2e::lab::{Lab, Store};
use hawser_e2e::plan::{ClusterPlan, LabPlan};
use hawser_e2e::pod::client::Request;
use hawser_e2e::{scenario, wait};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(40);

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| text.to_owned())
}

/// Lists so far: of eu-west's mirror of us-east, and of every agent.
fn lists(lab: &mut Lab) -> Result<Vec<(String, u64)>> {
    let status = json(&lab.cluster("eu-west").hawser_ok(&["status", "-o", "json"])?)?;
    let relists = &status["apiServer"]["peers"][0]["relists"];
    let relists = relists.as_u64().or_else(|| relists.as_str()?.parse().ok()).context("relists")?;
    let mut lists = vec![("the mirror".to_owned(), relists)];
    for cluster in &mut lab.clusters {
        for node in &mut cluster.nodes {
            let log = fs::read_to_string(node.agent().log())?;
            let count = log.lines().filter(|line| line.contains(" listing ")).count();
            lists.push((node.name().to_owned(), count as u64));
        }
    }
    Ok(lists)
}

/// Everybody sees a change that was made in us-east's manifests.
fn change_arrives(lab: &mut Lab) -> Result<()> {
    for endpoints in [false, true] {
        lab.cluster_mut("us-east").set_endpoints(endpoints)?;
        lab.wait_until_served()?;
    }
    Ok(())
}

#[test]
fn the_leader_and_a_member_of_etcd_are_killed_and_traffic_and_watches_go_on() {
    scenario::run_with_product(|| {
        let clusters = vec![ClusterPlan::new("us-east", 1, 3), ClusterPlan::new("eu-west", 2, 1)];
        let mut lab = Lab::build(LabPlan { clusters })?;
        lab.start_product_with(|cluster| match cluster.name.as_str() {
            "us-east" => Store::EtcdOfThree,
            _ => Store::Embedded,
        })?;
        lab.connect_all()?;
        lab.wait_until_connected(PATIENCE)?;
        lab.wait_until_served()?;
        let target = lab.cluster("us-east").service_address();
        let load = Request::to(&target).concurrency(2).every(Duration::from_millis(20));
        let load = lab.cluster("us-east").pod("client").keep_asking(&load)?;
        let before = lists(&mut lab)?;

        let leader = lab.cluster("us-east").leader(0)?;
        lab.cluster_mut("us-east").kill_replica(leader)?;
        change_arrives(&mut lab)?;
        let follower = (leader + 1) % 3;
        let next = wait::until("another one leads", PATIENCE, || {
            let next = lab.cluster("us-east").leader(follower)?;
            ensure!(next != leader, "replica {leader} is dead and leads");
            Ok(next)
        })?;
        // The member beside a replica that lives.
        lab.cluster_mut("us-east").kill_member(next)?;
        change_arrives(&mut lab)?;

        // Of several replicas the operator is answered by the first that is reached.
        let urls: Vec<String> = lab.cluster("us-east").server_urls().collect();
        let all = format!("{},{}", urls[leader], urls[next]);
        let table = lab.cluster("us-east").hawser_ok(&["--server", &all, "status"])?;
        ensure!(table.contains("exports, leads for"), "{table}");
        let dead = lab.cluster("us-east").hawser(&["--server", &urls[leader], "status"])?;
        let dead = String::from_utf8_lossy(&dead.stdout).into_owned();
        ensure!(dead.contains("no connection to the API server"), "{dead}");

        lab.cluster_mut("us-east").start_member(next)?;
        lab.cluster_mut("us-east").start_replica(leader)?;
        wait::until("the killed replica follows", PATIENCE, || {
            ensure!(lab.cluster("us-east").leader(leader)? == next);
            Ok(())
        })?;
        change_arrives(&mut lab)?;
        let after = lists(&mut lab)?;
        ensure!(before == after, "somebody listed anew: before {before:?}\nafter {after:?}");
        load.stop()?.all_ok()
    });
}

#[test]
fn a_ca_rotates_with_several_replicas_and_all_of_them_take_every_phase() {
    scenario::run_with_product(|| {
        let inside = Inside::current().context("inside a lab")?;
        hawser_e2e::history::cluster::raise_loopback()?;
        let runtime = tokio::runtime::Runtime::new()?;
        let mut world = runtime.block_on(World::build(SoakStore::Etcd, &inside, 0))?;
        let ca = |world: &World| fs::read_to_string(world.replicas[0].pki.join("ca.crt")).context("ca.crt");
        let old = ca(&world)?;
        wait::until("the mirror is synced", PATIENCE, || {
            let status = json(&world.mirror.hawser(&["status", "-o", "json"])?)?;
            ensure!(status["apiServer"]["peers"][0]["state"] == "synced", "{status}");
            Ok(())
        })?;
        let reply = json(&world.replicas[0].hawser(&["ca", "rotate", "--wait", "60", "-o", "json"])?)?;
        let members = reply["members"].as_array().context("members")?;
        let replicas = members.iter().filter(|member| member["kind"] == "replica");
        let replicas: Vec<&str> = replicas.filter_map(|member| member["name"].as_str()).collect();
        ensure!(replicas.len() == 2, "both replicas are waited for: {reply}");
        let second = world.replicas[1].address.to_string();
        let second = replicas.iter().find(|name| name.ends_with(&second)).context("the second replica")?;
        let second = format!("replica/{second}");
        ensure!(reply["phase"] == "" && reply["cas"].as_array().is_some_and(|cas| cas.len() == 1), "{reply}");
        let new = ca(&world)?;
        ensure!(new != old, "it is the same CA");

        // Each replica shows a certificate of the new one alone, and so does the mirror's peer.
        for replica in &world.replicas {
            wait::until("the replica has heard of the end", PATIENCE, || {
                let status = json(&replica.hawser(&["ca", "rotate", "--status", "-o", "json"])?)?;
                ensure!(status["problem"] == "" && status["phase"] == "", "{status}");
                Ok(())
            })?;
            replica.hawser(&["status", "-o", "json"])?;
        }
        // One that is away for all of it reads the directory when it is back.
        world.replicas[1].member.kill()?;
        world.replicas[0].hawser(&["ca", "rotate", "--wait", "60", "--abandon", &second, "-o", "json"])?;
        world.replicas[1].member.start()?;
        world.replicas[1].wait()?;
        let status = json(&world.mirror.hawser(&["status", "-o", "json"])?)?;
        let peer = &status["apiServer"]["peers"][0];
        ensure!(peer["state"] == "synced" && peer["relists"].to_string().trim_matches('"') == "0", "{peer}");
        world.check_alive()
    });
}
