//! Node indices: the lowest that is free, kept as long as the node exists, remembered by `hawser/state/nodes/v1`.

use std::collections::BTreeMap;
use std::time::Duration;

use hawser_model::{NodeIndex, NodeName, Time};

/// How long the index of a node that went stays unused: its mesh address may still be in somebody's tunnels.
const REST: Duration = Duration::from_secs(900);

#[derive(Debug, thiserror::Error)]
#[error("all 65535 node indices of this cluster are in use; fix: remove nodes that are gone from the source")]
pub struct NoIndexLeft;

#[derive(Debug, Default)]
pub struct Indices {
    of: BTreeMap<NodeName, NodeIndex>,
    /// Given to nodes of an earlier life, or resting until then.
    taken: BTreeMap<u16, Option<Time>>,
}

impl Indices {
    pub fn new(known: impl IntoIterator<Item = (NodeName, NodeIndex)>) -> Self {
        let mut indices = Self::default();
        for (name, index) in known {
            indices.taken.insert(index.get(), None);
            indices.of.insert(name, index);
        }
        indices
    }

    pub fn get(&self, node: &NodeName) -> Option<NodeIndex> {
        self.of.get(node).copied()
    }

    pub fn index_for(&mut self, node: &NodeName, now: Time) -> Result<NodeIndex, NoIndexLeft> {
        if let Some(index) = self.of.get(node) {
            return Ok(*index);
        }
        let free = |index: &u16| match self.taken.get(index) {
            None => true,
            Some(until) => until.is_some_and(|until| until <= now),
        };
        let number = (1..=u16::MAX).find(free).ok_or(NoIndexLeft)?;
        let index = NodeIndex::new(number.into()).ok_or(NoIndexLeft)?;
        self.taken.insert(number, None);
        self.of.insert(node.clone(), index);
        Ok(index)
    }

    /// Lets go of the nodes that are not there any more.
    pub fn settle(&mut self, exists: impl Fn(&NodeName) -> bool, now: Time) {
        let taken = &mut self.taken;
        self.of.retain(|name, index| {
            let stays = exists(name);
            if !stays {
                taken.insert(index.get(), Some(now + REST));
            }
            stays
        });
        self.taken.retain(|_, until| until.is_none_or(|until| until > now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NodeName {
        NodeName::parse(text).unwrap()
    }

    #[test]
    fn an_index_is_stable_while_its_node_exists_and_rests_after_it() {
        let now = Time::ZERO;
        let mut indices = Indices::new([(name("b"), NodeIndex::new(1).unwrap())]);
        assert_eq!(indices.index_for(&name("a"), now).unwrap().get(), 2);
        assert_eq!(indices.index_for(&name("b"), now).unwrap().get(), 1);
        indices.settle(|node| node.as_str() == "a", now);
        assert_eq!(indices.index_for(&name("c"), now).unwrap().get(), 3);
        let later = now + REST;
        assert_eq!(indices.index_for(&name("d"), later).unwrap().get(), 1);
        assert_eq!(indices.index_for(&name("a"), later).unwrap().get(), 2);
    }
}
