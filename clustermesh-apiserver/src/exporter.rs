//! The exporter's task: source and agents in, differences to the own keyspace out.
//!
//! It begins with what the keyspace holds, so a restart at any moment goes on where the last one was. Nothing is deleted
//! before the source is read whole, nor for a file that was never readable, nor more than half of all keys at once
//! unless that was asked for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hawser_model::{NodeName, Time, Timestamp};
use hawser_sources::{Service, Source, SourceEvent};
use hawser_telemetry::{Pulse, span};
use hawser_wire::{Context, Entry, Key, decode, encode_synced, prefix};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::annotations::Wishes;
use crate::board::{Board, NodeFacts};
use crate::config::Config;
use crate::events::AllMisread;
use crate::export::{self, Export, Held, RESOURCES, Section, Step};
use crate::exposure::{Exposure, exposures, named};
use crate::identity::Allocator;
use crate::leader::{Leading, Term};
use crate::nodes::Indices;
use crate::objects::{Objects, Touched};
use crate::own::{ExportError, Own};
use crate::peers;
use crate::reports::{NodeReport, Reports};
use crate::writeback::Asked;

/// How often everything is compared again: a foreign edit lives no longer than this.
const REASSERT: Duration = Duration::from_secs(300);
/// After a failed write.
const RETRY: Duration = Duration::from_secs(1);
/// Source events taken at once before they are written.
const BATCH: usize = 100_000;
/// What the work of one turn may take, writes not counted; a million keys take a few seconds.
const STUCK: Duration = Duration::from_secs(60);

/// What services ask of the exporter.
#[derive(Debug)]
pub enum Command {
    /// An agent spoke: is its node one of ours?
    Reported {
        node: NodeName,
        reply: oneshot::Sender<Result<(), ReportError>>,
    },
    /// For the problems that depend on who is connected.
    PeersChanged,
    Exposures {
        reply: oneshot::Sender<Result<Vec<Exposure>, NotReady>>,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error(
        "node {node} is not in this cluster's source; fix: add its Node object, or correct `node:` in agent.yaml"
    )]
    UnknownNode { node: NodeName },
    #[error(transparent)]
    NotReady(#[from] NotReady),
}

#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the source has not been read whole yet; fix: see `hawser status` for what is wrong with it")]
pub struct NotReady;

#[derive(Debug)]
pub struct Exporter {
    config: Arc<Config>,
    own: Own,
    board: Arc<Board>,
    accept_mass_delete: bool,
    objects: Objects,
    /// While another replica leads, nothing is written and nothing below is kept.
    leading: Leading,
    term: Option<Term>,
    export: Export,
    reports: Reports,
    /// Deletions are held back: nothing that is absent may be taken for gone.
    withheld: Option<String>,
    /// Config and canaries of this life are written.
    announced: bool,
    store_problem: Option<String>,
    /// As of the last change of the source.
    exposures: Vec<Exposure>,
    exposed: bool,
    told: BTreeSet<String>,
    started: Instant,
    pulse: Pulse,
    asked: watch::Sender<Asked>,
    misread: watch::Sender<AllMisread>,
}

impl Exporter {
    pub fn new(
        config: Arc<Config>,
        own: Own,
        board: Arc<Board>,
        leading: Leading,
        accept_mass_delete: bool,
    ) -> Self {
        let export = resume(&config, &own, Time::ZERO);
        let asked = watch::Sender::default();
        let pulse = board.watchdog().task("exporter", STUCK);
        Self {
            reports: Reports::new(own.clone()),
            config,
            own,
            board,
            accept_mass_delete,
            objects: Objects::default(),
            leading,
            term: None,
            export,
            withheld: None,
            announced: false,
            store_problem: None,
            exposures: Vec::new(),
            exposed: false,
            told: BTreeSet::new(),
            started: Instant::now(),
            pulse,
            asked,
            misread: watch::Sender::default(),
        }
    }

    /// The services whose endpoints elsewhere are to be written back.
    pub fn asked(&self) -> watch::Receiver<Asked> {
        self.asked.subscribe()
    }

    /// The services whose annotations are not understood.
    pub fn misread(&self) -> watch::Receiver<AllMisread> {
        self.misread.subscribe()
    }

    fn now(&self) -> Time {
        Time::from_duration(self.started.elapsed())
    }

