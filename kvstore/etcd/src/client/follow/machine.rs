//! What a follower does on which event: no sockets, no clock, no runtime.
//!
//! List (paged, at one revision), watch from the next, and on trouble wait and watch again from where it was.
//! Only a compacted revision, another lineage or an older state make it list again.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use hawser_kvstore::{KeyRange, Revision};
use hawser_model::Time;

use super::backoff::Backoff;
use super::checks;
use super::diff::{Change, Known};
use super::merge::Merge;
use super::{FollowConfig, FollowConfigError, FollowEvent, FollowState, Pace, ResetReason};
use crate::client::Trouble;
use crate::pb;

/// What the shell carries out.
#[derive(Debug, PartialEq)]
pub(super) enum Output {
    List(pb::RangeRequest),
    /// Open a watch stream with these as its first messages; any earlier stream is given up.
    Watch(Vec<pb::WatchCreateRequest>),
    AskProgress,
    /// Give up the call or stream that is under way.
    Close,
    Emit(FollowEvent),
}

/// The next moment the machine wants to hear of, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deadline {
    Retry(Time),
    AskProgress(Time),
    Silent(Time),
    Behind(Time),
}

impl Deadline {
    pub(super) fn at(self) -> Time {
        match self {
            Self::Retry(at) | Self::AskProgress(at) | Self::Silent(at) | Self::Behind(at) => at,
        }
    }
}

#[derive(Clone, Debug)]
struct Listing {
    reason: ResetReason,
    range: usize,
    /// The first key not yet listed in `range`.
    from: Bytes,
    /// 0 until the first page pins it.
    revision: Revision,
}

#[derive(Clone, Debug)]
enum Phase {
    Listing(Listing),
    Watching {
        created: usize,
        behind_since: Option<Time>,
    },
    /// Until `until`, then again what `listing` says, or the watch.
    Waiting {
        until: Time,
        listing: Option<Listing>,
    },
}

#[derive(Debug)]
pub(super) struct Machine {
    ranges: Vec<KeyRange>,
    pace: Pace,
    trust_progress: bool,
    page: i64,
    cluster_id: Option<u64>,
    known: Known,
    merge: Merge,
    phase: Phase,
    out: VecDeque<Output>,
    heard_at: Time,
    asked_at: Option<Time>,
    /// Since when changes of one range wait for the others.
    waits_since: Option<Time>,
    backoff: Backoff,
    /// When a list was last begun for another reason than a start, and how long the next one waits that comes soon.
    relisted_at: Option<Time>,
    relist_backoff: Backoff,
    relists: u64,
    reconnects: u64,
}

/// Changes of one range wait for the others' progress. A Hawser server says it unasked, right behind the events;
/// another one is asked after this, and again after that.
const ASK_FIRST: Duration = Duration::from_millis(50);
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// A list that follows another one sooner than this waits: whoever reads us would have to list each time, too.
const CALM: Duration = Duration::from_secs(10);

impl Machine {
    pub(super) fn new(config: FollowConfig, now: Time) -> Result<Self, FollowConfigError> {
        checks::config(&config)?;
        let count = config.ranges.len();
        let (cluster_id, at, known) = match config.start {
            Some(start) => (Some(start.cluster_id), start.revision, start.known),
            None => (None, 0, Vec::new()),
        };
        let mut machine = Self {
            ranges: config.ranges,
            trust_progress: config.trust_progress,
            page: config.page.max(1),
            cluster_id,
            known: Known::new(config.relist, known),
            merge: Merge::new(config.order, count, at),
            phase: Phase::Watching { created: 0, behind_since: None },
            out: VecDeque::new(),
            heard_at: now,
            asked_at: None,
            waits_since: None,
            backoff: Backoff::new(config.pace.seed),
            relisted_at: None,
            relist_backoff: Backoff::new(config.pace.seed),
            relists: 0,
            reconnects: 0,
            pace: config.pace,
        };
        match cluster_id {
            Some(_) => machine.watch(now),
            None => machine.list(machine.listing(ResetReason::Start), now),
        }
        Ok(machine)
    }

