//! One choice a remote node, from plan to plan, and when somebody has to be looked at for them.
//!
//! Cost: a plan is O(nodes), a verdict or a look at one node O(log nodes).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hawser_discovery::{EndpointChoice, NodeId};
use hawser_model::Time;
use hawser_tunnels::GatewayChoice;

/// A look that was asked for and did not come is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What is chosen for one node, and when it wants to know more.
pub(crate) trait Choice {
    fn handle_verdict(&mut self, up: bool, now: Time) -> bool;
    fn poll_deadline(&self) -> Option<Time>;
}

impl Choice for EndpointChoice {
    fn handle_verdict(&mut self, up: bool, now: Time) -> bool {
        Self::handle_verdict(self, up, now);
        false
    }

    fn poll_deadline(&self) -> Option<Time> {
        Self::poll_deadline(self)
    }
}

impl Choice for GatewayChoice {
    fn handle_verdict(&mut self, up: bool, now: Time) -> bool {
        Self::handle_verdict(self, up, now)
    }

    fn poll_deadline(&self) -> Option<Time> {
        Self::poll_deadline(self)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Choices<C> {
    of: BTreeMap<NodeId, C>,
    due: BTreeSet<(Time, NodeId)>,
    asked: Option<Time>,
    up: BTreeSet<NodeId>,
}

impl<C> Default for Choices<C> {
    fn default() -> Self {
        Self { of: BTreeMap::new(), due: BTreeSet::new(), asked: None, up: BTreeSet::new() }
    }
}

impl<C: Choice> Choices<C> {
    /// A plan begins: gives what was chosen before. What is not put back is forgotten with [`Choices::settled`].
    pub(crate) fn settle(&mut self) -> BTreeMap<NodeId, C> {
        self.due.clear();
        std::mem::take(&mut self.of)
    }

    pub(crate) fn keep(&mut self, node: NodeId, choice: C) {
        self.due.extend(choice.poll_deadline().map(|at| (at, node)));
        self.of.insert(node, choice);
    }

    /// One that is new, told what is known of its node.
    pub(crate) fn told(&self, node: NodeId, mut new: C, now: Time) -> C {
        new.handle_verdict(self.up.contains(&node), now);
        new
    }

    pub(crate) fn settled(&mut self) {
        let of = &self.of;
        self.up.retain(|node| of.contains_key(node));
    }

    pub(crate) fn get(&self, node: NodeId) -> Option<&C> {
        self.of.get(&node)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// True when something else is chosen now.
    pub(crate) fn handle_verdict(&mut self, node: NodeId, up: bool, now: Time) -> bool {
        if up {
            self.up.insert(node);
        } else {
            self.up.remove(&node);
        }
        self.change(node, |choice| choice.handle_verdict(up, now)).unwrap_or(false)
    }

    /// Whether a look is needed now.
    pub(crate) fn wants_look(&mut self, now: Time) -> bool {
        let wants = self.deadline().is_some_and(|at| at <= now);
        if wants {
            self.asked = Some(now);
        }
        wants
    }

    /// The look came: gives whom it was for.
    pub(crate) fn looked(&mut self, now: Time) -> Vec<NodeId> {
        self.asked = None;
        self.due.iter().take_while(|(at, _)| *at <= now).map(|(_, node)| *node).collect()
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        let due = self.due.first().map(|(at, _)| *at)?;
        Some(self.asked.map_or(due, |asked| due.max(asked + ASK_AGAIN)))
    }

    pub(crate) fn change<T>(&mut self, node: NodeId, change: impl FnOnce(&mut C) -> T) -> Option<T> {
        let choice = self.of.get_mut(&node)?;
        let before = choice.poll_deadline();
        let result = change(choice);
        if let Some(at) = before {
            self.due.remove(&(at, node));
        }
        self.due.extend(choice.poll_deadline().map(|at| (at, node)));
        Some(result)
    }
}
