//! Where each remote node's tunnel goes, from plan to plan: one [`EndpointChoice`] a node.
//!
//! Cost: a plan is O(nodes), a verdict or a look at one node O(log nodes).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use hawser_discovery::{About, EndpointChoice, NodeId, PeerSeen, Transition};
use hawser_model::{ClusterHealth, PublicKey, Time};
use hawser_tunnels::Desired;

use crate::agent::Agent;
use crate::output::Output;
use crate::plan_tunnels::plan_tunnels;
use crate::topology::Remote;
use crate::view::Changed;

/// Towards a node behind NAT, in seconds: most NATs forget after 30 s what sends nothing.
const KEEPALIVE: u16 = 25;
/// A look at the engine that was asked for and did not come is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Default)]
pub(crate) struct Endpoints {
    nodes: BTreeMap<NodeId, EndpointChoice>,
    keys: BTreeMap<PublicKey, NodeId>,
    /// Of the last run.
    remembered: BTreeMap<PublicKey, SocketAddr>,
    due: BTreeSet<(Time, NodeId)>,
    asked: Option<Time>,
    up: BTreeSet<NodeId>,
}

impl Endpoints {
    pub(crate) fn remember(&mut self, tunnels: &Desired) {
        self.remembered.extend(tunnels.peers.iter().map(|peer| (peer.public_key, peer.endpoint)));
    }

    /// Gives every node its endpoint, and a keepalive to those that need one. Nodes that are gone are forgotten.
    pub(crate) fn settle(&mut self, remotes: &mut [Remote<'_>], now: Time) {
        let mut before = std::mem::take(&mut self.nodes);
        self.keys.clear();
        self.due.clear();
        for node in remotes.iter_mut().flat_map(|remote| &mut remote.nodes) {
            let remembered = self.remembered.remove(&node.end.public_key);
            let choice = match before.remove(&node.id) {
                Some(mut known) => {
                    known.handle_stated(node.stated.clone(), now);
                    Some(known)
                }
                None => EndpointChoice::new(node.stated.clone(), remembered, now).map(|mut new| {
                    new.handle_verdict(self.up.contains(&node.id), now);
                    new
                }),
            };
            let Some(choice) = choice else { continue };
            node.endpoint = choice.endpoint();
            node.keepalive = choice.has_roamed().then_some(KEEPALIVE);
            self.keys.insert(node.end.public_key, node.id);
            self.due.extend(choice.poll_deadline().map(|at| (at, node.id)));
            self.nodes.insert(node.id, choice);
        }
        let nodes = &self.nodes;
        self.up.retain(|node| nodes.contains_key(node));
    }

    pub(crate) fn handle_verdict(&mut self, node: NodeId, up: bool, now: Time) {
        if up {
            self.up.insert(node);
        } else {
            self.up.remove(&node);
        }
        self.change(node, |choice| choice.handle_verdict(up, now));
    }

    /// What the engine says of its peers. True when a node's endpoint is another now.
    pub(crate) fn handle_seen(&mut self, seen: &BTreeMap<PublicKey, PeerSeen>, now: Time) -> bool {
        self.asked = None;
        let mut changed = false;
        for (key, seen) in seen {
            let Some(node) = self.keys.get(key).copied() else { continue };
            changed |= self.change(node, |choice| choice.handle_seen(*seen, now)).unwrap_or(false);
        }
        changed
    }

    /// Whether the engine has to be looked at now: somebody is silent who can be tried elsewhere.
    pub(crate) fn wants_look(&mut self, now: Time) -> bool {
        let wants = self.deadline().is_some_and(|at| at <= now);
        if wants {
            self.asked = Some(now);
        }
        wants
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        let due = self.due.first().map(|(at, _)| *at)?;
        Some(self.asked.map_or(due, |asked| due.max(asked + ASK_AGAIN)))
    }

    fn change<T>(&mut self, node: NodeId, change: impl FnOnce(&mut EndpointChoice) -> T) -> Option<T> {
        let choice = self.nodes.get_mut(&node)?;
        let before = choice.poll_deadline();
        let result = change(choice);
        if let Some(at) = before {
            self.due.remove(&(at, node));
        }
        self.due.extend(choice.poll_deadline().map(|at| (at, node)));
        Some(result)
    }
}

impl Agent {
    /// The tunnels of an earlier run: what it guarded stays guarded for a while, and where it had its peers is gone on with.
    pub fn remember(&mut self, tunnels: &Desired) {
        self.guards.remember(&tunnels.guards);
        self.endpoints.remember(tunnels);
    }

    /// What the engine says of its peers: asked for with [`Output::LookAtPeers`], and welcome at any time.
    pub fn handle_seen(&mut self, seen: &BTreeMap<PublicKey, PeerSeen>, now: Time) {
        if self.endpoints.handle_seen(seen, now) {
            self.changed(Changed::Data, now);
        }
    }

    /// Before the first plan: everything that must not leave in clear, as far as it is known, and nothing that leads there.
    pub fn guards(&self) -> Desired {
        plan_tunnels(&self.config, &self.view, &[], self.slots())
    }

    pub(crate) fn note_verdict(&mut self, transition: &Transition) {
        let About::Node(node) = transition.about else { return };
        let up = transition.to == ClusterHealth::Up;
        self.endpoints.handle_verdict(node, up, transition.at);
        if !up {
            // What it received until now; what comes later is an answer.
            self.ask_once(Output::LookAtPeers);
        }
    }

    pub(crate) fn look_after_tunnels(&mut self, now: Time) {
        if self.guards.deadline().is_some_and(|at| at <= now) {
            self.changed(Changed::Data, now);
        }
        if self.endpoints.wants_look(now) {
            self.ask_once(Output::LookAtPeers);
        }
    }
}
