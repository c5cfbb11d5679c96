//! The agent's core: events in, plans and words out. Knows the time only as an argument.
//!
//! A plan is made from the whole view [`GATHER`] after the first change that was not planned yet, and [`DEBOUNCE`] after the last
//! plan: O(view) per plan, so at most twenty plans a second however many events come. A change of one service's backends is
//! flipped at once ([`crate::flips`]) and planned later, and so is a remote pod that comes. Health never waits for a plan.

mod planning;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hawser_discovery::{About, Greyness, NodeId, Transition};
use hawser_model::{ClusterHealth, ClusterName, HealthWord, Peer, ServiceKey, Time};

use crate::config::AgentConfig;
use crate::drains::{Draining, Drains};
use crate::endpoints::Endpoints;
use crate::flips::{Flip, Flips, World};
use crate::gateways::Gateways;
use crate::guards::Guards;
use crate::health::{HealthWords, WordCounts, WordPlace, WordWrite};
use crate::output::{Deadline, Output, Plan, Timer};
use crate::plan_datapath::{Interfaces, local_pods};
use crate::resets::{CutOff, Sweeps};
use crate::services::MergedService;
use crate::slots::NodeSlots;
use crate::status::{ControlPlane, Noted};
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
/// And for this long after its API server was lost in so many words: a connection that ended, one that was refused.
pub const OWN_LOST: Duration = Duration::from_secs(1);
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
    pub(crate) gateways: Gateways,
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
    pub(crate) transitions: VecDeque<Noted>,
    sweeps: Sweeps,
    cut_off: CutOff,
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
            gateways: Gateways::default(),
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
            cut_off: CutOff::default(),
        }
    }

    pub fn handle_put(&mut self, cluster: &ClusterName, key: &[u8], value: &[u8], now: Time) {
        match self.view.upsert(cluster, key, value) {
            Changed::Pod(ip) if self.flip_pod(cluster, ip, now) => {}
            Changed::Pod(_) => self.changed(Changed::Data, now),
            changed => self.changed(changed, now),
        }
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
    pub fn handle_interrupted(&mut self, cluster: &ClusterName, reason: String, now: Time) {
        self.view.interrupted(cluster, reason, now);
    }

    fn place(&self, about: About) -> Option<WordPlace> {
        match about {
            About::Cluster(cluster) => Some(WordPlace::Cluster(cluster)),
            About::Node(node) => Some(self.slots.get(node)).filter(|slot| *slot != 0).map(WordPlace::Node),
        }
    }

    /// What the kernel holds about these nodes and their clusters: where probing begins, it goes on so.
    pub fn words_of(&self, nodes: impl IntoIterator<Item = NodeId>) -> BTreeMap<About, HealthWord> {
        let about = nodes.into_iter().flat_map(|node| [About::Cluster(node.cluster), About::Node(node)]);
        about.filter_map(|about| Some((about, self.health.found(self.place(about)?)?))).collect()
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
        let before = match grey.weight {
            HealthWord::FULL_WEIGHT => self.greys.remove(&grey.node),
            _ => self.greys.insert(grey.node, grey),
        };
        let before = before.map_or(HealthWord::FULL_WEIGHT, |grey| grey.weight);
        self.remark(Noted::Grey { grey, before });
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
        self.remark(Noted::Verdict(transition));
        if transition.to == ClusterHealth::Down {
            self.sweeps.note_down(&self.plan.datapath, self.config.reset_after, transition.at);
        }
        if self.judge_cut_off(transition.at) {
            self.changed(Changed::Data, transition.at);
        }
    }

    /// By the verdicts of the clusters that are followed now. O(clusters).
    fn judge_cut_off(&mut self, now: Time) -> bool {
        let clusters = self.following.values().map(|peer| About::Cluster(peer.cluster.id));
        let verdicts = clusters.map(|about| self.verdicts.get(&about).map(|verdict| verdict.to));
        let verdicts: Vec<_> = verdicts.map(Option::unwrap_or_default).collect();
        let changed = self.cut_off.judge(&verdicts, now);
        if changed && !self.cut_off.is() && verdicts.contains(&ClusterHealth::Down) {
            // What did not come back is down like any other, from now on.
            self.sweeps.note_down(&self.plan.datapath, self.config.reset_after, now);
        }
        changed
    }

    fn remark(&mut self, noted: Noted) {
        if self.transitions.len() == TRANSITIONS_KEPT {
            self.transitions.pop_front();
        }
        self.transitions.push_back(noted);
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
        let stale = now >= self.stale_at();
        if stale != self.own_stale {
            self.own_stale = stale;
            if stale && !self.planned {
                self.ask_once(Output::OwnStale);
            }
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
        if self.cut_off.deadline().is_some_and(|at| at <= now) && self.judge_cut_off(now) {
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

    /// Words come first: what a plan points at has its word before it is pointed at.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.health.poll().map(Output::Word).or_else(|| self.outputs.pop_front())
    }

    pub fn poll_deadline(&self) -> Option<Deadline> {
        let timer = |timer, at| Deadline { at, timer };
        let first = self.view.own().is_synced().then_some(self.started + FIRST_PLAN);
        [
            self.plan_at().map(|at| timer(Timer::Debounce, at)),
            first.filter(|_| !self.ready).map(|at| timer(Timer::FirstPlan, at)),
            (!self.own_stale).then(|| timer(Timer::OwnStale, self.stale_at())),
            self.draining.values().map(|(_, at)| timer(Timer::Drained, *at)).min(),
            self.drains.deadline().map(|at| timer(Timer::Withdrawn, at)),
            self.next_unread().map(|at| timer(Timer::Unread, at)),
            self.retry_at.map(|at| timer(Timer::Retry, at)),
            self.resync_at().map(|at| timer(Timer::Resync, at)),
            self.sweeps.deadline().map(|at| timer(Timer::Sweep, at)),
            self.cut_off.deadline().map(|at| timer(Timer::Rejoined, at)),
            self.endpoints.choices.deadline().map(|at| timer(Timer::Endpoint, at)),
            self.gateways.choices.deadline().map(|at| timer(Timer::Gateway, at)),
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

    /// Backends that an earlier run served in their grace: it goes on.
    pub fn remember_draining(&mut self, earlier: impl IntoIterator<Item = Draining>, now: Time) {
        self.drains.restore(earlier, now);
    }

    /// To be kept over a restart.
    pub fn draining(&self, now: Time) -> impl Iterator<Item = Draining> {
        self.drains.all(now)
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

    /// Every other cluster is down, and there are several, or was a moment ago: then nothing is ended.
    pub fn is_cut_off(&self) -> bool {
        self.cut_off.is()
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

    fn flip(&mut self, key: &ServiceKey, now: Time) -> bool {
        self.flip_if_alone(|flips, world| flips.flip(world, key, now))
    }

    fn flip_pod(&mut self, cluster: &ClusterName, ip: IpAddr, now: Time) -> bool {
        self.flip_if_alone(|flips, world| flips.pod(world, cluster, ip, now))
    }

    /// Only what changes alone: a flip knows the nodes and pods of the last plan.
    fn flip_if_alone(&mut self, flip: impl FnOnce(&mut Flips, World<'_>) -> Option<Flip>) -> bool {
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
        let Some(flip) = flip(&mut self.flips, world) else { return false };
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

    /// When local picks are left to kube-proxy, unless the own keyspace is heard before.
    fn stale_at(&self) -> Time {
        let own = self.view.own();
        let silent = own.heard.unwrap_or(self.started) + OWN_STALE;
        own.interrupted_since.map_or(silent, |lost| silent.min(lost + OWN_LOST))
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
}
