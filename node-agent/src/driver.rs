//! The one loop: waits for one of its sources, feeds the core, drains it. Decides nothing.

mod answer;
mod count;
mod now;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use hawser_agent_core::{Agent, Flip, Interfaces, Output, Plan};
use hawser_discovery::{LivenessConfig, NodeId, Reflector, Transition};
use hawser_discovery_net::{Prober, ProberConfig, Verdict, spawn_prober};
use hawser_model::{ClusterHealth, ClusterName, HealthWord};
use hawser_telemetry::{Pulse, Watchdog, span};
use hawser_tunnels::DEFAULT_MTU;
use hawser_tunnels_linux::{Driver as _, Stats};
use tokio::sync::{mpsc, oneshot};

use crate::causes::chain;
use crate::clock::Clock;
use crate::config::Config;
use crate::datapath::Datapath;
use crate::follow::{Followers, Heard};
use crate::heap::Heap;
use crate::interfaces::{Edge, Found, LookError, Looker};
use crate::known::Known;
use crate::local_api::{Asked, Question};
use crate::memory::{self, Memory};
use crate::metrics::Meters;
use crate::namespaces;
use crate::place::Reporting;
use crate::reconcile::{Outcome, outcome_of, reconcile, revive};
use crate::share::{self, Sharing};
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
/// Then a fiftieth of the time is for it.
const LONG_TO_WRITE: Duration = Duration::from_millis(50);
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
    /// Links that came up, or changed while they are.
    pub appearing: mpsc::Receiver<u32>,
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
    pub known: Arc<Known>,
    pub datapath: Arc<Datapath>,
    pub looker: Arc<Looker>,
    /// What the last run probed; probing goes on before the first plan.
    pub remembered: Memory,
    pub sharing: Sharing,
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
    /// Never without the prober.
    share: Option<share::Running>,
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
    edge: Edge,
    look_problem: Option<String>,
    memory_problem: Option<String>,
    remember_after: Option<Instant>,
    /// Clusters that could not be followed, and why.
    unheard: BTreeMap<ClusterName, String>,
    missing: Vec<IpAddr>,
    no_uplinks: Vec<String>,
    report_problem: Option<String>,
    renewal_problem: Option<String>,
    secrets_problem: Option<String>,
    meters: Meters,
    reconcile_began: Option<Instant>,
    heap: Heap,
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
        /// Nodes whose probes were answered lately; none where the tunnels say it themselves.
        answering: Option<BTreeSet<NodeId>>,
        /// When they were answered last; nothing where no pair meets at a gateway.
        heard: BTreeMap<NodeId, hawser_model::Time>,
        regular: bool,
    },
    Swept(Swept),
}

impl Driver {
    /// Until `stop` resolves, a successor asks, or with an error when this node was given another place. Kernel state stays as it is
    /// then: stop is not remove.
    pub(crate) async fn run(mut self, mut sources: Sources, stop: &mut oneshot::Receiver<()>) -> Result<End> {
        // What the last run guarded is guarded at once, by whatever device it could leave.
        let first = Some(tokio::time::Instant::now());
        let mut now = Now { no_sweep: sweep::missing(), look_at: first, ..Now::default() };
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
                _ = &mut *stop => {
                    self.say_stopped(&mut now, &mut finished).await;
                    return Ok(End::Stopped);
                }
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
                    Reporting::Secrets(problem) => now.secrets_problem = problem,
                    Reporting::Moved(moved) => return Err(moved.into()),
                },
                Some(ifindex) = sources.appearing.recv() => self.guard_device(ifindex, &now),
                Some(()) = sources.links.recv() => now.look_at = Some(soonest(now.look_at, LOOK_AGAIN)),
                () = sleep_until(now.look_at), if !now.looking => {
                    now.look_at = None;
                    self.look(&mut now, &done);
                }
                _ = count.tick() => self.count(&now, &done, true),
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

