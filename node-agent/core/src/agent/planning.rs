//! When a plan is due, what it is made from, and when it is carried out once more.

use std::collections::BTreeSet;
use std::sync::Arc;

use hawser_discovery::Reflector;
use hawser_ebpf_abi::CONFIG_OWN_STALE;
use hawser_model::Time;

use super::{Agent, DEBOUNCE, GATHER, RESYNC};
use crate::budget::limit_backends;
use crate::gateways::carry;
use crate::guards::keep_inside;
use crate::health::WordPlace;
use crate::output::{Output, Plan};
use crate::plan_datapath::plan_datapath;
use crate::plan_tunnels::plan_tunnels;
use crate::resets::plan_resets;
use crate::services::merge_services;
use crate::topology::{RemoteNode, remotes};

impl Agent {
    pub(super) fn plan_at(&self) -> Option<Time> {
        let dirty = self.dirty.map(|since| since + GATHER);
        let due = [dirty, self.flips.deadline()].into_iter().flatten().min();
        // Half of the time is for events, however large the view: a list of it would else come in one by one.
        let rested = self.last_plan.map(|at| at + DEBOUNCE.max(self.plan_took * 2));
        due.filter(|_| self.ready).map(|at| rested.map_or(at, |rested| at.max(rested)))
    }

    pub(super) fn make_plan(&mut self, now: Time) {
        self.dirty = None;
        self.last_plan = Some(now);
        // Verdicts that an earlier run left are older than the clusters that they are counted among.
        self.judge_cut_off(now);
        self.find_pods();
        let mut notes = Vec::new();
        let leaving = self.draining.values().map(|(peer, _)| peer);
        let mut remotes = remotes(&self.view, leaving, &self.config, &mut notes);
        let neighbours = self.gateways.settle(&self.config, &self.view, &mut remotes, &mut notes, now);
        self.endpoints.settle(&mut remotes, now);
        for remote in &remotes {
            // At the first plan a word of an earlier run goes on; later, the place is a new one.
            self.health.begin(WordPlace::Cluster(remote.peer.cluster.id), self.planned);
            let nodes = || remote.nodes.iter().map(|node| node.id);
            let new: BTreeSet<u32> = self.slots.assign(nodes(), now).iter().map(|(_, slot)| *slot).collect();
            for slot in nodes().map(|node| self.slots.get(node)).filter(|slot| *slot != 0) {
                self.health.begin(WordPlace::Node(slot), new.contains(&slot));
            }
        }
        let nodes = || remotes.iter().flat_map(|remote| &remote.nodes);
        let mut services = merge_services(&self.config, &self.view, &remotes, &self.slots, &self.unread);
        let staying = remotes.iter().filter(|remote| !remote.leaving).map(|remote| &remote.peer.cluster);
        let connected: BTreeSet<_> = staying.chain([&self.config.cluster]).cloned().collect();
        let own = &self.config.cluster;
        let closing = self.drains.apply(own, &self.services, &mut services, &connected, &self.slots, now);
        self.services = services;
        let used = limit_backends(&self.config.cluster, &mut self.services, &mut notes);
        let (mut datapath, over) = plan_datapath(
            &self.config,
            &self.view,
            &remotes,
            &self.services,
            &closing,
            &self.slots,
            &self.interfaces,
        );
        carry(&self.config, &self.view, &remotes, &neighbours, &mut datapath);
        if self.own_stale {
            datapath.config.flags |= CONFIG_OWN_STALE;
        }
        notes.extend(over);
        let (after, cut_off) = (self.config.reset_after, self.cut_off.is());
        plan_resets(&self.config.cluster, &self.services, after, cut_off, &mut datapath, &mut notes);
        let tunnels = plan_tunnels(&self.config, &self.view, &remotes, &neighbours, &self.slots);
        let tunnels = self.guards.settle(tunnels, now);
        keep_inside(&tunnels, &mut datapath);
        self.plan = Arc::new(Plan {
            tunnels: Some(tunnels),
            datapath,
            probed: nodes().map(|node| (node.id, reflector(node))).collect(),
            notes,
        });
        let staying = remotes.into_iter().filter(|remote| !remote.leaving);
        let ends = staying.map(|remote| (remote.view.name.clone(), remote.ends)).collect();
        self.flips.planned(ends, used);
        self.planned = true;
        self.reconcile();
    }

    /// Never to a plan that a flip has overtaken.
    pub(super) fn reconcile_again(&mut self, now: Time) {
        match self.flips.deadline() {
            Some(_) => self.make_plan(now),
            None => self.reconcile(),
        }
    }

    fn reconcile(&mut self) {
        if self.planned && !self.outputs.contains(&Output::Reconcile) {
            self.outputs.push_back(Output::Reconcile);
        }
    }

    pub(super) fn retry_later(&mut self, now: Time) {
        self.retry_at = Some(now + self.retry_wait);
        self.retry_wait = (self.retry_wait * 2).min(RESYNC);
    }

    pub(super) fn resync_at(&self) -> Option<Time> {
        self.last_reconcile.map(|at| at + RESYNC)
    }
}

/// What users send there is no larger than either end takes.
fn reflector(node: &RemoteNode<'_>) -> Reflector {
    Reflector { address: node.mesh.ipv4, mtu: Some(node.end.mtu) }
}
