//! The agent's core: events in, plans and words out. Knows the time only as an argument.
//!
//! A plan is made from the whole view [`GATHER`] after the first change that was not planned yet, and [`DEBOUNCE`] after the last
//! plan: O(view) per plan, so at most twenty plans a second however many events come. A change of one service's backends is
//! flipped at once ([`crate::flips`]) and planned later. Health never waits for a plan.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hawser_discovery::{About, Greyness, NodeId, Transition};
use hawser_ebpf_abi::CONFIG_OWN_STALE;
use hawser_model::{ClusterHealth, ClusterName, HealthWord, Peer, ServiceKey, Time};

use crate::budget::limit_backends;
use crate::config::AgentConfig;
use crate::drains::Drains;
use crate::endpoints::Endpoints;
use crate::flips::{Flips, World};
use crate::guards::Guards;
use crate::health::{HealthWords, WordCounts, WordPlace, WordWrite};
use crate::output::{Deadline, Output, Plan, Timer};
use crate::plan_datapath::{Interfaces, local_pods, plan_datapath};
use crate::plan_tunnels::plan_tunnels;
use crate::resets::{Sweeps, is_cut_off, plan_resets};
use crate::services::{MergedService, merge_services};
use crate::slots::NodeSlots;
use crate::status::ControlPlane;
use crate::topology::remotes;
use crate::view::{Changed, ClusterView, MeshView, QUIET};

/// From one plan to the next, at least.
pub const DEBOUNCE: Duration = Duration::from_millis(50);
/// From one plan to the next, at most, while carrying one out takes long.
const MOST_REST: Duration = Duration::from_secs(2);
/// From the first unplanned change to the plan: what was written together comes together.
pub const GATHER: Duration = Duration::from_millis(2);
/// The first plan waits this long for peers that are not complete: a plan from less would remove what is merely unknown.
pub const FIRST_PLAN: Duration = Duration::from_secs(30);
/// Nothing heard of the own keyspace for this long: its data is stale (decision 8).
pub const OWN_STALE: Duration = Duration::from_secs(15);
/// What is there is compared with what should be at least this often.
pub const RESYNC: Duration = Duration::from_secs(30);
/// A cluster that was disconnected keeps its tunnels for this long after it lost its services, for what is under way.
pub const DRAIN: Duration = Duration::from_secs(5);
/// After a failed reconcile or word; doubles up to [`RESYNC`].
pub const RETRY: Duration = Duration::from_secs(1);
const TRANSITIONS_KEPT: usize = 256;

#[derive(Debug)]
pub struct Agent {
    pub(crate) config: AgentConfig,
    pub(crate) view: MeshView,
    slots: NodeSlots,
    pub(crate) health: HealthWords,
    interfaces: Interfaces,
    started: Time,
    following: BTreeMap<ClusterName, Peer>,
    /// No longer admitted; by when their tunnels go too.
    draining: BTreeMap<ClusterName, (Peer, Time)>,
    outputs: VecDeque<Output>,
    /// When the first change came that no plan knows.
    dirty: Option<Time>,
    /// Complete enough that what is missing is gone, not unknown.
    ready: bool,
    /// The shell has looked for the interfaces of the pods that a complete own cluster lists.
    looked: bool,
    /// Of this node, as of the last plan.
    pods: BTreeSet<IpAddr>,
    /// Those of them that the socket load balancer leaves out.
    left_out: BTreeSet<IpAddr>,
    own_stale: bool,
    /// Clusters whose keyspace cannot be read, while the own one can.
    unread: BTreeSet<ClusterName>,
    drains: Drains,
    pub(crate) guards: Guards,
    pub(crate) endpoints: Endpoints,
    flips: Flips,
    last_plan: Option<Time>,
    /// What the last plan took until it was carried out.
    plan_took: Duration,
    plan: Arc<Plan>,
    pub(crate) services: Vec<MergedService>,
    planned: bool,
    last_reconcile: Option<Time>,
    retry_at: Option<Time>,
    retry_wait: Duration,
    pub(crate) problems: Vec<String>,
    pub(crate) verdicts: BTreeMap<About, Transition>,
    /// Nodes that are up and weigh less than they could, and why.
    pub(crate) greys: BTreeMap<NodeId, Greyness>,
    pub(crate) transitions: VecDeque<Transition>,
    sweeps: Sweeps,
    cut_off: bool,
}

