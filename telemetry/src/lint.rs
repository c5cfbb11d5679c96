//! Whether metrics are as Prometheus wants them (what `promtool check metrics` says), and as their page says. For tests.

use std::collections::{BTreeMap, BTreeSet};

/// Labels whose values are bounded by what they name: clusters, reasons, maps, kinds, limits. Never services, pods or nodes.
const LABELS: &[&str] = &[
    "keyspace",
    "kind",
    "le",
    "limit",
    "map_name",
    "reason",
    "role",
    "stat",
    "target_cluster",
    "to",
    "verdict",
    "version",
];
/// What names of metrics begin with.
const OURS: [&str; 2] = ["hawser_", "process_"];
/// Words that say a unit which is no base unit.
const NOT_BASE: &[&str] =
    &["_ms", "_milliseconds", "_micros", "_microseconds", "_minutes", "_kib", "_mib", "_percent"];

#[derive(Debug, Default)]
struct Seen {
    help: Option<String>,
    kind: Option<String>,
    unit: Option<String>,
}

/// The names of all metrics as a person types them (counters with `_total`), of what `/metrics` answered.
fn names(text: &str) -> BTreeMap<String, Seen> {
    let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# ")) {
        let mut words = line.splitn(3, ' ');
        let (Some(what), Some(name)) = (words.next(), words.next()) else { continue };
        let rest = words.next().unwrap_or_default().to_owned();
        let entry = seen.entry(name.to_owned()).or_default();
        match what {
            "HELP" => entry.help = Some(rest),
            "TYPE" => entry.kind = Some(rest),
            "UNIT" => entry.unit = Some(rest),
            _ => {}
        }
    }
    let full = |(name, seen): (String, Seen)| match seen.kind.as_deref() {
        Some("counter") => (format!("{name}_total"), seen),
        _ => (name, seen),
    };
    seen.into_iter().map(full).collect()
}

/// What is wrong with the text of `/metrics`; nothing, if it is as it should be.
pub fn lint(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let names = names(text);
    for (name, seen) in &names {
        let mut say = |what: &str| wrong.push(format!("{name}: {what}"));
        let help = seen.help.as_deref().unwrap_or_default();
        if !help.ends_with('.') || help.ends_with("..") {
            say("its HELP is no sentence with one full stop");
        }
        if seen.kind.is_none() {
            say("has no TYPE");
        }
        if !name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_')) {
            say("is not snake_case");
        }
        if !OURS.iter().any(|prefix| name.starts_with(prefix)) {
            say("has neither our prefix nor is it a process metric");
        }
        if NOT_BASE.iter().any(|word| name.contains(word)) {
            say("is not in a base unit");
        }
        for unit in ["seconds", "bytes"] {
            let base = name.strip_suffix("_total").unwrap_or(name);
            let named = base.ends_with(&format!("_{unit}"));
            if named != (seen.unit.as_deref() == Some(unit)) {
                say("its name and its UNIT differ");
            }
        }
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let labels = line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}'));
        for label in labels.iter().flat_map(|(labels, _)| label_names(labels)) {
            if !LABELS.contains(&label) {
                wrong.push(format!("{line}: the label {label} is not on the list of those that are bounded"));
            }
        }
    }
    if !text.ends_with("# EOF\n") {
        wrong.push("the text does not end with # EOF".to_owned());
    }
    wrong
}

fn label_names(labels: &str) -> impl Iterator<Item = &str> {
    let ends = labels.match_indices("=\"").map(|(at, _)| &labels[..at]);
    ends.map(|upto| upto.rsplit([',', '{']).next().unwrap_or(upto))
}

/// What the page of metrics (first cell of each table row, in backticks) and the text do not agree on. `others` are names
/// on the page that another process has.
pub fn documented(text: &str, page: &str, others: &[&str]) -> Vec<String> {
    let real: BTreeSet<String> = names(text).into_keys().collect();
    let cells = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let named: BTreeSet<String> = cells
        .filter(|cell| OURS.iter().any(|prefix| cell.starts_with(prefix)))
        .map(|cell| cell.split('{').next().unwrap_or(cell).to_owned())
        .filter(|name| !others.iter().any(|other| name.starts_with(other)))
        .collect();
    let missing = real.difference(&named).map(|name| format!("{name} is not on the page of metrics"));
    let gone =
        named.difference(&real).map(|name| format!("{name} is on the page of metrics and is no metric"));
    missing.chain(gone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Family, render};

    #[test]
    fn what_prometheus_does_not_like_is_told() {
        let row = vec![("service", "shop/cart".to_owned())];
        let bad = render(vec![
            Family::gauge("hawser_wait_ms", "Wait").value(1.0),
            Family::gauge("other_thing", "Thing.").row(row, 1.0),
        ]);
        let wrong = lint(&bad.unwrap()).join("\n");
        for says in ["HELP is no sentence", "not in a base unit", "neither our prefix", "label service"] {
            assert!(wrong.contains(says), "{wrong}");
        }
    }

    #[test]
    fn a_metric_and_its_page_are_held_against_each_other() {
        let text = render(vec![Family::counter("hawser_a", "A.").value(1.0)]).unwrap();
        assert_eq!(documented(&text, "| `hawser_a_total{x}` | a |", &[]), [""; 0]);
        let wrong = documented(&text, "| `hawser_b` | b |\n| `process_c` | c |", &["process_"]);
        assert_eq!(wrong.len(), 2, "{wrong:?}");
    }
}
