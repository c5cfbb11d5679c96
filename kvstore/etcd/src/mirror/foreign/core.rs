//! What becomes of a foreign etcd's events: revisions of our own, and a difference after every list.
//!
//! Per key, what its etcd says last is what is held here; nothing is assumed of the order between ranges, nor that an
//! answer to a progress request means anything. Ranges are followed only in the etcd whose signs were read whole. No
//! socket, no clock, no runtime.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use hawser_kvstore::{ApplyError, Change, KeyRange, KeyValue, Keyspace, Record, Revision};
use hawser_model::Time;

use super::chart::{Chart, Plan, Signs, Source};
use super::source::{Held, delete, get, put};
use crate::client::FollowEvent;
use crate::mirror::fill::Verdict;
use crate::pb;

/// A heartbeat is written every 60 s; Cilium's readers give it up after this (cilium-facts §1.12).
const LOST: Duration = Duration::from_secs(120);
/// Other ranges speak of another etcd than the signs: so long until the signs have to, too.
const AGREE: Duration = Duration::from_secs(10);
/// Keys and bytes that signs may have; beyond them they are no signs.
const MOST_SIGNS: usize = 64;
const MOST_SIGN_BYTES: usize = 64 << 10;

/// What the shell carries out.
#[derive(Debug, PartialEq)]
pub(super) enum Output {
    /// Follow these, each list whole, every range in its own order.
    Begin {
        group: u64,
        ranges: Vec<KeyRange>,
    },
    End {
        group: u64,
    },
    /// Give up the connection and every follower; follow the signs over a new one, at another replica if there is one.
    Reconnect,
    /// Everything that can be read was read once.
    Complete,
}

/// The next moment the core wants to hear of, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deadline {
    HeartbeatLost(Time),
    Disagree(Time),
}

impl Deadline {
    pub(super) fn at(self) -> Time {
        match self {
            Self::HeartbeatLost(at) | Self::Disagree(at) => at,
        }
    }
}

/// Asked about every entry, by its key here; what is held already is the keyspace's to say.
pub(super) type Gate<'a> = dyn FnMut(&KeyValue, &Keyspace) -> Verdict + 'a;

#[derive(Debug, Default)]
struct Beat {
    value: Bytes,
    revision: Revision,
    at: Option<Time>,
}

pub(super) struct Core {
    chart: Box<dyn Chart>,
    heartbeat: Bytes,
    sign_ranges: usize,
    signs: Signs,
    listing_signs: Option<Signs>,
    /// Of the etcd that the signs were read from.
    cluster_id: Option<u64>,
    /// They were, whole, over this connection.
    read: bool,
    disagree: Option<Time>,
    beat: Beat,
    connected_at: Time,
    /// A heartbeat that is the same as in an earlier life is not late before this.
    grace: Time,
    held: BTreeMap<&'static str, Held>,
    groups: BTreeMap<u64, Vec<&'static str>>,
    next_group: u64,
    plan: Option<Plan>,
    complete: bool,
    /// How often it was another etcd than before.
    changes: u64,
    out: VecDeque<Output>,
}

impl Core {
    /// `beat` is what an earlier life held of the heartbeat: the same again proves nothing.
    pub(super) fn new(chart: Box<dyn Chart>, beat: Option<Bytes>, now: Time) -> Self {
        Self {
            heartbeat: chart.heartbeat(),
            sign_ranges: chart.signs().len(),
            chart,
            signs: Signs::new(),
            listing_signs: None,
            cluster_id: None,
            read: false,
            disagree: None,
            beat: Beat { value: beat.unwrap_or_default(), ..Beat::default() },
            connected_at: now,
            grace: now + LOST,
            held: BTreeMap::new(),
            groups: BTreeMap::new(),
            next_group: 0,
            plan: None,
            complete: false,
            changes: 0,
            out: VecDeque::new(),
        }
    }

    pub(super) fn sign_ranges(&self) -> Vec<KeyRange> {
        self.chart.signs()
    }

