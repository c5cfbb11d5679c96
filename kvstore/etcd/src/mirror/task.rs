//! The task of a mirror: what its origin says, admitted entry by entry, becomes the replica.

use std::time::{Instant, SystemTime};

use hawser_kvstore::{ApplyError, Identity, KeyRange, KeyValue, Keyspace, RangeQuery};
use tokio::sync::{mpsc, watch};

use super::fill::{Before, Fill, Filled, Verdict};
use super::intake::{self, Held};
use super::keep::{Ask, Progress};
use super::{MirrorConfig, Shown};
use crate::client::{Follow, FollowConfig, FollowEvent, FollowState, Meter, Order, Relist, Resume};
use crate::durable::codec::KeptMirror;
use crate::server::{KeyspaceHandle, Keyspaces, ReadOnlyWriter, SharedKeyspace};

/// Keys per page of a list: half a megabyte of endpoints, so that a large cluster is not a round trip for every few.
const PAGE: i64 = 2048;
/// Reasons for refusal that are counted apart; more than an admission has, so that a map stays small whatever it says.
const MOST_REASONS: usize = 64;

/// Where a replica stands, for its follower to go on from.
pub(super) fn position(keyspace: &Keyspace) -> Resume {
    let cluster_id = keyspace.identity().cluster_id;
    Resume { cluster_id, revision: keyspace.revision(), known: Vec::new() }
}

/// How much a replica holds, by the count of its limits. O(1).
pub(super) fn held(keyspace: &Keyspace) -> Held {
    Held { keys: keyspace.live_keys(), bytes: keyspace.live_bytes() }
}

/// Why an origin is listed by a new follower.
enum Again {
    Nonsense(ApplyError),
    /// What was refused for want of room may fit now.
    Room,
}

pub(super) struct Task {
    pub(super) config: MirrorConfig,
    pub(super) meter: Meter,
    pub(super) keyspaces: Keyspaces,
    pub(super) keyspace: SharedKeyspace,
    pub(super) shown: watch::Sender<Shown>,
    /// Entries were refused that another admission might take, or nobody knows.
    pub(super) partial: bool,
}

impl Task {
    pub(super) fn follow_config(&self, start: Option<Resume>) -> FollowConfig {
        FollowConfig {
            start,
            order: Order::Total,
            relist: Relist::Whole,
            trust_progress: true,
            page: PAGE,
            rate: Some(self.meter.clone()),
            pace: self.config.pace.clone(),
            ..FollowConfig::new(self.config.ranges.clone())
        }
    }

    /// Takes over what is kept on disk, and says where to go on; without that, the origin is listed.
    /// Entries are admitted anew: what may be said can have changed.
    pub(super) fn restore(&mut self) -> Option<Resume> {
        let cluster = &self.config.cluster;
        let loaded = self.config.keep.as_ref()?.load(cluster, self.config.intake.bytes);
        let KeptMirror { ranges, heard, partial, state, .. } = match loaded {
            Ok(kept) => kept?,
            Err(why) => {
                tracing::warn!(cluster, %why, "the mirror's snapshot is not used; its origin is listed");
                return None;
            }
        };
        let (mut held, mut kvs) = (Held::default(), state.kvs);
        let found = kvs.len();
        kvs.retain(|kv| {
            let admitted = self.admit(kv, Before::List(held)) == Verdict::Take;
            if admitted {
                held.add(kv);
            }
            admitted
        });
        if let Err(why) = self.keyspace.update(|keyspace| keyspace.load(state.identity, state.revision, &kvs))
        {
            tracing::warn!(cluster, %why, "the mirror's snapshot is not used; its origin is listed");
            return None;
        }
        self.shown.send_modify(|shown| {
            shown.restored = true;
            shown.heard_before = heard;
            shown.kept_revision = Some(state.revision);
        });
        let goes_on = !partial && ranges == self.config.ranges;
        self.partial = partial || kvs.len() < found;
        tracing::info!(cluster, revision = state.revision, keys = kvs.len(), goes_on, "mirror is restored");
        goes_on.then(|| self.keyspace.read(position))
    }

    /// Registers what there is; nothing when there is nothing yet.
    pub(super) fn serve(&self) {
        let restored = self.shown.borrow().restored;
        match self.registered() {
            true => self.shown.send_modify(|shown| shown.synced_once = true),
            false if restored => self.register(),
            false => {}
        }
    }

    pub(super) async fn run(mut self, first: Follow, mut asked: mpsc::Receiver<Ask>) {
        let mut follow = first;
        loop {
            let again = self.follow(&mut follow, &mut asked).await;
            let cluster = &self.config.cluster;
            match again {
                Again::Nonsense(error) => {
                    tracing::error!(cluster, %error, "the origin's state cannot be taken over; it is listed again");
                    self.shown.send_modify(|shown| shown.last_trouble = Some(error.to_string()));
                    // Listed again, but not at once.
                    tokio::time::sleep(self.config.pace.retry_most).await;
                }
                Again::Room => {
                    tracing::info!(cluster, "there is room for what was refused; it is listed again")
                }
            }
            self.shown.send_modify(|shown| {
                let Some(before) = shown.follow.as_ref() else { return };
                shown.relists += before.relists + 1;
                shown.reconnects += before.reconnects;
                shown.follow = None;
            });
            match self.config.client.follow(self.follow_config(None)) {
                Ok(again) => follow = again,
                // The same configuration was accepted when the mirror was started.
                Err(error) => return tracing::error!(%error, "a mirror cannot be started again"),
            }
        }
    }