    /// Where the kernel carries on, peers hear AdminDown and keep their verdict. An engine in here ends with this process: then
    /// packets really do not arrive, and silence says so.
    async fn say_stopped(&self, now: &mut Now, finished: &mut mpsc::Receiver<Done>) {
        now.finish_all(finished).await;
        let (tunnels, datapath) = (self.tunnels.clone(), self.datapath.clone());
        let said = tokio::task::spawn_blocking(move || match tunnels.stats() {
            Ok(stats) if stats.in_kernel => datapath.say_stopped(),
            _ => Ok(()),
        });
        if let Ok(Err(error)) = said.await {
            tracing::warn!("peers could not be told that this agent stops: {}", chain(&error));
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
                Output::Guard => self.guard(now),
                Output::OwnStale => self.datapath.say_own_stale(),
                Output::LookAtPeers => self.count(now, done, false),
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
                match grey.weight {
                    HealthWord::FULL_WEIGHT => {
                        tracing::info!(node = %grey.node, weight = grey.weight, why = %grey.why, "liveness");
                    }
                    _ => tracing::warn!(node = %grey.node, weight = grey.weight, why = %grey.why, "liveness"),
                }
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
        let mut strays = flip.pods.iter().filter(|(_, pod)| pod.stray);
        let welcome = strays.all(|(ip, pod)| self.known.welcome(*ip, pod, &self.tunnels));
        let problems = self.datapath.flip(flip);
        if !problems.is_empty() || !welcome {
            tracing::debug!(?problems, "what was flipped is not whole, the plan tries again");
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
        let (tunnels, datapath, known) = (self.tunnels.clone(), self.datapath.clone(), self.known.clone());
        let (edge, done) = (now.edge.clone(), done.clone());
        let planned = plan.clone();
        now.reconcile_began = Some(Instant::now());
        self.pulses.reconcile.busy();
        let work = tokio::task::spawn_blocking(move || {
            span!("agent.reconcile").in_scope(|| reconcile(&planned, &edge, &tunnels, &datapath, &known))
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
            Done::Counted { stats: Some(stats), answering, heard, regular } => {
                let answering = answering.map(|nodes| self.keys_of(&nodes));
                self.agent.handle_seen(&used::peers_seen(&stats, answering.as_ref()), self.clock.now());
                self.agent.handle_nodes_heard(&heard, self.clock.now());
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
                now.heap.after(now.reconcile_began);
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
    ///
    /// In a mesh so large that writing takes long, it is not written after every change.
    fn remember(&mut self, plan: &Plan, now: &mut Now) {
        let began = Instant::now();
        if now.remember_after.is_some_and(|at| began < at) {
            return;
        }
        let at = self.clock.now();
        let draining = self.agent.draining(at);
        let memory = Memory::of(plan, self.agent.slots(), draining, self.clock.unix_ms(at));
        let kept = memory::keep(&self.state, &mut self.remembered, memory);
        let told = now.memory_problem.is_some();
        now.memory_problem = kept.err().map(|error| {
            if !told {
                tracing::warn!(%error, "this run's memory cannot be kept");
            }
            format!("a restart would not know what this run knows: {error}. fix: see that the disk has room and can be written")
        });
        let took = began.elapsed();
        now.remember_after = (took >= LONG_TO_WRITE).then(|| began + took * 50);
    }

    /// Needs the own mesh address on the device, so it may only succeed after the first reconcile.
    async fn start_prober(&mut self, now: &mut Now) {
        if now.prober.is_some() {
            return;
        }
        let agent = self.agent.config();
        // What is larger the engine asks for itself.
        let mtu = if self.tunnels.finds_mtu() { agent.mtu.min(DEFAULT_MTU) } else { agent.mtu };
        let config = ProberConfig {
            address: agent.mesh_addresses().ipv4,
            port: agent.probe_port,
            device: Some(agent.device.to_string()),
            liveness: LivenessConfig { mtu: Some(mtu), ..self.config.liveness },
            clock: self.clock.shared(),
            seed: rand::random(),
        };
        match spawn_prober(config) {
            Ok(probes) => {
                now.share = Some(self.sharing.begin(probes.0.clone()));
                now.prober_problem = None;
                let peers = self.remembered.probed();
                let left = self.agent.words_of(peers.keys().copied());
                // One that has ended by now, the next probe finds out about.
                let _ = probes.0.resume(peers, left).await;
                now.prober = Some(probes);
            }
            Err(error) => now.prober_problem = Some(error.to_string()),
        }
    }

    async fn probe(&self, now: &mut Now, peers: BTreeMap<NodeId, Reflector>) {
        let Some((probes, _)) = &now.prober else { return };
        if probes.set_peers(peers).await.is_err() {
            (now.prober, now.share) = (None, None);
            now.prober_problem =
                Some("the probing task ended; it is started again with the next reconcile".into());
        }
    }

    /// Before the first plan, so before any reconcile: it is not in anybody's way.
    fn guard(&self, now: &Now) {
        let (guards, edge) = (self.agent.guards(), now.edge.all.clone());
        let (tunnels, datapath) = (self.tunnels.clone(), self.datapath.clone());
        tokio::task::spawn_blocking(move || {
            for problem in datapath.guard(&guards, &edge).into_iter().chain(revive(&guards, &tunnels)) {
                tracing::warn!(problem, "guarding the mesh's prefixes");
            }
        });
    }

    /// What has just come up may be led to at once; a pod's interface is given up by the next reconcile.
    fn guard_device(&self, ifindex: u32, now: &Now) {
        let pods = || now.interfaces.pods.values().any(|pod| *pod == ifindex);
        if ifindex == now.interfaces.tunnel || now.edge.all.contains(&ifindex) || pods() {
            return;
        }
        let datapath = self.datapath.clone();
        tokio::task::spawn_blocking(move || datapath.guard_device(ifindex));
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
        let uplinks = self.config.uplinks.clone();
        now.left_out = self.agent.left_out_pods().clone();
        let (left_out, known) = (now.left_out.clone(), now.interfaces.clone());
        let work = tokio::spawn(async move {
            let mut found = looker.look(&pods, &device, &underlay, &uplinks).await?;
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
                now.no_uplinks = found.no_uplinks;
                if std::mem::replace(&mut now.edge, found.edge.clone()) != found.edge {
                    match self.agent.has_plan() {
                        true => self.agent.handle_resync(self.clock.now()),
                        false => self.guard(now),
                    }
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
}
