//! The task of a foreign mirror: carries out what the core says, and hands it what its followers hear.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use hawser_kvstore::{Identity, KeyRange, KeyValue, Keyspace};
use hawser_model::Time;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::chart::Chart;
use super::core::{Core, Output, Standing};
use super::source::get;
use super::{ForeignStatus, Terms, new_identity};
use crate::client::{Client, Follow, FollowConfig, FollowEvent, FollowState, FollowStatus, Order, Relist};
use crate::durable::codec::KeptMirror;
use crate::limits::{Bucket, Rate};
use crate::mirror::Shown;
use crate::mirror::fill::Verdict;
use crate::mirror::intake::{self, Held};
use crate::mirror::keep::Ask;
use crate::server::{KeyspaceHandle, Keyspaces, ReadOnlyWriter, SharedKeyspace};

/// Keys per page of a list. etcd looks at every key of the range for every page, so that small pages of a large cluster
/// cost their square; pages that are too large for a message are asked for again, smaller.
const PAGE: i64 = 8192;
/// Events that are taken in one go, while readers wait.
const BATCH: usize = 512;
/// Of the signs: there are few, and their values may be large.
const SIGNS: usize = 64;
/// How often they are looked at: each time it is decided anew what is followed, and a heartbeat counts what is held.
const LOOKS: Rate = Rate { per_second: 2, burst: 100 };
/// Reasons for refusal that are counted apart.
const MOST_REASONS: usize = 64;

/// Which follower: of the signs, or a group of the core's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Signs(u64),
    Group(u64),
}

struct Heard {
    who: Who,
    events: Vec<FollowEvent>,
    status: FollowStatus,
}

/// A follower whose events come out of the one channel. Dropping it ends it.
struct Running {
    status: Option<FollowStatus>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) struct Task {
    config: Terms,
    connect: Box<dyn FnMut() -> Client + Send>,
    client: Client,
    keyspaces: Keyspaces,
    keyspace: SharedKeyspace,
    shown: watch::Sender<Shown>,
    core: Core,
    started: Instant,
    running: BTreeMap<Who, Running>,
    heard: (mpsc::Sender<Heard>, mpsc::Receiver<Heard>),
    /// Which follower of the signs; an older one's last words are not listened to.
    generation: u64,
    /// Of followers that have ended.
    relists: u64,
    reconnects: u64,
    heard_at: Option<Instant>,
}

impl Task {
    pub(super) fn new(
        config: Terms,
        mut connect: Box<dyn FnMut() -> Client + Send>,
        chart: Box<dyn Chart>,
        keyspaces: Keyspaces,
        keyspace: SharedKeyspace,
        shown: watch::Sender<Shown>,
    ) -> Self {
        let beat = keyspace.read(|keyspace| get(keyspace, &chart.heartbeat()).map(|kv| kv.value.clone()));
        Self {
            config,
            client: connect(),
            connect,
            keyspaces,
            keyspace,
            shown,
            core: Core::new(chart, beat, Time::ZERO),
            started: Instant::now(),
            running: BTreeMap::new(),
            heard: mpsc::channel(4),
            generation: 0,
            relists: 0,
            reconnects: 0,
            heard_at: None,
        }
    }

    pub(super) async fn run(mut self, mut asked: mpsc::Receiver<Ask>, mut frozen: watch::Receiver<bool>) {
        self.follow_signs();
        loop {
            self.publish();
            let deadline = self.started + self.core.poll_deadline().at().since_start();
            tokio::select! {
                biased;
                _ = frozen.wait_for(|frozen| *frozen) => break,
                Some(ask) = asked.recv() => self.answer(ask),
                Some(heard) = self.heard.1.recv() => self.take(heard),
                () = tokio::time::sleep_until(deadline.into()) => {
                    let now = self.now();
                    self.core.handle_time(now);
                    self.carry_out();
                }
            }
        }
        // What is written now is the last that anyone sees.
        self.running.clear();
        while let Some(ask) = asked.recv().await {
            self.answer(ask);
        }
    }

    fn now(&self) -> Time {
        Time::from_duration(self.started.elapsed())
    }