    /// Until another follower is needed.
    async fn follow(&mut self, follow: &mut Follow, asked: &mut mpsc::Receiver<Ask>) -> Again {
        let mut fill = Fill::new(self.config.ranges.len());
        let mut status = follow.status();
        let mut refused_in_list = false;
        // From the first word of a list to its being served; a trace when traces are on (docs, logging).
        let mut listing = None;
        loop {
            let event = tokio::select! {
                event = follow.next() => event,
                Ok(()) = status.changed() => {
                    let now = status.borrow_and_update().clone();
                    self.shown.send_modify(|shown| {
                        shown.synced_once |= now.state == FollowState::Following;
                        shown.follow = Some(now);
                    });
                    continue;
                }
                Some(ask) = asked.recv() => {
                    let heard_at = status.borrow().heard_at;
                    // Its asker is gone with the mirror.
                    let _ = ask.send(self.kept(heard_at));
                    continue;
                }
            };
            // A follower ends only with its runtime.
            let Some(event) = event else { return std::future::pending().await };
            if let FollowEvent::Reset { reason, cluster_id } = &event {
                tracing::info!(cluster = self.config.cluster, ?reason, cluster_id, "mirror lists its origin");
                let cluster = &self.config.cluster;
                listing = Some(tracing::debug_span!(target: "hawser_trace", "mirror.sync", cluster));
                refused_in_list = false;
                self.shown.send_modify(|shown| shown.crowded = None);
            }
            let mut refused = false;
            let admit = |kv: &KeyValue, before: Before| {
                let verdict = self.admit(kv, before);
                let listed = matches!(before, Before::List(_));
                refused_in_list |= verdict != Verdict::Take && listed;
                refused |= verdict != Verdict::Take && !listed;
                verdict
            };
            let filled = fill.handle(event, admit);
            self.partial |= refused;
            for filled in filled {
                let loads = matches!(filled, Filled::Load { .. });
                if loads {
                    self.partial = refused_in_list;
                }
                if let Err(error) = self.take(filled) {
                    return Again::Nonsense(error);
                }
                if loads {
                    drop(listing.take());
                }
            }
            if listing.is_none() && self.finds_room() {
                return Again::Room;
            }
        }
    }

    fn take(&self, filled: Filled) -> Result<(), ApplyError> {
        match filled {
            Filled::Load { cluster_id, revision, kvs } => {
                let identity = Identity::adopted(cluster_id);
                self.keyspace.update(|keyspace| keyspace.load(identity, revision, kvs))?;
                if !self.registered() {
                    self.register();
                }
                self.shown.send_modify(|shown| shown.last_trouble = None);
                Ok(())
            }
            Filled::Apply(record) => {
                let now = self.keyspace.now();
                self.keyspace.update(|keyspace| {
                    match record.changes.is_empty() && record.revision <= keyspace.revision() {
                        true => Ok(()),
                        false => keyspace.apply(&record, now),
                    }
                })
            }
        }
    }

    fn registered(&self) -> bool {
        self.keyspaces.get(&self.config.cluster).is_some()
    }

    fn register(&self) {
        let cluster = &self.config.cluster;
        let writer = ReadOnlyWriter::new(cluster);
        self.keyspaces.add(KeyspaceHandle::new(cluster, self.keyspace.clone(), writer));
    }

    /// What is written to disk. O(keys), sharing their bytes; nobody who reads waits for it.
    fn kept(&self, heard_at: Option<Instant>) -> (KeptMirror, Progress) {
        let (state, progress) = self.keyspace.read(|keyspace| (keyspace.snapshot(), keyspace.progress()));
        let heard = heard_at.and_then(|at| SystemTime::now().checked_sub(at.elapsed()));
        let kept = KeptMirror {
            cluster: self.config.cluster.clone(),
            ranges: self.config.ranges.clone(),
            heard: heard.or(self.shown.borrow().heard_before),
            partial: self.partial,
            state,
        };
        (kept, progress)
    }

    /// Whether something was refused for want of room, and now there is some. O(1).
    fn finds_room(&self) -> bool {
        let crowded = self.shown.borrow().crowded.is_some();
        let room = || self.keyspace.read(|keyspace| self.config.intake.has_room(held(keyspace)));
        let finds = crowded && room();
        if finds {
            self.shown.send_modify(|shown| shown.crowded = None);
        }
        finds
    }

    /// What would be held with `kv`. Changes that are on their way count as if all their keys were new.
    fn held_with(&self, kv: &KeyValue, before: Before) -> Held {
        let (mut with, old) = match before {
            Before::List(list) => (list, 0),
            Before::Changes(adds) => self.keyspace.read(|keyspace| {
                let now = held(keyspace);
                let with = Held { keys: now.keys + adds.keys, bytes: now.bytes + adds.bytes };
                let old = keyspace.range(&RangeQuery::new(KeyRange::key(kv.key.clone())));
                let old = old.ok().and_then(|reply| reply.kvs.first().map(|kv| kv.encoded_len()));
                (with, old.unwrap_or(0))
            }),
        };
        with.add(kv);
        with.keys -= usize::from(old > 0);
        with.bytes = with.bytes.saturating_sub(old);
        with
    }

    fn admit(&self, kv: &KeyValue, before: Before) -> Verdict {
        let config = &self.config;
        let room = config.intake.room(&config.cluster, kv, self.held_with(kv, before));
        let (verdict, refusal) = match room {
            Err(refusal) => (Verdict::Leave, refusal),
            Ok(()) => match config.admit.admit(&kv.key, &kv.value) {
                Ok(()) => return Verdict::Take,
                Err(refusal) => (Verdict::Drop, refusal),
            },
        };
        tracing::debug!(cluster = config.cluster, refusal.reason, refusal.detail, "an entry was refused");
        self.shown.send_modify(|shown| {
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
}