    pub async fn run(
        mut self,
        mut source: Source,
        mut commands: mpsc::Receiver<Command>,
        stop: CancellationToken,
    ) {
        let mut reassert = tokio::time::interval(REASSERT);
        reassert.reset();
        let mut changes = self.own.subscribe();
        let mut touched = self.follow_term();
        loop {
            let wait = self.wait(&touched);
            self.pulse.idle();
            let mut news = false;
            tokio::select! {
                () = stop.cancelled() => return,
                event = source.next() => {
                    let Some(event) = event else { return };
                    touched = touched.and(self.take(event, &mut source));
                    news = true;
                }
                command = commands.recv() => {
                    let Some(command) = command else { return };
                    news = matches!(command, Command::PeersChanged);
                    self.handle(command);
                }
                // Who is alone is told nothing more.
                Ok(()) = self.leading.changed() => {
                    touched = touched.and(self.follow_term());
                    news = true;
                }
                _ = changes.changed(), if self.term.is_some() => touched = touched.and(self.take_reports()),
                () = tokio::time::sleep(wait) => touched = touched.and(Touched { endpoints: true, ..Touched::default() }),
                _ = reassert.tick() => {
                    touched = Touched::ALL;
                    self.sweep().await;
                }
            }
            let result = if touched.any() {
                self.reconcile(&touched).instrument(span!("export.reconcile")).await
            } else {
                Ok(())
            };
            let quiet = !touched.any() && !news;
            if result.is_ok() {
                touched = Touched::default();
            }
            if !quiet {
                self.tell();
            }
        }
    }

    /// How long nothing may happen: work left over from a failed write comes back soon.
    fn wait(&self, touched: &Touched) -> Duration {
        if touched.any() {
            return RETRY;
        }
        let due = self.export.poll_deadline().filter(|_| self.withheld.is_none() && self.objects.complete());
        due.map_or(REASSERT, |due| due.since(self.now()).max(RETRY))
    }

    fn take(&mut self, event: SourceEvent, source: &mut Source) -> Touched {
        self.pulse.busy();
        let mut touched = self.objects.apply(event);
        for _ in 0..BATCH {
            let Some(event) = source.try_next() else { break };
            touched = touched.and(self.objects.apply(event));
        }
        if self.objects.complete() {
            self.exposures = exposures(&self.objects);
        }
        if self.objects.synced {
            self.tell_asked(&touched);
        }
        touched
    }

    /// Cost: the services that were touched.
    fn tell_asked(&self, touched: &Touched) {
        let asks = |service: &Arc<Service>| {
            let asks = Wishes::read(&service.annotations.to_map()).0.slices;
            asks.then(|| (service.key.clone(), service.uid.to_string()))
        };
        if touched.services {
            let asking = Some(Arc::new(self.objects.services.values().filter_map(asks).collect()));
            self.asked.send_if_modified(|asked| {
                let news = *asked != asking;
                if news {
                    *asked = asking;
                }
                news
            });
            return;
        }
        for key in &touched.few.services {
            let asks = self.objects.services.get(key).and_then(asks);
            self.asked.send_if_modified(|asked| {
                let Some(all) = asked else { return false };
                if all.get(key) == asks.as_ref().map(|(_, uid)| uid) {
                    return false;
                }
                let all = Arc::make_mut(all);
                match asks {
                    Some((key, uid)) => _ = all.insert(key, uid),
                    None => _ = all.remove(key),
                }
                true
            });
        }
    }

    /// A term begins with what the keyspace holds: another replica has written it since.
    fn follow_term(&mut self) -> Touched {
        self.pulse.busy();
        self.term = *self.leading.borrow_and_update();
        self.board.update(|facts| facts.leads = self.term.is_some());
        self.store_problem = None;
        if self.term.is_none() {
            return Touched::default();
        }
        self.export = resume(&self.config, &self.own, self.now());
        (self.withheld, self.announced) = (None, false);
        self.reports = Reports::new(self.own.clone());
        self.take_reports();
        Touched::ALL
    }

    fn take_reports(&mut self) -> Touched {
        let mut touched = Touched::default();
        for (node, report) in self.reports.news() {
            touched.nodes |= self.export.report(node, report);
        }
        touched
    }

    /// What agents said of nodes that are gone. Left for the next time when it fails.
    async fn sweep(&self) {
        if self.term.is_none() || !self.objects.complete() || self.withheld.is_some() {
            return;
        }
        if let Err(error) = self.reports.sweep(|node| self.objects.nodes.contains_key(node)).await {
            tracing::debug!(%error, "reports of nodes that are gone are kept for now");
        }
    }

    fn handle(&mut self, command: Command) {
        self.pulse.busy();
        match command {
            Command::PeersChanged => {}
            Command::Exposures { reply } => {
                let answer =
                    if self.objects.complete() { Ok(exposures(&self.objects)) } else { Err(NotReady) };
                let _ = reply.send(answer);
            }
            Command::Reported { node, reply } => {
                let answer = self.spoke(node);
                // A caller that gave up asks again.
                let _ = reply.send(answer);
            }
        }
    }

