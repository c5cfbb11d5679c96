//! Medians of rounds, and how sure we are of them. Rounds are few and machines are noisy, so nothing assumes a shape.

/// A median with its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Estimate {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// Rounds below this number cannot give a 95 % interval: even the extremes miss the median in 2 of 32 cases at five.
pub(super) const ROUNDS_MIN: usize = 6;

impl Estimate {
    /// The interval is between order statistics: it holds the median with at least 95 %, whatever the distribution.
    ///
    /// # Panics
    /// With fewer than [`ROUNDS_MIN`] rounds.
    pub(super) fn of(rounds: &[f64]) -> Self {
        assert!(rounds.len() >= ROUNDS_MIN, "{} rounds say nothing", rounds.len());
        let mut sorted = rounds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let count = sorted.len();
        let median = f64::midpoint(sorted[(count - 1) / 2], sorted[count / 2]);
        let cut = cut_each_side(count);
        Self { median, low: sorted[cut], high: sorted[count - 1 - cut] }
    }

    /// Of what one column has over another, round by round: what slowed a whole round down cancels out.
    pub(super) fn of_ratios(ours: &[f64], theirs: &[f64]) -> Self {
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        Self::of(&ratios)
    }
}

/// How many values may be left out at each end: the most for which a fair coin, thrown `count` times, shows heads no more
/// often than that with at most 2.5 %.
fn cut_each_side(count: usize) -> usize {
    let mut term = 0.5_f64.powi(i32::try_from(count).unwrap_or(i32::MAX));
    let (mut tail, mut cut) = (term, 0);
    loop {
        term *= (count - cut) as f64 / (cut + 1) as f64;
        tail += term;
        if tail > 0.025 {
            return cut;
        }
        cut += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_the_one_in_the_tables_of_the_sign_test() {
        assert_eq!(cut_each_side(6), 0);
        assert_eq!(cut_each_side(9), 1);
        assert_eq!(cut_each_side(20), 5);
        assert_eq!(cut_each_side(100), 39);
    }

    #[test]
    fn a_round_that_was_slow_for_everybody_changes_no_ratio() {
        let theirs = [100.0, 100.0, 10.0, 100.0, 100.0, 100.0];
        let ours = theirs.map(|rate| rate * 0.5);
        assert_eq!(Estimate::of_ratios(&ours, &theirs), Estimate { median: 0.5, low: 0.5, high: 0.5 });
        let even = Estimate::of(&[4.0, 1.0, 3.0, 2.0, 6.0, 5.0]);
        assert_eq!(even, Estimate { median: 3.5, low: 1.0, high: 6.0 });
    }
}