    fn answer(&self, ask: Ask) {
        let (state, progress) = self.keyspace.read(|keyspace| (keyspace.snapshot(), keyspace.progress()));
        let heard = self.heard_at.and_then(|at| SystemTime::now().checked_sub(at.elapsed()));
        let kept = KeptMirror {
            cluster: self.config.cluster.clone(),
            ranges: Vec::new(),
            heard: heard.or(self.shown.borrow().heard_before),
            partial: true,
            state,
        };
        // Its asker is gone with the mirror.
        let _ = ask.send((kept, progress));
    }

    fn take(&mut self, heard: Heard) {
        let Some(running) = self.running.get_mut(&heard.who) else { return };
        self.heard_at = self.heard_at.max(heard.status.heard_at);
        running.status = Some(heard.status);
        if heard.events.is_empty() {
            return;
        }
        let now = self.now();
        let (core, config, shown) = (&mut self.core, &self.config, &self.shown);
        let mut gate = |kv: &KeyValue, keyspace: &Keyspace| verdict(config, shown, kv, keyspace);
        let taken = self.keyspace.update(|keyspace| match heard.who {
            Who::Signs(_) => core.handle_signs(heard.events, keyspace, &mut gate, now),
            Who::Group(group) => core.handle_group(group, heard.events, keyspace, &mut gate, now),
        });
        if let Err(error) = taken {
            let cluster = &self.config.cluster;
            tracing::error!(cluster, %error, "an entry of a foreign etcd cannot be held");
            self.shown.send_modify(|shown| shown.last_trouble = Some(error.to_string()));
        }
        if self.finds_room() {
            self.core.handle_room();
        }
        self.carry_out();
    }