impl Agent {
    /// `slots` and `health` are what an earlier run left behind.
    pub fn new(config: AgentConfig, slots: NodeSlots, health: HealthWords, now: Time) -> Self {
        let view = MeshView::new(config.cluster.clone(), config.width, config.mesh);
        let own = config.cluster.name.clone();
        Self {
            config,
            view,
            slots,
            health,
            interfaces: Interfaces::default(),
            started: now,
            following: BTreeMap::new(),
            draining: BTreeMap::new(),
            outputs: VecDeque::from([Output::Follow(own)]),
            dirty: None,
            ready: false,
            looked: false,
            pods: BTreeSet::new(),
            left_out: BTreeSet::new(),
            own_stale: false,
            unread: BTreeSet::new(),
            drains: Drains::default(),
            guards: Guards::default(),
            endpoints: Endpoints::default(),
            flips: Flips::default(),
            last_plan: None,
            plan_took: Duration::ZERO,
            plan: Arc::default(),
            services: Vec::new(),
            planned: false,
            last_reconcile: None,
            retry_at: None,
            retry_wait: RETRY,
            problems: Vec::new(),
            verdicts: BTreeMap::new(),
            greys: BTreeMap::new(),
            transitions: VecDeque::new(),
            sweeps: Sweeps::default(),
            cut_off: false,
        }
    }

    pub fn handle_put(&mut self, cluster: &ClusterName, key: &[u8], value: &[u8], now: Time) {
        let changed = self.view.upsert(cluster, key, value);
        self.changed(changed, now);
    }

    pub fn handle_delete(&mut self, cluster: &ClusterName, key: &[u8], now: Time) {
        let changed = self.view.remove(cluster, key);
        self.changed(changed, now);
    }

    /// Everything that is followed of a cluster has been listed.
    pub fn handle_listed(&mut self, cluster: &ClusterName, revision: i64, now: Time) {
        self.view.heard(cluster, Some(revision), now);
        let changed = self.view.listed(cluster);
        self.changed(changed, now);
    }

    /// Its keyspace was heard; with a revision, everything up to there has been given.
    pub fn handle_heard(&mut self, cluster: &ClusterName, revision: Option<i64>, now: Time) {
        self.view.heard(cluster, revision, now);
        if self.view.is_own(cluster) || self.unread.contains(cluster) {
            self.handle_time(now);
        }
    }

    /// Its keyspace cannot be read for now. State is kept.
    pub fn handle_interrupted(&mut self, cluster: &ClusterName, reason: String) {
        self.view.interrupted(cluster, reason);
    }

    fn place(&self, about: About) -> Option<WordPlace> {
        match about {
            About::Cluster(cluster) => Some(WordPlace::Cluster(cluster)),
            About::Node(node) => Some(self.slots.get(node)).filter(|slot| *slot != 0).map(WordPlace::Node),
        }
    }

    /// What is up takes a step on its slow way back to all of its weight.
    pub fn handle_weight(&mut self, about: About, weight: u16) {
        let up = self.verdicts.get(&about).is_some_and(|verdict| verdict.to == ClusterHealth::Up);
        if let Some(place) = self.place(about).filter(|_| up) {
            self.health.judge(place, ClusterHealth::Up, weight);
        }
    }

    /// A node that is up weighs less, or more again: users fail there, or large packets do not arrive.
    pub fn handle_grey(&mut self, grey: Greyness) {
        let about = About::Node(grey.node);
        if self.verdicts.get(&about).is_none_or(|verdict| verdict.to != ClusterHealth::Up) {
            return;
        }
        match grey.weight {
            HealthWord::FULL_WEIGHT => drop(self.greys.remove(&grey.node)),
            _ => drop(self.greys.insert(grey.node, grey)),
        }
        self.handle_weight(about, grey.weight);
    }

    /// The data plane's verdict about a node or cluster changed.
    pub fn handle_transition(&mut self, transition: Transition) {
        if let Some(place) = self.place(transition.about) {
            self.health.judge(place, transition.to, transition.weight);
        }
        self.note_verdict(&transition);
        if let About::Node(node) = transition.about {
            // What made it weigh less was about another time.
            self.greys.remove(&node);
        }
        self.verdicts.insert(transition.about, transition);
        if self.transitions.len() == TRANSITIONS_KEPT {
            self.transitions.pop_front();
        }
        self.transitions.push_back(transition);
        if transition.to == ClusterHealth::Down {
            self.sweeps.note_down(&self.plan.datapath, self.config.reset_after, transition.at);
        }
        let clusters = self.following.values().map(|peer| About::Cluster(peer.cluster.id));
        let verdicts = clusters.map(|about| self.verdicts.get(&about).map(|verdict| verdict.to));
        let cut_off = is_cut_off(verdicts.map(Option::unwrap_or_default));
        if std::mem::replace(&mut self.cut_off, cut_off) != cut_off {
            self.changed(Changed::Data, transition.at);
        }
    }

