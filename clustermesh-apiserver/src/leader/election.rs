//! Whether this replica leads, as a state machine: a term is won with a lease, kept while the lease is, and over before it.
//!
//! Two replicas never both believe that they lead, as far as clocks run at one speed: a term ends here a margin before
//! its lease can end at the store, counted from when the lease was asked for. Whoever was stopped in the middle of it all
//! (a paused process) is told by the store: each of its writes compares the term's [`Revision`].

use std::time::Duration;

use hawser_kvstore::Revision;
use hawser_model::Time;

/// A leader that is killed is followed after so long.
pub(super) const TTL: Duration = Duration::from_secs(8);
/// Two attempts to keep the lease may fail.
const KEEP: Duration = Duration::from_secs(2);
/// For what lies between a look at the clock and the write that follows.
const MARGIN: Duration = Duration::from_secs(1);
/// Between attempts to win while nobody leads.
const AGAIN: Duration = Duration::from_millis(500);

/// What the shell is to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// Nobody leads, as far as is known: try to write the key, with a new lease.
    Campaign,
    /// Keep the lease.
    Keep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Somebody else has the key.
    Follows,
    /// Nobody has it.
    Vacant {
        next: Time,
    },
    Leads {
        term: Revision,
        keep: Time,
        until: Time,
    },
}

#[derive(Debug)]
pub(super) struct Election(Standing);

impl Election {
    pub(super) fn new(now: Time) -> Self {
        Self(Standing::Vacant { next: now })
    }

    /// The term, as long as it lasts: the revision at which the key was created.
    pub(super) fn term(&self) -> Option<Revision> {
        match self.0 {
            Standing::Leads { term, .. } => Some(term),
            _ => None,
        }
    }

    /// What the store says: the revision at which the key there now was created, if it is there.
    pub(super) fn handle_seen(&mut self, created: Option<Revision>, now: Time) {
        self.0 = match (self.0, created) {
            (Standing::Leads { term, .. }, Some(created)) if created == term => self.0,
            (Standing::Vacant { .. }, None) => self.0,
            (_, Some(_)) => Standing::Follows,
            (_, None) => Standing::Vacant { next: now },
        };
    }

    /// The key is ours since revision `term`, with a lease asked for at `asked`.
    pub(super) fn handle_won(&mut self, term: Revision, asked: Time) {
        self.0 = Standing::Leads { term, keep: asked + KEEP, until: asked + (TTL - MARGIN) };
    }

    /// The attempt did not win, or whether it did is not known.
    pub(super) fn handle_not_won(&mut self, now: Time) {
        if let Standing::Vacant { next } = &mut self.0 {
            *next = now + AGAIN;
        }
    }

    /// The lease was kept, by a request made at `asked`.
    pub(super) fn handle_kept(&mut self, asked: Time) {
        if let Standing::Leads { keep, until, .. } = &mut self.0 {
            (*keep, *until) = (asked + KEEP, asked + (TTL - MARGIN));
        }
    }

    /// The store did not answer; the lease may still live.
    pub(super) fn handle_not_kept(&mut self, now: Time) {
        if let Standing::Leads { keep, .. } = &mut self.0 {
            *keep = now + AGAIN;
        }
    }

    /// The lease is gone.
    pub(super) fn handle_lost(&mut self, now: Time) {
        self.0 = Standing::Vacant { next: now + AGAIN };
    }

    pub(super) fn handle_time(&mut self, now: Time) {
        if let Standing::Leads { until, .. } = self.0
            && until <= now
        {
            self.0 = Standing::Follows;
        }
    }

    pub(super) fn poll_output(&self, now: Time) -> Option<Output> {
        match self.0 {
            Standing::Vacant { next } if next <= now => Some(Output::Campaign),
            Standing::Leads { keep, until, .. } if keep <= now && now < until => Some(Output::Keep),
            _ => None,
        }
    }

    /// When there is something to do without news from the store.
    pub(super) fn poll_deadline(&self) -> Option<Time> {
        match self.0 {
            Standing::Follows => None,
            Standing::Vacant { next } => Some(next),
            Standing::Leads { keep, until, .. } => Some(keep.min(until)),
        }
    }

    /// When the term is over whatever happens to a request that is under way.
    pub(super) fn until(&self) -> Option<Time> {
        match self.0 {
            Standing::Leads { until, .. } => Some(until),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_duration(Duration::from_millis(ms))
    }

    #[test]
    fn a_vacant_place_is_campaigned_for_and_a_taken_one_is_not() {
        let mut election = Election::new(at(0));
        assert_eq!(election.poll_output(at(0)), Some(Output::Campaign));
        election.handle_not_won(at(0));
        assert_eq!(election.poll_output(at(499)), None);
        assert_eq!(election.poll_output(at(500)), Some(Output::Campaign));
        election.handle_seen(Some(7), at(500));
        assert_eq!((election.poll_output(at(9_000)), election.poll_deadline()), (None, None));
        election.handle_seen(None, at(9_000));
        assert_eq!(election.poll_output(at(9_000)), Some(Output::Campaign));
    }

    #[test]
    fn a_term_that_is_kept_goes_on_and_one_that_is_not_ends_before_its_lease() {
        let mut election = Election::new(at(0));
        election.handle_won(7, at(100));
        assert_eq!((election.term(), election.poll_output(at(2_099))), (Some(7), None));
        assert_eq!(election.poll_output(at(2_100)), Some(Output::Keep));
        election.handle_kept(at(2_100));
        election.handle_not_kept(at(4_200));
        assert_eq!(election.poll_output(at(4_700)), Some(Output::Keep));
        // Kept last at 2.1 s, so the lease can end at 10.1 s.
        election.handle_time(at(9_099));
        assert_eq!(election.term(), Some(7));
        election.handle_time(at(9_100));
        assert_eq!(election.term(), None);
        assert_eq!(election.poll_output(at(9_100)), None, "the key is still there, and runs out by itself");
        election.handle_seen(None, at(10_200));
        assert_eq!(election.poll_output(at(10_200)), Some(Output::Campaign));
    }

    #[test]
    fn who_sees_another_ones_key_leads_no_more() {
        let mut election = Election::new(at(0));
        election.handle_won(7, at(0));
        election.handle_seen(Some(7), at(10));
        assert_eq!(election.term(), Some(7));
        election.handle_seen(Some(9), at(20));
        assert_eq!(election.term(), None);
        election.handle_won(11, at(30));
        election.handle_lost(at(40));
        assert_eq!((election.term(), election.poll_output(at(540))), (None, Some(Output::Campaign)));
    }
}
