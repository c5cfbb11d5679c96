//! A part of a keyspace as a keyspace of its own, at the same revisions: what a reader reads that may not see everything.
//!
//! The revisions of a view are the origin's, with holes. A key that leaves the view is a DELETE at the revision that made it
//! leave, one that comes into it is a PUT that creates it there; all else is the origin's own event, shared. What happens at a
//! revision depends on the origin's states before and after it alone, so every replica's view tells the same.

use crate::history::Cursor;
use crate::keyspace::Keyspace;
use crate::kv::{Event, EventKind, KeyValue, Revision, SharedKv};
use crate::range::KeyRange;
use crate::record::{Fnv, Identity};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Which keys a view shows. That may depend on other keys: it is told of every change of those that it reads, in the order of
/// their revisions, and the same changes always give the same answers.
pub trait Filter {
    /// Whether the key matters here, by its name alone; one that does not is neither told nor shown.
    fn reads(&self, key: &[u8]) -> bool;

    /// The key has this value from now on, or is gone. Other keys that may have become visible or hidden by it are added to
    /// `touched`, known or not, as often as it likes.
    fn handle_change(&mut self, key: &Bytes, value: Option<&Bytes>, touched: &mut Vec<Bytes>);

    /// Whether the key, which is there, is shown after all that was told.
    fn shows(&self, key: &[u8]) -> bool;
}

/// A name for what a filter selects, for [`Identity::of_view`]. `filter` says all of it, and only the same filter says the same.
pub fn view_id(filter: &str) -> u64 {
    let mut hash = Fnv::default();
    hash.write(filter.as_bytes());
    hash.finish()
}

impl Identity {
    /// Of a view of this keyspace, which is `cluster`'s.
    pub fn of_view(self, cluster: &str, view: u64) -> Self {
        Self::new(cluster, self.lineage.unwrap_or(self.cluster_id), view)
    }
}

/// How far back a keyspace can be read and watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Horizon {
    readable: Revision,
    watchable: Revision,
}

impl Keyspace {
    pub fn horizon(&self) -> Horizon {
        Horizon { readable: self.compact_revision(), watchable: self.watchable() }
    }

    /// The oldest state that can be read, and a cursor on all that came after it: what a view is made of. O(keys).
    pub fn from_the_start(&self) -> (Revision, Vec<SharedKv>, Cursor) {
        let revision = self.compact_revision().max(1).min(self.revision());
        let kvs = self.tree.range(&KeyRange::all(), revision).cloned().collect();
        (revision, kvs, self.cursor_after(revision))
    }

    /// Takes over what a view made of the origin's events, up to `revision`; forgets what the origin has forgotten, so that a
    /// view holds nothing alive that its origin does not. O(events * log keys), and the events are shared.
    pub fn follow(&mut self, events: Vec<Arc<Event>>, revision: Revision, origin: Horizon) {
        for event in events {
            self.record_event(event);
        }
        self.newest = self.newest.max(revision);
        self.publish();
        self.forget_beyond(origin.readable, origin.watchable);
    }
}

/// The part of a view that its readers do not see.
#[derive(Debug)]
pub struct View<F> {
    filter: F,
    /// What is there and not shown, as the origin has it: bytes are shared. What is shown is in the view's keyspace alone.
    hidden: BTreeMap<Box<[u8]>, SharedKv>,
}

/// What a batch of events has changed so far of what is shown.
struct Fresh<'a> {
    shown: &'a Keyspace,
    changed: BTreeMap<Bytes, Option<SharedKv>>,
}

impl Fresh<'_> {
    fn get(&self, key: &[u8]) -> Option<&SharedKv> {
        match self.changed.get(key) {
            Some(changed) => changed.as_ref(),
            None => self.shown.tree.get(key, Revision::MAX),
        }
    }
}

