//! The checker: a function of a recorded run. Every acknowledged write is seen exactly once and in order by every
//! watcher that asked from before it; an unknown one by all of them or by none; nothing else is seen at all.
//!
//! Cost: O((writes + events) log), and one replay per list and read of everything.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::record::{Change, Heard, History, Outcome, Revision, State, Watcher, Write};
use super::violation::Violation;

/// All violations, the first of each watcher first. Empty: the run holds.
pub fn check(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    order_of_acknowledgements(history, &mut found);
    let timeline = Timeline::of(history, &mut found);
    for watcher in &history.watchers {
        Walk::new(&timeline, watcher).run(history.until, &mut found);
    }
    for last in &history.finals {
        timeline.compare(&last.place, last.revision, &last.state, &mut found);
    }
    found
}

/// Revisions follow real time.
fn order_of_acknowledgements(history: &History, found: &mut Vec<Violation>) {
    let revision = |write: &Write| match write.outcome {
        Outcome::Acked(revision) => Some(revision),
        _ => None,
    };
    let acked: Vec<(&Write, Revision)> =
        history.writes.iter().filter_map(|write| Some((write, revision(write)?))).collect();
    let mut by_end = acked.clone();
    by_end.sort_by_key(|(write, _)| write.ended);
    let mut by_begin = acked;
    by_begin.sort_by_key(|(write, _)| write.began);
    let mut ended = by_end.into_iter().peekable();
    let mut newest = 0;
    for (write, revision) in by_begin {
        while let Some((_, earlier)) = ended.next_if(|(earlier, _)| earlier.ended < write.began) {
            newest = newest.max(earlier);
        }
        if revision <= newest {
            let (writer, at) = (write.writer.clone(), write.began);
            found.push(Violation::BackInTime { earlier: newest, later: revision, writer, at });
        }
    }
}

/// What happened: changes by revision and key, acknowledged ones and unknown ones that somebody saw.
struct Timeline {
    changes: BTreeMap<(Revision, String), Option<String>>,
    versions: BTreeMap<(Revision, String), i64>,
}

/// Unknown writes that nobody has seen yet, and the claims of all others.
struct Claims<'a> {
    history: &'a History,
    by_value: HashMap<&'a str, usize>,
    deletes: BTreeMap<&'a str, Vec<usize>>,
    placed: BTreeMap<usize, Revision>,
}

impl Timeline {
    fn of(history: &History, found: &mut Vec<Violation>) -> Self {
        let mut claims = Claims::of(history);
        let mut changes = BTreeMap::new();
        let mut owner: BTreeMap<Revision, usize> = BTreeMap::new();
        for (index, write) in history.writes.iter().enumerate() {
            let Outcome::Acked(revision) = write.outcome else { continue };
            if let Some(first) = owner.insert(revision, index) {
                let (first, second) = (history.writes[first].writer.clone(), write.writer.clone());
                found.push(Violation::SameRevision { revision, first, second });
            }
            claims.placed.insert(index, revision);
            place(&mut changes, write, revision);
        }
        // In the order of revisions, so that of two unknown deletes of a key the earlier one is placed first.
        for ((revision, change), (at, places)) in sightings(history) {
            if changes.get(&(revision, change.key.clone())) == Some(&change.value) {
                continue;
            }
            match claims.whose(&change, revision, at) {
                Ok(index) => place(&mut changes, &history.writes[index], revision),
                Err(why) => {
                    let invented = |place| Violation::Invented {
                        place,
                        revision,
                        change: change.clone(),
                        why: why.clone(),
                    };
                    found.extend(places.into_iter().map(invented));
                }
            }
        }
        let versions = versions(&changes);
        Self { changes, versions }
    }

    fn compare(&self, place: &str, revision: Revision, state: &State, found: &mut Vec<Violation>) {
        let mut due: BTreeMap<&str, (&str, Revision)> = BTreeMap::new();
        for ((at, key), value) in self.changes.range(..(revision + 1, String::new())) {
            match value {
                Some(value) => due.insert(key, (value, *at)),
                None => due.remove(key.as_str()),
            };
        }
        let keys: BTreeSet<&str> = due.keys().copied().chain(state.keys().map(String::as_str)).collect();
        for key in keys {
            let due = due.get(key).map(|(value, at)| format!("{value} of revision {at}"));
            let has = state.get(key).map(|(value, at)| format!("{value} of revision {at}"));
            if due != has {
                let (place, key) = (place.to_owned(), key.to_owned());
                found.push(Violation::State { place, revision, key, has, due });
            }
        }
    }
}

fn place(changes: &mut BTreeMap<(Revision, String), Option<String>>, write: &Write, revision: Revision) {
    for change in &write.changes {
        changes.insert((revision, change.key.clone()), change.value.clone());
    }
}

fn versions(changes: &BTreeMap<(Revision, String), Option<String>>) -> BTreeMap<(Revision, String), i64> {
    let mut now: HashMap<&str, i64> = HashMap::new();
    let mut versions = BTreeMap::new();
    for ((revision, key), value) in changes {
        let version = now.entry(key).or_default();
        *version = if value.is_some() { *version + 1 } else { 0 };
        versions.insert((*revision, key.clone()), *version);
    }
    versions
}

type Sightings = BTreeMap<(Revision, Change), (Duration, BTreeSet<String>)>;