    /// Events of the signs, in their order.
    pub(super) fn handle_signs(
        &mut self,
        events: Vec<FollowEvent>,
        keyspace: &mut Keyspace,
        gate: &mut Gate<'_>,
        now: Time,
    ) -> Result<(), ApplyError> {
        let mut beats = false;
        for event in events {
            match event {
                FollowEvent::Reset { cluster_id, .. } => self.signs_begin(cluster_id),
                FollowEvent::Put { kv, .. } => beats |= self.sign(kv, keyspace, gate, now)?,
                FollowEvent::Delete { key, .. } => {
                    self.signs.remove(&key);
                    if key == self.heartbeat {
                        // Its lease has ended, or its writer wants to be taken for gone.
                        self.beat.at = None;
                    }
                }
                FollowEvent::Listed { range, .. } if range + 1 == self.sign_ranges => {
                    self.signs = self.listing_signs.take().unwrap_or_default();
                    if !self.signs.contains_key(&self.heartbeat) {
                        self.beat.at = None;
                    }
                    (self.read, self.disagree) = (true, None);
                }
                FollowEvent::Listed { .. }
                | FollowEvent::Progress { .. }
                | FollowEvent::Interrupted { .. } => {}
            }
        }
        if !self.read {
            return Ok(());
        }
        self.follow_plan(keyspace)?;
        match beats {
            true => self.handle_beat(keyspace, now),
            false => Ok(()),
        }
    }

    fn signs_begin(&mut self, cluster_id: u64) {
        let before = self.cluster_id.replace(cluster_id);
        if before != Some(cluster_id) {
            self.changes += u64::from(before.is_some());
            self.beat.revision = 0;
            self.end_all();
            self.held.values_mut().for_each(|held| held.listed = false);
        }
        self.read = false;
        self.listing_signs = Some(Signs::new());
    }

    /// Whether it says that its cluster lives.
    fn sign(
        &mut self,
        kv: pb::KeyValue,
        keyspace: &mut Keyspace,
        gate: &mut Gate<'_>,
        now: Time,
    ) -> Result<bool, ApplyError> {
        let listed = self.listing_signs.is_some();
        let signs = self.listing_signs.as_mut().unwrap_or(&mut self.signs);
        if kv.value.len() > MOST_SIGN_BYTES || (signs.len() >= MOST_SIGNS && !signs.contains_key(&kv.key)) {
            return Ok(false);
        }
        signs.insert(Bytes::copy_from_slice(&kv.key), Bytes::copy_from_slice(&kv.value));
        if kv.key != self.heartbeat || (listed && kv.value == self.beat.value) {
            return Ok(false);
        }
        self.beat =
            Beat { value: Bytes::copy_from_slice(&kv.value), revision: kv.mod_revision, at: Some(now) };
        self.admit(self.heartbeat.clone(), kv.value, keyspace, gate)?;
        Ok(true)
    }

    /// Events of what [`Output::Begin`] began. Those of a group that has ended are nothing.
    pub(super) fn handle_group(
        &mut self,
        group: u64,
        events: Vec<FollowEvent>,
        keyspace: &mut Keyspace,
        gate: &mut Gate<'_>,
        now: Time,
    ) -> Result<(), ApplyError> {
        let mut deletions: BTreeMap<usize, usize> = BTreeMap::new();
        for event in &events {
            if let FollowEvent::Delete { range, .. } = event {
                *deletions.entry(*range).or_default() += 1;
            }
        }
        for event in events {
            let Some(names) = self.groups.get(&group) else { return Ok(()) };
            let name = |range: usize| names.get(range).copied();
            match event {
                FollowEvent::Reset { cluster_id, .. } => self.group_begins(group, cluster_id, now),
                FollowEvent::Put { range, kv } => {
                    let Some(name) = name(range) else { continue };
                    self.put(name, kv, keyspace, gate)?;
                }
                FollowEvent::Delete { range, key, mod_revision } => {
                    let Some(name) = name(range) else { continue };
                    let together = deletions.get(&range).copied().unwrap_or(1);
                    if !self.gone(name, &key, mod_revision, together, keyspace, now)? {
                        // What is left of the batch; as long as one is held back, all are.
                        deletions.entry(range).and_modify(|left| *left = left.saturating_sub(1));
                    }
                }
                FollowEvent::Listed { range, revision } => {
                    let Some(name) = name(range) else { continue };
                    self.listed(name, revision, keyspace, now)?;
                }
                FollowEvent::Progress { .. } | FollowEvent::Interrupted { .. } => {}
            }
        }
        Ok(())
    }

