//! Lines over an axis, in panels, two beside each other: one SVG.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 260.0;
const MARGIN: f64 = 52.0;
const COLOURS: [&str; 4] = ["#06b", "#b50", "#393", "#838"];

/// One panel. Its lines share a scale from zero; across, the scale is logarithmic (of one more, so that zero has a place).
#[derive(Clone, Debug)]
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) lines: Vec<Line>,
}

#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// Writes the picture to `path`. Every point says its value.
pub(super) fn draw(panels: &[Panel], path: &Path) -> Result<()> {
    let high = panels.len().div_ceil(2) as f64 * HEIGHT;
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {high}" font-family="sans-serif" font-size="11">
<rect width="100%" height="100%" fill="white"/>
"#,
        2.0 * WIDTH,
    );
    for (at, panel) in panels.iter().enumerate() {
        let (x, y) = ((at % 2) as f64 * WIDTH, (at / 2) as f64 * HEIGHT);
        writeln!(svg, r#"<g transform="translate({x},{y})">"#)?;
        draw_panel(&mut svg, panel)?;
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    fs::write(path, svg).with_context(|| format!("writing {}", path.display()))
}

fn draw_panel(svg: &mut String, panel: &Panel) -> Result<()> {
    let points = || panel.lines.iter().flat_map(|line| &line.points);
    let most = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(1e-9, f64::max);
    let (right, top) = ((1.0 + most(|p| p.0)).log2(), most(|p| p.1));
    let place = |&(x, y): &(f64, f64)| {
        let across = (1.0 + x).log2() / right * (WIDTH - 2.0 * MARGIN);
        (MARGIN + across, HEIGHT - MARGIN - y / top * (HEIGHT - 2.6 * MARGIN))
    };
    let (floor, end) = (HEIGHT - MARGIN, WIDTH - MARGIN);
    writeln!(svg, r#"<text x="{MARGIN}" y="16" font-weight="bold">{}</text>"#, panel.title)?;
    writeln!(svg, r##"<line x1="{MARGIN}" x2="{end}" y1="{floor}" y2="{floor}" stroke="#999"/>"##)?;
    for (at, line) in panel.lines.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let label = 32.0 + 14.0 * at as f64;
        writeln!(svg, r#"<text x="{MARGIN}" y="{label}" fill="{colour}">{}</text>"#, line.name)?;
        let path: Vec<String> =
            line.points.iter().map(place).map(|(x, y)| format!("{x:.0},{y:.0}")).collect();
        let path = path.join(" ");
        writeln!(svg, r#"<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>"#)?;
        for point in &line.points {
            let (x, y) = place(point);
            let above = y - 7.0 + 22.0 * (at % 2) as f64;
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
