//! The one loop: waits for one of its sources, feeds the core, drains it. Decides nothing.

mod now;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use hawser_agent_core::{Agent, Flip, Interfaces, Output, Plan};
use hawser_api::local::{Operation, PlanReply, StatusReply};
use hawser_discovery::{LivenessConfig, NodeId, Transition};
use hawser_discovery_net::{Prober, ProberConfig, Verdict, spawn_prober};
use hawser_ebpf_abi::Reason;
use hawser_model::{ClusterHealth, ClusterName};
use hawser_telemetry::{Pulse, Watchdog, span};
use hawser_tunnels::Peer;
use hawser_tunnels_linux::{Driver as _, Stats};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::answers;
use crate::causes::chain;
use crate::clock::Clock;
use crate::config::Config;
use crate::datapath::Datapath;
use crate::follow::{Followers, Heard};
use crate::interfaces::{Found, LookError, Looker};
use crate::local_api::{Asked, Question};
use crate::memory::{self, Memory};
use crate::metrics::{Meters, Observation};
use crate::namespaces;
use crate::place::Reporting;
use crate::reconcile::{Outcome, outcome_of, preview, reconcile, revive};
use crate::state::StateDir;
use crate::sweep::{self, Swept};
use crate::tunnels::Tunnels;
use crate::used::{self, Used};
use crate::users::{self, Sampler};
use now::{next_verdict, sleep, sleep_until, soonest};

/// Pods whose interface was missing, and links that changed, are looked at again after this long.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// And in any case after this long: a netlink message may be lost.
const LOOK_ANYWAY: Duration = Duration::from_secs(10);
/// Events taken in at a time before health and deadlines get their turn.
const BATCH: usize = 256;
/// What one turn of the loop may take; the largest view is planned in well under a second.
const STUCK: Duration = Duration::from_secs(30);

/// Everything the loop waits for.
#[derive(Debug)]
pub(crate) struct Sources {
    pub heard: mpsc::Receiver<Heard>,
    pub questions: mpsc::Receiver<Question>,
    pub links: mpsc::Receiver<()>,
    pub reporting: mpsc::Receiver<Reporting>,
}

/// What the loop carries things out with.
#[derive(Debug)]
pub(crate) struct Driver {
    pub config: Config,
    pub clock: Clock,
    pub state: Arc<StateDir>,
    pub agent: Agent,
    pub followers: Followers,
    pub tunnels: Arc<Tunnels>,
    pub datapath: Arc<Datapath>,
    pub looker: Arc<Looker>,
    /// What the last run probed; probing goes on before the first plan.
    pub remembered: Memory,
    pub pulses: Pulses,
}

/// Where the loop and its reconciles say that they turn.
#[derive(Clone, Debug)]
pub(crate) struct Pulses {
    turn: Pulse,
    reconcile: Pulse,
}

impl Pulses {
    pub(crate) fn of(watchdog: &Watchdog) -> Self {
        Self { turn: watchdog.task("loop", STUCK), reconcile: watchdog.task("reconcile", STUCK * 4) }
    }
}

/// What is under way, and what the last look and report said.
#[derive(Debug, Default)]
struct Now {
    prober: Option<(Prober, mpsc::Receiver<Verdict>)>,
    prober_problem: Option<String>,
    used: Used,
    users: Sampler,
    reconciling: bool,
    reconcile_again: bool,
    /// Of the time of a reconcile.
    flips: Flip,
    looking: bool,
    look_at: Option<tokio::time::Instant>,
    looked_for: BTreeSet<IpAddr>,
    left_out: BTreeSet<IpAddr>,
    interfaces: Interfaces,
    underlay: BTreeSet<u32>,
    look_problem: Option<String>,
    memory_problem: Option<String>,
    /// Clusters that could not be followed, and why.
    unheard: BTreeMap<ClusterName, String>,
    missing: Vec<IpAddr>,
    report_problem: Option<String>,
    renewal_problem: Option<String>,
    meters: Meters,
    reconcile_began: Option<Instant>,
    /// How the last reconcile went.
    reconciled: Option<bool>,
    /// Its problems, which are logged when they come and when they go.
    told: BTreeSet<String>,
    sweeping: bool,
    sweep_again: bool,
    swept: Swept,
    /// Why there can be no sweep.
    no_sweep: Option<String>,
}

/// Why the loop ended.
pub(crate) enum End {
    Stopped,
    /// A successor has asked, and nothing is under way any more: maps and probes are its from here on.
    Superseded(Asked),
}

