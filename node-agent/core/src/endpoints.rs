//! Where each remote node's tunnel goes, from plan to plan: one [`EndpointChoice`] a node.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use hawser_discovery::{About, EndpointChoice, NodeId, PeerSeen, Transition};
use hawser_model::{ClusterHealth, PublicKey, Time};
use hawser_tunnels::Desired;

use crate::agent::Agent;
use crate::choices::Choices;
use crate::gateways::Way;
use crate::output::Output;
use crate::plan_tunnels::plan_tunnels;
use crate::topology::Remote;
use crate::view::Changed;

/// Towards a node behind NAT, in seconds: most NATs forget after 30 s what sends nothing.
const KEEPALIVE: u16 = 25;

#[derive(Clone, Debug, Default)]
pub(crate) struct Endpoints {
    pub(crate) choices: Choices<EndpointChoice>,
    keys: BTreeMap<PublicKey, NodeId>,
    /// Of the last run.
    remembered: BTreeMap<PublicKey, SocketAddr>,
}

impl Endpoints {
    pub(crate) fn remember(&mut self, tunnels: &Desired) {
        let peers = tunnels.peers.iter().filter(|peer| peer.via.is_none());
        self.remembered.extend(peers.map(|peer| (peer.public_key, peer.endpoint)));
    }

    /// Gives every node its endpoint, and a keepalive to those that need one. Nodes that are gone are forgotten.
    pub(crate) fn settle(&mut self, remotes: &mut [Remote<'_>], now: Time) {
        let mut before = self.choices.settle();
        self.keys.clear();
        let nodes = remotes.iter_mut().flat_map(|remote| &mut remote.nodes);
        for node in nodes.filter(|node| node.way == Way::Direct) {
            let remembered = self.remembered.remove(&node.end.public_key);
            let choice = match before.remove(&node.id) {
                Some(mut known) => {
                    known.handle_stated(node.stated.clone(), now);
                    Some(known)
                }
                None => EndpointChoice::new(node.stated.clone(), remembered, now)
                    .map(|new| self.choices.told(node.id, new, now)),
            };
            let Some(choice) = choice else { continue };
            node.endpoint = choice.endpoint();
            node.keepalive = (choice.has_roamed() || node.dialled).then_some(KEEPALIVE);
            self.keys.insert(node.end.public_key, node.id);
            self.choices.keep(node.id, choice);
        }
        self.choices.settled();
    }

    /// What the engine says of its peers. True when a node's endpoint is another now.
    pub(crate) fn handle_seen(&mut self, seen: &BTreeMap<PublicKey, PeerSeen>, now: Time) -> bool {
        self.choices.looked(now);
        let mut changed = false;
        for (key, seen) in seen {
            let Some(node) = self.keys.get(key).copied() else { continue };
            changed |= self.choices.change(node, |choice| choice.handle_seen(*seen, now)).unwrap_or(false);
        }
        changed
    }
}

impl Agent {
    /// The tunnels of an earlier run: what it guarded stays guarded for a while, and where it had its peers is gone on with.
    pub fn remember(&mut self, tunnels: &Desired) {
        self.guards.remember(&tunnels.guards);
        self.endpoints.remember(tunnels);
        self.gateways.remember(tunnels);
    }

    /// What the engine says of its peers: asked for with [`Output::LookAtPeers`], and welcome at any time.
    pub fn handle_seen(&mut self, seen: &BTreeMap<PublicKey, PeerSeen>, now: Time) {
        if self.endpoints.handle_seen(seen, now) {
            self.changed(Changed::Data, now);
        }
    }

    /// Where the node with this key can be reached, as its cluster says; none of a node that is not known.
    pub fn stated_endpoints(&self, key: &PublicKey) -> Option<&[SocketAddr]> {
        let node = *self.endpoints.keys.get(key)?;
        self.endpoints.choices.get(node).map(EndpointChoice::stated)
    }

    /// Before the first plan: everything that must not leave in clear, as far as it is known, and nothing that leads there.
    pub fn guards(&self) -> Desired {
        plan_tunnels(&self.config, &self.view, &[], &[], self.slots())
    }

    pub(crate) fn note_verdict(&mut self, transition: &Transition) {
        let About::Node(node) = transition.about else { return };
        let up = transition.to == ClusterHealth::Up;
        self.endpoints.choices.handle_verdict(node, up, transition.at);
        if self.gateways.choices.handle_verdict(node, up, transition.at) {
            self.changed(Changed::Data, transition.at);
        }
        if !up {
            // What it received until now; what comes later is an answer.
            self.ask_once(Output::LookAtPeers);
        }
    }

    pub(crate) fn look_after_tunnels(&mut self, now: Time) {
        if self.guards.deadline().is_some_and(|at| at <= now) {
            self.changed(Changed::Data, now);
        }
        let silent = [self.endpoints.choices.wants_look(now), self.gateways.choices.wants_look(now)];
        if silent.contains(&true) {
            self.ask_once(Output::LookAtPeers);
        }
    }
}
