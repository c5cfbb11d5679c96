//! One reconcile: observe, plan, check, execute; make before break. Blocks; runs on a thread of its own.
//!
//! ```text
//! device, guards, tunnel_in ──> tunnels: what adds ──> datapath: additions, then removals ──> tunnels: what removes
//! ```
//! So a packet is never sent to a tunnel that is not there yet, and a tunnel never goes before what leads into it. It
//! stops at the first failure: the next one starts from a fresh observation. One thing waits for no map: peers and
//! prefixes that are no longer wanted are taken away even if the datapath has problems, for that is how a cluster is
//! kept out.

use std::sync::Arc;
use std::time::Instant;

use hawser_agent_core::Plan;
use hawser_telemetry::span;
use hawser_tunnels::{Desired, DeviceName, Op, Settled};
use hawser_tunnels_linux::Driver;
use tokio::task::JoinHandle;

use crate::causes::chain;
use crate::datapath::Datapath;
use crate::interfaces::Edge;
use crate::known::{Known, Look, Steps};
use crate::tunnels::Tunnels;

/// How it went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// For people: what was not granted, and what failed.
    pub problems: Vec<String>,
    /// Everything that was planned is done.
    pub complete: bool,
}

/// What is left to do, as `hawser plan` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub part: &'static str,
    pub text: String,
}

pub(crate) fn reconcile(
    plan: &Arc<Plan>,
    edge: &Edge,
    tunnels: &Tunnels,
    datapath: &Datapath,
    known: &Known,
) -> Outcome {
    let mut problems = Vec::new();
    let complete = attempt(plan, edge, tunnels, datapath, known, &mut problems).is_some();
    Outcome { problems, complete }
}

/// How a reconcile on a thread of its own went: one that panicked has failed, and is tried again as any other.
pub(crate) async fn outcome_of(work: JoinHandle<Outcome>) -> Outcome {
    work.await.unwrap_or_else(|error| Outcome {
        problems: vec![format!(
            "the reconcile ended early, and is tried again: {error}. fix: report this, it is a bug"
        )],
        complete: false,
    })
}

/// None when something failed, which is among the problems then.
fn attempt(
    plan: &Arc<Plan>,
    edge: &Edge,
    tunnels: &Tunnels,
    datapath: &Datapath,
    known: &Known,
    problems: &mut Vec<String>,
) -> Option<()> {
    let steps = match &plan.tunnels {
        Some(desired) => Some(
            span!("tunnels.plan")
                .in_scope(|| known.steps(desired, tunnels).or_else(|| steps(desired, tunnels, problems)))?,
        ),
        None => None,
    };
    let (ops, settled) = steps.map(|steps| (steps.ops, (steps.settled, steps.looked))).unzip();
    let (making, breaking): (Vec<_>, Vec<_>) =
        ops.unwrap_or_default().into_iter().partition(|op| !is_breaking(op));
    let make = || match &plan.tunnels {
        Some(desired) => make(&making, &desired.device.name, tunnels, datapath, problems),
        None => Some(()),
    };
    span!("tunnels.make", ops = making.len()).in_scope(make)?;
    let failed = span!("datapath.apply").in_scope(|| datapath.sync(plan, edge));
    let whole = failed.is_empty();
    problems.extend(failed.into_iter().map(|problem| format!("datapath: {problem}")));
    let now: Vec<_> = breaking.into_iter().filter(|op| whole || keeps_out(op)).collect();
    span!("tunnels.break", ops = now.len()).in_scope(|| apply(&now, tunnels, problems))?;
    if let Some((settled, looked)) = settled.filter(|_| whole) {
        known.note(plan, settled, looked);
    }
    whole.then_some(())
}

/// What the tunnels need after a look at everything, checked; the plan's own problems are told and do not stop the rest.
fn steps(desired: &Desired, tunnels: &Tunnels, problems: &mut Vec<String>) -> Option<Steps> {
    let began = Instant::now();
    let observed = match tunnels.observe() {
        Ok(observed) => observed,
        Err(error) => {
            problems.push(format!("tunnels: {error}"));
            return None;
        }
    };
    let plan = hawser_tunnels::plan(desired, &observed);
    problems.extend(plan.problems.iter().map(|problem| format!("tunnels: {problem}")));
    match Settled::after(&plan, &observed, desired) {
        Ok(settled) => Some(Steps { ops: plan.ops, settled, looked: Look::since(began) }),
        Err(violation) => {
            problems.push(format!("tunnels: the plan was refused: {violation}"));
            None
        }
    }
}

