//! What one run wrote down: writes with what became of them, and what every watcher was told, in its order.

use std::collections::BTreeMap;
use std::time::Duration;

pub type Revision = i64;

/// One key set to a value, or deleted. No two puts of a run have the same value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    pub key: String,
    pub value: Option<String>,
}

impl Change {
    pub fn put(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self { key: key.into(), value: Some(value.into()) }
    }

    pub fn delete(key: impl Into<String>) -> Self {
        Self { key: key.into(), value: None }
    }
}

/// What its writer knows of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Acked(Revision),
    /// Acknowledged, and nothing was there to change.
    AckedWithoutChange,
    /// Refused for what it is: it must never appear.
    Refused(String),
    /// No answer, or one that leaves it open: it may appear once, at any time, or never.
    Unknown(String),
}

/// One request of a writer; its changes share a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub writer: String,
    pub changes: Vec<Change>,
    /// Since the run began, as everything here.
    pub began: Duration,
    pub ended: Duration,
    pub outcome: Outcome,
}

/// Keys with their values and mod revisions, at one revision.
pub type State = BTreeMap<String, (String, Revision)>;

/// What a watcher was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Event {
        revision: Revision,
        change: Change,
        /// Of the key since it was last created; 0 when it is deleted.
        version: i64,
    },
    /// "Everything up to here was delivered."
    Progress(Revision),
    /// A list begins: events may have been passed over. `excused` when nobody could have kept them.
    Reset {
        reason: String,
        excused: bool,
    },
    Listed {
        revision: Revision,
        state: State,
    },
    /// No claim is in it; it tells the story.
    Note(String),
}

/// One watcher; the first thing it hears is a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watcher {
    pub name: String,
    pub heard: Vec<(Duration, Heard)>,
}

/// A read of everything at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Final {
    pub place: String,
    pub revision: Revision,
    pub state: State,
}

/// A run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    pub writes: Vec<Write>,
    pub watchers: Vec<Watcher>,
    pub finals: Vec<Final>,
    /// Every watcher was waited for until it had this revision, the last one acknowledged.
    pub until: Revision,
    /// When something was done to the system, and what.
    pub faults: Vec<(Duration, String)>,
}

/// Of a run, for its report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub acked: usize,
    pub unknown: usize,
    pub refused: usize,
    pub events: usize,
    pub lists: usize,
    pub resumes: usize,
}

impl History {
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for write in &self.writes {
            match write.outcome {
                Outcome::Acked(_) | Outcome::AckedWithoutChange => counts.acked += 1,
                Outcome::Unknown(_) => counts.unknown += 1,
                Outcome::Refused(_) => counts.refused += 1,
            }
        }
        for (_, heard) in self.watchers.iter().flat_map(|watcher| &watcher.heard) {
            match heard {
                Heard::Event { .. } => counts.events += 1,
                Heard::Listed { .. } => counts.lists += 1,
                Heard::Note(_) => counts.resumes += 1,
                Heard::Progress(_) | Heard::Reset { .. } => {}
            }
        }
        // The first list of each is how it begins.
        counts.lists = counts.lists.saturating_sub(self.watchers.len());
        counts
    }
}
