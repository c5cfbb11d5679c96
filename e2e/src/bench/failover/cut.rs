//! One cut: what is dropped at the router, what the client's agent says, what clients live through, and the rows of many.

use std::fmt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::held::{self, Held, Hold, Kind, Tell};
use super::{DETECT, HOME, RESET_AFTER, RETURN, Sizes};
use crate::bench::part;
use crate::bench::plot::{Line, Panel};
use crate::bench::result::Row;
use crate::lab::Lab;
use crate::pod::client::{Record, Report, Request, unix_ms};
use crate::process::run_with_input;
use crate::wait;

/// A connection that is opened so long after the verdict may not fail.
const SHIFT_MS: u64 = 5;
/// From the reset on, half of the pool is written to: before the sweep, and after it. The datapath's clock has quarter seconds.
const EARLY: Duration = Duration::from_millis(150);
const LATE: Duration = Duration::from_millis(1_300);
/// From there on, until those who still wait are said to wait forever.
const LAST: Duration = Duration::from_millis(300);

/// What is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Cluster,
    /// The second node: the API server is on the first.
    Node,
}

/// One cut, in milliseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Cut {
    detect: f64,
    /// From the verdict to the last connection that was sent there all the same.
    shift: f64,
    failed_before: usize,
    failed_after: usize,
    /// From the heal to the verdict that takes it back, and the requests that failed from there on.
    back: f64,
    failed_back: usize,
    opened: usize,
    /// From the reset to the error, of those who talk and those who wait.
    talking: Vec<f64>,
    waiting: Vec<f64>,
    /// From the reset to the next answer.
    next: Vec<f64>,
    /// From the write to the error.
    early: Vec<f64>,
    late: Vec<f64>,
    /// Held connections to it that did not end, and to others that did.
    endless: usize,
    wrongly: usize,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { detect, shift, failed_before, failed_after, back, failed_back, opened, .. } = self;
        write!(
            f,
            "detected {detect} ms, shift {shift} ms, failed {failed_before} before, {failed_after} of {opened} after, \
             back {back} ms, {failed_back} failed; from the reset to the error: talking {}, waiting {} ms; to the next \
             answer {} ms; pooled {} and {} ms; endless {}, wrongly ended {}",
            middle(&self.talking),
            middle(&self.waiting),
            middle(&self.next),
            middle(&self.early),
            middle(&self.late),
            self.endless,
            self.wrongly
        )
    }
}

/// `median of count`.
fn middle(values: &[f64]) -> String {
    format!("{:.2} of {}", at(values, 50), values.len())
}

/// The value below which `share` of a hundred are; 0 of none.
fn at(values: &[f64], share: usize) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get((values.len() * share / 100).min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

impl Part {
    /// As the agents name it.
    pub(super) fn about(self, victim: &str) -> String {
        match self {
            Self::Cluster => victim.to_owned(),
            Self::Node => format!("{victim}/node-2"),
        }
    }

    fn who(self) -> &'static str {
        match self {
            Self::Cluster => "a cluster",
            Self::Node => "one node",
        }
    }

    fn has(self, victim: &str, held: &Held) -> bool {
        held.cluster == victim && (self == Self::Cluster || held.node == "node-2")
    }

    fn filter(self, lab: &Lab, victim: &str, verb: &str) -> Result<()> {
        let plan = &lab.cluster(victim).plan;
        let (from, to) = match self {
            // Its nodes still reach each other, also where bridges call iptables.
            Self::Cluster => {
                let bridge = plan.bridge();
                (format!("-i {bridge} ! -o {bridge}"), format!("-o {bridge} ! -i {bridge}"))
            }
            Self::Node => {
                let address = plan.nodes[1].address;
                (format!("-s {address}"), format!("-d {address}"))
            }
        };
        let rules = format!("*filter\n{verb} FORWARD {from} -j DROP\n{verb} FORWARD {to} -j DROP\nCOMMIT\n");
        run_with_input(Command::new("iptables-restore").args(["-w", "--noflush"]), &rules)
            .map(drop)
            .with_context(|| format!("{verb} of {} at the router", self.about(victim)))
    }
}