    fn group_begins(&mut self, group: u64, cluster_id: u64, now: Time) {
        if !self.read || self.cluster_id != Some(cluster_id) {
            // The signs' follower hears of the change by itself, and what it reads then begins the ranges anew.
            self.read = false;
            self.disagree = Some(now);
            return self.end_all();
        }
        for held in self.held.values_mut().filter(|held| held.group == Some(group)) {
            held.listing = Some(BTreeSet::new());
        }
    }

    fn put(
        &mut self,
        name: &str,
        kv: pb::KeyValue,
        keyspace: &mut Keyspace,
        gate: &mut Gate<'_>,
    ) -> Result<(), ApplyError> {
        let Some(held) = self.held.get_mut(name) else { return Ok(()) };
        let Some(key) = held.source.here(&kv.key) else { return Ok(()) };
        held.ghosts.remove(&key);
        if let Some(seen) = &mut held.listing {
            seen.insert(key.clone());
        }
        self.admit(key, kv.value, keyspace, gate)
    }

    /// As a Hawser cluster's entries are: what may not be said takes what its key held along.
    fn admit(
        &self,
        key: Bytes,
        value: Bytes,
        keyspace: &mut Keyspace,
        gate: &mut Gate<'_>,
    ) -> Result<(), ApplyError> {
        if get(keyspace, &key).is_some_and(|old| old.value == value) {
            return Ok(());
        }
        let kv = KeyValue { key, value, ..KeyValue::default() };
        match gate(&kv, keyspace) {
            Verdict::Take => put(keyspace, kv.key, kv.value),
            Verdict::Leave => Ok(()),
            Verdict::Drop => delete(keyspace, &kv.key),
        }
    }

    /// Whether it is held back. `together`: how many deletions of its kind came in one piece with it, itself included.
    fn gone(
        &mut self,
        name: &str,
        key: &[u8],
        revision: Revision,
        together: usize,
        keyspace: &mut Keyspace,
        now: Time,
    ) -> Result<bool, ApplyError> {
        let may = self.may_delete(name, together, now);
        let Some(held) = self.held.get_mut(name) else { return Ok(false) };
        let Some(key) = held.source.here(key) else { return Ok(false) };
        if get(keyspace, &key).is_none() {
            return Ok(false);
        }
        if may {
            held.spend(1);
            delete(keyspace, &key)?;
        } else {
            held.ghosts_at = held.ghosts_at.max(revision);
            held.ghosts.insert(key);
        }
        Ok(!may)
    }

    fn listed(
        &mut self,
        name: &'static str,
        revision: Revision,
        keyspace: &mut Keyspace,
        now: Time,
    ) -> Result<(), ApplyError> {
        let Some(held) = self.held.get_mut(name) else { return Ok(()) };
        let Some(seen) = held.listing.take() else { return Ok(()) };
        held.listed = true;
        held.ghosts = held.unseen(&seen, keyspace);
        held.ghosts_at = revision;
        let count = held.ghosts.len();
        let (canary, at) = held.source.canary.clone();
        if self.may_delete(name, count, now) {
            self.release(name, keyspace)?;
        }
        if get(keyspace, &canary).is_none() {
            put(keyspace, canary, at)?;
        }
        self.look_whether_complete(keyspace)
    }

    fn look_whether_complete(&mut self, keyspace: &mut Keyspace) -> Result<(), ApplyError> {
        let waits = self.held.values().any(|held| held.source.complete && !held.listed);
        if self.complete || waits || !matches!(self.plan, Some(Plan::Follow { .. })) {
            return Ok(());
        }
        self.complete = true;
        self.out.push_back(Output::Complete);
        for held in self.held.values_mut() {
            held.count_anew(keyspace);
        }
        Ok(())
    }

