//! `cilium/.heartbeat`: rewritten every minute, so that readers can tell a quiet cluster from a dead one.
//!
//! The only key with a lease: a server that is gone must stop looking alive, and nothing else of it may vanish.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hawser_etcd::server::WriteError;
use hawser_kvstore::{LeaseId, OpError};
use hawser_model::Timestamp;
use hawser_wire::{encode_heartbeat, prefix};
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::leader::Leading;
use crate::own::Own;

const EVERY: Duration = Duration::from_secs(60);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(2);
const TTL_SECONDS: i64 = 15 * 60;

/// Written by the replica that leads.
pub async fn run(own: Own, board: Arc<Board>, mut leading: Leading, stop: CancellationToken) {
    let mut lease = None;
    let mut failing = false;
    loop {
        let follows = leading.wait_for(Option::is_some);
        tokio::select! {
            () = stop.cancelled() => return,
            _ = follows => {}
        }
        let wait = match beat(&own, &mut lease).await {
            Ok(()) => {
                if failing {
                    tracing::info!("the heartbeat is written again");
                    board.update(|facts| facts.heartbeat_problem = None);
                }
                failing = false;
                EVERY
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(%error, "the heartbeat could not be written; peers will take this cluster for dead");
                }
                failing = true;
                board.update(|facts| {
                    facts.heartbeat_problem = Some(problem(&error.to_string()));
                });
                AGAIN
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// In the store's own words where it has a fix, for it knows better what fails.
fn problem(error: &str) -> String {
    let fix =
        if error.contains("fix:") { "" } else { "; fix: see that the store works and its disk has room" };
    format!("the heartbeat could not be written, and peers will take this cluster for dead: {error}{fix}")
}

async fn beat(own: &Own, lease: &mut Option<LeaseId>) -> Result<(), WriteError> {
    if let Some(id) = *lease {
        match own.keep_lease(id).await {
            Err(WriteError::Refused(OpError::LeaseNotFound { .. })) => *lease = None,
            other => other?,
        }
    }
    let id = match *lease {
        Some(id) => id,
        None => {
            let id = rand::random_range(1..=LeaseId::MAX);
            own.grant_lease(id, TTL_SECONDS).await?;
            *lease = Some(id);
            id
        }
    };
    let now = Timestamp::from_system(SystemTime::now());
    own.put_leased(prefix::HEARTBEAT, encode_heartbeat(now), id).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_fix_is_told_the_one_of_who_knows_best() {
        for error in ["no space left on device", "the disk is full; fix: make room in /var/lib/hawser"] {
            assert_eq!(problem(error).matches("fix:").count(), 1, "{}", problem(error));
        }
    }
}
