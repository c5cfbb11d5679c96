//! Slots are stable, and rest.

use std::collections::BTreeSet;

use hawser_discovery::NodeId;

use super::*;
use crate::{REST, SLOT_NONE};

fn node(n: u32) -> NodeId {
    NodeId { cluster: cluster(2).id, index: NodeIndex::new(n).unwrap() }
}

#[test]
fn a_slot_stays_with_its_node_and_rests_before_another_gets_it() {
    let mut slots = NodeSlots::new(3);
    slots.assign([node(1), node(2)], ms(0));
    assert_eq!((slots.get(node(1)), slots.get(node(2))), (1, 2));
    slots.release_others(&BTreeSet::from([node(2)]), ms(5));
    assert_eq!(slots.assign([node(3)], ms(1_000)), [], "all are in use or resting");
    assert_eq!(slots.get(node(3)), SLOT_NONE, "which counts as up");
    let rested = ms(5) + REST;
    assert_eq!(slots.assign([node(3)], rested), [(node(3), 1)]);
    assert_eq!(slots.get(node(2)), 2);
}

#[test]
fn what_an_earlier_run_gave_out_is_kept_if_it_makes_sense() {
    let given = [(node(1), 4), (node(2), 4), (node(3), 0), (node(4), 999), (node(5), 2)];
    let mut slots = NodeSlots::restore(10, given);
    assert_eq!((slots.get(node(1)), slots.get(node(5))), (4, 2));
    assert_eq!([node(2), node(3), node(4)].map(|n| slots.get(n)), [SLOT_NONE; 3]);
    let new: BTreeSet<u32> = slots.assign((10..18).map(node), ms(0)).iter().map(|(_, slot)| *slot).collect();
    assert_eq!(new, BTreeSet::from([1, 3, 5, 6, 7, 8, 9]), "every other one, once");
}