    fn spoke(&self, node: NodeName) -> Result<(), ReportError> {
        if !self.objects.nodes.contains_key(&node) {
            return Err(if self.objects.complete() {
                ReportError::UnknownNode { node }
            } else {
                NotReady.into()
            });
        }
        self.board.update(|facts| facts.nodes.entry(node).or_default().reported = Some(Instant::now()));
        Ok(())
    }

    async fn reconcile(&mut self, touched: &Touched) -> Result<(), ExportError> {
        let Some(term) = self.term.filter(|_| self.objects.synced) else { return Ok(()) };
        // What is withheld may be of any section.
        let touched = if self.withheld.is_some() { &Touched::ALL } else { touched };
        let result = self.write_changes(touched, term).await;
        self.pulse.busy();
        self.store_problem = result.as_ref().err().map(ToString::to_string);
        result
    }

    /// Puts, section by section and piece by piece, of a few services these alone; then deletions; then, once, that all is there.
    async fn write_changes(&mut self, touched: &Touched, term: Term) -> Result<(), ExportError> {
        let settle = self.objects.complete() && self.withheld.is_none();
        let now = self.now();
        let mut deletes = Vec::new();
        let few = (!touched.few.is_empty()).then(|| self.export.few(&touched.few, &self.objects));
        let whole = |section: &Section| {
            section.is_touched(touched) || *section == Section::Services && matches!(few, Some(None))
        };
        for section in Section::ALL.into_iter().filter(whole) {
            self.pulse.busy();
            let mut held = Held::of(section.prefixes().iter().flat_map(|prefix| self.own.list(prefix)));
            for piece in self.export.pieces(section, &self.objects, settle, now) {
                // How long a write takes is the store's affair.
                self.pulse.idle();
                write(&self.own, held.puts(piece), term).await?;
                self.pulse.busy();
            }
            deletes.extend(held.deletes());
        }
        if let Some(Some((keys, entries))) = few {
            let mut held = Held::of(keys.iter().filter_map(|key| self.own.get(key)));
            self.pulse.idle();
            write(&self.own, held.puts(entries), term).await?;
            self.pulse.busy();
            deletes.extend(held.deletes());
        }
        self.withheld = self.why_withhold(deletes.len());
        self.pulse.idle();
        if self.withheld.is_none() {
            write(&self.own, deletes, term).await?;
        }
        if !self.announced {
            self.announce(term).await?;
            self.announced = true;
            self.board.update(|facts| facts.exported = true);
            tracing::info!(keys = self.exported(), "the source is exported");
        }
        Ok(())
    }

    /// How many keys export has in the keyspace. Cost: these keys.
    fn exported(&self) -> usize {
        let prefixes = Section::ALL.into_iter().flat_map(Section::prefixes);
        prefixes.map(|prefix| self.own.count(prefix) as usize).sum()
    }

    /// Cluster config and canaries: written last, and never taken back.
    async fn announce(&self, term: Term) -> Result<(), ExportError> {
        let config = export::cluster_config(&self.config);
        let key = config.key(&self.config.cluster).to_string();
        let mut steps = vec![Step::Put { key, value: config.encode() }];
        let now = encode_synced(Timestamp::from_system(SystemTime::now()));
        for resource in RESOURCES {
            steps.push(Step::Put { key: export::canary(&self.config.cluster, resource), value: now.clone() });
        }
        self.own.write(steps, term).await
    }

    fn why_withhold(&self, deletes: usize) -> Option<String> {
        if deletes == 0 {
            return None;
        }
        if !self.objects.complete() {
            let blind: Vec<_> =
                self.objects.problems.values().filter(|p| p.blind).map(|p| p.file.as_str()).collect();
            let files = blind.join(", ");
            return Some(format!(
                "{deletes} keys are kept though no object stands behind them, because {files} was never readable \
                 since the start; fix: repair or remove it"
            ));
        }
        let held = self.exported();
        if deletes * 2 > held && !self.accept_mass_delete {
            return Some(format!(
                "{deletes} of {held} exported keys would be deleted at once and are kept; fix: bring the manifests \
                 back, or confirm by restarting with --accept-mass-delete"
            ));
        }
        None
    }

