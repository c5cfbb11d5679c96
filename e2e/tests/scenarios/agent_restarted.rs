//! A planned restart: the successor is started beside the agent that runs, and no packet of any tunnel is lost.

use std::time::Duration;

use anyhow::ensure;
use hawser_e2e::lab::Lab;
use hawser_e2e::net::echo::Echoes;
use hawser_e2e::plan::LabPlan;
use hawser_e2e::pod::client::Request;
use hawser_e2e::{scenario, wait};

const PATIENCE: Duration = Duration::from_secs(20);
const EVERY: Duration = Duration::from_millis(2);

#[test]
fn an_agent_that_is_succeeded_by_another_loses_no_packet_and_no_connection() {
    scenario::run_with_product(|| {
        let mut lab = Lab::connected(LabPlan::regions(&["us-east", "eu-west"], 1))?;
        let target = lab.cluster("us-east").service_address();
        let flow = Request::to(&target).keep_alive().concurrency(4).every(Duration::from_millis(20));
        let flow = lab.cluster("us-east").pod("client").keep_asking(&flow)?;
        let there = lab.cluster("eu-west").node("node-1").status()?.mesh_ipv4;
        let node = lab.cluster("us-east").node("node-1");
        let echoes = Echoes::start(&node.place, &there, EVERY, &lab.inside.dir)?;
        let answered = |more: u64| {
            let until = echoes.answered()? + more;
            wait::until("packets are answered", PATIENCE, || {
                let answered = echoes.answered()?;
                ensure!(answered >= until, "{answered} of {until}");
                Ok(())
            })
        };
        answered(200)?;
        for time in 1..=2 {
            let node = lab.cluster_mut("us-east").node_mut("node-1");
            let mut before = node.succeed_agent()?;
            wait::until("the agent is superseded", PATIENCE, || {
                before.check_alive()?;
                let said = std::fs::read_to_string(before.log())?.matches("superseded").count();
                ensure!(said == time, "it has not said so");
                Ok(())
            })?;
            node.wait_for_agent()?;
            answered(200)?;
            let ended = before.terminate(PATIENCE)?;
            ensure!(ended.success(), "the agent that was superseded ended: {ended}");
            answered(200)?;
        }
        let seen = echoes.end()?;
        ensure!(
            seen.lost == 0,
            "{} of {} packets were lost, the longest gap {:?}",
            seen.lost,
            seen.sent,
            seen.gap
        );
        flow.stop()?.all_ok()?;
        lab.wait_until_connected(PATIENCE)?;
        lab.wait_until_served()
    });
}
