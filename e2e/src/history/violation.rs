//! What can be wrong with a run, each in a sentence.

use std::fmt;
use std::time::Duration;

use super::record::{Change, Revision};

/// What is wrong. Every one is a defect of the system or of the recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A change that the watcher had to see, and did not.
    Lost {
        watcher: String,
        revision: Revision,
        change: Change,
    },
    Doubled {
        watcher: String,
        revision: Revision,
        change: Change,
        at: Duration,
    },
    /// An event below one that was seen before it.
    Reordered {
        watcher: String,
        revision: Revision,
        after: Revision,
        change: Change,
        at: Duration,
    },
    /// "Everything up to `progress` was delivered" came before the event.
    Overtaken {
        watcher: String,
        revision: Revision,
        progress: Revision,
        change: Change,
        at: Duration,
    },
    /// Nobody wrote that, or not there.
    Invented {
        place: String,
        revision: Revision,
        change: Change,
        why: String,
    },
    /// The key's version says that a change before it is missing, or that one is there that nobody saw.
    Version {
        watcher: String,
        revision: Revision,
        key: String,
        has: i64,
        due: i64,
    },
    /// A list where the watcher could have gone on.
    Relisted {
        watcher: String,
        reason: String,
        at: Duration,
    },
    /// A list or read that is not what the writes up to its revision give.
    State {
        place: String,
        revision: Revision,
        key: String,
        has: Option<String>,
        due: Option<String>,
    },
    /// Two writes were acknowledged with one revision.
    SameRevision {
        revision: Revision,
        first: String,
        second: String,
    },
    /// A write that began after another had ended has an older revision.
    BackInTime {
        earlier: Revision,
        later: Revision,
        writer: String,
        at: Duration,
    },
}

impl Violation {
    /// The revision it is about.
    pub fn revision(&self) -> Option<Revision> {
        match self {
            Self::Lost { revision, .. }
            | Self::Doubled { revision, .. }
            | Self::Reordered { revision, .. }
            | Self::Overtaken { revision, .. }
            | Self::Invented { revision, .. }
            | Self::Version { revision, .. }
            | Self::State { revision, .. }
            | Self::SameRevision { revision, .. } => Some(*revision),
            Self::BackInTime { later, .. } => Some(*later),
            Self::Relisted { .. } => None,
        }
    }

    pub fn watcher(&self) -> Option<&str> {
        match self {
            Self::Lost { watcher, .. }
            | Self::Doubled { watcher, .. }
            | Self::Reordered { watcher, .. }
            | Self::Overtaken { watcher, .. }
            | Self::Version { watcher, .. }
            | Self::Relisted { watcher, .. } => Some(watcher),
            Self::Invented { place, .. } | Self::State { place, .. } => Some(place),
            Self::SameRevision { .. } | Self::BackInTime { .. } => None,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{} = {value}", self.key),
            None => write!(f, "delete {}", self.key),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_absent = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
        match self {
            Self::Lost { watcher, revision, change } => {
                write!(f, "lost: {watcher} never saw revision {revision}: {change}")
            }
            Self::Doubled { watcher, revision, change, at } => {
                write!(f, "doubled: {watcher} saw revision {revision} again at {at:.3?}: {change}")
            }
            Self::Reordered { watcher, revision, after, change, at } => {
                write!(f, "reordered: {watcher} saw revision {revision} after {after} at {at:.3?}: {change}")
            }
            Self::Overtaken { watcher, revision, progress, change, at } => write!(
                f,
                "overtaken: {watcher} was told that all up to {progress} was delivered, and then, at {at:.3?}, \
                 revision {revision}: {change}"
            ),
            Self::Invented { place, revision, change, why } => {
                write!(f, "invented: {place} was told revision {revision}: {change}, but {why}")
            }
            Self::Version { watcher, revision, key, has, due } => {
                write!(
                    f,
                    "version: {watcher} saw version {has} of {key} at revision {revision}, due is {due}"
                )
            }
            Self::Relisted { watcher, reason, at } => {
                write!(f, "relisted: {watcher} had to list at {at:.3?} where it could have resumed: {reason}")
            }
            Self::State { place, revision, key, has, due } => write!(
                f,
                "state: {place} at revision {revision} holds of {key}: {}; due is: {}",
                or_absent(has),
                or_absent(due)
            ),
            Self::SameRevision { revision, first, second } => {
                write!(f, "same revision: {first} and {second} were both acknowledged with {revision}")
            }
            Self::BackInTime { earlier, later, writer, at } => write!(
                f,
                "back in time: {writer} began at {at:.3?}, after revision {earlier} was acknowledged, and got {later}"
            ),
        }
    }
}
