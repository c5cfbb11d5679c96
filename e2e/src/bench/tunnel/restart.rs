//! What a restart of an agent costs the packets on their way: a planned one, with a successor beside it, and SIGKILL.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::super::result::Row;
use crate::lab::Lab;
use crate::net::echo::{Echoes, Seen};
use crate::process::Process;
use crate::wait;

const PATIENCE: Duration = Duration::from_secs(20);
const EVERY: Duration = Duration::from_millis(2);
const TIMES: u32 = 3;

/// Packets from node to node through the tunnel, 500 a second, there and back.
pub(super) fn measure(lab: &mut Lab, quick: bool) -> Result<Vec<Row>> {
    let times = if quick { 1 } else { TIMES };
    let (mut planned, mut killed) = (Vec::new(), Vec::new());
    for _ in 0..times {
        planned.push(while_packets_come(lab, succeed)?);
        killed.push(while_packets_come(lab, kill)?);
        lab.wait_until_connected(PATIENCE)?;
    }
    let lost = |seen: &[Seen]| seen.iter().map(|seen| seen.lost).max().unwrap_or_default() as f64;
    let gap = |seen: &[Seen]| seen.iter().map(|seen| seen.gap).max().unwrap_or_default().as_secs_f64() * 1e3;
    let most = |key: &str, value, unit, goal| Row::plain(key, value, unit, "lower", goal);
    Ok(vec![
        most(
            "agent restarted as planned: packets lost, of 500 a second",
            lost(&planned),
            "packets",
            Some(0.0),
        ),
        most("agent killed and started again: packets lost", lost(&killed), "packets", None),
        most("  without an answer", gap(&killed), "ms", Some(1000.0)),
    ])
}

fn while_packets_come(lab: &mut Lab, act: impl FnOnce(&mut Lab) -> Result<Option<Process>>) -> Result<Seen> {
    let there = lab.cluster("eu-west").node("node-1").status()?.mesh_ipv4;
    let place = &lab.cluster("us-east").node("node-1").place;
    let echoes = Echoes::start(place, &there, EVERY, &lab.inside.dir)?;
    more(&echoes)?;
    let before = act(lab)?;
    more(&echoes)?;
    if let Some(mut before) = before {
        before.terminate(PATIENCE)?;
    }
    more(&echoes)?;
    echoes.end()
}

fn more(echoes: &Echoes) -> Result<()> {
    let until = echoes.answered()? + 200;
    wait::until("packets are answered", PATIENCE, || {
        let answered = echoes.answered()?;
        ensure!(answered >= until, "{answered} of {until}");
        Ok(())
    })
}

fn succeed(lab: &mut Lab) -> Result<Option<Process>> {
    let node = lab.cluster_mut("us-east").node_mut("node-1");
    let before = node.succeed_agent()?;
    let said = || -> Result<usize> {
        Ok(fs::read_to_string(before.log()).context("its log")?.matches("superseded").count())
    };
    let times = said()?;
    wait::until("the agent is superseded", PATIENCE, || {
        ensure!(said()? > times, "it has not said so");
        Ok(())
    })?;
    node.wait_for_agent()?;
    Ok(Some(before))
}

fn kill(lab: &mut Lab) -> Result<Option<Process>> {
    let node = lab.cluster_mut("us-east").node_mut("node-1");
    node.agent().kill()?;
    node.start_agent()?;
    Ok(None)
}