impl<F: Filter> View<F> {
    /// Of a whole state in key order, and what of it is shown. O(keys), beside what the filter takes.
    pub fn of(mut filter: F, state: Vec<SharedKv>) -> (Self, Vec<SharedKv>) {
        let state: Vec<_> = state.into_iter().filter(|kv| filter.reads(&kv.key)).collect();
        let mut touched = Vec::new();
        for kv in &state {
            filter.handle_change(&kv.key, Some(&kv.value), &mut touched);
            touched.clear();
        }
        let (shown, hidden): (Vec<_>, Vec<_>) = state.into_iter().partition(|kv| filter.shows(&kv.key));
        let hidden = hidden.into_iter().map(|kv| (Box::from(&kv.key[..]), kv)).collect();
        (Self { filter, hidden }, shown)
    }

    /// What the origin's next events are in the view, for [`Keyspace::follow`]. `shown` is the view's keyspace as the call
    /// before left it. Within a revision what comes in is told first, then the revision's own events, then what leaves.
    ///
    /// O(log keys) for an event and for each key that it touches, beside what the filter takes.
    pub fn handle_events(&mut self, events: &[Arc<Event>], shown: &Keyspace) -> Vec<Arc<Event>> {
        let mut fresh = Fresh { shown, changed: BTreeMap::new() };
        let mut out = Vec::new();
        for revision in events.chunk_by(|a, b| a.revision() == b.revision()) {
            self.handle_revision(revision, &mut fresh, &mut out);
        }
        out
    }

    fn handle_revision(&mut self, events: &[Arc<Event>], fresh: &mut Fresh<'_>, out: &mut Vec<Arc<Event>>) {
        let Some(revision) = events.first().map(|event| event.revision()) else { return };
        let mut touched = Vec::new();
        let own: Vec<_> = events.iter().filter(|event| self.filter.reads(&event.kv().key)).collect();
        for event in &own {
            let kv = event.kv();
            let value = (event.kind() == EventKind::Put).then_some(&kv.value);
            self.filter.handle_change(&kv.key, value, &mut touched);
        }
        let mut touched: BTreeSet<Bytes> = touched.into_iter().collect();
        for event in &own {
            touched.remove(&event.kv().key);
        }
        let mut leaving = Vec::new();
        for key in touched {
            if let Some(kv) = self.hidden.get(&key[..]).filter(|_| self.filter.shows(&key)) {
                let event = Event::put(&created(kv, revision), None);
                self.hidden.remove(&key[..]);
                fresh.changed.insert(key, Some(event.kv().clone()));
                out.push(Arc::new(event));
            } else if let Some(kv) = fresh.get(&key).filter(|_| !self.filter.shows(&key)).cloned() {
                self.hidden.insert(Box::from(&key[..]), kv.clone());
                fresh.changed.insert(key.clone(), None);
                leaving.push(Arc::new(Event::delete(key, revision, Some(kv))));
            }
        }
        for event in own {
            out.extend(self.own_event(event, fresh));
        }
        out.append(&mut leaving);
    }

    /// What an event of the origin is to those who see its key before it, after it, or both.
    fn own_event(&mut self, event: &Arc<Event>, fresh: &mut Fresh<'_>) -> Option<Arc<Event>> {
        let (kv, revision) = (event.kv(), event.revision());
        let there = event.kind() == EventKind::Put;
        let seen = there && self.filter.shows(&kv.key);
        if there && !seen {
            self.hidden.insert(Box::from(&kv.key[..]), kv.clone());
        } else {
            self.hidden.remove(&kv.key[..]);
        }
        let told = match (fresh.get(&kv.key).cloned(), seen) {
            (None, false) => return None,
            (None, true) if event.prev().is_none() => Arc::clone(event),
            (None, true) => Arc::new(Event::put(&created(kv, revision), None)),
            (Some(before), false) if there => Arc::new(Event::delete(kv.key.clone(), revision, Some(before))),
            (Some(before), _) if event.prev().is_some_and(|p| p.mod_revision == before.mod_revision) => {
                Arc::clone(event)
            }
            (Some(before), _) => Arc::new(event.with_prev(before)),
        };
        let key = kv.key.clone();
        fresh.changed.insert(key, seen.then(|| told.kv().clone()));
        Some(told)
    }
}

/// `kv` to a reader who sees it for the first time at `revision`.
fn created(kv: &SharedKv, revision: Revision) -> KeyValue {
    KeyValue { create_revision: revision, mod_revision: revision, version: 1, ..KeyValue::clone(kv) }
}
