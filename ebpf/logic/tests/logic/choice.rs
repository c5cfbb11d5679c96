//! The choice against a naive model: whatever the services, words and seeds, the backend chosen is one the rules allow.

use std::collections::{BTreeMap, BTreeSet};

use crate::common::{DOWN, Maps, OWN, Part, UP, backend_addr, draining, in_tier, part};
use hawser_ebpf_abi::{Addr, Reason, TIERS};
use hawser_ebpf_logic::choice::Choice;
use hawser_ebpf_logic::weight_of;
use proptest::prelude::*;

/// Every allowed outcome, by enumeration: the healthy backends of the lowest tier that has one, else those of the lowest
/// tier that has any.
fn allowed(maps: &Maps, parts: &[Part], own_stale: bool) -> BTreeSet<(Option<Addr>, Reason)> {
    let usable: Vec<&Part> = parts.iter().filter(|part| part.weight > 0 && !part.nodes.is_empty()).collect();
    for heed_health in [true, false] {
        for tier in 0..TIERS.into() {
            let mut outcomes = BTreeSet::new();
            for part in usable.iter().filter(|part| part.tier == tier) {
                let heeds = heed_health && !part.ignores_health;
                let word = |words: Option<&u32>| !heeds || weight_of(*words.unwrap_or(&UP)) > 0;
                if !word(maps.clusters.get(&part.cluster)) {
                    continue;
                }
                if own_stale && part.cluster == OWN {
                    outcomes.insert((None, Reason::ConnectOwnStale));
                    continue;
                }
                let reason = match (heed_health, part.draining) {
                    (false, _) => Reason::ConnectPanic,
                    (true, false) => Reason::ConnectChosen,
                    (true, true) => Reason::ConnectDraining,
                };
                let up = part.nodes.iter().enumerate().filter(|(_, node)| word(maps.nodes.get(node)));
                outcomes.extend(up.map(|(index, _)| (Some(part.addr(index)), reason)));
            }
            if !outcomes.is_empty() {
                return outcomes;
            }
        }
    }
    BTreeSet::from([(None, Reason::ConnectNoBackend)])
}

fn outcome(choice: Choice) -> (Option<Addr>, Reason) {
    match choice {
        Choice::Backend { addr, reason, .. } => (Some(addr), reason),
        Choice::Untouched(reason) => (None, reason),
    }
}

fn word() -> impl Strategy<Value = u32> {
    prop_oneof![Just(UP), Just(DOWN), Just(1), Just(64), Just(UP | 1 << 31), Just(0xffff), Just(DOWN | UP)]
}

fn service() -> impl Strategy<Value = (Vec<Part>, BTreeMap<u16, u32>, BTreeMap<u32, u32>)> {
    let weight = prop_oneof![Just(0), 1..5u16, Just(u16::MAX)];
    let tier = prop_oneof![Just(0), 0..4u16, 0..u16::from(TIERS)];
    let part = (weight, prop::collection::vec(0..12u32, 0..40), tier, prop::bool::weighted(0.1));
    // Up to two slices of a cluster, one after the other, as the loader writes them.
    let parts = prop::collection::btree_map((1..12u16, any::<bool>()), part, 0..8).prop_map(|parts| {
        let part = |((cluster, draining), (weight, nodes, tier, ignores_health))| Part {
            cluster,
            weight,
            nodes,
            tier,
            ignores_health,
            draining,
        };
        parts.into_iter().map(part).collect()
    });
    let clusters = prop::collection::btree_map(1..12u16, word(), 0..12);
    // Slot 0 is "no node": it has no word.
    let nodes = prop::collection::btree_map(1..12u32, word(), 0..12);
    (parts, clusters, nodes)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// No cluster has more backends here than are looked at, so this says: a healthy backend is always chosen, and one of
    /// the lowest tier that has any.
    #[test]
    fn whatever_is_chosen_was_eligible((parts, clusters, nodes) in service(), own_stale: bool, seed: u64) {
        let mut maps = Maps { clusters, nodes, ..Maps::default() };
        let service = maps.write(&parts, 100);
        maps.publish(service);
        let found = outcome(maps.choose(own_stale, seed));
        let allowed = allowed(&maps, &parts, own_stale);
        prop_assert!(allowed.contains(&found), "{found:?} is none of {allowed:?}");
    }
}

