//! The shortest account of a violation: the write, what the watcher heard around it, what was done to the system then.

use std::fmt::Write as _;
use std::time::Duration;

use super::record::{Heard, History, Outcome, Watcher};
use super::violation::Violation;

/// Things heard that are told on each side.
const AROUND: usize = 4;
/// Faults so long before or after are told too.
const NEAR: Duration = Duration::from_secs(4);
/// Violations of one kind that are named; the first is told in full.
const NAMED: usize = 4;

/// By kind: how many there are, the first in full, a few more by name. One cause gives thousands.
pub fn tell(history: &History, violations: &[Violation]) -> String {
    let mut kinds: Vec<(String, Vec<&Violation>)> = Vec::new();
    for violation in violations {
        let kind = violation.to_string().split(':').next().unwrap_or_default().to_owned();
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, all)) => all.push(violation),
            None => kinds.push((kind, vec![violation])),
        }
    }
    let mut out = String::new();
    for (kind, all) in kinds {
        for (index, violation) in all.iter().take(NAMED).enumerate() {
            let _ = writeln!(out, "{violation}");
            if index == 0 {
                one(history, violation, &mut out);
            }
        }
        if all.len() > NAMED {
            let _ = writeln!(out, "... {} of \"{kind}\" in all", all.len());
        }
    }
    out
}

fn one(history: &History, violation: &Violation, out: &mut String) {
    let mut times = Vec::new();
    if let Some(revision) = violation.revision() {
        for write in history.writes.iter().filter(|write| write.outcome == Outcome::Acked(revision)) {
            let changes: Vec<String> = write.changes.iter().map(ToString::to_string).collect();
            let (began, ended) = (write.began, write.ended);
            times.extend([began, ended]);
            let _ = writeln!(
                out,
                "    written by {}: {} (began {began:.3?}, acknowledged {ended:.3?})",
                write.writer,
                changes.join(", ")
            );
        }
    }
    let watcher = violation.watcher().and_then(|name| history.watchers.iter().find(|w| w.name == name));
    if let Some(watcher) = watcher {
        let middle = place_of(watcher, violation);
        let from = middle.saturating_sub(AROUND);
        for (at, heard) in watcher.heard.iter().skip(from).take(2 * AROUND + 1) {
            times.push(*at);
            let _ = writeln!(out, "    {at:>9.3?} {} heard {}", watcher.name, in_short(heard));
        }
    }
    let (Some(first), Some(last)) = (times.iter().min(), times.iter().max()) else { return };
    let near = |at: &Duration| *at + NEAR >= *first && *at <= *last + NEAR;
    for (at, fault) in history.faults.iter().filter(|(at, _)| near(at)) {
        let _ = writeln!(out, "    {at:>9.3?} -- {fault}");
    }
}

/// Where in what the watcher heard the violation is, or would be.
fn place_of(watcher: &Watcher, violation: &Violation) -> usize {
    let at = match violation {
        Violation::Doubled { at, .. }
        | Violation::Reordered { at, .. }
        | Violation::Overtaken { at, .. }
        | Violation::Relisted { at, .. } => Some(*at),
        _ => None,
    };
    let revision = violation.revision().unwrap_or_default();
    let is_there = |(then, heard): &(Duration, Heard)| match (at, heard) {
        (Some(at), _) => *then >= at,
        (None, Heard::Event { revision: seen, .. }) => *seen >= revision,
        (None, Heard::Listed { revision: seen, .. }) => *seen >= revision && revision > 0,
        _ => false,
    };
    watcher.heard.iter().position(is_there).unwrap_or(watcher.heard.len())
}

fn in_short(heard: &Heard) -> String {
    match heard {
        Heard::Event { revision, change, version } => {
            format!("revision {revision}: {change} (version {version})")
        }
        Heard::Progress(revision) => format!("progress {revision}"),
        Heard::Reset { reason, .. } => format!("a list begins: {reason}"),
        Heard::Listed { revision, state } => format!("a list of {} keys at revision {revision}", state.len()),
        Heard::Note(text) => format!("({text})"),
    }
}
