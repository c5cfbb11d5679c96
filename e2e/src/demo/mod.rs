//! The main job, in six acts (`make demo`).

mod affinity;
mod agents;
mod lose;
mod report;
mod secrecy;
mod serve;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::lab::{Lab, Store, recent_logs};
use crate::net::secrecy::Secrecy;
use crate::net::sniffer::Sniffer;
use crate::plan::LabPlan;
use crate::{binaries, enclave, walk};
use report::{Act, Facts, Report};

/// Travels in every request, so that it would be seen if anything left in clear.
const MARKER: &str = "bill-of-lading-7f3a91";
/// The client's cluster, and the one that is lost.
const HOME: &str = "us-east";
const LOST: &str = "eu-west";
/// All acts together shall take no longer.
const BUDGET: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Options {
    /// Leave the lab up afterwards, and say how to get in.
    #[arg(long)]
    keep: bool,
    /// One real etcd per cluster behind `store: etcd://...`.
    #[arg(long)]
    etcd: bool,
    /// Fewer requests and a shorter idle check, while working on the lab.
    #[arg(long)]
    fast: bool,
    /// Stop after this act.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u8).range(1..=6))]
    acts: u8,
    /// Then one act more, for kernels with WireGuard: a cluster's agents are killed, then stopped, and no peer changes its verdict.
    #[arg(long)]
    lose_agents: bool,
}

impl Options {
    fn store(self) -> Store {
        if self.etcd { Store::Etcd } else { Store::Embedded }
    }

    fn requests(self) -> u64 {
        if self.fast { 60 } else { 300 }
    }

    fn idle(self) -> Duration {
        Duration::from_secs(if self.fast { 2 } else { 10 })
    }
}

/// The stage: what one act leaves for the next.
#[derive(Debug)]
struct Stage {
    options: Options,
    lab: Lab,
    capture: Option<Sniffer<Secrecy>>,
}

type Play = fn(&mut Stage) -> Result<Facts>;

const ACTS: &[(&str, Play)] = &[
    ("connect", serve::connect),
    ("serve", serve::serve),
    ("prove secrecy", secrecy::prove),
    ("affinity", affinity::play),
    ("lose a cluster", lose::play),
];

/// Plays all acts; the exit code is 0 only if every one held.
pub fn run(options: Options) -> Result<u8> {
    binaries::check_product()?;
    let start = Instant::now();
    let mut acts = Vec::new();
    let mut stage = None;
    let first = serve::up(options).map(|(ready, facts)| {
        stage = Some(ready);
        facts
    });
    perform(&mut acts, 1, "up", start, first);
    let further = options.lose_agents.then_some(("lose agents", agents::play as Play));
    let played: Vec<_> = ACTS.iter().take(usize::from(options.acts) - 1).copied().chain(further).collect();
    if let Some(stage) = &mut stage {
        for ((title, play), number) in played.iter().zip(2..) {
            let begun = Instant::now();
            let outcome = play(stage).and_then(|facts| stage.lab.check_alive().map(|()| facts));
            perform(&mut acts, number, title, begun, outcome);
            if !acts.last().is_some_and(Act::held) {
                break;
            }
        }
    }
    let held = acts.len() == 1 + played.len() && acts.iter().all(Act::held);
    finish(options, acts, held, start.elapsed(), stage.as_ref())?;
    if options.keep
        && let Some(stage) = &stage
    {
        walk::stay(&stage.lab);
    }
    Ok(u8::from(!held))
}

fn perform(acts: &mut Vec<Act>, number: u8, title: &'static str, begun: Instant, outcome: Result<Facts>) {
    let act = Act::new(number, title, begun.elapsed(), outcome);
    act.print();
    acts.push(act);
}

fn finish(options: Options, acts: Vec<Act>, held: bool, took: Duration, stage: Option<&Stage>) -> Result<()> {
    let store = if options.etcd { "etcd" } else { "embedded" };
    let seconds = (took.as_secs_f64() * 10.0).round() / 10.0;
    let path = Report { store, held, seconds, acts }.write()?;
    println!();
    if !held && let Some(inside) = enclave::Inside::current() {
        println!("{}", recent_logs(&inside.dir));
        println!("all logs: {}", inside.dir.display());
    }
    let verdict = if held { "every act held" } else { "NOT every act held" };
    let slow = if took > BUDGET && stage.is_some() { " (more than the 60 s it should take)" } else { "" };
    println!("{verdict}, in {seconds} s{slow}; store: {store}; report: {}", path.display());
    Ok(())
}

/// A lab, with everything between the regions captured from the product's first packet on.
fn set_stage(options: Options) -> Result<Stage> {
    let lab = Lab::build(LabPlan::standard())?;
    serve::check_apart(&lab)?;
    let bridges: Vec<String> = lab.clusters.iter().map(|cluster| cluster.plan.bridge()).collect();
    let mut secrecy = Secrecy::watching_for(MARKER);
    if lab.over_ipsec() {
        secrecy = secrecy.over_ipsec();
    }
    let capture = Sniffer::start(None, &bridges, secrecy).context("capturing at the router")?;
    Ok(Stage { options, lab, capture: Some(capture) })
}