#[test]
fn every_eligible_backend_is_chosen_sometimes() {
    let mut maps = Maps::default();
    let parts = [part(1, 1, &[1; 5]), part(2, 1, &[2, 3, 2, 3]), part(3, 1, &[4; 3])];
    let service = maps.write(&parts, 0);
    maps.publish(service);
    maps.nodes.insert(3, DOWN);
    let found: BTreeSet<_> = (0..2_000).map(|seed| outcome(maps.choose(false, seed))).collect();
    assert_eq!(found, allowed(&maps, &parts, false));
}

#[test]
fn clusters_get_their_shares_and_backends_equal_ones() {
    let mut maps = Maps::default();
    // Weights 1 : 2 : 3, the last at half health: 2 : 4 : 3 of 9.
    let parts = [part(1, 100, &[1; 4]), part(2, 200, &[2; 4]), part(3, 300, &[3; 4])];
    let service = maps.write(&parts, 0);
    maps.publish(service);
    maps.clusters.insert(3, 128);
    const DRAWS: u64 = 90_000;
    let mut counts = BTreeMap::<Addr, u64>::new();
    for seed in 0..DRAWS {
        let (addr, reason) = outcome(maps.choose(false, seed.wrapping_mul(0x2545_f491_4f6c_dd1d)));
        assert_eq!(reason, Reason::ConnectChosen);
        *counts.entry(addr.unwrap()).or_default() += 1;
    }
    for (part, ninths) in parts.iter().zip([2, 4, 3]) {
        for index in 0..4 {
            let expected = (DRAWS * ninths / 9 / 4) as f64;
            let found = counts[&backend_addr(part.cluster, index)] as f64;
            // Six standard deviations of a binomial: a fixed seed, so this either holds or the draw is biased.
            assert!(
                (found - expected).abs() < 6.0 * expected.sqrt(),
                "{}.{index}: {found} of {expected}",
                part.cluster
            );
        }
    }
}

#[test]
fn the_neighbour_of_dead_backends_does_not_inherit_their_load() {
    let mut maps = Maps::default();
    // 30 backends, the first ten on a node that is down.
    let nodes: Vec<u32> = (0..30).map(|index| if index < 10 { 1 } else { 2 }).collect();
    let service = maps.write(&[part(1, 1, &nodes)], 0);
    maps.publish(service);
    maps.nodes.insert(1, DOWN);
    let after_the_gap = backend_addr(1, 10);
    let hits = (0..20_000).filter(|seed| outcome(maps.choose(false, *seed)).0 == Some(after_the_gap)).count();
    // Fair is 1,000; probing in order alone would give 1/30 + 10/30 of them: 7,333.
    assert!(hits < 1_300, "{hits} of 20,000");
}

#[test]
fn one_healthy_backend_among_many_clusters_is_found() {
    let mut maps = Maps::default();
    let mut parts: Vec<Part> = (1..=511).map(|cluster| part(cluster, 1, &[1; 2])).collect();
    parts[400].nodes[1] = 2;
    maps.nodes.insert(1, DOWN);
    let service = maps.write(&parts, 0);
    maps.publish(service);
    for seed in 0..50 {
        assert_eq!(outcome(maps.choose(false, seed)), (Some(backend_addr(401, 1)), Reason::ConnectChosen));
    }
}

#[test]
fn a_lower_tier_stays_in_use_until_its_last_backend_is_down() {
    let mut maps = Maps::default();
    let parts = [part(OWN, 1, &[1, 2]), in_tier(3, part(2, 1, &[3]))];
    let service = maps.write(&parts, 0);
    maps.publish(service);
    maps.nodes.insert(1, DOWN);
    assert_eq!(outcome(maps.choose(false, 1)).0, Some(backend_addr(OWN, 1)));
    maps.nodes.insert(2, DOWN);
    assert_eq!(outcome(maps.choose(false, 1)), (Some(backend_addr(2, 0)), Reason::ConnectChosen));
    maps.clusters.insert(2, DOWN);
    let (addr, reason) = outcome(maps.choose(false, 1));
    assert_eq!(reason, Reason::ConnectPanic);
    assert!(
        addr == Some(backend_addr(OWN, 0)) || addr == Some(backend_addr(OWN, 1)),
        "panic still prefers the lower tier"
    );
}

