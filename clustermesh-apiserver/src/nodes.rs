//! Node indices: the lowest that is free, kept as long as the node exists, remembered by `hawser/state/nodes/v1`.

use std::collections::{BTreeMap, BTreeSet};
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
    /// Nodes that went, and until when their index waits for them.
    gone: BTreeMap<NodeName, (NodeIndex, Time)>,
    taken: BTreeSet<u16>,
}

impl Indices {
    pub fn new(known: impl IntoIterator<Item = (NodeName, NodeIndex)>) -> Self {
        let mut indices = Self::default();
        for (name, index) in known {
            // Two nodes with one index cannot be: the later one gets another.
            if indices.taken.insert(index.get()) {
                indices.of.insert(name, index);
            }
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
        self.forget(now);
        let index = match self.gone.remove(node) {
            Some((index, _)) => index,
            None => {
                let free = (1..=u16::MAX).find(|number| !self.taken.contains(number));
                free.and_then(|number| NodeIndex::new(number.into())).ok_or(NoIndexLeft)?
            }
        };
        self.taken.insert(index.get());
        self.of.insert(node.clone(), index);
        Ok(index)
    }

    /// Takes the nodes that are not there any more for gone. One that comes back soon has its index again.
    pub fn settle(&mut self, exists: impl Fn(&NodeName) -> bool, now: Time) {
        self.forget(now);
        let gone = &mut self.gone;
        self.of.retain(|name, index| {
            let stays = exists(name);
            if !stays {
                gone.insert(name.clone(), (*index, now + REST));
            }
            stays
        });
    }

    fn forget(&mut self, now: Time) {
        let taken = &mut self.taken;
        self.gone.retain(|_, (index, until)| {
            let rests = *until > now;
            if !rests {
                taken.remove(&index.get());
            }
            rests
        });
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
        assert_eq!(indices.index_for(&name("b"), now).unwrap().get(), 1, "back soon, and who it was");
        indices.settle(|node| node.as_str() != "b", now);
        let later = now + REST;
        assert_eq!(indices.index_for(&name("d"), later).unwrap().get(), 1);
        assert_eq!(indices.index_for(&name("a"), later).unwrap().get(), 2);
    }
}
