//! Pairs and gateways: both ends draw the same, only a dead gateway's pairs move, and who lost the other finds it.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which clippy.toml exempts only inside #[test]")]

use std::collections::BTreeSet;
use std::time::Duration;

use hawser_model::{ClusterId, ClusterIdWidth, NodeIndex, Time};
use hawser_tunnels::{DWELL, DWELL_MOST, GatewayChoice, MOST_CANDIDATES, PairEnd, rank};
use proptest::prelude::*;

fn end(cluster: u32, index: u32) -> PairEnd {
    PairEnd {
        cluster: ClusterId::new(cluster, ClusterIdWidth::Bits9).unwrap(),
        index: NodeIndex::new(index).unwrap(),
    }
}

fn any_end() -> impl Strategy<Value = PairEnd> {
    (1u32..=511, 1u32..=65_535).prop_map(|(cluster, index)| end(cluster, index))
}

proptest! {
    #[test]
    fn both_ends_rank_alike_in_whatever_order_they_know_the_gateways(
        one in any_end(),
        other in any_end(),
        gateways in prop::collection::vec(any_end(), 0..9),
    ) {
        let ranked = rank(one, other, gateways.iter().copied());
        prop_assert_eq!(&ranked, &rank(other, one, gateways.iter().rev().copied()));
        let all: BTreeSet<_> = gateways.into_iter().collect();
        prop_assert_eq!(ranked.len(), all.len().min(MOST_CANDIDATES));
        prop_assert!(ranked.iter().all(|gateway| all.contains(gateway)));
    }

    #[test]
    fn a_gateway_that_goes_moves_its_own_pairs_and_no_other(
        one in any_end(),
        other in any_end(),
        gateways in prop::collection::btree_set(any_end(), 2..9),
        dead in any::<prop::sample::Index>(),
    ) {
        let before = rank(one, other, gateways.iter().copied());
        let dead = *gateways.iter().nth(dead.index(gateways.len())).unwrap();
        let after = rank(one, other, gateways.into_iter().filter(|gateway| *gateway != dead));
        let stay = before.iter().filter(|gateway| **gateway != dead);
        prop_assert!(stay.zip(&after).all(|(before, after)| before == after));
    }

    /// Both ends by their own clocks, which began at different times and gateways; some gateways are dead. A tenth of a second a
    /// step; an answer takes a second at the same gateway.
    #[test]
    fn two_ends_that_lost_each_other_meet_at_a_gateway_that_works(
        (one, other) in (any_end(), any_end()).prop_filter("two", |(one, other)| one != other),
        gateways in prop::collection::btree_set(any_end(), 1..7),
        alive in any::<prop::sample::Index>(),
        begins in prop::array::uniform2(0u64..30),
        remembered in prop::array::uniform2(prop::option::of(any::<prop::sample::Index>())),
    ) {
        let candidates = rank(one, other, gateways.iter().copied());
        let alive = candidates[alive.index(candidates.len())];
        let at = |seconds: u64| Time::from_millis(1_000 * seconds);
        let of = |own: PairEnd, other: PairEnd, n: usize| {
            let remembered = remembered[n].map(|index| candidates[index.index(candidates.len())]);
            GatewayChoice::new(own, other, gateways.iter().copied(), remembered, at(begins[n])).unwrap()
        };
        let mut ends = [of(one, other, 0), of(other, one, 1)];
        let n = candidates.len() as u64;
        let bound = 30 + 3 * n * n * DWELL_MOST.as_secs();
        let (mut together, mut now) = (0, Time::ZERO);
        while together < 10 {
            now = now + Duration::from_millis(100);
            prop_assert!(now < at(bound), "{ends:?} do not meet at {alive:?}");
            for (choice, begins) in ends.iter_mut().zip(begins) {
                if now >= at(begins) {
                    choice.handle_time(now);
                }
            }
            let there = ends.iter().zip(begins).all(|(choice, begins)| now >= at(begins) && choice.gateway() == alive);
            together = if there { together + 1 } else { 0 };
        }
        for choice in &mut ends {
            choice.handle_heard(now);
            choice.handle_verdict(true, now);
            prop_assert_eq!(choice.poll_deadline(), None);
            prop_assert_eq!(choice.gateway(), alive);
        }
    }
}

#[test]
fn pairs_are_spread_over_the_gateways() {
    let gateways = [end(1, 1), end(1, 2), end(2, 1), end(2, 2)];
    let mut pairs = [0; 4];
    for a in 10..60 {
        for b in 10..60 {
            let first = rank(end(1, a), end(2, b), gateways)[0];
            pairs[gateways.iter().position(|gateway| *gateway == first).unwrap()] += 1;
        }
    }
    assert!(pairs.iter().all(|of_one| (500..750).contains(of_one)), "{pairs:?} of 2,500");
}

#[test]
fn the_next_gateway_is_taken_at_once_by_both_ends_and_a_gateway_that_answers_is_kept() {
    let gateways = [end(1, 1), end(2, 1), end(2, 2)];
    let now = Time::from_millis(1_000);
    let choice = |own, other| GatewayChoice::new(own, other, gateways, None, now).unwrap();
    let mut ends = [choice(end(1, 9), end(2, 9)), choice(end(2, 9), end(1, 9))];
    let asked_again = now + Duration::from_secs(5);
    let patient = |choice: &GatewayChoice| choice.poll_deadline().unwrap() > asked_again + DWELL;
    assert!(ends.iter().all(patient), "a first handshake may come too early");
    for choice in &mut ends {
        assert!(!choice.handle_verdict(true, now) && choice.poll_deadline().is_none());
        let first = choice.gateway();
        assert!(choice.handle_verdict(false, now), "left when the other end falls silent");
        assert_ne!(choice.gateway(), first);
        assert!(!choice.handle_verdict(true, now));
        assert!(choice.handle_gateways(gateways, now));
        assert_ne!(choice.gateway(), first, "the first one is not gone back to while this one answers");
    }
    assert_eq!(ends[0].gateway(), ends[1].gateway());

    // Held down because it flaps, and heard all the while: it stays.
    let [choice, _] = &mut ends;
    choice.handle_verdict(false, now);
    let met = choice.gateway();
    let later = choice.poll_deadline().unwrap();
    assert!(later >= now + DWELL);
    choice.handle_heard(later);
    assert!(!choice.handle_time(later) && choice.gateway() == met);

    // What is no gateway any more is left, and without any there is no way.
    let others = gateways.into_iter().filter(|gateway| *gateway != met);
    assert!(choice.handle_gateways(others, later));
    assert_ne!(choice.gateway(), met);
    assert!(!choice.handle_gateways([], later));
}