pub(super) fn one_cut(lab: &mut Lab, victim: &str, part: Part, sizes: &Sizes) -> Result<Cut> {
    let about = part.about(victim);
    takes_its_share(lab, victim, part)?;
    let target = lab.cluster(HOME).service_address();
    let [talking, waiting, pooled] = sizes.held;
    let hold = Hold { target: target.parse()?, talking, waiting, pooled };
    let mut holding = part::Part::start_in(&lab.cluster(HOME).pod("client").place, held::ROLE, &hold)?;
    ensure!(holding.hear::<bool>()?, "connections are held");
    // Enough workers that those who wait for the victim do not silence the rest.
    let load = Request::to(&target)
        .concurrency(48)
        .every(Duration::from_millis(120))
        .timeout(Duration::from_secs(1));
    let running = lab.cluster(HOME).pod("client").keep_asking(&load)?;
    std::thread::sleep(sizes.settle);
    let cut_ms = unix_ms();
    part.filter(lab, victim, "-I")?;
    let down_ms = verdict(lab, &about, "down", cut_ms, DETECT)?;
    let reset_ms = down_ms + RESET_AFTER.as_millis() as u64;
    let reports = watch(&mut holding, reset_ms)?;
    // A rule that is taken away may be gone long before the command is.
    let healed_ms = unix_ms();
    part.filter(lab, victim, "-D")?;
    let up_ms = verdict(lab, &about, "up", healed_ms, RETURN)?;
    std::thread::sleep(sizes.settle);
    let report = running.stop()?;
    lab.check_alive()?;
    let mut cut = judge(&report, cut_ms, down_ms, healed_ms, up_ms)?;
    cut.hear(&reports, |held| part.has(victim, held), reset_ms as f64);
    Ok(cut)
}

/// Has the pool written to, and asks what became of them all.
fn watch(holding: &mut part::Part, reset_ms: u64) -> Result<Vec<Held>> {
    for at in [EARLY, LATE] {
        let due = reset_ms + at.as_millis() as u64;
        std::thread::sleep(Duration::from_millis(due.saturating_sub(unix_ms())));
        holding.tell(&Tell::Write)?;
    }
    std::thread::sleep(LAST);
    holding.ask(&Tell::Report)
}

/// Until connections go there again: a victim that is back begins with little weight.
fn takes_its_share(lab: &Lab, victim: &str, part: Part) -> Result<()> {
    let target = lab.cluster(HOME).service_address();
    let pod = format!("{victim}/cart-1");
    wait::until(&format!("{} answers", part.about(victim)), RETURN, || {
        let report =
            lab.cluster(HOME).pod("client").ask(&Request::to(&target).requests(100).concurrency(8))?;
        let answers = match part {
            Part::Cluster => report.from_cluster(victim),
            Part::Node => report.by_pod.get(&pod).copied().unwrap_or(0),
        };
        ensure!(answers > 0, "it has no share: {}", report.shares());
        Ok(())
    })
}

/// When the client's node said so, by its own account.
fn verdict(lab: &mut Lab, about: &str, to: &str, since_ms: u64, patience: Duration) -> Result<u64> {
    lab.wait(&format!("{about} is {to}"), patience, |lab| {
        let status = lab.cluster(HOME).node("node-1").status()?;
        let said = status.transitions.iter().rev().find(|said| said.about == about && said.to == to);
        match said.map(|said| said.unix_ms.unsigned_abs()) {
            Some(at) if at >= since_ms => Ok(at),
            last => {
                bail!("it is not said yet; the last time was {last:?}, and now it is {since_ms} or later")
            }
        }
    })
}

fn judge(report: &Report, cut_ms: u64, down_ms: u64, healed_ms: u64, up_ms: u64) -> Result<Cut> {
    let failed = |from: u64, until: u64| {
        let within = move |record: &&Record| (from..until).contains(&record.opened_ms);
        report.records.iter().filter(|record| record.error.is_some()).filter(within)
    };
    ensure!(down_ms >= cut_ms && up_ms >= healed_ms, "a verdict came before its cause");
    let last = failed(down_ms, healed_ms).map(|record| record.opened_ms).max();
    let after = failed(down_ms + SHIFT_MS + 1, healed_ms);
    let opened = report.records.iter().filter(|record| (down_ms..healed_ms).contains(&record.opened_ms));
    Ok(Cut {
        detect: (down_ms - cut_ms) as f64,
        shift: last.map_or(0.0, |last| (last - down_ms) as f64),
        // One that was open when the wire went fails, too.
        failed_before: failed(0, down_ms).count(),
        failed_after: after.count(),
        back: (up_ms - healed_ms) as f64,
        failed_back: failed(healed_ms, u64::MAX).count(),
        opened: opened.count(),
        ..Cut::default()
    })
}

