//! What the loop keeps of what its tasks came back with, and how it waits.

use std::collections::BTreeSet;
use std::time::Duration;

use hawser_discovery_net::{Prober, Verdict};
use tokio::sync::mpsc;

use super::{Done, Now};
use crate::reconcile::Outcome;
use crate::sweep::Swept;

impl Now {
    /// What is under way ends, and nothing begins any more.
    pub(super) async fn finish_all(&mut self, finished: &mut mpsc::Receiver<Done>) {
        (self.prober, self.share) = (None, None);
        while self.reconciling || self.sweeping {
            match finished.recv().await {
                Some(Done::Reconciled { .. }) => self.reconciling = false,
                Some(Done::Swept(_)) => self.sweeping = false,
                Some(_) => {}
                None => return,
            }
        }
    }

    pub(super) fn note_swept(&mut self, swept: Swept) {
        self.sweeping = false;
        if swept.ended > 0 || swept.problem.is_some() {
            tracing::info!(
                ended = swept.ended,
                namespaces = swept.namespaces,
                problem = swept.problem,
                "silent connections swept"
            );
        }
        self.swept = Swept { ended: self.swept.ended + swept.ended, ..swept };
    }

    pub(super) fn note(&mut self, outcome: &Outcome) {
        self.reconciled = Some(outcome.complete);
        if let Some(began) = self.reconcile_began.take() {
            self.meters.reconcile.observe(began.elapsed().as_secs_f64());
        }
        if !outcome.complete {
            self.meters.reconcile_failures += 1;
        }
        let told: BTreeSet<String> = outcome.problems.iter().cloned().collect();
        for problem in told.difference(&self.told) {
            tracing::warn!(problem, "reconcile");
        }
        for problem in self.told.difference(&told) {
            tracing::info!(problem, "solved");
        }
        self.told = told;
    }
}

pub(super) async fn next_verdict(probes: &mut Option<(Prober, mpsc::Receiver<Verdict>)>) -> Option<Verdict> {
    match probes {
        Some((_, verdicts)) => verdicts.recv().await,
        None => std::future::pending().await,
    }
}

pub(super) fn soonest(at: Option<tokio::time::Instant>, wait: Duration) -> tokio::time::Instant {
    let then = tokio::time::Instant::now() + wait;
    at.map_or(then, |at| at.min(then))
}

pub(super) async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

pub(super) async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}