    /// A page of the list that was asked for last.
    pub(super) fn handle_page(&mut self, page: pb::RangeResponse, now: Time) {
        let Phase::Listing(listing) = self.phase.clone() else { return };
        self.heard_at = now;
        let header = page.header.unwrap_or_default();
        if listing.revision == 0 {
            self.list_begins(&listing, &header);
        } else if self.cluster_id != Some(header.cluster_id) {
            let reason = ResetReason::LineageChanged { from: self.cluster_id.unwrap_or_default() };
            let again = self.listing(reason);
            return self.wait(
                Some(again),
                format!("cluster id changed to {:x} while listing", header.cluster_id),
                now,
            );
        }
        let revision = if listing.revision == 0 { header.revision } else { listing.revision };
        let range = &self.ranges[listing.range];
        if let Err(what) = checks::page(range, &listing.from, revision, &page.kvs, page.more) {
            return self.wait(Some(self.listing(listing.reason)), format!("the server's list {what}"), now);
        }
        let last = page.kvs.last().map(|kv| kv.key.clone());
        self.give_page(&listing, revision, page.kvs, page.more.then_some(last.as_ref()).flatten());
        match last {
            Some(last) if page.more => {
                let next = Listing { from: checks::after(&last), revision, ..listing };
                self.list(next, now);
            }
            _ => self.range_listed(Listing { revision, ..listing }, now),
        }
    }

    pub(super) fn handle_list_failed(&mut self, trouble: Trouble, now: Time) {
        let Phase::Listing(listing) = self.phase.clone() else { return };
        match trouble {
            Trouble::TooLarge if self.page > 1 => {
                self.page /= 2;
                self.list(listing, now);
            }
            // The pinned revision is gone, or a replica does not have it: pin another.
            Trouble::Compacted | Trouble::Future | Trouble::TooLarge => {
                let again = self.listing(listing.reason);
                self.wait(
                    Some(again),
                    format!("a list could not be finished at one revision: {trouble:?}"),
                    now,
                );
            }
            Trouble::Other(why) => self.wait(Some(listing), why, now),
        }
    }

    pub(super) fn handle_watch(&mut self, message: pb::WatchResponse, now: Time) {
        let Phase::Watching { created, behind_since } = &mut self.phase else { return };
        self.heard_at = now;
        let header = message.header.unwrap_or_default();
        if let Err(what) = checks::revision(header.revision) {
            return self.wait(None, format!("the server {what}: {}", header.revision), now);
        }
        if message.created && !message.canceled {
            *created += 1;
        }
        let ready = *created >= self.ranges.len();
        let behind = header.revision < self.merge.newest();
        match behind_since {
            Some(_) if !behind => *behind_since = None,
            None if behind => *behind_since = Some(now),
            _ => {}
        }
        if self.cluster_id != Some(header.cluster_id) {
            let from = self.cluster_id.unwrap_or_default();
            return self.relist(ResetReason::LineageChanged { from }, now);
        }
        if message.compact_revision > 0 {
            return self.relist(ResetReason::Compacted, now);
        }
        if message.canceled {
            return self.wait(None, format!("the server ended the watch: {}", message.cancel_reason), now);
        }
        if message.created {
            if ready {
                self.emit_progress();
            }
            return;
        }
        self.backoff.reset();
        if message.events.is_empty() {
            return self.progress(&message, header.revision, now);
        }
        if let Some(has) = self.goes_back(&message) {
            return self.relist(ResetReason::Behind { had: self.merge.newest(), has }, now);
        }
        if let Err(why) = self.events(message) {
            return self.wait(None, why, now);
        }
        self.drain(now);
    }

    /// The revision of an event that comes after a later one, or after the server's word that everything up to it had come: a
    /// watch is in order, so what else it left out is not known. O(events).
    fn goes_back(&self, message: &pb::WatchResponse) -> Option<Revision> {
        let range = usize::try_from(message.watch_id - 1).ok().filter(|range| *range < self.ranges.len())?;
        let mut least = self.merge.least(range);
        let revisions = message.events.iter().filter_map(|event| Some(event.kv.as_ref()?.mod_revision));
        let mut possible = revisions.filter(|revision| checks::revision(*revision).is_ok());
        possible.find(|revision| *revision < std::mem::replace(&mut least, *revision))
    }

    pub(super) fn handle_watch_ended(&mut self, why: String, now: Time) {
        if matches!(self.phase, Phase::Watching { .. }) {
            self.wait(None, why, now);
        }
    }

    /// The caller was slow to take events; silence meanwhile says nothing about the server.
    pub(super) fn handle_caller_waited(&mut self, now: Time) {
        self.heard_at = self.heard_at.max(now);
    }