    /// What the shell found in the kernel for [`Agent::local_pods`] and the tunnel device.
    pub fn handle_interfaces(&mut self, interfaces: Interfaces, now: Time) {
        self.looked |= self.view.own().is_synced();
        if self.interfaces != interfaces {
            self.interfaces = interfaces;
            self.changed(Changed::Data, now);
        }
        self.ready = self.ready || self.is_complete(now);
    }

    /// The first plan waits for a look at the pods' interfaces: without them it would take the pods' entries away.
    pub fn wants_interfaces(&self) -> bool {
        !self.looked && self.view.own().is_synced()
    }

    pub fn handle_word_failed(&mut self, write: WordWrite, now: Time) {
        self.health.failed(write);
        self.retry_later(now);
    }

    /// How carrying out [`Output::Reconcile`] went. Only after a success do words and slots of what is gone go too.
    pub fn handle_reconciled(&mut self, problems: Vec<String>, complete: bool, now: Time) {
        self.problems = problems;
        self.last_reconcile = Some(now);
        self.plan_took = self.last_plan.map_or(Duration::ZERO, |at| now.since(at)).min(MOST_REST / 2);
        if !complete {
            self.retry_later(now);
            return;
        }
        self.retry_at = None;
        self.retry_wait = RETRY;
        if self.dirty.is_some() {
            return;
        }
        let wanted: BTreeSet<NodeId> = self.plan.probed.keys().copied().collect();
        self.slots.release_others(&wanted, now);
        let leaving = self.draining.values().map(|(peer, _)| peer);
        let clusters: BTreeSet<_> =
            self.following.values().chain(leaving).map(|peer| peer.cluster.id).collect();
        let slots: BTreeSet<u32> = self.slots.iter().map(|(_, slot)| slot).collect();
        self.health.retain(|place| match place {
            WordPlace::Cluster(id) => clusters.contains(id),
            WordPlace::Node(slot) => slots.contains(slot),
        });
        self.verdicts.retain(|about, _| match about {
            About::Cluster(id) => clusters.contains(id),
            About::Node(node) => wanted.contains(node),
        });
        self.greys.retain(|node, _| wanted.contains(node));
    }

    /// Something that no plan speaks of has changed on this machine: one more reconcile.
    pub fn handle_resync(&mut self, now: Time) {
        self.last_reconcile = Some(now);
        self.reconcile_again(now);
    }

    /// A flip that could not be written whole: the plan writes it, and says what is wrong.
    pub fn handle_flip_failed(&mut self, now: Time) {
        self.changed(Changed::Data, now);
    }

