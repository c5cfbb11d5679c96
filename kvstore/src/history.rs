//! The bounded history of events, and cursors on it: a watcher that does not read costs its cursor and nothing else.

use crate::kv::{Event, Revision};
use crate::range::KeyRange;
use std::collections::VecDeque;
use std::sync::Arc;

/// A ring of events in the order of their revisions.
#[derive(Default)]
pub(crate) struct History {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
}

/// A place in a keyspace's history: two words, to be held by the watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub(crate) incarnation: u64,
    /// The first revision that was not given out yet. A watch may begin at one that is yet to come.
    pub(crate) from: Revision,
}

/// How much one [`crate::Keyspace::pull`] may take. A revision is never torn apart, so the last one may exceed the bounds.
#[derive(Clone, Copy, Debug)]
pub struct PullLimits {
    pub events: usize,
    pub bytes: usize,
    /// Events looked at, matching or not: the time the keyspace's lock is held.
    pub scanned: usize,
}

impl Default for PullLimits {
    fn default() -> Self {
        Self { events: 1000, bytes: 1 << 20, scanned: 10_000 }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Pulled {
    Events {
        /// In order; none when nothing matched.
        events: Vec<Arc<Event>>,
        /// Everything that matches up to this revision has been given out by now.
        revision: Revision,
        /// There is more to pull right now.
        more: bool,
    },
    /// The history no longer holds what comes next. List again, then watch from `compact_revision` or later.
    FellBehind { compact_revision: Revision },
    /// The keyspace is another one now (its identity changed): list again.
    Replaced,
}

impl History {
    pub(crate) fn push(&mut self, event: Arc<Event>) {
        self.bytes += event.cost();
        self.events.push_back(event);
    }

    pub(crate) fn pop_newest(&mut self) -> Option<Arc<Event>> {
        self.events.pop_back().inspect(|event| self.bytes -= event.cost())
    }

    pub(crate) fn pop_oldest(&mut self) -> Option<Arc<Event>> {
        let event = self.events.pop_front()?;
        self.bytes -= event.cost();
        Some(event)
    }

    pub(crate) fn oldest_revision(&self) -> Option<Revision> {
        self.events.front().map(|event| event.revision())
    }

    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    /// What the events hold in memory, about.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn clear(&mut self) {
        self.events.clear();
        self.bytes = 0;
    }

    /// Where the events from revision `from` on begin. O(log of their number): nearly every watcher is nearly there.
    fn start_of(&self, from: Revision) -> usize {
        let len = self.events.len();
        let mut span = 1;
        while span < len && self.events[len - span].revision() >= from {
            span *= 2;
        }
        let (mut low, mut high) = (len.saturating_sub(span), len);
        while low < high {
            let middle = low.midpoint(high);
            if self.events[middle].revision() < from {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Events from revision `from` on. O(log events + events scanned): at most `limits.scanned` and the rest of a revision.
    pub(crate) fn pull(
        &self,
        from: Revision,
        keys: &KeyRange,
        limits: PullLimits,
        visible: Revision,
    ) -> Pulled {
        let start = self.start_of(from);
        let mut events = Vec::new();
        let (mut bytes, mut last) = (0, None);
        for (scanned, event) in self.events.range(start..).enumerate() {
            if event.revision() > visible {
                break;
            }
            let full = events.len() >= limits.events || bytes >= limits.bytes || scanned >= limits.scanned;
            if let Some(revision) = last.filter(|&last| full && last != event.revision()) {
                return Pulled::Events { events, revision, more: true };
            }
            last = Some(event.revision());
            if keys.contains(&event.kv().key) {
                bytes += event.encoded().len();
                events.push(Arc::clone(event));
            }
        }
        Pulled::Events { events, revision: visible, more: false }
    }
}
