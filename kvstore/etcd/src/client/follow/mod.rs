//! Following ranges of a keyspace: a list at one revision, then every change after it, through any interruption.

mod backoff;
mod checks;
mod diff;
mod machine;
mod merge;
mod meter;
mod shell;
#[cfg(test)]
mod tests;
mod valve;

use std::time::{Duration, Instant};

use bytes::Bytes;
use hawser_kvstore::{KeyRange, Revision};

use crate::pb::KeyValue;

pub use meter::Meter;
pub use shell::Follow;
pub use valve::{HeldBy, IntakeRate};

/// What to follow, and how.
#[derive(Clone, Debug)]
pub struct FollowConfig {
    /// Disjoint. [`FollowEvent`]s name a range by its place here.
    pub ranges: Vec<KeyRange>,
    /// Where to go on; without it, a list comes first.
    pub start: Option<Resume>,
    pub order: Order,
    pub relist: Relist,
    /// The server answers a progress request only after everything up to the revision it names. True of Hawser's
    /// server and of etcd >= 3.4.25 and 3.5.8; before those an answer may overtake events (etcd#15220), so that
    /// only events move the position, and an answer only proves that the server is there.
    pub trust_progress: bool,
    /// Keys per list page.
    pub page: i64,
    /// Events the caller may be behind before the server is made to wait (HTTP/2 flow control).
    pub buffer: usize,
    /// How fast is read; without it, as fast as the caller takes events.
    pub rate: Option<Meter>,
    pub pace: Pace,
}

impl FollowConfig {
    pub fn new(ranges: Vec<KeyRange>) -> Self {
        Self {
            ranges,
            start: None,
            order: Order::PerRange,
            relist: Relist::Diff,
            trust_progress: false,
            page: 512,
            buffer: 1024,
            rate: None,
            pace: Pace::default(),
        }
    }
}

/// Which order events come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By revision within a range; ranges do not wait for each other.
    PerRange,
    /// By revision over all ranges; one revision is never split. With more than one range each change waits for
    /// the server's word that all ranges have come as far, and `trust_progress` is needed. Hawser's server says it
    /// unasked, right behind the events; another one is asked, which costs a round trip.
    Total,
}

/// What a list after the first one gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relist {
    /// Only differences to what was given before. Cost: each key and a revision are kept.
    Diff,
    /// Everything, between [`FollowEvent::Reset`] and the last [`FollowEvent::Listed`]; the caller knows what it had.
    Whole,
}

/// A place in the history of one lineage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    pub cluster_id: u64,
    /// Everything up to here is known.
    pub revision: Revision,
    /// With [`Relist::Diff`]: the keys that exist there with their mod revisions, so that a list can say what went.
    pub known: Vec<(Bytes, Revision)>,
}

/// Times of a follower.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Nothing heard for so long: ask for progress.
    pub ask_after: Duration,
    /// Nothing heard for so long: the connection is given up and made anew.
    pub silent_after: Duration,
    /// A server of our lineage may be behind us for so long (a lagging mirror) before we take its older state.
    pub behind_grace: Duration,
    /// The first wait after a failure; each further one is twice as long, with up to half of it left to chance.
    pub retry_first: Duration,
    pub retry_most: Duration,
    /// For the jitter.
    pub seed: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            ask_after: Duration::from_secs(5),
            silent_after: Duration::from_secs(15),
            behind_grace: Duration::from_secs(5),
            retry_first: Duration::from_millis(100),
            retry_most: Duration::from_secs(5),
            seed: rand::random(),
        }
    }
}

/// What a follower tells.
#[derive(Clone, Debug, PartialEq)]
pub enum FollowEvent {
    /// A list begins. With [`Relist::Whole`] what was given before is void once the list is complete.
    Reset {
        reason: ResetReason,
        cluster_id: u64,
    },
    Put {
        range: usize,
        kv: KeyValue,
    },
    Delete {
        range: usize,
        key: Bytes,
        mod_revision: Revision,
    },
    /// A range's list is complete, as of `revision`. The last range's completes the list.
    Listed {
        range: usize,
        revision: Revision,
    },
    /// Everything up to `revision` in all ranges was given. Also says: the server was there just now.
    Progress {
        revision: Revision,
    },
    /// The server cannot be read for now; it is tried again, and nothing is forgotten meanwhile.
    Interrupted {
        reason: String,
    },
}

/// Why a list is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResetReason {
    Start,
    /// What was missed is compacted at the server.
    Compacted,
    /// Another lineage: a new store, or another server's own.
    LineageChanged {
        from: u64,
    },
    /// The server's state is older than what it once told us.
    Behind {
        had: Revision,
        has: Revision,
    },
    /// More was pending between ranges than is kept ([`Order::Total`]).
    Overflow,
}

/// Where a follower stands; readable at any time beside the events.
#[derive(Clone, Debug, PartialEq)]
pub struct FollowStatus {
    pub state: FollowState,
    pub cluster_id: Option<u64>,
    /// Everything up to here was given.
    pub revision: Revision,
    /// When the server was last heard.
    pub heard_at: Option<Instant>,
    pub relists: u64,
    pub reconnects: u64,
    pub last_trouble: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FollowState {
    /// No answer yet, or none since the last interruption.
    Connecting,
    Listing,
    Following,
}

/// Why a follower cannot be begun.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FollowConfigError {
    #[error("there is nothing to follow: give at least one range")]
    NoRanges,
    #[error("the ranges {first:?} and {second:?} share keys: give disjoint ones")]
    Overlap { first: KeyRange, second: KeyRange },
    #[error(
        "a total order over {ranges} ranges needs a server whose progress answers can be trusted: \
         set trust_progress if it is one, or follow one range that covers them"
    )]
    Untrusted { ranges: usize },
}