#[test]
fn what_drains_gets_new_connections_only_when_nothing_else_is_healthy() {
    let mut maps = Maps::default();
    let parts = [part(OWN, 1, &[1]), draining(part(OWN, 1, &[1])), part(2, 1, &[2])];
    let service = maps.write(&parts, 0);
    maps.publish(service);
    let all = |maps: &Maps| (0..300).map(|seed| outcome(maps.choose(false, seed))).collect::<BTreeSet<_>>();
    let chosen = |addr| (Some(addr), Reason::ConnectChosen);
    assert_eq!(all(&maps), [chosen(backend_addr(OWN, 0)), chosen(backend_addr(2, 0))].into());
    let service = maps.write(&[draining(part(OWN, 1, &[1])), part(2, 1, &[2])], 100);
    maps.publish(service);
    assert_eq!(all(&maps), [chosen(backend_addr(2, 0))].into(), "another cluster before what drains at home");
    maps.clusters.insert(2, DOWN);
    assert_eq!(all(&maps), [(Some(draining(part(OWN, 1, &[1])).addr(0)), Reason::ConnectDraining)].into());
}

#[test]
fn every_tier_has_its_turn_in_order() {
    let mut maps = Maps::default();
    // The order of clusters is not that of their tiers.
    let parts: Vec<Part> = (1..=16).map(|n| in_tier((n * 7) % 16, part(n, 1, &[n.into()]))).collect();
    let service = maps.write(&parts, 0);
    maps.publish(service);
    for tier in 0..16 {
        let next = parts.iter().find(|part| part.tier == tier).unwrap();
        for seed in 0..20 {
            let found = outcome(maps.choose(false, seed));
            assert_eq!(found, (Some(backend_addr(next.cluster, 0)), Reason::ConnectChosen), "tier {tier}");
        }
        // By turns: the cluster's verdict, or its only node's.
        if tier % 2 == 0 {
            maps.clusters.insert(next.cluster, DOWN);
        } else {
            maps.nodes.insert(next.cluster.into(), DOWN);
        }
    }
    assert_eq!(outcome(maps.choose(false, 1)).1, Reason::ConnectPanic);
}

#[test]
fn a_cluster_whose_health_is_not_heeded_takes_its_share_whatever_is_said_of_it() {
    let mut maps = Maps::default();
    let parts = [part(2, 1, &[2]), Part { ignores_health: true, ..part(3, 1, &[3]) }];
    let service = maps.write(&parts, 0);
    maps.publish(service);
    maps.clusters.insert(3, DOWN);
    maps.nodes.insert(3, DOWN);
    let found: BTreeSet<_> = (0..200).map(|seed| outcome(maps.choose(false, seed))).collect();
    assert_eq!(found, allowed(&maps, &parts, false));
    assert_eq!(found.len(), 2);
}

#[test]
fn a_node_of_lowered_weight_gets_about_its_part_and_all_where_there_is_nothing_else() {
    const DRAWS: u64 = 40_000;
    for (weight, at_least, at_most) in [(64, 0.04, 0.09), (16, 0.01, 0.05)] {
        let mut maps = Maps::default();
        let parts = [part(2, 1, &[1, 2, 3, 4, 5])];
        let service = maps.write(&parts, 0);
        maps.publish(service);
        maps.nodes.insert(3, weight);
        let grey = parts[0].addr(2);
        let chosen = |seed: u64| outcome(maps.choose(false, seed.wrapping_mul(0x2545_f491_4f6c_dd1d)));
        let found = (0..DRAWS).filter(|seed| chosen(*seed).0 == Some(grey)).count();
        let share = found as f64 / DRAWS as f64;
        assert!((at_least..=at_most).contains(&share), "{share} at {weight}");
    }
    let mut maps = Maps::default();
    let service = maps.write(&[part(2, 1, &[1, 1])], 0);
    maps.publish(service);
    maps.nodes.insert(1, 16);
    assert!((0..500).all(|seed| outcome(maps.choose(false, seed)).1 == Reason::ConnectChosen));
}
