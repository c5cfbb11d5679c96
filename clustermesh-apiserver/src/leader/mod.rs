//! One replica exports: the one whose key stands at [`LEADER`], under a lease, in the store that all replicas share.
//!
//! With the embedded store there is one replica, which leads from the start. `election` decides; this asks the store.

mod election;

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use hawser_etcd::server::WriteError;
use hawser_kvstore::{LeaseId, OpError, Revision};
use hawser_model::{Time, Timestamp};
use hawser_wire::prefix;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::own::Own;
use election::{Election, Output, TTL};

/// Whose term it is, and since when, in the leader's own words; under its lease.
pub const LEADER: &str = prefix::PRIVATE_LEADER;

/// How long a replica that is told to stop tries to make room for another.
const RESIGN_WITHIN: Duration = Duration::from_secs(2);
/// How long the store's history is kept for watches that come back: what a watch may be away without a list.
const HISTORY: Duration = Duration::from_secs(3600);
/// How often the store is told what of it can go.
const COMPACT: Duration = Duration::from_secs(300);

/// A time of leading: what a write of the leader compares, so that the store refuses it once another one leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Term {
    /// No other replica can be: the store is this process's.
    Alone,
    /// The revision at which the key was created.
    Since(Revision),
}

#[derive(Serialize, Deserialize)]
struct Record {
    replica: String,
    /// RFC 3339.
    since: String,
}

/// Who leads, and since when; none between two terms.
pub fn read(own: &Own) -> Option<(String, Option<Timestamp>)> {
    let record: Record = serde_json::from_slice(&own.get(LEADER)?.value).ok()?;
    Some((record.replica, Timestamp::parse(&record.since).ok()))
}

/// Told to whoever works only while this replica leads.
pub type Leading = watch::Receiver<Option<Term>>;

/// A process that owns its store.
pub fn alone() -> Leading {
    watch::channel(Some(Term::Alone)).1
}

#[derive(Debug)]
pub struct Leader {
    own: Own,
    /// What others are told: this replica's name.
    name: String,
    election: Election,
    lease: Option<LeaseId>,
    term: watch::Sender<Option<Term>>,
    history: VecDeque<(Instant, Revision)>,
    started: Instant,
}

impl Leader {
    pub fn new(own: Own, name: String) -> Self {
        let election = Election::new(Time::ZERO);
        let term = watch::Sender::new(None);
        Self { own, name, election, lease: None, term, history: VecDeque::new(), started: Instant::now() }
    }

    pub fn leading(&self) -> Leading {
        self.term.subscribe()
    }

    fn now(&self) -> Time {
        Time::from_duration(self.started.elapsed())
    }

    pub async fn run(mut self, stop: CancellationToken) {
        let mut changes = self.own.subscribe();
        let mut compact = tokio::time::interval(COMPACT);
        loop {
            changes.mark_unchanged();
            self.look();
            if let Some(output) = self.election.poll_output(self.now()) {
                match output {
                    Output::Campaign => self.campaign().await,
                    Output::Keep => self.keep().await,
                }
                self.tell();
                continue;
            }
            let wait = self.election.poll_deadline().map_or(TTL, |due| due.since(self.now()));
            tokio::select! {
                () = stop.cancelled() => return self.resign().await,
                () = tokio::time::sleep(wait) => {}
                // The keyspace lives as long as the server.
                _ = changes.changed() => {}
                _ = compact.tick(), if self.term.borrow().is_some() => self.compact().await,
            }
        }
    }

    /// What our readers see, and what the clock says.
    fn look(&mut self) {
        let created = self.own.get(LEADER).map(|kv| kv.create_revision);
        let now = self.now();
        self.election.handle_seen(created, now);
        self.election.handle_time(now);
        self.tell();
    }

    fn tell(&self) {
        let term = self.election.term().map(Term::Since);
        self.term.send_if_modified(|told| {
            if *told == term {
                return false;
            }
            match term {
                Some(_) => tracing::info!(replica = self.name, "this replica leads: it exports"),
                None => tracing::warn!(replica = self.name, "this replica leads no more"),
            }
            *told = term;
            true
        });
    }

    async fn campaign(&mut self) {
        let asked = self.now();
        match self.try_to_win().await {
            Ok(Some(term)) => self.election.handle_won(term, asked),
            Ok(None) => self.election.handle_not_won(self.now()),
            Err(error) => {
                tracing::debug!(%error, "no attempt to lead could be made");
                self.election.handle_not_won(self.now());
            }
        }
    }

    async fn try_to_win(&mut self) -> Result<Option<Revision>, WriteError> {
        let lease = rand::random_range(1..=LeaseId::MAX);
        self.own.grant_lease(lease, TTL.as_secs() as i64).await?;
        let since = Timestamp::from_system(SystemTime::now()).to_string();
        let record = Record { replica: self.name.clone(), since };
        let record = serde_json::to_vec(&record).expect("a struct of strings always prints");
        let won = self.own.create_leased(LEADER, record, lease).await?;
        match won {
            Some(_) => self.lease = Some(lease),
            None => self.own.revoke_lease(lease).await?,
        }
        Ok(won)
    }

    /// A request that outlasts the term must not prolong it.
    async fn keep(&mut self) {
        let (Some(lease), Some(until)) = (self.lease, self.election.until()) else { return };
        let asked = self.now();
        let kept = tokio::time::timeout(until.since(asked), self.own.keep_lease(lease)).await;
        let now = self.now();
        match kept {
            Ok(Ok(())) => self.election.handle_kept(asked),
            Ok(Err(WriteError::Refused(OpError::LeaseNotFound { .. }))) => self.election.handle_lost(now),
            Ok(Err(_)) | Err(_) => self.election.handle_not_kept(now),
        }
        self.election.handle_time(now);
    }

    /// The next one need not wait for the lease to run out.
    async fn resign(self) {
        let Some(lease) = self.lease.filter(|_| self.election.term().is_some()) else { return };
        self.term.send_replace(None);
        // Who cannot be told finds out by the lease.
        let _ = tokio::time::timeout(RESIGN_WITHIN, self.own.revoke_lease(lease)).await;
    }

    /// What is older than [`HISTORY`] goes. A real etcd keeps every revision until somebody says so.
    async fn compact(&mut self) {
        let now = Instant::now();
        self.history.push_back((now, self.own.revision()));
        let mut old = None;
        while self.history.front().is_some_and(|(at, _)| now.duration_since(*at) >= HISTORY) {
            old = self.history.pop_front();
        }
        if let Some((_, revision)) = old
            && let Err(error) = self.own.compact(revision).await
        {
            tracing::debug!(%error, revision, "the store's history was not compacted");
        }
    }
}
