//! Damping: a steady input is left alone, a flapping one is said less and less often.

use std::time::Duration;

use hawser_model::ClusterHealth::{self, Down, Unknown, Up};
use proptest::prelude::*;

use super::{SECOND, ms};
use crate::DampingConfig;
use crate::damping::Damped;

const CONFIG: DampingConfig = DampingConfig {
    hold_down: Duration::from_secs(1),
    half_life: Duration::from_secs(60),
    slow_start: Duration::from_secs(10),
};

#[test]
fn down_is_said_at_once_and_up_after_the_hold_down() {
    let mut damped = Damped::new(ms(0));
    assert!(damped.handle_seen(Up, &CONFIG, ms(0)).is_some(), "the first word is not held back");
    assert!(damped.handle_seen(Down, &CONFIG, ms(5_000)).is_some());
    assert!(damped.handle_seen(Up, &CONFIG, ms(6_000)).is_none());
    assert_eq!(damped.poll_deadline(&CONFIG, ms(6_000)), Some(ms(7_000)));
    assert!(damped.handle_time(&CONFIG, ms(6_999)).is_none());
    let said = damped.handle_time(&CONFIG, ms(7_000)).unwrap();
    assert_eq!((said.from, said.to, said.after), (Down, Up, SECOND));
}

#[test]
fn the_third_down_within_a_minute_is_held_for_more_than_a_minute() {
    let mut damped = Damped::new(ms(0));
    let mut at = 0;
    damped.handle_seen(Up, &CONFIG, ms(at));
    for _ in 0..2 {
        damped.handle_seen(Down, &CONFIG, ms(at + 1_000));
        damped.handle_seen(Up, &CONFIG, ms(at + 2_000));
        assert!(damped.handle_time(&CONFIG, ms(at + 3_000)).is_some());
        at += 3_000;
    }
    damped.handle_seen(Down, &CONFIG, ms(at + 1_000));
    damped.handle_seen(Up, &CONFIG, ms(at + 2_000));
    let free = damped.poll_deadline(&CONFIG, ms(at + 2_000)).unwrap();
    let held = free.since(ms(at + 2_000));
    assert!((60 * SECOND..180 * SECOND).contains(&held), "{held:?}");
    assert!(damped.handle_time(&CONFIG, free).is_some(), "and then let go");
}

fn any_health() -> impl Strategy<Value = ClusterHealth> {
    prop_oneof![Just(Up), Just(Down), Just(Unknown)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn a_steady_healthy_input_never_yields_down(steps in prop::collection::vec(0_u64..100_000, 0..200)) {
        let (mut damped, mut now) = (Damped::new(ms(0)), 0);
        for step in steps {
            now += step;
            damped.handle_seen(Up, &CONFIG, ms(now));
            prop_assert_eq!(damped.verdict(), Up);
            prop_assert_eq!(damped.weight(&CONFIG, ms(now)), 256);
        }
    }

    #[test]
    fn whatever_flaps_is_down_a_bounded_number_of_times(
        steps in prop::collection::vec((any_health(), 0_u64..20_000), 0..600),
    ) {
        let (mut damped, mut now, mut downs) = (Damped::new(ms(0)), 0, 0);
        for (seen, step) in steps {
            let end = now + step;
            // Its own deadlines come in between.
            while let Some(at) = damped.poll_deadline(&CONFIG, ms(now)).filter(|at| *at <= ms(end)) {
                prop_assert!(at > ms(now) || damped.handle_time(&CONFIG, at).is_some(), "a deadline that does nothing");
                now = u64::try_from(at.since_start().as_millis()).unwrap().max(now) + 1;
                damped.handle_time(&CONFIG, ms(now));
            }
            now = end.max(now);
            if damped.handle_seen(seen, &CONFIG, ms(now)).is_some_and(|said| said.to == Down && said.from == Up) {
                downs += 1;
            }
            let weight = damped.weight(&CONFIG, ms(now));
            prop_assert!([64, 128, 192, 256].contains(&weight));
        }
        prop_assert!(downs <= 3 + 2 * now / 60_000, "{} downs in {} s", downs, now / 1_000);
    }

    #[test]
    fn whatever_was_is_up_at_the_latest_four_half_lives_after_it_is_steadily_up(
        steps in prop::collection::vec((any_health(), 0_u64..20_000), 0..100),
    ) {
        let (mut damped, mut now) = (Damped::new(ms(0)), 0);
        for (seen, step) in steps {
            now += step;
            damped.handle_seen(seen, &CONFIG, ms(now));
        }
        damped.handle_seen(Up, &CONFIG, ms(now));
        damped.handle_time(&CONFIG, ms(now + 5 * 60_000));
        prop_assert_eq!(damped.verdict(), Up);
    }
}