    pub(super) fn handle_time(&mut self, now: Time) {
        if self.poll_deadline().is_none_or(|deadline| deadline.at() > now) {
            return;
        }
        match self.poll_deadline() {
            Some(Deadline::Retry(_)) => match std::mem::replace(&mut self.phase, watching()) {
                Phase::Waiting { listing: Some(listing), .. } => self.list(listing, now),
                _ => self.watch(now),
            },
            Some(Deadline::AskProgress(_)) => self.ask(now),
            Some(Deadline::Silent(_)) => {
                let listing = match &self.phase {
                    Phase::Listing(listing) => Some(listing.clone()),
                    _ => None,
                };
                let silent = now.since(self.heard_at).as_secs();
                self.wait(listing, format!("nothing was heard from the server for {silent} s"), now);
            }
            Some(Deadline::Behind(_)) => {
                let had = self.merge.newest();
                self.relist(ResetReason::Behind { had, has: 0 }, now);
            }
            None => {}
        }
    }

    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    pub(super) fn poll_deadline(&self) -> Option<Deadline> {
        let silent = Deadline::Silent(self.heard_at + self.pace.silent_after);
        let (first, second) = match &self.phase {
            Phase::Waiting { until, .. } => return Some(Deadline::Retry(*until)),
            Phase::Listing(_) => return Some(silent),
            Phase::Watching { created, behind_since } => {
                let ask = (*created >= self.ranges.len()).then(|| {
                    let quiet = self.heard_at.max(self.asked_at.unwrap_or_default()) + self.pace.ask_after;
                    Deadline::AskProgress(match (self.waits_since, self.asked_at) {
                        (Some(_), Some(asked)) => asked + ASK_AGAIN,
                        (Some(since), None) => since + ASK_FIRST,
                        (None, _) => quiet,
                    })
                });
                (ask, behind_since.map(|since| Deadline::Behind(since + self.pace.behind_grace)))
            }
        };
        [first, second, Some(silent)].into_iter().flatten().min_by_key(|deadline| deadline.at())
    }

    pub(super) fn state(&self) -> FollowState {
        match &self.phase {
            Phase::Watching { created, .. } if *created >= self.ranges.len() => FollowState::Following,
            Phase::Listing(listing) if listing.revision > 0 => FollowState::Listing,
            _ => FollowState::Connecting,
        }
    }

    pub(super) fn cluster_id(&self) -> Option<u64> {
        self.cluster_id
    }

    pub(super) fn revision(&self) -> Revision {
        self.merge.complete()
    }

    pub(super) fn relists(&self) -> u64 {
        self.relists
    }

    pub(super) fn reconnects(&self) -> u64 {
        self.reconnects
    }

    fn listing(&self, reason: ResetReason) -> Listing {
        Listing { reason, range: 0, from: self.ranges[0].start().clone(), revision: 0 }
    }

    fn relist(&mut self, reason: ResetReason, now: Time) {
        let calm = self.relisted_at.replace(now).is_none_or(|at| now.since(at) >= CALM);
        if calm {
            self.relist_backoff.reset();
            self.out.push_back(Output::Close);
            return self.list(self.listing(reason), now);
        }
        let why = format!("it has to be listed again, and was just listed: {reason:?}");
        let wait = self.relist_backoff.next(&self.pace);
        self.wait_for(wait, Some(self.listing(reason)), why, now);
    }

    fn list(&mut self, listing: Listing, now: Time) {
        let (_, range_end) = self.ranges[listing.range].to_wire();
        self.out.push_back(Output::List(pb::RangeRequest {
            key: checks::first_key(&listing.from),
            range_end,
            limit: self.page,
            revision: listing.revision,
            ..Default::default()
        }));
        self.heard_at = self.heard_at.max(now);
        self.phase = Phase::Listing(listing);
    }

    fn list_begins(&mut self, listing: &Listing, header: &pb::ResponseHeader) {
        let before = self.cluster_id.replace(header.cluster_id);
        let reason = match (before, &listing.reason) {
            (Some(from), _) if from != header.cluster_id => ResetReason::LineageChanged { from },
            (_, ResetReason::Behind { had, .. }) => ResetReason::Behind { had: *had, has: header.revision },
            (_, other) => other.clone(),
        };
        // A state older than ours is of another history too, whatever made us list (a restored backup).
        if matches!(reason, ResetReason::LineageChanged { .. }) || header.revision < self.merge.newest() {
            self.known.distrust_revisions();
        }
        self.relists += u64::from(reason != ResetReason::Start);
        self.emit(FollowEvent::Reset { reason, cluster_id: header.cluster_id });
    }

    fn give_page(
        &mut self,
        listing: &Listing,
        revision: Revision,
        kvs: Vec<pb::KeyValue>,
        to: Option<&Bytes>,
    ) {
        let vanished = self.known.vanished(&self.ranges[listing.range], &listing.from, to, &kvs);
        let deletes = vanished.into_iter().map(|key| Change::Delete { key, mod_revision: revision });
        for change in deletes.chain(kvs.into_iter().map(Change::Put)) {
            self.give(listing.range, change);
        }
    }