    /// Drops from the history what nobody can have seen: the entries of the first list, before anyone is served.
    pub(super) fn forget_history(keyspace: &mut Keyspace) -> Result<(), ApplyError> {
        let revision = keyspace.revision();
        let changes = vec![Change::Compact { revision }];
        keyspace.apply(&Record { revision, changes }, Duration::ZERO)
    }

    fn fresh(&self, now: Time) -> bool {
        self.beat.at.is_some_and(|at| now.since(at) < LOST)
    }

    /// Whether what an etcd says of a kind is what its publisher says: it lives, and it has said all of it there.
    fn settled(&self, held: &Held, now: Time) -> bool {
        self.read && self.fresh(now) && held.listed && held.source.complete
    }

    fn may_delete(&self, name: &str, deletions: usize, now: Time) -> bool {
        self.held.get(name).is_some_and(|held| self.settled(held, now) && held.allows(deletions))
    }

    /// Its publisher has been alive after everything that it said before.
    fn handle_beat(&mut self, keyspace: &mut Keyspace, now: Time) -> Result<(), ApplyError> {
        let revision = self.beat.revision;
        let settled = self.held.iter().filter(|(_, held)| self.settled(held, now));
        let names: Vec<_> = settled.map(|(name, _)| *name).collect();
        for name in names {
            if self.held.get(name).is_some_and(|held| held.ghosts_at < revision) {
                self.release(name, keyspace)?;
            }
            if let Some(held) = self.held.get_mut(name) {
                held.count_anew(keyspace);
            }
        }
        Ok(())
    }

    fn release(&mut self, name: &str, keyspace: &mut Keyspace) -> Result<(), ApplyError> {
        let Some(held) = self.held.get_mut(name) else { return Ok(()) };
        let ghosts = std::mem::take(&mut held.ghosts);
        held.spend(ghosts.len());
        ghosts.iter().try_for_each(|key| delete(keyspace, key))
    }

    fn follow_plan(&mut self, keyspace: &mut Keyspace) -> Result<(), ApplyError> {
        let plan = self.chart.plan(&self.signs);
        match &plan {
            // Its config goes when a dead publisher's lease does: what is known is followed on, and nothing is believed
            // to be all.
            Plan::Wait(_) => {
                self.held
                    .values_mut()
                    .filter(|held| !held.retired)
                    .for_each(|held| held.source.complete = false);
            }
            Plan::Refuse(_) => self.end_all(),
            Plan::Follow { sources, stated, .. } => {
                for (key, value) in stated {
                    put(keyspace, key.clone(), value.clone())?;
                }
                for source in sources {
                    match source.published {
                        true => self.plan_source(source),
                        false => self.retire(source, keyspace)?,
                    }
                }
                self.begin();
            }
        }
        // A reason to wait that comes later does not undo what was planned.
        match plan {
            Plan::Wait(_) if matches!(self.plan, Some(Plan::Follow { .. })) => {}
            plan => self.plan = Some(plan),
        }
        self.look_whether_complete(keyspace)
    }

    fn plan_source(&mut self, source: &Source) {
        let held = self.held.entry(source.name).or_insert_with(|| Held::new(source.clone()));
        let group = held.group;
        // Another layout is another range there, and the same keys here.
        let moved = (&held.source.from, &held.source.to) != (&source.from, &source.to);
        held.source = source.clone();
        if std::mem::take(&mut held.retired) || moved {
            held.listed = false;
            group.into_iter().for_each(|group| self.end(group));
        }
    }

    /// What is held of a kind that the cluster does not publish goes with the next heartbeat.
    fn retire(&mut self, source: &Source, keyspace: &mut Keyspace) -> Result<(), ApplyError> {
        let group = self.held.get(source.name).and_then(|held| held.group);
        group.into_iter().for_each(|group| self.end(group));
        let (canary, at) = source.canary.clone();
        if get(keyspace, &canary).is_none() {
            put(keyspace, canary, at)?;
        }
        let mut held = Held::new(Source { complete: true, ..source.clone() });
        // Nothing there will say that it is complete.
        (held.retired, held.listed) = (true, true);
        held.ghosts = held.unseen(&BTreeSet::new(), keyspace);
        match held.ghosts.is_empty() {
            true => drop(self.held.remove(source.name)),
            false => drop(self.held.insert(source.name, held)),
        }
        Ok(())
    }