    fn finds_room(&self) -> bool {
        let crowded = self.shown.borrow().crowded.is_some();
        let finds = crowded && self.keyspace.read(|keyspace| self.config.intake.has_room(held(keyspace)));
        if finds {
            self.shown.send_modify(|shown| shown.crowded = None);
        }
        finds
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Begin { group, ranges } => self.follow(Who::Group(group), ranges),
                Output::End { group } => self.end(Who::Group(group)),
                Output::Reconnect => {
                    tracing::info!(cluster = self.config.cluster, "a foreign etcd is dialled again");
                    self.reconnects += 1;
                    self.client = (self.connect)();
                    let all: Vec<_> = self.running.keys().copied().collect();
                    all.into_iter().for_each(|who| self.end(who));
                    self.follow_signs();
                }
                Output::Complete => self.complete(),
            }
        }
    }

    /// Serves what was listed, without the history of its being listed.
    fn complete(&mut self) {
        if self.keyspaces.get(&self.config.cluster).is_some() {
            return;
        }
        if let Err(error) = self.keyspace.update(Core::forget_history) {
            tracing::error!(cluster = self.config.cluster, %error, "a mirror's first history is kept");
        }
        self.register();
    }

    pub(super) fn register(&self) {
        let cluster = &self.config.cluster;
        if self.keyspaces.get(cluster).is_none() {
            let writer = ReadOnlyWriter::new(cluster);
            self.keyspaces.add(KeyspaceHandle::new(cluster, self.keyspace.clone(), writer));
        }
    }

    fn follow_signs(&mut self) {
        self.generation += 1;
        self.follow(Who::Signs(self.generation), self.core.sign_ranges());
    }

    fn follow(&mut self, who: Who, ranges: Vec<KeyRange>) {
        let mut config = FollowConfig {
            order: Order::PerRange,
            relist: Relist::Whole,
            // etcd#15220: an older etcd's answer may overtake events.
            trust_progress: false,
            page: PAGE,
            rate: Some(self.config.meter.clone()),
            pace: self.config.pace.clone(),
            ..FollowConfig::new(ranges)
        };
        let looks = match who {
            Who::Signs(_) => {
                config.buffer = SIGNS;
                Some(LOOKS)
            }
            Who::Group(_) => None,
        };
        match self.client.follow(config) {
            Ok(follow) => {
                let task = tokio::spawn(forward(who, follow, looks, self.heard.0.clone()));
                self.running.insert(who, Running { status: None, task });
            }
            Err(error) => {
                let cluster = &self.config.cluster;
                tracing::error!(cluster, %error, "a chart names ranges that cannot be followed");
                self.shown.send_modify(|shown| shown.last_trouble = Some(error.to_string()));
            }
        }
    }

    fn end(&mut self, who: Who) {
        let status = self.running.remove(&who).and_then(|mut running| running.status.take());
        if let Some(status) = status {
            self.relists += status.relists;
            self.reconnects += status.reconnects;
        }
    }

    /// O(followers): those of the signs and, as a rule, one more.
    fn publish(&self) {
        let now = self.now();
        let standing = self.core.standing(now);
        let all = || self.running.values().filter_map(|running| running.status.as_ref());
        let state = self.state(&standing);
        let follow = FollowStatus {
            state,
            cluster_id: Some(self.keyspace.read(|keyspace| keyspace.identity().cluster_id)),
            revision: self.keyspace.read(Keyspace::revision),
            heard_at: self.heard_at,
            relists: self.relists + all().map(|status| status.relists).sum::<u64>(),
            reconnects: self.reconnects + all().map(|status| status.reconnects).sum::<u64>(),
            last_trouble: self.trouble(&standing, now).or_else(|| {
                let troubled = all().filter(|status| status.state == FollowState::Connecting);
                troubled.filter_map(|status| status.last_trouble.clone()).next()
            }),
        };
        let foreign = ForeignStatus {
            cluster_id: standing.cluster_id,
            layout: standing.layout,
            beat_at: standing.beat_at.map(|at| self.started + at.since_start()),
            waits_for: standing.waits_for,
            held_back: standing.held_back,
            replica_changes: standing.changes,
        };
        self.shown.send_if_modified(|shown| {
            shown.synced_once |= state == FollowState::Following;
            let changed = shown.follow.as_ref() != Some(&follow) || shown.foreign.as_ref() != Some(&foreign);
            (shown.follow, shown.foreign) = (Some(follow), Some(foreign));
            changed
        });
    }

    /// One that does not say that it lives is as good as not reached: that is the control plane's verdict.
    fn state(&self, standing: &Standing) -> FollowState {
        let all = || self.running.values().map(|running| running.status.as_ref().map(|status| status.state));
        let connected = all().all(|state| state != Some(FollowState::Connecting));
        match (connected && standing.lives && standing.refused.is_none(), standing.follows) {
            (true, true) if standing.waits_for.is_empty() => FollowState::Following,
            (true, _) if standing.read => FollowState::Listing,
            _ => FollowState::Connecting,
        }
    }

    fn trouble(&self, standing: &Standing, now: Time) -> Option<String> {
        let cluster = &self.config.cluster;
        if let Some(why) = standing.refused.as_ref().or(standing.unknown.as_ref()) {
            return Some(why.clone());
        }
        let back = match standing.held_back {
            0 => String::new(),
            count => format!(" ({count} deletions wait for it)"),
        };
        if standing.read && !standing.lives {
            let quiet = match standing.beat_at {
                Some(at) => format!("has not changed for {} s", now.since(at).as_secs()),
                None => "is not there, or was not changed yet".to_owned(),
            };
            return Some(format!(
                "the heartbeat of {cluster} {quiet}, so what it published last is kept{back}; fix: look at clustermesh-apiserver there; if the cluster is gone for good: hawser disconnect {cluster}"
            ));
        }
        if !standing.waits_for.is_empty() {
            let waits = standing.waits_for.join(", ");
            return Some(format!(
                "{cluster} has not said yet that its {waits} are complete{back}; fix: look at clustermesh-apiserver there"
            ));
        }
        (standing.held_back > 0).then(|| {
            format!(
                "{} entries of {cluster} are gone there, many at once, and are kept until its next heartbeat (60 s)",
                standing.held_back
            )
        })
    }
}

