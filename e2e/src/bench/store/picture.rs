//! How memory, the first sync and bytes on the wire grow with the number of clusters: four panels in one SVG.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::bench::result::Row;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 260.0;
const MARGIN: f64 = 52.0;
const COLOURS: [&str; 2] = ["#06b", "#b50"];

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

/// Writes the picture to `path`.
pub(super) fn draw(rows: &[Row], path: &Path) -> Result<()> {
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" font-family="sans-serif" font-size="11">
<rect width="100%" height="100%" fill="white"/>
"#,
        2.0 * WIDTH,
        2.0 * HEIGHT
    );
    for (at, (title, unit, lines)) in PANELS.iter().enumerate() {
        let (x, y) = ((at % 2) as f64 * WIDTH, (at / 2) as f64 * HEIGHT);
        writeln!(svg, r#"<g transform="translate({x},{y})">"#)?;
        panel(&mut svg, title, unit, lines, rows)?;
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    fs::write(path, svg).with_context(|| format!("writing {}", path.display()))
}

/// Clusters and value of the rows that end so.
fn series(rows: &[Row], what: &str) -> Vec<(f64, f64)> {
    let point = |row: &Row| {
        let clusters = row.key.strip_suffix(what)?.strip_suffix(" clusters: ")?;
        Some((clusters.parse().ok()?, row.value))
    };
    rows.iter().filter_map(point).collect()
}

/// The lines share a scale from zero; clusters are on a logarithmic one. Every point says its value.
fn panel(svg: &mut String, title: &str, unit: &str, lines: &[&str; 2], rows: &[Row]) -> Result<()> {
    let all = lines.map(|line| series(rows, line));
    let most = |of: fn(&(f64, f64)) -> f64| all.iter().flatten().map(of).fold(1e-9, f64::max);
    let (right, top) = ((1.0 + most(|p| p.0)).log2(), most(|p| p.1));
    let place = |&(x, y): &(f64, f64)| {
        let across = (1.0 + x).log2() / right * (WIDTH - 2.0 * MARGIN);
        (MARGIN + across, HEIGHT - MARGIN - y / top * (HEIGHT - 2.2 * MARGIN))
    };
    let floor = HEIGHT - MARGIN;
    writeln!(svg, r#"<text x="{MARGIN}" y="16" font-weight="bold">{title} ({unit}), by clusters</text>"#)?;
    writeln!(
        svg,
        r##"<line x1="{MARGIN}" x2="{}" y1="{floor}" y2="{floor}" stroke="#999"/>"##,
        WIDTH - MARGIN
    )?;
    for (at, points) in all.iter().enumerate() {
        let (colour, legend) = (COLOURS[at], lines[at].split(", ").next().unwrap_or_default());
        let label = 32.0 + 14.0 * at as f64;
        writeln!(svg, r#"<text x="{MARGIN}" y="{label}" fill="{colour}">{legend}</text>"#)?;
        let path: Vec<String> = points.iter().map(place).map(|(x, y)| format!("{x:.0},{y:.0}")).collect();
        writeln!(
            svg,
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#,
            path.join(" ")
        )?;
        for point in points {
            let (x, y) = place(point);
            let above = y - 7.0 + 22.0 * at as f64;
            let digits = if point.1 < 10.0 { 1 } else { 0 };
            writeln!(svg, r#"<circle cx="{x:.0}" cy="{y:.0}" r="3" fill="{colour}"/>"#)?;
            writeln!(
                svg,
                r#"<text x="{x:.0}" y="{above:.0}" fill="{colour}" text-anchor="middle">{:.digits$}</text>"#,
                point.1
            )?;
            let below = floor + 18.0;
            writeln!(svg, r#"<text x="{x:.0}" y="{below}" text-anchor="middle">{}</text>"#, point.0)?;
        }
    }
    Ok(())
}