    fn range_listed(&mut self, listing: Listing, now: Time) {
        self.emit(FollowEvent::Listed { range: listing.range, revision: listing.revision });
        let range = listing.range + 1;
        if let Some(next) = self.ranges.get(range) {
            let from = next.start().clone();
            return self.list(Listing { range, from, ..listing }, now);
        }
        self.merge.restart(listing.revision);
        self.backoff.reset();
        self.watch(now);
    }

    fn watch(&mut self, now: Time) {
        let starts = self.merge.reopen();
        let requests = self.ranges.iter().zip(starts).enumerate().map(|(i, (range, start_revision))| {
            let (key, range_end) = range.to_wire();
            pb::WatchCreateRequest {
                key: checks::first_key(&key),
                range_end,
                start_revision,
                progress_notify: true,
                fragment: true,
                watch_id: i as i64 + 1,
                ..Default::default()
            }
        });
        self.out.push_back(Output::Watch(requests.collect()));
        self.heard_at = self.heard_at.max(now);
        self.asked_at = None;
        self.waits_since = None;
        self.phase = watching();
    }

    /// Takes a message's events in. An error names what is wrong with them.
    fn events(&mut self, message: pb::WatchResponse) -> Result<(), String> {
        let range = usize::try_from(message.watch_id - 1).unwrap_or(usize::MAX);
        if range >= self.ranges.len() {
            return Err(format!(
                "the server sent events for watch {}, which was not asked for",
                message.watch_id
            ));
        }
        for event in message.events {
            let deleted = event.r#type == pb::mvccpb::event::EventType::Delete as i32;
            let kv = event.kv.ok_or("the server sent an event without a key")?;
            if !self.ranges[range].contains(&kv.key) {
                return Err(format!("the server sent an event for {:?}, outside the watched range", kv.key));
            }
            checks::revision(kv.mod_revision)
                .map_err(|what| format!("the server's event for {:?} {what}", kv.key))?;
            let change = match deleted {
                true => Change::Delete { key: kv.key, mod_revision: kv.mod_revision },
                false => Change::Put(kv),
            };
            if let Some(change) = self.merge.change(range, change) {
                self.give(range, change);
            }
        }
        if !message.fragment {
            self.merge.message_end(range);
        }
        Ok(())
    }

    fn progress(&mut self, message: &pb::WatchResponse, revision: Revision, now: Time) {
        match usize::try_from(message.watch_id - 1) {
            // On its own account, per watch, in order with its events, whatever the version.
            Ok(range) if range < self.ranges.len() => self.merge.range_through(range, revision),
            _ => {
                self.asked_at = None;
                if self.trust_progress {
                    self.merge.all_through(revision);
                }
            }
        }
        self.drain(now);
    }

    /// Gives what no range is missing any more.
    fn drain(&mut self, now: Time) {
        while let Some(changes) = self.merge.next_ready() {
            for (range, change) in changes {
                self.give(range, change);
            }
        }
        self.emit_progress();
        self.waits_since = self.merge.is_waiting().then(|| self.waits_since.unwrap_or(now));
        if self.merge.overflows() {
            self.relist(ResetReason::Overflow, now);
        }
    }

    fn ask(&mut self, now: Time) {
        self.asked_at = Some(now);
        self.out.push_back(Output::AskProgress);
    }

    fn give(&mut self, range: usize, change: Change) {
        if self.known.is_news(&change) {
            self.emit(match change {
                Change::Put(kv) => FollowEvent::Put { range, kv },
                Change::Delete { key, mod_revision } => FollowEvent::Delete { range, key, mod_revision },
            });
        }
    }

    fn emit_progress(&mut self) {
        self.emit(FollowEvent::Progress { revision: self.merge.complete() });
    }

    fn emit(&mut self, event: FollowEvent) {
        self.out.push_back(Output::Emit(event));
    }

    fn wait(&mut self, listing: Option<Listing>, reason: String, now: Time) {
        let wait = self.backoff.next(&self.pace);
        self.wait_for(wait, listing, reason, now);
    }

    fn wait_for(&mut self, wait: Duration, listing: Option<Listing>, reason: String, now: Time) {
        self.out.push_back(Output::Close);
        self.emit(FollowEvent::Interrupted { reason });
        self.reconnects += 1;
        self.phase = Phase::Waiting { until: now + wait, listing };
    }
}

fn watching() -> Phase {
    Phase::Watching { created: 0, behind_since: None }
}