/// The device, its guards, and what judges what comes out of it; only then whom it speaks with.
fn make(
    ops: &[Op],
    device: &DeviceName,
    tunnels: &Tunnels,
    datapath: &Datapath,
    problems: &mut Vec<String>,
) -> Option<()> {
    let first = ops.iter().position(|op| matches!(op, Op::AddPeer { .. } | Op::Allow { .. }));
    let (device_itself, ways) = ops.split_at(first.unwrap_or(ops.len()));
    apply(device_itself, tunnels, problems)?;
    if !ways.is_empty()
        && let Err(error) = datapath.guard_tunnel(device)
    {
        problems.push(format!("datapath: {}", chain(&error)));
        return None;
    }
    apply(ways, tunnels, problems)
}

fn apply(ops: &[Op], tunnels: &Tunnels, problems: &mut Vec<String>) -> Option<()> {
    for op in ops {
        tracing::debug!(%op, "tunnels");
        if let Err(error) = tunnels.apply(op) {
            problems.push(format!("tunnels: {op}: {error}"));
            return None;
        }
    }
    Some(())
}

/// Takes something away. The planner puts these after everything else, so the split keeps its order.
fn is_breaking(op: &Op) -> bool {
    matches!(
        op,
        Op::RemoveRoute { .. }
            | Op::Restrict { .. }
            | Op::RemovePeer { .. }
            | Op::RemoveAddress { .. }
            | Op::RemoveRule { .. }
            | Op::RemoveGuard { .. }
    )
}

/// Takes a way into or out of another cluster. What else is removed (own addresses, rules, guards) the datapath may lean
/// on still, and a guard keeps out more than it lets through.
fn keeps_out(op: &Op) -> bool {
    matches!(op, Op::RemoveRoute { .. } | Op::Restrict { .. } | Op::RemovePeer { .. })
}

/// Brings the tunnels of an earlier run back, and takes nothing away.
pub(crate) fn revive(desired: &Desired, tunnels: &Tunnels) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(Steps { ops, .. }) = steps(desired, tunnels, &mut problems) {
        let making: Vec<_> = ops.into_iter().filter(|op| !is_breaking(op)).collect();
        apply(&making, tunnels, &mut problems);
    }
    problems
}

/// What [`reconcile`] would do, without doing it.
pub(crate) fn preview(
    plan: &Plan,
    edge: &Edge,
    tunnels: &Tunnels,
    datapath: &Datapath,
) -> anyhow::Result<Vec<Step>> {
    let mut steps = Vec::new();
    if let Some(desired) = &plan.tunnels {
        let ops = hawser_tunnels::plan(desired, &tunnels.observe()?).ops;
        steps.extend(ops.iter().map(|op| Step { part: part(op), text: op.to_string() }));
    }
    steps.extend(datapath.preview(&plan.datapath, edge));
    Ok(steps)
}

fn part(op: &Op) -> &'static str {
    match op {
        Op::AddGuard { .. }
        | Op::RemoveGuard { .. }
        | Op::RemoveRule { .. }
        | Op::SetRoute { .. }
        | Op::RemoveRoute { .. } => "route",
        _ => "tunnel",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_map_keeps_no_cluster_connected() {
        let prefix = "10.2.0.0/16".parse().unwrap();
        let public_key = hawser_model::PublicKey::new([2; 32]).unwrap();
        for op in [Op::RemoveRoute { prefix }, Op::RemovePeer { public_key }] {
            assert!(is_breaking(&op) && keeps_out(&op), "{op} waits for no map");
        }
        for op in [Op::RemoveGuard { prefix }, Op::RemoveAddress { address: [240, 1, 0, 1].into() }] {
            assert!(is_breaking(&op) && !keeps_out(&op), "{op} waits until the datapath is whole");
        }
    }

    #[tokio::test]
    async fn a_reconcile_that_panics_is_a_failure_to_be_tried_again() {
        let outcome = outcome_of(tokio::task::spawn_blocking(|| panic!("a map in a place of its own"))).await;
        assert!(!outcome.complete);
        assert!(outcome.problems[0].contains("a map in a place of its own"), "{:?}", outcome.problems);
    }
}
