//! One kind of object followed by list and watch, as a state machine: what to ask next, what an answer means, and when to
//! ask again after one that was none. No IO, no clock.
//!
//! An object goes only because the API server said so: a DELETED event, or its absence from a list that was read to its
//! end. It goes on from the last version it was told, and lists anew when that version is compacted away (410).

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::object;
use crate::{Kind, Object, ObjectRef, Problem, SourceEvent};

/// Objects in one answer to a list.
const PAGE: u32 = 500;
/// A list whose continue tokens expire this often before its end is asked for whole.
const EXPIRED_PAGES: u32 = 2;
/// A watch that fails this often without a word in between is not tried again from there: a list.
const DEAF: u32 = 3;
/// A failure is told when it lasts; a stream that ends or one lost answer is how things are.
const TOLD_AFTER: u32 = 3;
/// The longest that a server can make us wait.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// How long to wait after a failure: doubled from the first to the most, of which between half and all is waited.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub first: Duration,
    pub most: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { first: Duration::from_millis(200), most: Duration::from_secs(30) }
    }
}

/// Why an answer was none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the version that was asked for is compacted away")]
    Expired,
    #[error("{code} {reason}: {message}")]
    Refused { code: u16, reason: String, message: String, retry_after: Option<u64> },
    #[error("the answer cannot be read: {0}")]
    Malformed(String),
    #[error("{0}")]
    Unreachable(String),
    /// The server ends every watch after some minutes.
    #[error("the watch ended")]
    Ended,
}

/// An object of a list or a watch; the reason when it cannot be read.
#[derive(Debug)]
pub(crate) struct Listed {
    pub name: Box<str>,
    pub object: Result<Object, String>,
}

/// The end of one answer to a list.
#[derive(Debug)]
pub(crate) struct Page {
    pub version: String,
    /// The token to go on with.
    pub more: Option<String>,
}

#[derive(Debug)]
pub(crate) enum Event {
    Is { listed: Listed, version: String },
    Gone { name: Box<str>, version: String },
    Bookmark { version: String },
}

/// What to ask next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// From the newest state, or on with a token; all at once without a limit.
    List {
        limit: Option<u32>,
        token: Option<String>,
    },
    Watch {
        version: String,
    },
}

#[derive(Debug, PartialEq)]
pub(crate) enum Output {
    Say(SourceEvent),
    /// The first list is complete.
    Listed,
}

#[derive(Debug)]
struct Known {
    /// The list that it was last seen in.
    list: u32,
    /// It was told.
    told: bool,
    /// It is there and cannot be read.
    unreadable: bool,
}

/// One kind, followed.
#[derive(Debug)]
pub(crate) struct Follow {
    kind: Kind,
    /// What a person knows it by: the path.
    what: &'static str,
    pace: Pace,
    next: Ask,
    list: u32,
    known: HashMap<Box<str>, Known>,
    listed: bool,
    failures: u32,
    expired_pages: u32,
    deaf: u32,
    not_before: Option<Instant>,
    problem: Option<Problem>,
    outputs: VecDeque<Output>,
    shared: object::Known,
}

impl Follow {
    pub(crate) fn new(kind: Kind, what: &'static str, pace: Pace) -> Self {
        Self {
            kind,
            what,
            pace,
            next: Ask::List { limit: Some(PAGE), token: None },
            list: 1,
            known: HashMap::new(),
            listed: false,
            failures: 0,
            expired_pages: 0,
            deaf: 0,
            not_before: None,
            problem: None,
            outputs: VecDeque::new(),
            shared: object::Known::default(),
        }
    }

    pub(crate) fn ask(&self) -> &Ask {
        &self.next
    }

