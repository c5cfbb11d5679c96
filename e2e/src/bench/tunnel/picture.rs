//! The benchmark as a picture.

use super::super::plot::{Line, Panel};
use super::{FOUR, LARGE, ONE, P50, P99, SMALL, UDP_LARGE, UDP_SMALL, Way};

/// Medians, a line for each way.
pub(super) fn panels(ways: &[Way]) -> Vec<Panel> {
    let panel = |title: &str, points: [(f64, usize); 2]| Panel {
        title: title.to_owned(),
        lines: ways
            .iter()
            .map(|way| Line {
                name: way.name.to_owned(),
                points: points.iter().map(|(at, what)| (*at, way.median(*what))).collect(),
            })
            .collect(),
    };
    let (small, large) = (f64::from(SMALL), f64::from(LARGE));
    vec![
        panel("TCP, Gb/s over flows", [(1.0, ONE), (4.0, FOUR)]),
        panel(
            "UDP, thousands of packets a second over payload bytes",
            [(small, UDP_SMALL), (large, UDP_LARGE)],
        ),
        panel("round trip, us over percentile", [(50.0, P50), (99.0, P99)]),
    ]
}
