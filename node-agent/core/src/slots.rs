//! Slots of remote nodes in `node_health`: stable numbers that rest before they are used again.
//!
//! A connection made a moment ago, or a program that read its maps a moment ago, may still hold a slot. So a slot that
//! was given back is the last one to be given out again, and not before [`REST`] has passed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use hawser_discovery::NodeId;
use hawser_model::Time;

/// 0 means "no node known".
pub const SLOT_NONE: u32 = 0;
/// How long a slot rests.
pub const REST: Duration = Duration::from_secs(300);

#[derive(Clone, Debug)]
pub struct NodeSlots {
    /// Slots are 1..limit.
    limit: u32,
    used: BTreeMap<NodeId, u32>,
    resting: VecDeque<(Time, u32)>,
    next: u32,
}

impl NodeSlots {
    /// `limit` is the size of the array; slot 0 is not given out.
    pub fn new(limit: u32) -> Self {
        Self { limit, used: BTreeMap::new(), resting: VecDeque::new(), next: 1 }
    }

    /// With what an earlier run gave out, so that kernel state keeps its meaning over a restart. What contradicts itself
    /// or is out of range is left out.
    pub fn restore(limit: u32, given: impl IntoIterator<Item = (NodeId, u32)>) -> Self {
        let mut slots = Self::new(limit);
        let mut taken = BTreeSet::new();
        for (node, slot) in given {
            if (1..limit).contains(&slot) && !slots.used.contains_key(&node) && taken.insert(slot) {
                slots.used.insert(node, slot);
            }
        }
        slots.next = taken.last().map_or(1, |last| last + 1);
        // Holes below are free: nobody holds them after a restart of the agent that also rested.
        let holes = (1..slots.next).filter(|slot| !taken.contains(slot));
        slots.resting = holes.map(|slot| (Time::ZERO, slot)).collect();
        slots
    }

    pub fn get(&self, node: NodeId) -> u32 {
        self.used.get(&node).copied().unwrap_or(SLOT_NONE)
    }

    pub fn node_of(&self, slot: u32) -> Option<NodeId> {
        self.used.iter().find(|(_, used)| **used == slot).map(|(node, _)| *node)
    }

    pub fn iter(&self) -> impl Iterator<Item = (NodeId, u32)> {
        self.used.iter().map(|(node, slot)| (*node, *slot))
    }

    /// Gives a slot to every node of `wanted` that has none; returns the new ones. [`SLOT_NONE`] is what is left when
    /// all are in use or resting: such a node counts as up. O(wanted × log n).
    pub fn assign(&mut self, wanted: impl IntoIterator<Item = NodeId>, now: Time) -> Vec<(NodeId, u32)> {
        let mut new = Vec::new();
        for node in wanted {
            if self.used.contains_key(&node) {
                continue;
            }
            let Some(slot) = self.free(now) else { break };
            self.used.insert(node, slot);
            new.push((node, slot));
        }
        new
    }

    /// Takes back the slots of all nodes that are not in `wanted`; they begin to rest.
    pub fn release_others(&mut self, wanted: &BTreeSet<NodeId>, now: Time) -> Vec<(NodeId, u32)> {
        let gone: Vec<_> = self.iter().filter(|(node, _)| !wanted.contains(node)).collect();
        for (node, slot) in &gone {
            self.used.remove(node);
            self.resting.push_back((now, *slot));
        }
        gone
    }

    fn free(&mut self, now: Time) -> Option<u32> {
        if self.next < self.limit {
            self.next += 1;
            return Some(self.next - 1);
        }
        let (since, slot) = self.resting.front().copied()?;
        if since != Time::ZERO && now.since(since) < REST {
            return None;
        }
        self.resting.pop_front();
        Some(slot)
    }
}
