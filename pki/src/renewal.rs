//! When a certificate is renewed, and when a renewal that failed is tried again.

use std::time::Duration;

use hawser_model::Timestamp;

/// At two thirds of its life, and up to a tenth of it before: what was issued together does not come back together.
/// `draw` is random.
pub fn renew_at(not_before: Timestamp, not_after: Timestamp, draw: u16) -> Timestamp {
    let life = not_after.since(not_before);
    let spread = life.mul_f64(f64::from(draw) / f64::from(u16::MAX) / 10.0);
    not_before.plus((life / 3 * 2).saturating_sub(spread))
}

/// A twentieth of what is left of it, so that trouble is outlived; between a second and a minute.
pub fn retry_after(not_after: Timestamp, now: Timestamp) -> Duration {
    (not_after.since(now) / 20).clamp(Duration::from_secs(1), Duration::from_secs(60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_renewed_after_fourteen_to_sixteen_hours() {
        let from = Timestamp::parse("2026-11-21T00:00:00Z").unwrap();
        let until = from.plus(Duration::from_secs(86_400));
        assert_eq!(renew_at(from, until, 0).to_string(), "2026-11-21T16:00:00Z");
        assert_eq!(renew_at(from, until, u16::MAX).to_string(), "2026-11-21T13:36:00Z");
        assert_eq!(renew_at(until, from, 0), until, "a life that is none is over");
    }

    #[test]
    fn a_failure_is_tried_again_sooner_the_less_is_left() {
        let now = Timestamp::parse("2026-11-21T00:00:00Z").unwrap();
        let left = |seconds| retry_after(now.plus(Duration::from_secs(seconds)), now).as_secs();
        assert_eq!([left(28_800), left(600), left(10), left(0)], [60, 30, 1, 1]);
    }
}