impl Cut {
    fn hear(&mut self, held: &[Held], is_lost: impl Fn(&Held) -> bool, reset_ms: f64) {
        for one in held {
            match (is_lost(one), one.ended_ms) {
                (false, ended) => self.wrongly += usize::from(ended.is_some()),
                (true, None) => self.endless += 1,
                (true, Some(ended_ms)) => {
                    // Its clock has quarter seconds, and may be early.
                    let since = |at: f64| (at - reset_ms).max(0.0);
                    let (place, took) = match one.kind {
                        Kind::Talking => (&mut self.talking, since(ended_ms)),
                        Kind::Waiting => (&mut self.waiting, since(ended_ms)),
                        Kind::PooledEarly => (&mut self.early, one.heard_after_ms.unwrap_or(f64::MAX)),
                        Kind::PooledLate => (&mut self.late, one.heard_after_ms.unwrap_or(f64::MAX)),
                    };
                    place.push(took);
                    if one.kind == Kind::Talking {
                        self.next.push(since(one.next_ms.unwrap_or(f64::MAX)));
                    }
                }
            }
        }
    }
}

/// A row of something in milliseconds that is better lower.
fn ms(key: &str, value: f64, goal: impl Into<Option<f64>>) -> Row {
    Row::plain(key, value, "ms", "lower", goal.into())
}

pub(super) fn rows_of(part: Part, others: u32, cuts: &[Cut]) -> Vec<Row> {
    let one = |of: fn(&Cut) -> f64, share| at(&cuts.iter().map(of).collect::<Vec<_>>(), share);
    let sum = |of: fn(&Cut) -> usize| cuts.iter().map(of).sum::<usize>() as f64;
    let none = |key: &str, value: f64| Row::plain(key, value, "", "lower", Some(0.0));
    let key = format!("{} is cut off, {others} services: detected, p50", part.who());
    let failed_before = sum(|cut| cut.failed_before) / cuts.len() as f64;
    let mut rows = vec![
        ms(&key, one(|cut| cut.detect, 50), 250.0),
        ms("  p99", one(|cut| cut.detect, 99), 400.0),
        ms("  shift after the verdict, longest", one(|cut| cut.shift, 100), 5.0),
        Row::plain("  connections opened after the verdict", sum(|cut| cut.opened), "", "higher", None),
        none("  failed, opened after the shift", sum(|cut| cut.failed_after)),
        Row::plain("  failed, opened before the verdict, a cut", failed_before, "", "lower", None),
        ms("  healed: taken back after, p50", one(|cut| cut.back, 50), None),
        none("  failed, opened after the heal", sum(|cut| cut.failed_back)),
    ];
    let all = |of: fn(&Cut) -> &Vec<f64>| cuts.iter().flat_map(of).copied().collect::<Vec<_>>();
    let mut two = |key: &str, values: &[f64], goals: [Option<f64>; 2]| {
        rows.push(ms(&format!("  {key}, p50"), at(values, 50), goals[0]));
        rows.push(ms("    p99", at(values, 99), goals[1]));
    };
    let goals = [Some(500.0), Some(1_500.0)];
    two("connected, talking: from the reset to the error", &all(|cut| &cut.talking), goals);
    two("connected, waiting: from the reset to the error", &all(|cut| &cut.waiting), goals);
    let goals = [Some(1.0); 2];
    two("idle in a pool, written to soon after the reset: to the error", &all(|cut| &cut.early), goals);
    two("idle in a pool, written to later: to the error", &all(|cut| &cut.late), goals);
    two("talking: from the reset to the next answer", &all(|cut| &cut.next), [None, Some(1_000.0)]);
    rows.push(none("  connections to it that did not end", sum(|cut| cut.endless)));
    rows.push(none("  connections to others that did", sum(|cut| cut.wrongly)));
    rows
}

/// The cuts by how soon they were detected; the connections, in percent of all, by how soon they heard.
pub(super) fn panels(part: Part, cuts: &[Cut]) -> [Panel; 2] {
    let mut detected: Vec<f64> = cuts.iter().map(|cut| cut.detect).collect();
    detected.sort_by(f64::total_cmp);
    let points = (1..).zip(detected).map(|(n, ms)| (f64::from(n), ms)).collect();
    let of = |name: &str, of: fn(&Cut) -> &Vec<f64>| {
        let all: Vec<f64> = cuts.iter().flat_map(of).copied().collect();
        let points = [1, 10, 25, 50, 75, 90, 99].map(|share| (f64::from(share), at(&all, share as usize)));
        Line { name: name.to_owned(), points: points.to_vec() }
    };
    [
        Panel {
            title: format!("{} is cut off: detected (ms), cuts in the order of it", part.who()),
            lines: vec![Line { name: "ms from the cut to the verdict".to_owned(), points }],
        },
        Panel {
            title: format!("{}: from the reset to the error (ms), by percent of connections", part.who()),
            lines: vec![
                of("of clients that talk", |cut| &cut.talking),
                of("of clients that wait", |cut| &cut.waiting),
            ],
        },
    ]
}