    /// One follower for all that may be read and is not.
    fn begin(&mut self) {
        let unread = self.held.values_mut().filter(|held| held.group.is_none() && held.is_readable());
        let unread: Vec<_> = unread.collect();
        if unread.is_empty() {
            return;
        }
        let group = self.next_group;
        self.next_group += 1;
        let (mut ranges, mut names) = (Vec::new(), Vec::new());
        for held in unread {
            held.group = Some(group);
            ranges.push(KeyRange::prefix(held.source.from.clone()));
            names.push(held.source.name);
        }
        self.groups.insert(group, names);
        self.out.push_back(Output::Begin { group, ranges });
    }

    fn end(&mut self, group: u64) {
        if self.groups.remove(&group).is_some() {
            self.out.push_back(Output::End { group });
        }
        for held in self.held.values_mut().filter(|held| held.group == Some(group)) {
            held.unfollow();
        }
    }

    fn end_all(&mut self) {
        let all: Vec<_> = self.groups.keys().copied().collect();
        all.into_iter().for_each(|group| self.end(group));
    }

    /// There is room for what was refused: everything is listed once more.
    pub(super) fn handle_room(&mut self) {
        self.end_all();
        if self.read {
            self.begin();
        }
    }

    pub(super) fn handle_time(&mut self, now: Time) {
        if self.poll_deadline().at() > now {
            return;
        }
        // What the other replica says is held against what is held here, so nothing is forgotten.
        self.end_all();
        (self.read, self.listing_signs, self.disagree) = (false, None, None);
        self.connected_at = now;
        self.out.push_back(Output::Reconnect);
    }

    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    pub(super) fn poll_deadline(&self) -> Deadline {
        let heard = self.beat.at.unwrap_or_default().max(self.connected_at);
        let lost = Deadline::HeartbeatLost(heard + LOST);
        let disagree = self.disagree.map(|since| Deadline::Disagree(since + AGREE));
        disagree.into_iter().chain([lost]).min_by_key(|deadline| deadline.at()).unwrap_or(lost)
    }

    /// O(kinds).
    pub(super) fn standing(&self, now: Time) -> Standing {
        let readable = self.held.values().filter(|held| !held.retired);
        let waits = readable.clone().filter(|held| !held.source.complete && !held.listed);
        let planned = matches!(self.plan, Some(Plan::Follow { .. }));
        Standing {
            cluster_id: self.cluster_id,
            layout: match &self.plan {
                Some(Plan::Follow { layout, .. }) => Some(layout),
                _ => None,
            },
            refused: match &self.plan {
                Some(Plan::Refuse(why)) => Some(why.clone()),
                _ => None,
            },
            unknown: match &self.plan {
                Some(Plan::Wait(why)) => Some(why.clone()),
                _ => None,
            },
            read: self.read,
            follows: self.read && planned && readable.clone().all(|held| held.listed || !held.is_readable()),
            beat_at: self.beat.at,
            lives: self.fresh(now) || now < self.grace,
            waits_for: waits.map(|held| held.source.name).collect(),
            held_back: self.held.values().map(|held| held.ghosts.len()).sum(),
            changes: self.changes,
        }
    }
}

/// Where a core stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) cluster_id: Option<u64>,
    pub(super) layout: Option<&'static str>,
    /// Why it must not be followed.
    pub(super) refused: Option<String>,
    /// What its signs do not say yet.
    pub(super) unknown: Option<String>,
    pub(super) read: bool,
    /// All that can be read was, over this connection.
    pub(super) follows: bool,
    pub(super) beat_at: Option<Time>,
    /// Nothing speaks against it.
    pub(super) lives: bool,
    pub(super) waits_for: Vec<&'static str>,
    pub(super) held_back: usize,
    pub(super) changes: u64,
}