/// What a task of the loop came back with.
enum Done {
    Reconciled {
        plan: Arc<Plan>,
        outcome: Outcome,
    },
    Looked(Result<Found, LookError>),
    /// Regular: the time since the last regular one is known.
    Counted {
        stats: Option<Stats>,
        regular: bool,
    },
    Swept(Swept),
}

impl Driver {
    /// Until `stop` resolves, a successor asks, or with an error when this node was given another place. Kernel state stays as it is
    /// then: stop is not remove.
    pub(crate) async fn run(mut self, mut sources: Sources, stop: &mut oneshot::Receiver<()>) -> Result<End> {
        let mut now = Now { no_sweep: sweep::missing(), ..Now::default() };
        let (done, mut finished) = mpsc::channel(8);
        self.start_prober(&mut now).await;
        let mut batch = Vec::with_capacity(BATCH);
        let mut sample = users::ticks(self.config.liveness.sampling());
        let mut count = tokio::time::interval(used::EVERY);
        count.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.pulses.turn.busy();
            self.drain(&mut now, &done);
            self.look_if_due(&mut now, &done);
            if !now.sweeping && std::mem::take(&mut now.sweep_again) {
                self.sweep(&mut now, &done);
            }
            self.pulses.turn.idle();
            let deadline = self.agent.poll_deadline().map(|d| d.at.since(self.clock.now()));
            tokio::select! {
                biased;
                _ = &mut *stop => return Ok(End::Stopped),
                Some(verdict) = next_verdict(&mut now.prober) => self.verdict(verdict, &mut now.meters),
                Some(done) = finished.recv() => self.finish(done, &mut now).await,
                Some(question) = sources.questions.recv() => match question {
                    Question::HandOver(asked) => {
                        now.finish_all(&mut finished).await;
                        return Ok(End::Superseded(asked));
                    }
                    question => self.answer(question, &now),
                },
                Some(word) = sources.reporting.recv() => match word {
                    Reporting::Well => now.report_problem = None,
                    Reporting::Failing(problem) => now.report_problem = Some(problem),
                    Reporting::Renewal(problem) => now.renewal_problem = problem,
                    Reporting::Moved(moved) => return Err(moved.into()),
                },
                Some(()) = sources.links.recv() => now.look_at = Some(soonest(now.look_at, LOOK_AGAIN)),
                () = sleep_until(now.look_at), if !now.looking => {
                    now.look_at = None;
                    self.look(&mut now, &done);
                }
                _ = count.tick() => self.count(&done, true),
                _ = sample.tick() => self.sample(&mut now).await,
                taken = sources.heard.recv_many(&mut batch, BATCH), if batch.is_empty() => {
                    anyhow::ensure!(taken > 0, "the followers are gone");
                    self.pulses.turn.busy();
                    for heard in batch.drain(..) {
                        self.followers.tell(&mut self.agent, heard, self.clock.now());
                    }
                    // However much comes, what is due is done.
                    self.agent.handle_time(self.clock.now());
                }
                () = sleep(deadline) => self.agent.handle_time(self.clock.now()),
            }
        }
    }

    fn drain(&mut self, now: &mut Now, done: &mpsc::Sender<Done>) {
        while let Some(output) = self.agent.poll_output() {
            match output {
                Output::Word(write) => {
                    if let Err(error) = self.datapath.write_word(write) {
                        tracing::error!(?write, "a health word could not be written: {}", chain(&error));
                        self.agent.handle_word_failed(write, self.clock.now());
                    }
                }
                Output::Follow(cluster) => self.follow(cluster, now),
                Output::Unfollow(cluster) => {
                    now.unheard.remove(&cluster);
                    self.followers.unfollow(&cluster);
                }
                Output::Flip(flip) if now.reconciling => now.flips.follow(flip),
                Output::Flip(flip) => self.flip(&flip),
                Output::Reconcile => self.reconcile(now, done),
                Output::Sweep => self.sweep(now, done),
                Output::Guard => self.guard(),
                Output::LookAtPeers => self.count(done, false),
            }
        }
    }

    /// A cluster that cannot be followed is a standing problem, tried again with the next look.
    fn follow(&mut self, cluster: ClusterName, now: &mut Now) {
        match self.followers.follow(&cluster) {
            Ok(()) => drop(now.unheard.remove(&cluster)),
            Err(error) => {
                now.unheard.insert(cluster, chain(&error));
                now.look_at = Some(soonest(now.look_at, LOOK_ANYWAY));
            }
        }
    }

    fn verdict(&mut self, verdict: Verdict, meters: &mut Meters) {
        let transition = match verdict {
            Verdict::Changed(transition) => transition,
            Verdict::Weight { about, weight } => return self.agent.handle_weight(about, weight),
            Verdict::Grey(grey) => {
                tracing::warn!(node = %grey.node, weight = grey.weight, why = %grey.why, "liveness");
                return self.agent.handle_grey(grey);
            }
        };
        meters.flip(transition.to);
        let (about, from, to, because) =
            (transition.about, transition.from, transition.to, transition.because);
        match to {
            ClusterHealth::Down => tracing::warn!(%about, %from, %to, %because, "liveness"),
            ClusterHealth::Up | ClusterHealth::Unknown => {
                tracing::info!(%about, %from, %to, %because, "liveness")
            }
        }
        // Its time is when it takes effect: the words are written right after this.
        self.agent.handle_transition(Transition { at: self.clock.now(), ..transition });
    }

    /// At once, as a health word: a few writes.
    fn flip(&mut self, flip: &Flip) {
        let problems = self.datapath.flip(flip);
        if !problems.is_empty() {
            tracing::debug!(?problems, "a service could not be flipped, the plan tries again");
            self.agent.handle_flip_failed(self.clock.now());
        }
    }

    /// One at a time; what comes meanwhile is one more afterwards.
    fn reconcile(&mut self, now: &mut Now, done: &mpsc::Sender<Done>) {
        if std::mem::replace(&mut now.reconciling, true) {
            now.reconcile_again = true;
            return;
        }
        let plan = self.agent.plan().clone();
        let (tunnels, datapath) = (self.tunnels.clone(), self.datapath.clone());
        let (underlay, done) = (now.underlay.clone(), done.clone());
        let planned = plan.clone();
        now.reconcile_began = Some(Instant::now());
        self.pulses.reconcile.busy();
        let work = tokio::task::spawn_blocking(move || {
            span!("agent.reconcile").in_scope(|| reconcile(&planned, &underlay, &tunnels, &datapath))
        });
        tokio::spawn(async move {
            let outcome = outcome_of(work).await;
            // The loop is gone only when the agent stops.
            let _ = done.send(Done::Reconciled { plan, outcome }).await;
        });
    }

    async fn finish(&mut self, done: Done, now: &mut Now) {
        match done {
            Done::Looked(result) => self.looked(result, now),
            Done::Counted { stats: Some(stats), regular } => {
                self.agent.handle_seen(&used::peers_seen(&stats), self.clock.now());
                if regular {
                    self.counted(&stats, now).await;
                }
            }
            Done::Counted { stats: None, .. } => {}
            Done::Swept(swept) => now.note_swept(swept),
            Done::Reconciled { plan, outcome } => {
                now.reconciling = false;
                self.pulses.reconcile.idle();
                // They know more than the plan that is there now.
                self.flip(&std::mem::take(&mut now.flips));
                let complete = outcome.complete;
                now.note(&outcome);
                self.agent.handle_reconciled(outcome.problems, complete, self.clock.now());
                if complete {
                    self.remember(&plan, now);
                }
                self.start_prober(now).await;
                self.probe(now, plan.probed.clone()).await;
                if std::mem::take(&mut now.reconcile_again) {
                    self.agent.handle_resync(self.clock.now());
                }
            }
        }
    }

    /// One at a time; what comes meanwhile is one more afterwards.
    fn sweep(&self, now: &mut Now, done: &mpsc::Sender<Done>) {
        if now.no_sweep.is_some() {
            return;
        }
        if std::mem::replace(&mut now.sweeping, true) {
            now.sweep_again = true;
            return;
        }
        let (datapath, done) = (self.datapath.clone(), done.clone());
        tokio::spawn(async move {
            let swept = tokio::task::spawn_blocking(move || sweep::sweep(&datapath)).await;
            let failed = |error: tokio::task::JoinError| Swept {
                problem: Some(error.to_string()),
                ..Swept::default()
            };
            let _ = done.send(Done::Swept(swept.unwrap_or_else(failed))).await;
        });
    }

    /// A disk that is full ends no agent: it is tried again with every reconcile, twice a minute at the least.
    fn remember(&mut self, plan: &Plan, now: &mut Now) {
        let memory = Memory::of(plan, self.agent.slots());
        let kept = memory::keep(&self.state, &mut self.remembered, memory);
        let told = now.memory_problem.is_some();
        now.memory_problem = kept.err().map(|error| {
            if !told {
                tracing::warn!(%error, "this run's memory cannot be kept");
            }
            format!("a restart would not know what this run knows: {error}. fix: see that the disk has room and can be written")
        });
    }

    /// Needs the own mesh address on the device, so it may only succeed after the first reconcile.
    async fn start_prober(&mut self, now: &mut Now) {
        if now.prober.is_some() {
            return;
        }
        let agent = self.agent.config();
        let config = ProberConfig {
            address: agent.mesh_addresses().ipv4,
            port: agent.probe_port,
            device: Some(agent.device.to_string()),
            liveness: LivenessConfig { mtu: Some(agent.mtu), ..self.config.liveness },
            clock: self.clock.shared(),
            seed: rand::random(),
        };
        match spawn_prober(config) {
            Ok(probes) => {
                now.prober = Some(probes);
                now.prober_problem = None;
                self.probe(now, self.remembered.probed()).await;
            }
            Err(error) => now.prober_problem = Some(error.to_string()),
        }
    }

    async fn probe(&self, now: &mut Now, peers: BTreeMap<NodeId, std::net::Ipv4Addr>) {
        let Some((probes, _)) = &now.prober else { return };
        if probes.set_peers(peers).await.is_err() {
            now.prober = None;
            now.prober_problem =
                Some("the probing task ended; it is started again with the next reconcile".into());
        }
    }

    /// Before the first plan, so before any reconcile: it is not in anybody's way.
    fn guard(&self) {
        let (guards, tunnels) = (self.agent.guards(), self.tunnels.clone());
        tokio::task::spawn_blocking(move || {
            for problem in revive(&guards, &tunnels) {
                tracing::warn!(problem, "guarding the mesh's prefixes");
            }
        });
    }

    /// Asks the tunnels what they carried.
    fn count(&self, done: &mpsc::Sender<Done>, regular: bool) {
        let (tunnels, done) = (self.tunnels.clone(), done.clone());
        tokio::spawn(async move {
            let stats = tokio::task::spawn_blocking(move || tunnels.stats().ok()).await;
            let _ = done.send(Done::Counted { stats: stats.ok().flatten(), regular }).await;
        });
    }

    /// Tells the probing task what users' connections came to.
    async fn sample(&self, now: &mut Now) {
        let Some((prober, _)) = &now.prober else { return };
        let told = now.users.look(&self.agent, &self.datapath, self.clock.now());
        if !told.is_empty() {
            // A task that ended is started again with the next reconcile.
            let _ = prober.users(told).await;
        }
    }

    async fn counted(&self, stats: &Stats, now: &mut Now) {
        let ids = answers::node_ids(&self.agent);
        let peers = self.agent.plan().tunnels.iter().flat_map(|desired| &desired.peers);
        let id = |peer: &Peer| {
            let name = (peer.name.cluster.name.to_string(), peer.name.node.to_string());
            Some((peer.public_key, *ids.get(&name)?))
        };
        let used = now.used.look(stats, &peers.filter_map(id).collect(), &self.config.liveness);
        if let Some((prober, _)) = now.prober.as_ref().filter(|_| !used.is_empty()) {
            // A task that ended is started again with the next reconcile.
            let _ = prober.used(used).await;
        }
    }

    /// Looks as soon as the pods of this node are others than those that were looked for.
    fn look_if_due(&mut self, now: &mut Now, done: &mpsc::Sender<Done>) {
        let others =
            *self.agent.local_pods() != now.looked_for || *self.agent.left_out_pods() != now.left_out;
        if !now.looking && (self.agent.wants_interfaces() || others) {
            self.look(now, done);
        }
    }

    fn look(&mut self, now: &mut Now, done: &mpsc::Sender<Done>) {
        now.looking = true;
        now.looked_for = self.agent.local_pods().clone();
        let (looker, pods, done) = (self.looker.clone(), now.looked_for.clone(), done.clone());
        let (device, underlay) = (self.config.device.clone(), self.config.underlay.clone());
        now.left_out = self.agent.left_out_pods().clone();
        let (left_out, known) = (now.left_out.clone(), now.interfaces.clone());
        let work = tokio::spawn(async move {
            let mut found = looker.look(&pods, &device, &underlay).await?;
            let of = found.interfaces.clone();
            let cookies = tokio::task::spawn_blocking(move || namespaces::cookies(&left_out, &of, &known));
            found.interfaces.namespaces = cookies.await.map_err(LookError::Ended)?;
            Ok(found)
        });
        tokio::spawn(async move {
            let found = work.await.unwrap_or_else(|error| Err(LookError::Ended(error)));
            let _ = done.send(Done::Looked(found)).await;
        });
    }

    fn looked(&mut self, result: Result<Found, LookError>, now: &mut Now) {
        now.looking = false;
        for cluster in now.unheard.keys().cloned().collect::<Vec<_>>() {
            self.follow(cluster, now);
        }
        let mut again = LOOK_ANYWAY;
        match result {
            Ok(found) => {
                now.look_problem = None;
                if !found.missing.is_empty() {
                    again = LOOK_AGAIN;
                }
                now.missing = found.missing;
                if std::mem::replace(&mut now.underlay, found.underlay.clone()) != found.underlay {
                    self.agent.handle_resync(self.clock.now());
                }
                now.interfaces = found.interfaces.clone();
                self.agent.handle_interfaces(found.interfaces, self.clock.now());
            }
            Err(error) => {
                now.look_problem = Some(error.to_string());
                again = LOOK_AGAIN;
            }
        }
        now.look_at = Some(soonest(now.look_at, again));
    }

    fn problems(&self, now: &Now) -> Vec<String> {
        let missing = now.missing.iter().map(|pod| {
            format!("pod {pod} is stated to be on this node, but no route of this node leads to an interface of it")
        });
        let unheard = now.unheard.iter().map(|(cluster, why)| format!("{cluster} cannot be followed: {why}"));
        let others = [
            &now.prober_problem,
            &now.look_problem,
            &now.memory_problem,
            &now.report_problem,
            &now.renewal_problem,
        ];
        missing.chain(unheard).chain(others.into_iter().flatten().cloned()).collect()
    }

    /// The status, with what the engine, the probing task and the kernel have to be asked for.
    fn measured(&self, now: &Now) -> impl Future<Output = StatusReply> + use<> {
        let (tunnels, datapath) = (self.tunnels.clone(), self.datapath.clone());
        let mut status = answers::status(&self.agent, self.clock, &self.problems(now));
        let mut stuck = answers::stuck(&self.agent, &now.swept, now.no_sweep.as_deref());
        let ids = answers::node_ids(&self.agent);
        let probes = now.prober.as_ref().map(|(probes, _)| probes.clone());
        async move {
            let probes = match probes {
                Some(probes) => probes.snapshot().await.ok(),
                None => None,
            };
            let kernel =
                move || (tunnels.stats().ok(), datapath.counters().unwrap_or_default(), datapath.no_users());
            let (stats, counters, no_users) = tokio::task::spawn_blocking(kernel).await.unwrap_or_default();
            answers::measure(&mut status, &ids, stats.as_ref(), probes.as_ref());
            answers::lack(&mut status, no_users);
            status.reasons = answers::reasons(&counters, stats.as_ref());
            let resets = counters.iter().find(|(reason, _)| *reason == Reason::PodFromReset);
            stuck.reset = resets.map_or(0, |(_, packets)| *packets);
            status.stuck_connections = Some(stuck);
            status
        }
    }

    /// Takes what it can say from here; what has to be asked elsewhere is asked on the way.
    fn answer(&self, question: Question, now: &Now) {
        let (tunnels, datapath) = (self.tunnels.clone(), self.datapath.clone());
        match question {
            // Ends the loop, which takes it itself.
            Question::HandOver(_) => {}
            Question::Services(only, reply) => drop(reply.send(answers::services(&self.agent, &only))),
            Question::Status(reply) => {
                let status = self.measured(now);
                tokio::spawn(async move { drop(reply.send(status.await)) });
            }
            Question::Observe(reply) => {
                let (status, meters, reconciled) = (self.measured(now), now.meters.clone(), now.reconciled);
                tokio::spawn(async move {
                    let status = status.await;
                    let maps =
                        tokio::task::spawn_blocking(move || datapath.fills()).await.unwrap_or_default();
                    drop(reply.send(Box::new(Observation { status, meters, maps, reconciled })));
                });
            }
            Question::Plan(reply) if !self.agent.has_plan() => {
                let waits: Vec<_> = self
                    .agent
                    .clusters(self.clock.now())
                    .into_iter()
                    .filter(|cluster| !cluster.synced)
                    .map(|cluster| format!("{}: {}", cluster.cluster.name, cluster.reason))
                    .collect();
                let text = format!("there is no plan before everything is synced ({})", waits.join("; "));
                drop(reply.send(Err(Status::failed_precondition(text))));
            }
            Question::Plan(reply) => {
                let (plan, underlay) = (self.agent.plan().clone(), now.underlay.clone());
                tokio::task::spawn_blocking(move || {
                    let steps = preview(&plan, &underlay, &tunnels, &datapath);
                    let operation = |step: crate::reconcile::Step| Operation {
                        part: step.part.to_owned(),
                        text: step.text,
                    };
                    let answer = steps
                        .map(|steps| PlanReply { operations: steps.into_iter().map(operation).collect() })
                        .map_err(|error| Status::internal(chain(&error)));
                    drop(reply.send(answer));
                });
            }
        }
    }
}