/// Takes over what is kept on disk. With the seal of its last life its revisions go on; without it some may have been
/// seen that are not on disk, so they are another lineage's. Entries are admitted anew.
pub(super) fn restore(config: &Terms, keyspace: &SharedKeyspace, shown: &watch::Sender<Shown>) -> bool {
    let Some(dir) = &config.keep else { return false };
    let cluster = &config.cluster;
    let seal = dir.unseal(cluster);
    let KeptMirror { heard, state, .. } = match dir.load(cluster, config.intake.bytes) {
        Ok(Some(kept)) => kept,
        Ok(None) => return false,
        Err(why) => {
            tracing::warn!(cluster, %why, "the mirror's snapshot is not used; its origin is listed");
            return false;
        }
    };
    let admit = |kv: &KeyValue| keyspace.read(|held| verdict(config, shown, kv, held)) == Verdict::Take;
    let (found, mut kvs) = (state.kvs.len(), state.kvs);
    kvs.retain(admit);
    let goes_on = seal == Some((state.identity.cluster_id, state.revision)) && kvs.len() == found;
    let identity: Identity = if goes_on { state.identity } else { new_identity(cluster) };
    if let Err(why) = keyspace.update(|keyspace| keyspace.load(identity, state.revision, &kvs)) {
        tracing::warn!(cluster, %why, "the mirror's snapshot is not used; its origin is listed");
        return false;
    }
    shown.send_modify(|shown| {
        shown.restored = true;
        shown.heard_before = heard;
        shown.kept_revision = Some(state.revision);
    });
    tracing::info!(cluster, revision = state.revision, keys = kvs.len(), goes_on, "mirror is restored");
    true
}

/// Hands on what a follower says, in pieces, with how it stands; so many pieces a second, where that is said. What it says
/// meanwhile waits at its server.
async fn forward(who: Who, mut follow: Follow, pieces: Option<Rate>, heard: mpsc::Sender<Heard>) {
    let mut status = follow.status();
    let began = Instant::now();
    let most = if pieces.is_some() { SIGNS } else { BATCH };
    let mut pieces = pieces.map(|rate| Bucket::new(rate, Time::ZERO));
    loop {
        let mut events = Vec::new();
        tokio::select! {
            event = follow.next() => match event {
                Some(event) => events.push(event),
                None => return,
            },
            changed = status.changed() => if changed.is_err() { return },
        }
        while events.len() < most
            && let Some(event) = follow.try_next()
        {
            events.push(event);
        }
        if let Some(pieces) = pieces.as_mut().filter(|_| !events.is_empty()) {
            let now = Time::from_duration(began.elapsed());
            let wait = pieces.owes(now).unwrap_or_default();
            pieces.take(1, now + wait);
            tokio::time::sleep(wait).await;
        }
        let status = status.borrow_and_update().clone();
        if heard.send(Heard { who, events, status }).await.is_err() {
            return;
        }
    }
}

/// How much a keyspace holds, by the count of its limits. O(1).
fn held(keyspace: &Keyspace) -> Held {
    Held { keys: keyspace.live_keys(), bytes: keyspace.live_bytes() }
}

fn verdict(config: &Terms, shown: &watch::Sender<Shown>, kv: &KeyValue, keyspace: &Keyspace) -> Verdict {
    let mut with = held(keyspace);
    with.add(kv);
    if let Some(old) = get(keyspace, &kv.key) {
        with.keys -= 1;
        with.bytes = with.bytes.saturating_sub(old.encoded_len());
    }
    let (verdict, refusal) = match config.intake.room(&config.cluster, kv, with) {
        Err(refusal) => (Verdict::Leave, refusal),
        Ok(()) => match config.admit.admit(&kv.key, &kv.value) {
            Ok(()) => return Verdict::Take,
            Err(refusal) => (Verdict::Drop, refusal),
        },
    };
    tracing::debug!(cluster = config.cluster, refusal.reason, refusal.detail, "an entry was refused");
    shown.send_modify(|shown| {
        if shown.refused.len() < MOST_REASONS || shown.refused.contains_key(refusal.reason) {
            *shown.refused.entry(refusal.reason).or_default() += 1;
        }
        if matches!(refusal.reason, intake::KEY_LIMIT | intake::BYTE_LIMIT) {
            shown.crowded = Some(refusal.detail.clone());
        }
        shown.last_refusal = Some(refusal.detail);
    });
    verdict
}
