//! How memory and the first sync grow with the number of clusters: two lines in one SVG.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::bench::result::Row;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 320.0;
const MARGIN: f64 = 56.0;

/// Writes the picture to `path`.
pub(super) fn draw(rows: &[Row], path: &Path) -> Result<()> {
    let series = |what: &str| -> Vec<(f64, f64)> {
        let point = |row: &Row| {
            let clusters = row.key.strip_suffix(what)?.strip_suffix(" clusters: ")?;
            Some((clusters.parse().ok()?, row.value))
        };
        rows.iter().filter_map(point).collect()
    };
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">
<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>
"#
    );
    line(&mut svg, &series("peak RSS"), "MiB", "#0b6", 20.0)?;
    line(&mut svg, &series("first sync"), "s", "#06b", 36.0)?;
    svg.push_str("</svg>\n");
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    fs::write(path, svg).with_context(|| format!("writing {}", path.display()))
}

/// Each line has a scale of its own; every point says its value.
fn line(svg: &mut String, points: &[(f64, f64)], unit: &str, colour: &str, label_at: f64) -> Result<()> {
    let most = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).fold(f64::MIN_POSITIVE, f64::max);
    let (right, top) = (most(|p| p.0), most(|p| p.1));
    let place = |&(x, y): &(f64, f64)| {
        (MARGIN + x / right * (WIDTH - 2.0 * MARGIN), HEIGHT - MARGIN - y / top * (HEIGHT - 2.0 * MARGIN))
    };
    let path: Vec<String> = points.iter().map(place).map(|(x, y)| format!("{x:.0},{y:.0}")).collect();
    writeln!(
        svg,
        r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#,
        path.join(" ")
    )?;
    let what = if unit == "MiB" { "peak RSS of an API server (MiB)" } else { "first sync (s)" };
    writeln!(
        svg,
        r#"<text x="{MARGIN}" y="{label_at}" fill="{colour}">{what}, by clusters mirrored</text>"#
    )?;
    for point in points {
        let (x, y) = place(point);
        writeln!(svg, r#"<circle cx="{x:.0}" cy="{y:.0}" r="3" fill="{colour}"/>"#)?;
        writeln!(
            svg,
            r#"<text x="{:.0}" y="{:.0}" fill="{colour}">{:.1} {unit}</text>"#,
            x - 24.0,
            y - 8.0,
            point.1
        )?;
        writeln!(
            svg,
            r#"<text x="{x:.0}" y="{:.0}" text-anchor="middle">{}</text>"#,
            HEIGHT - MARGIN + 20.0,
            point.0
        )?;
    }
    Ok(())
}