    /// When to ask; none: now.
    pub(crate) fn poll_deadline(&self) -> Option<Instant> {
        self.not_before
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// An item of a list that is not at its end yet: what is there is there, whatever comes of the rest.
    pub(crate) fn handle_item(&mut self, listed: Listed) {
        self.see(listed);
    }

    /// The end of an answer to a list. Cost: at the end of the whole list, all that is known.
    pub(crate) fn handle_page(&mut self, page: Page) {
        self.heal();
        if let Some(token) = page.more {
            let limit = Some(PAGE);
            self.next = Ask::List { limit, token: Some(token) };
            return;
        }
        let list = self.list;
        let gone: Vec<_> =
            self.known.iter().filter(|(_, known)| known.list != list).map(|(name, _)| name.clone()).collect();
        for name in gone {
            self.remove(&name);
        }
        self.expired_pages = 0;
        self.next = Ask::Watch { version: page.version };
        if !self.listed {
            self.listed = true;
            self.outputs.push_back(Output::Listed);
        }
    }

    pub(crate) fn handle_event(&mut self, event: Event) {
        let version = match event {
            Event::Is { listed, version } => {
                self.see(listed);
                version
            }
            Event::Gone { name, version } => {
                self.remove(&name);
                version
            }
            Event::Bookmark { version } => version,
        };
        self.next = Ask::Watch { version };
        self.deaf = 0;
        self.heal();
    }

    /// A watch that is open and silent, as it is while nothing changes.
    pub(crate) fn handle_silence(&mut self) {
        self.deaf = 0;
        self.heal();
    }

    /// `jitter` is random, all 32 bits of it.
    pub(crate) fn handle_failure(&mut self, failure: Failure, now: Instant, jitter: u32) {
        self.failures = self.failures.saturating_add(1);
        let watching = matches!(self.next, Ask::Watch { .. });
        match &failure {
            Failure::Expired => self.list_anew(!watching),
            // The server's ordinary end: at once from where it was, unless it does nothing else.
            Failure::Ended if self.failures == 1 => {
                self.not_before = None;
                return;
            }
            _ if watching => {
                self.deaf += 1;
                if self.deaf >= DEAF {
                    self.list_anew(false);
                }
            }
            // Within a list: the same page again.
            _ => self.list += u32::from(matches!(self.next, Ask::List { token: None, .. })),
        }
        self.not_before = Some(now + self.wait(&failure, jitter));
        let lasting = matches!(failure, Failure::Refused { code: 401 | 403 | 404 | 406, .. });
        let ordinary = matches!(failure, Failure::Expired | Failure::Ended);
        if !ordinary && (lasting || self.failures >= TOLD_AFTER) {
            self.tell(&failure);
        }
    }

    fn list_anew(&mut self, page_expired: bool) {
        self.expired_pages += u32::from(page_expired);
        self.deaf = 0;
        // What was seen so far counts for nothing: the new list is another one.
        self.list += 1;
        let limit = (self.expired_pages < EXPIRED_PAGES).then_some(PAGE);
        self.next = Ask::List { limit, token: None };
    }

    fn wait(&self, failure: &Failure, jitter: u32) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(16);
        let most = (self.pace.first * (1 << doublings)).min(self.pace.most);
        let own = most / 2 + most.mul_f64(f64::from(jitter) / f64::from(u32::MAX) / 2.0);
        let told = match failure {
            Failure::Refused { retry_after: Some(seconds), .. } => Duration::from_secs(*seconds),
            _ => Duration::ZERO,
        };
        own.max(told.min(MAX_RETRY_AFTER))
    }

    fn see(&mut self, Listed { name, object }: Listed) {
        let entry =
            self.known.entry(name.clone()).or_insert(Known { list: 0, told: false, unreadable: false });
        entry.list = self.list;
        let was_unreadable = std::mem::replace(&mut entry.unreadable, object.is_err());
        match object {
            Ok(mut object) => {
                object.share(&mut self.shared);
                entry.told = true;
                self.outputs.push_back(Output::Say(SourceEvent::Upsert(object)));
                if was_unreadable {
                    self.outputs.push_back(Output::Say(SourceEvent::Healed { file: self.title(&name) }));
                }
            }
            Err(reason) => {
                let kept = if entry.told { "; its last good state stays" } else { "" };
                let problem = Problem {
                    file: self.title(&name),
                    line: 0,
                    reason: format!("{reason}{kept}"),
                    // One tenant's odd object must not hold up what everybody else deletes.
                    blind: false,
                };
                self.outputs.push_back(Output::Say(SourceEvent::Problem(problem)));
            }
        }
    }

    fn remove(&mut self, name: &str) {
        let Some(known) = self.known.remove(name) else { return };
        if known.told {
            let (namespace, name) = name.split_once('/').unwrap_or(("", name));
            let reference = ObjectRef { kind: self.kind, namespace: namespace.into(), name: name.into() };
            self.outputs.push_back(Output::Say(SourceEvent::Remove(reference)));
        }
        if known.unreadable {
            self.outputs.push_back(Output::Say(SourceEvent::Healed { file: self.title(name) }));
        }
    }

    fn title(&self, name: &str) -> String {
        format!("kubernetes {:?} {name}", self.kind)
    }

    fn tell(&mut self, failure: &Failure) {
        let fix = match failure {
            Failure::Refused { code: 401, .. } => "; fix: see that the credentials are this cluster's",
            Failure::Refused { code: 403, .. } => {
                "; fix: allow list and watch on it, as docs/src/reference/kubernetes.md lists"
            }
            _ => "",
        };
        let what = if self.listed { "; what was read stays" } else { "" };
        let problem = Problem {
            file: format!("kubernetes {}", self.what),
            line: 0,
            reason: format!("{failure}{what}{fix}"),
            blind: !self.listed,
        };
        if self.problem.as_ref() != Some(&problem) {
            self.problem = Some(problem.clone());
            self.outputs.push_back(Output::Say(SourceEvent::Problem(problem)));
        }
    }

    /// The server spoke.
    fn heal(&mut self) {
        (self.failures, self.not_before) = (0, None);
        if let Some(problem) = self.problem.take() {
            self.outputs.push_back(Output::Say(SourceEvent::Healed { file: problem.file }));
        }
    }
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
