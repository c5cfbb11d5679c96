//! How far each range has come, and changes that wait until all ranges have come as far.

use std::collections::BTreeMap;

use hawser_kvstore::Revision;

use super::Order;
use super::diff::Change;

/// Bytes of changes that may wait for other ranges; above it a list is cheaper.
const MOST_HELD: usize = 64 << 20;

#[derive(Debug)]
pub(super) struct Merge {
    order: Order,
    /// Per range: everything up to here has arrived.
    through: Vec<Revision>,
    /// With [`Order::Total`]: what arrived beyond the slowest range.
    held: BTreeMap<Revision, Vec<(usize, Change)>>,
    held_bytes: usize,
    /// Per range: the newest revision in a message that is not complete yet (a fragment).
    partial: Vec<Revision>,
}

impl Merge {
    pub(super) fn new(order: Order, ranges: usize, at: Revision) -> Self {
        Self {
            order,
            through: vec![at; ranges],
            held: BTreeMap::new(),
            held_bytes: 0,
            partial: vec![0; ranges],
        }
    }

    /// All ranges are as of `at`.
    pub(super) fn restart(&mut self, at: Revision) {
        *self = Self::new(self.order, self.through.len(), at);
    }

    /// The connection is new: what waits will come again. Gives each range's first missing revision.
    pub(super) fn reopen(&mut self) -> Vec<Revision> {
        self.partial.fill(0);
        if self.order == Order::Total {
            let at = self.complete();
            self.restart(at);
        }
        self.through.iter().map(|through| through + 1).collect()
    }

    /// Everything up to here has arrived in all ranges.
    pub(super) fn complete(&self) -> Revision {
        self.through.iter().copied().min().unwrap_or(0)
    }

    pub(super) fn newest(&self) -> Revision {
        self.through.iter().copied().max().unwrap_or(0)
    }

    /// What comes next in `range` is not before it.
    pub(super) fn least(&self, range: usize) -> Revision {
        (self.through[range] + 1).max(self.partial[range])
    }

    /// A change that arrived, if it may be given now. `None`: it waits, or is old.
    pub(super) fn change(&mut self, range: usize, change: Change) -> Option<Change> {
        let revision = change.revision();
        if revision <= self.through[range] {
            return None;
        }
        self.partial[range] = self.partial[range].max(revision);
        if self.order == Order::PerRange {
            return Some(change);
        }
        self.held_bytes += change.cost();
        self.held.entry(revision).or_default().push((range, change));
        None
    }

    /// A message is complete: nothing at or before its newest revision is missing in `range`.
    pub(super) fn message_end(&mut self, range: usize) {
        let revision = std::mem::take(&mut self.partial[range]);
        self.range_through(range, revision);
    }

    pub(super) fn range_through(&mut self, range: usize, revision: Revision) {
        self.through[range] = self.through[range].max(revision);
    }

    pub(super) fn all_through(&mut self, revision: Revision) {
        self.through.iter_mut().for_each(|through| *through = (*through).max(revision));
    }

    /// The oldest revision's changes that wait, if nothing of it is missing any more.
    pub(super) fn next_ready(&mut self) -> Option<Vec<(usize, Change)>> {
        let entry = self.held.first_entry()?;
        if *entry.key() > self.through.iter().copied().min()? {
            return None;
        }
        let changes = entry.remove();
        self.held_bytes -= changes.iter().map(|(_, change)| change.cost()).sum::<usize>();
        Some(changes)
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.held.is_empty()
    }

    pub(super) fn overflows(&self) -> bool {
        self.held_bytes > MOST_HELD
    }
}
