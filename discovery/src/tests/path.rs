//! What the probes' answers say about a path.

use std::time::Duration;

use super::ms;
use crate::multiplier;
use crate::path::Path;

const LEAST: Duration = Duration::from_millis(250);
const MOST: Duration = Duration::from_secs(3);

#[test]
fn the_multiplier_makes_a_chance_silence_as_rare_at_any_loss() {
    let table: Vec<_> =
        [0.0, 0.001, 0.01, 0.03, 0.1, 0.3, 1.0].map(|loss| multiplier(loss, 3)).into_iter().collect();
    assert_eq!(table, [4, 4, 5, 7, 10, 12, 12]);
    assert_eq!(multiplier(0.0, 6), 6, "never fewer than configured");
    assert_eq!(multiplier(0.0, 50), 12, "nor more than are remembered");
}

#[test]
fn patience_grows_with_jitter_within_its_bounds() {
    let mut path = Path::new();
    assert_eq!(path.patience(LEAST, MOST), LEAST);
    let mut now = 0;
    let mut steady = |path: &mut Path, rtts: &[u64]| {
        for rtt in rtts {
            now += 1_000;
            let low = path.ask(ms(now)) as u16;
            assert!(path.answered(low, ms(now + rtt)));
        }
    };
    steady(&mut path, &[200; 50]);
    let calm = path.patience(LEAST, MOST);
    assert!(calm < Duration::from_millis(260), "{calm:?}");
    steady(&mut path, &[100, 600, 150, 500, 100, 600, 200, 550]);
    let wild = path.patience(LEAST, MOST);
    assert!(wild > Duration::from_millis(700), "{wild:?}");
    steady(&mut path, &[900; 3]);
    assert!(path.patience(LEAST, Duration::from_millis(500)) <= Duration::from_millis(500));
}

#[test]
fn loss_is_counted_once_later_probes_are_answered() {
    let mut path = Path::new();
    for probe in 0..6_400_u64 {
        let low = path.ask(ms(probe * 100)) as u16;
        if probe % 10 != 0 {
            assert!(path.answered(low, ms(probe * 100 + 20)));
        }
    }
    assert!((0.07..0.13).contains(&path.loss()), "{}", path.loss());
    let before = path.loss();
    for probe in 0..10 {
        path.ask(ms(700_000 + probe * 100));
    }
    assert!((path.loss() - before).abs() < f64::EPSILON, "silence alone is death, not loss");
    assert_eq!(path.unanswered(LEAST, ms(701_000)), 8, "those that had their time");
}

#[test]
fn sequences_wrap() {
    let mut path = Path::new();
    for probe in 0..200_000_u64 {
        let low = path.ask(ms(probe)) as u16;
        assert!(path.answered(low, ms(probe + 1)));
        assert_eq!(path.unanswered(LEAST, ms(probe + 10_000)), 0);
    }
}
