//! Verdicts as words: what the kernel holds, what it should hold, and only the difference as writes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hawser_model::{ClusterHealth, ClusterId, HealthWord};

/// Where a word lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WordPlace {
    Cluster(ClusterId),
    /// A slot of `node_health`.
    Node(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WordWrite {
    pub place: WordPlace,
    pub word: HealthWord,
}

/// Words written since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WordCounts {
    pub clusters: u64,
    pub nodes: u64,
}

/// Costs: a verdict is one map look-up, and at most one write.
#[derive(Clone, Debug, Default)]
pub struct HealthWords {
    /// As far as we know: read at start, or written since. What was never written counts as up.
    kernel: BTreeMap<WordPlace, HealthWord>,
    pending: VecDeque<WordWrite>,
    failed: BTreeSet<WordPlace>,
    wanted: BTreeMap<WordPlace, HealthWord>,
    counts: WordCounts,
}

impl HealthWords {
    /// With the words found in the kernel: a stopped agent's last verdicts hold until there is a newer one.
    pub fn adopt(found: impl IntoIterator<Item = WordWrite>) -> Self {
        let kernel = found.into_iter().map(|found| (found.place, found.word)).collect();
        Self { kernel, ..Self::default() }
    }

    /// A place comes into use. A fresh one begins as up; another one goes on as it was left.
    pub fn begin(&mut self, place: WordPlace, fresh: bool) {
        if !self.wanted.contains_key(&place) {
            let word = if fresh { HealthWord::UP } else { self.in_kernel(place) };
            self.want(place, word);
        }
    }

    fn in_kernel(&self, place: WordPlace) -> HealthWord {
        self.found(place).unwrap_or(HealthWord::UP)
    }

    /// What the kernel holds there, if it says anything.
    pub fn found(&self, place: WordPlace) -> Option<HealthWord> {
        self.kernel.get(&place).copied().filter(|word| word.raw() != 0)
    }

    /// A verdict, and what share of its weight counts when it is up. Unknown says nothing new.
    pub fn judge(&mut self, place: WordPlace, verdict: ClusterHealth, weight: u16) {
        match verdict {
            ClusterHealth::Unknown => {}
            ClusterHealth::Up => self.want(place, HealthWord::up(weight)),
            ClusterHealth::Down => self.want(place, HealthWord::DOWN),
        }
    }

    /// Other places are out of use; their words stay as they are until a place begins anew.
    pub fn retain(&mut self, in_use: impl Fn(&WordPlace) -> bool) {
        self.wanted.retain(|place, _| in_use(place));
        self.pending.retain(|write| in_use(&write.place));
        self.failed.retain(|place| in_use(place));
    }

    fn want(&mut self, place: WordPlace, word: HealthWord) {
        self.wanted.insert(place, word);
        self.pending.retain(|write| write.place != place);
        if self.in_kernel(place) != word || self.failed.contains(&place) {
            self.pending.push_back(WordWrite { place, word });
        }
    }

    /// The next write. It counts as done unless [`HealthWords::failed`] says otherwise.
    pub fn poll(&mut self) -> Option<WordWrite> {
        let write = self.pending.pop_front()?;
        self.failed.remove(&write.place);
        self.kernel.insert(write.place, write.word);
        match write.place {
            WordPlace::Cluster(_) => self.counts.clusters += 1,
            WordPlace::Node(_) => self.counts.nodes += 1,
        }
        Some(write)
    }

    /// The write did not succeed; [`HealthWords::retry`] brings it again.
    pub fn failed(&mut self, write: WordWrite) {
        self.failed.insert(write.place);
    }

    pub fn retry(&mut self) {
        for place in self.failed.clone() {
            match self.wanted.get(&place).copied() {
                Some(word) => self.want(place, word),
                None => drop(self.failed.remove(&place)),
            }
        }
    }

    /// What the datapath goes by; an unused place counts as up.
    pub fn word(&self, place: WordPlace) -> HealthWord {
        self.wanted.get(&place).copied().unwrap_or(HealthWord::UP)
    }

    pub fn counts(&self) -> WordCounts {
        self.counts
    }
}
