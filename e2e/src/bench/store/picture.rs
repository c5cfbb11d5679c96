//! How memory, the first sync and bytes on the wire grow with the number of clusters: four panels.

use crate::bench::plot::{Line, Panel};
use crate::bench::result::Row;

/// What each panel shows: its title, its unit, and whose rows its lines are.
const PANELS: [(&str, &str, [&str; 2]); 4] = [
    ("peak RSS", "MiB", ["API server, peak RSS", "agent, peak RSS"]),
    ("peak RSS per key", "B", ["API server, peak RSS per key", "agent, peak RSS per key"]),
    ("first sync", "s", ["API server, first sync", "agent, first sync"]),
    (
        "on the wire per event",
        "B",
        ["remotes to API server, bytes per event", "API server to agent, bytes per event"],
    ),
];

pub(super) fn panels(rows: &[Row]) -> Vec<Panel> {
    let line = |what: &str| Line {
        name: what.split(", ").next().unwrap_or_default().to_owned(),
        points: series(rows, what),
    };
    let panel = |(title, unit, lines): &(&str, &str, [&str; 2])| Panel {
        title: format!("{title} ({unit}), by clusters"),
        lines: lines.map(line).into(),
    };
    PANELS.iter().map(panel).collect()
}

/// Clusters and value of the rows that end so.
fn series(rows: &[Row], what: &str) -> Vec<(f64, f64)> {
    let point = |row: &Row| {
        let clusters = row.key.strip_suffix(what)?.strip_suffix(" clusters: ")?;
        Some((clusters.parse().ok()?, row.value))
    };
    rows.iter().filter_map(point).collect()
}