    /// A policy that came after the cluster was connected: nothing refused it, so it is said here. Which pods it are
    /// changes with every rollout; it is logged when it begins and when it ends.
    fn exposed(&mut self) -> Option<String> {
        let peers = if self.exposures.is_empty() { Vec::new() } else { peers::without_bypass(&self.own) };
        let exposed = !peers.is_empty();
        let was = std::mem::replace(&mut self.exposed, exposed);
        if !exposed {
            if was {
                tracing::info!("the mesh passes by no NetworkPolicy any more, or that is accepted");
            }
            return None;
        }
        let (peers, named) = (peers.join(", "), named(&self.exposures));
        if !was {
            tracing::warn!(peers, exposed = named, "the mesh reaches pods that a NetworkPolicy guards");
        }
        Some(format!(
            "{peers} can reach pods that a NetworkPolicy guards, and Hawser does not enforce NetworkPolicy yet: {named}; \
             fix: set hawser.io/shared: \"false\" on the service, or connect again with --policy-bypass-accepted"
        ))
    }

    /// Problems are logged when they come and when they go, and shown while they last. Cost: the nodes, and counting keys.
    fn tell(&mut self) {
        let source = bounded(self.objects.problems.values().map(ToString::to_string));
        let own = self.withheld.iter().chain(&self.store_problem).cloned();
        let export = bounded(own.chain(self.export.problems().map(str::to_owned)));
        let told: BTreeSet<String> = source.iter().chain(&export).cloned().collect();
        for problem in told.difference(&self.told) {
            tracing::warn!(problem, "the export is not complete");
        }
        for problem in self.told.difference(&told) {
            tracing::info!(problem, "solved");
        }
        self.told = told;
        self.misread.send_if_modified(|misread| {
            let news = **misread != *self.export.misread();
            if news {
                *misread = Arc::new(self.export.misread().clone());
            }
            news
        });
        let exposed = self.exposed();
        let of = |prefix| self.own.count(prefix);
        let (identities, endpoints, services) =
            (of(prefix::IDENTITIES), of(prefix::IPS), of(prefix::LOCAL_SERVICES));
        let plan = self.config.plan;
        let cluster = self.config.cluster.id;
        self.board.update(|facts| {
            facts.source_problems = source;
            facts.export_problems = export.into_iter().chain(exposed).collect();
            (facts.identities, facts.endpoints, facts.services) = (identities, endpoints, services);
            facts.nodes.retain(|name, _| self.objects.nodes.contains_key(name));
            for name in self.objects.nodes.keys() {
                if let Some(index) = self.export.index(name) {
                    let node = facts.nodes.entry(name.clone()).or_default();
                    let mesh_ipv4 = plan.ipv4_of(cluster, index).to_string();
                    *node = NodeFacts { index: index.get(), mesh_ipv4, reported: node.reported };
                }
            }
        });
    }
}

async fn write(own: &Own, steps: Vec<Step>, term: Term) -> Result<(), ExportError> {
    if steps.is_empty() {
        return Ok(());
    }
    tracing::debug!(steps = steps.len(), "export");
    for step in &steps {
        tracing::trace!(?step, "export");
    }
    own.write(steps, term).instrument(span!("store.commit")).await
}

/// What a person can read of a list that one mistake can make as long as the cluster.
fn bounded(problems: impl Iterator<Item = String>) -> Vec<String> {
    const SHOWN: usize = 100;
    let mut problems = problems.fuse();
    let mut shown: Vec<String> = problems.by_ref().take(SHOWN).collect();
    match problems.count() {
        0 => {}
        more => shown.push(format!("and {more} more problems")),
    }
    shown
}

/// An export that goes on where the keyspace is. Cost: its identities and nodes.
fn resume(config: &Config, own: &Own, now: Time) -> Export {
    let context = Context { cluster: config.cluster.clone(), width: config.width };
    let (mut identities, mut indices, mut reports) = (Vec::new(), Vec::new(), Vec::new());
    for kv in [prefix::IDENTITIES, prefix::TUNNEL_NODES].iter().flat_map(|prefix| own.list(prefix)) {
        let entry = Key::parse(&kv.key).ok().and_then(|key| decode(&key, &kv.value, &context).ok());
        match entry {
            Some(Entry::Identity(identity)) => identities.push((identity.id, identity.labels)),
            Some(Entry::TunnelNode(node)) => {
                indices.push((node.name.clone(), node.index));
                reports.push((node.name, NodeReport { boot_id: node.boot_id, wireguard: node.wireguard }));
            }
            // Written over by the first export.
            _ => {
                tracing::warn!(key = %String::from_utf8_lossy(&kv.key), "unreadable key in the own keyspace")
            }
        }
    }
    let identities = Allocator::new(config.cluster.id, config.width, identities, now);
    let mut export = Export::new(config, identities, Indices::new(indices));
    for (node, report) in reports {
        export.remember(node, report);
    }
    export
}