/// Everything that anybody was told of a key, with when it was first told and to whom.
fn sightings(history: &History) -> Sightings {
    let mut seen = Sightings::new();
    let mut note = |revision, change: Change, at, place: &str| {
        let (first, places) = seen.entry((revision, change)).or_insert((at, BTreeSet::new()));
        *first = (*first).min(at);
        places.insert(place.to_owned());
    };
    for watcher in &history.watchers {
        for (at, heard) in &watcher.heard {
            match heard {
                Heard::Event { revision, change, .. } => note(*revision, change.clone(), *at, &watcher.name),
                Heard::Listed { state, .. } => state.iter().for_each(|(key, (value, revision))| {
                    note(*revision, Change::put(key, value), *at, &watcher.name);
                }),
                Heard::Progress(_) | Heard::Reset { .. } | Heard::Note(_) => {}
            }
        }
    }
    for last in &history.finals {
        for (key, (value, revision)) in &last.state {
            note(*revision, Change::put(key, value), Duration::MAX, &last.place);
        }
    }
    seen
}

impl<'a> Claims<'a> {
    fn of(history: &'a History) -> Self {
        let (mut by_value, mut deletes) = (HashMap::new(), BTreeMap::<_, Vec<_>>::new());
        for (index, write) in history.writes.iter().enumerate() {
            for change in &write.changes {
                match &change.value {
                    Some(value) => _ = by_value.insert(value.as_str(), index),
                    None if matches!(write.outcome, Outcome::Unknown(_)) => {
                        deletes.entry(change.key.as_str()).or_default().push(index);
                    }
                    None => {}
                }
            }
        }
        Self { history, by_value, deletes, placed: BTreeMap::new() }
    }

    /// The unknown write that this is, from now on; or why it is none.
    fn whose(&mut self, change: &Change, revision: Revision, at: Duration) -> Result<usize, String> {
        let index = match &change.value {
            Some(value) => self.by_value.get(value.as_str()).copied().ok_or("nobody wrote this value")?,
            None => {
                let free = |index: &&usize| {
                    !self.placed.contains_key(index) && self.history.writes[**index].began <= at
                };
                let candidates = self.deletes.get(change.key.as_str());
                *candidates.and_then(|all| all.iter().find(free)).ok_or("nobody deleted it there")?
            }
        };
        let write = &self.history.writes[index];
        if !write.changes.contains(change) {
            return Err(format!("{} wrote this value to another key", write.writer));
        }
        match (&write.outcome, self.placed.get(&index)) {
            (Outcome::Refused(why), _) => Err(format!("the write was refused: {why}")),
            (_, Some(other)) => Err(format!("{}'s write is at revision {other}", write.writer)),
            (Outcome::Unknown(_), None) => {
                self.placed.insert(index, revision);
                Ok(index)
            }
            (Outcome::Acked(_) | Outcome::AckedWithoutChange, None) => {
                Err(format!("{}'s write was answered as no change", write.writer))
            }
        }
    }
}

/// One watcher's way through its events.
struct Walk<'a> {
    timeline: &'a Timeline,
    watcher: &'a Watcher,
    /// The list it goes on from: what is not above it need not be seen.
    base: Revision,
    seen: BTreeSet<(Revision, String)>,
    last: Revision,
    progress: Revision,
}

impl<'a> Walk<'a> {
    fn new(timeline: &'a Timeline, watcher: &'a Watcher) -> Self {
        Self { timeline, watcher, base: 0, seen: BTreeSet::new(), last: 0, progress: 0 }
    }

    fn run(mut self, until: Revision, found: &mut Vec<Violation>) {
        let name = || self.watcher.name.clone();
        let mut begun = false;
        for (at, heard) in &self.watcher.heard {
            match heard {
                Heard::Event { revision, change, version } => {
                    self.event(*revision, change, *version, *at, found);
                }
                Heard::Progress(revision) => self.progress = self.progress.max(*revision),
                Heard::Reset { reason, excused } if begun && !excused => {
                    found.push(Violation::Relisted { watcher: name(), reason: reason.clone(), at: *at });
                }
                Heard::Reset { .. } | Heard::Note(_) => {}
                Heard::Listed { revision, state } => {
                    // A revision may have been cut in two by what made it list; those before it may not.
                    self.lost(self.progress.max(self.last - 1), found);
                    self.timeline.compare(&name(), *revision, state, found);
                    (self.base, self.last, self.progress) = (*revision, *revision, *revision);
                    self.seen.clear();
                    begun = true;
                }
            }
        }
        self.lost(until, found);
    }

    fn event(
        &mut self,
        revision: Revision,
        change: &Change,
        version: i64,
        at: Duration,
        found: &mut Vec<Violation>,
    ) {
        let watcher = self.watcher.name.clone();
        let change = change.clone();
        let key = (revision, change.key.clone());
        if !self.seen.insert(key.clone()) {
            return found.push(Violation::Doubled { watcher, revision, change, at });
        }
        if let Some(due) = self.timeline.versions.get(&key).copied().filter(|due| *due != version) {
            let (watcher, key) = (watcher.clone(), change.key.clone());
            found.push(Violation::Version { watcher, revision, key, has: version, due });
        }
        if revision < self.last {
            found.push(Violation::Reordered { watcher, revision, after: self.last, change, at });
        } else if revision <= self.progress {
            let progress = self.progress;
            found.push(Violation::Overtaken { watcher, revision, progress, change, at });
        }
        self.last = self.last.max(revision);
    }

    /// What lies above the list and up to `until`, and was not seen.
    fn lost(&self, until: Revision, found: &mut Vec<Violation>) {
        if until <= self.base {
            return;
        }
        let due = self.timeline.changes.range((self.base + 1, String::new())..(until + 1, String::new()));
        for ((revision, key), value) in due.filter(|(at, _)| !self.seen.contains(*at)) {
            found.push(Violation::Lost {
                watcher: self.watcher.name.clone(),
                revision: *revision,
                change: Change { key: key.clone(), value: value.clone() },
            });
        }
    }
}