    pub fn handle_time(&mut self, now: Time) {
        let heard = self.view.own().heard.unwrap_or(self.started);
        let stale = now.since(heard) >= OWN_STALE;
        if stale != self.own_stale {
            self.own_stale = stale;
            self.changed(Changed::Data, now);
        }
        let unread = self.unread_clusters(now);
        if unread != self.unread {
            self.unread = unread;
            self.changed(Changed::Data, now);
        }
        if self.drains.is_due(now) {
            self.changed(Changed::Data, now);
        }
        if self.sweeps.take_due(now) {
            self.ask_once(Output::Sweep);
        }
        self.end_draining(now);
        self.look_after_tunnels(now);
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.health.retry();
            self.reconcile_again(now);
        }
        if self.planned && self.resync_at().is_some_and(|at| at <= now) {
            self.handle_resync(now);
        }
        self.ready = self.ready || self.is_complete(now);
        if self.plan_at().is_some_and(|at| at <= now) {
            self.make_plan(now);
        }
    }

    fn plan_at(&self) -> Option<Time> {
        let dirty = self.dirty.map(|since| since + GATHER);
        let due = [dirty, self.flips.deadline()].into_iter().flatten().min();
        // Half of the time is for events, however large the view: a list of it would else come in one by one.
        let rested = self.last_plan.map(|at| at + DEBOUNCE.max(self.plan_took * 2));
        due.filter(|_| self.ready).map(|at| rested.map_or(at, |rested| at.max(rested)))
    }

    /// Words come first: what a plan points at has its word before it is pointed at.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.health.poll().map(Output::Word).or_else(|| self.outputs.pop_front())
    }

    pub fn poll_deadline(&self) -> Option<Deadline> {
        let timer = |timer, at| Deadline { at, timer };
        let first = self.view.own().is_synced().then_some(self.started + FIRST_PLAN);
        let heard = self.view.own().heard.unwrap_or(self.started);
        [
            self.plan_at().map(|at| timer(Timer::Debounce, at)),
            first.filter(|_| !self.ready).map(|at| timer(Timer::FirstPlan, at)),
            (!self.own_stale).then(|| timer(Timer::OwnStale, heard + OWN_STALE)),
            self.draining.values().map(|(_, at)| timer(Timer::Drained, *at)).min(),
            self.drains.deadline().map(|at| timer(Timer::Withdrawn, at)),
            self.next_unread().map(|at| timer(Timer::Unread, at)),
            self.retry_at.map(|at| timer(Timer::Retry, at)),
            self.resync_at().map(|at| timer(Timer::Resync, at)),
            self.sweeps.deadline().map(|at| timer(Timer::Sweep, at)),
            self.endpoints.deadline().map(|at| timer(Timer::Endpoint, at)),
            self.guards.deadline().filter(|_| self.dirty.is_none()).map(|at| timer(Timer::Guard, at)),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The newest plan; empty before the first.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Whether there is a plan: nothing may be removed before.
    pub fn has_plan(&self) -> bool {
        self.planned
    }

    /// Pods whose interfaces the shell should find.
    pub fn local_pods(&self) -> &BTreeSet<IpAddr> {
        &self.pods
    }

    /// Those of them whose network namespaces the shell should find.
    pub fn left_out_pods(&self) -> &BTreeSet<IpAddr> {
        &self.left_out
    }

    /// To be kept over a restart.
    pub fn slots(&self) -> &NodeSlots {
        &self.slots
    }

    pub fn config(&self) -> &AgentConfig {
        &self.config
    }

    pub fn view(&self) -> &MeshView {
        &self.view
    }

    pub fn word_counts(&self) -> WordCounts {
        self.health.counts()
    }

    /// Every other cluster is down, and there are several: then nothing is ended.
    pub fn is_cut_off(&self) -> bool {
        self.cut_off
    }

    pub fn is_own_stale(&self) -> bool {
        self.own_stale
    }

    pub(crate) fn changed(&mut self, changed: Changed, now: Time) {
        match &changed {
            Changed::Peers => self.follow_peers(now),
            Changed::Service(key) if self.flip(key, now) => return,
            _ => {}
        }
        if changed != Changed::Nothing {
            self.dirty.get_or_insert(now);
            if self.wants_interfaces() {
                self.find_pods();
            }
            self.ready = self.ready || self.is_complete(now);
        }
    }

    /// Only what changes alone: a flip knows the nodes and pods of the last plan.
    fn flip(&mut self, key: &ServiceKey, now: Time) -> bool {
        if !self.planned || self.dirty.is_some() || !self.draining.is_empty() {
            return false;
        }
        let world = World {
            config: &self.config,
            view: &self.view,
            slots: &self.slots,
            unread: &self.unread,
            services: &self.services,
            pods: &self.pods,
        };
        let Some(flip) = self.flips.flip(world, key, now) else { return false };
        if !flip.is_empty() {
            self.outputs.push_back(Output::Flip(flip));
        }
        true
    }

    /// Complete: the own cluster, and every peer or enough waiting.
    fn is_complete(&self, now: Time) -> bool {
        let peers = || self.view.peers().all(|(_, view)| view.is_some_and(|view| view.is_synced()));
        self.looked && self.view.own().is_synced() && (now.since(self.started) >= FIRST_PLAN || peers())
    }

    /// A peer admitted otherwise than before is read again: what it may say has changed. One that is no longer admitted
    /// loses its services with the next plan and its tunnels after [`DRAIN`].
    fn follow_peers(&mut self, now: Time) {
        if !self.planned {
            self.ask_once(Output::Guard);
        }
        let peers = self.view.own().peers.clone();
        let gone: Vec<_> = self.following.keys().filter(|name| !peers.contains_key(name)).cloned().collect();
        for name in gone {
            if let Some(peer) = self.following.remove(&name) {
                self.draining.insert(name.clone(), (peer, now + DRAIN));
            }
            self.outputs.push_back(Output::Unfollow(name));
        }
        for (name, peer) in peers {
            // By which CAs a peer is believed is the API servers' matter: a rotation there has nothing read again here.
            let known = self.following.get(&name);
            let same = known.is_some_and(|known| Peer { ca: peer.ca.clone(), ..known.clone() } == peer);
            if name != self.config.cluster.name && !same {
                if self.draining.remove(&name).is_some() {
                    self.view.forget(&name);
                }
                self.view.begin(&name);
                self.outputs.push_back(Output::Follow(name.clone()));
                self.following.insert(name, peer);
            }
        }
    }

    fn end_draining(&mut self, now: Time) {
        let drained: Vec<_> =
            self.draining.iter().filter(|(_, (_, at))| *at <= now).map(|(name, _)| name.clone()).collect();
        for name in drained {
            self.draining.remove(&name);
            self.view.forget(&name);
            self.changed(Changed::Data, now);
        }
    }

    /// Decision 8: when the own keyspace cannot be read either, it is we who are cut off, and nothing follows.
    fn unread_clusters(&self, now: Time) -> BTreeSet<ClusterName> {
        if self.is_blind() {
            return BTreeSet::new();
        }
        let unread = self.heard_peers().filter(|(view, heard)| {
            now.since(*heard) >= QUIET && ControlPlane::of(Some(*view), now).verdict == ClusterHealth::Down
        });
        unread.map(|(view, _)| view.name.clone()).collect()
    }

    fn is_blind(&self) -> bool {
        self.own_stale || self.view.own().interrupted.is_some()
    }

    fn next_unread(&self) -> Option<Time> {
        let heard = self.heard_peers().filter(|(view, _)| !self.unread.contains(&view.name));
        heard.map(|(_, heard)| heard + QUIET).min().filter(|_| !self.is_blind())
    }

    /// Peers that were complete once, and when they were heard last.
    fn heard_peers(&self) -> impl Iterator<Item = (&ClusterView, Time)> {
        let views = self.view.peers().filter_map(|(_, view)| view.filter(|view| view.is_synced()));
        views.filter_map(|view| Some((view, view.heard?)))
    }

    fn find_pods(&mut self) {
        let pods = local_pods(&self.config, &self.view);
        self.left_out = pods.iter().filter(|(_, pod)| pod.left_out).map(|(ip, _)| *ip).collect();
        self.pods = pods.into_keys().collect();
    }

    pub(crate) fn ask_once(&mut self, output: Output) {
        if !self.outputs.contains(&output) {
            self.outputs.push_back(output);
        }
    }

    fn make_plan(&mut self, now: Time) {
        self.dirty = None;
        self.last_plan = Some(now);
        self.find_pods();
        let mut notes = Vec::new();
        let leaving = self.draining.values().map(|(peer, _)| peer);
        let mut remotes = remotes(&self.view, leaving, &self.config, &mut notes);
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
        if self.own_stale {
            datapath.config.flags |= CONFIG_OWN_STALE;
        }
        notes.extend(over);
        let (after, cut_off) = (self.config.reset_after, self.cut_off);
        plan_resets(&self.config.cluster, &self.services, after, cut_off, &mut datapath, &mut notes);
        self.plan = Arc::new(Plan {
            tunnels: Some(
                self.guards.settle(plan_tunnels(&self.config, &self.view, &remotes, &self.slots), now),
            ),
            datapath,
            probed: nodes().map(|node| (node.id, node.mesh.ipv4)).collect(),
            notes,
        });
        let staying = remotes.into_iter().filter(|remote| !remote.leaving);
        let ends = staying.map(|remote| (remote.view.name.clone(), remote.ends)).collect();
        self.flips.planned(ends, used);
        self.planned = true;
        self.reconcile();
    }

    /// Never to a plan that a flip has overtaken.
    fn reconcile_again(&mut self, now: Time) {
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

    fn retry_later(&mut self, now: Time) {
        self.retry_at = Some(now + self.retry_wait);
        self.retry_wait = (self.retry_wait * 2).min(RESYNC);
    }

    fn resync_at(&self) -> Option<Time> {
        self.last_reconcile.map(|at| at + RESYNC)
    }
}
