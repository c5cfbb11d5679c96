//! `/readyz` and `/livez` of the agent. What they cannot know themselves they ask the loop, which answers between two turns.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hawser_pki::Leaf;
use hawser_telemetry::{Check, Family, Observed, Watchdog, process_families};
use tokio::sync::{mpsc, oneshot};

use crate::local_api::Question;
use crate::metrics::{Observation, Traffic, families};

/// Below what a connection may take.
const ANSWER: Duration = Duration::from_secs(5);
/// What other clusters are waited for after a start: Cilium's `clustermesh-sync-timeout`.
const CLUSTERS: Duration = Duration::from_secs(60);
/// Clusters named in one line.
const NAMED: usize = 5;

/// Answers from the first moment on, and knows more once the loop turns.
#[derive(Debug)]
pub(crate) struct Probes {
    started: Instant,
    pub(crate) watchdog: Watchdog,
    certificate: PathBuf,
    traffic: Traffic,
    ask: OnceLock<mpsc::Sender<Question>>,
}

impl Probes {
    pub(crate) fn new(certificate: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            watchdog: Watchdog::default(),
            certificate,
            traffic: Traffic::default(),
            ask: OnceLock::new(),
        })
    }

    /// Said once: the loop can be asked now.
    pub(crate) fn started(&self, ask: mpsc::Sender<Question>) {
        // There is one loop in a process.
        let _ = self.ask.set(ask);
    }

    async fn observe(&self) -> Result<Box<Observation>, String> {
        let ask = self
            .ask
            .get()
            .ok_or("not yet: it joins, or loads its programs; see the log for what it waits for")?;
        let (reply, answer) = oneshot::channel();
        let asked = async {
            ask.send(Question::Observe(reply)).await.map_err(|_| "it has ended")?;
            answer.await.map_err(|_| "it has ended")
        };
        let timely = tokio::time::timeout(ANSWER, asked).await;
        Ok(timely.map_err(|_| format!("it did not answer in {} s", ANSWER.as_secs()))??)
    }
}

impl Observed for Probes {
    fn live(&self) -> BoxFuture<'_, Vec<Check>> {
        futures::future::ready(self.watchdog.checks(Instant::now())).boxed()
    }

    fn ready(&self) -> BoxFuture<'_, Vec<Check>> {
        async move {
            match self.observe().await {
                Ok(seen) => checks(&seen, self.started.elapsed()),
                Err(why) => vec![Check::bad("loop", why)],
            }
        }
        .boxed()
    }

    fn metrics(&self) -> BoxFuture<'_, Result<Vec<Family>, String>> {
        async move {
            let seen = self.observe().await.map_err(|why| format!("the agent's loop: {why}"))?;
            let leaf =
                std::fs::read_to_string(&self.certificate).ok().and_then(|pem| Leaf::from_pem(&pem).ok());
            let mut all = process_families(env!("CARGO_PKG_VERSION"));
            all.extend(families(&seen, &self.traffic, leaf.map(|leaf| leaf.not_after.unix())));
            Ok(all)
        }
        .boxed()
    }
}

fn checks(seen: &Observation, since_start: Duration) -> Vec<Check> {
    let clusters = &seen.status.clusters;
    let own = clusters.iter().find(|cluster| cluster.own);
    let own = match own {
        Some(own) if own.synced => Check::ok("own-cluster", ""),
        Some(own) => Check::bad("own-cluster", format!("not listed: {}", own.reason)),
        None => Check::bad("own-cluster", "not listed: it is not followed yet"),
    };
    let datapath = match (seen.reconciled, seen.status.problems.first()) {
        (Some(true), _) => Check::ok("datapath", ""),
        (Some(false), Some(problem)) => {
            Check::bad("datapath", format!("the last reconcile was not complete: {problem}"))
        }
        (Some(false), None) => Check::bad("datapath", "the last reconcile was not complete; see the log"),
        (None, _) => Check::bad("datapath", "nothing was reconciled yet"),
    };
    let waits = clusters.iter().filter(|cluster| !cluster.own && !cluster.synced);
    let waits: Vec<_> = waits.map(|cluster| format!("{} ({})", cluster.name, cluster.reason)).collect();
    vec![own, datapath, others(&waits, since_start)]
}

/// A cluster that cannot be reached holds nobody up for more than a minute.
fn others(waits: &[String], since_start: Duration) -> Check {
    if waits.is_empty() {
        return Check::ok("clusters", "");
    }
    let more = waits.len().saturating_sub(NAMED);
    let mut named = waits[..waits.len().min(NAMED)].join(", ");
    if more > 0 {
        named = format!("{named} and {more} more");
    }
    match since_start < CLUSTERS {
        true => Check::bad("clusters", format!("not listed: {named}")),
        false => Check::ok("clusters", format!("not listed, and not waited for any longer: {named}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Meters;
    use hawser_api::local::{ClusterStatus, StatusReply};

    fn seen(remote_synced: bool, reconciled: Option<bool>) -> Observation {
        let cluster = |name: &str, own, synced| ClusterStatus {
            name: name.into(),
            own,
            synced,
            reason: "connection refused".into(),
            ..ClusterStatus::default()
        };
        let clusters = vec![cluster("us-east", true, true), cluster("eu-west", false, remote_synced)];
        let status = StatusReply { clusters, ..StatusReply::default() };
        Observation { status, meters: Meters::default(), maps: None, reconciled }
    }

    fn bad(seen: &Observation, since_start: u64) -> Vec<&'static str> {
        let checks = checks(seen, Duration::from_secs(since_start));
        checks.into_iter().filter(|check| !check.is_ok()).map(|check| check.name).collect()
    }

    #[test]
    fn a_cluster_that_cannot_be_reached_holds_readiness_for_a_minute_at_most() {
        assert_eq!(bad(&seen(false, Some(true)), 59), ["clusters"]);
        assert_eq!(bad(&seen(false, Some(true)), 60), [""; 0]);
        assert_eq!(bad(&seen(true, Some(true)), 0), [""; 0]);
    }

    #[test]
    fn an_agent_is_ready_when_everything_it_planned_is_in_the_kernel() {
        assert_eq!(bad(&seen(true, None), 90), ["datapath"]);
        assert_eq!(bad(&seen(true, Some(false)), 90), ["datapath"]);
    }

    #[tokio::test]
    async fn before_the_loop_turns_the_probe_says_what_it_waits_for() {
        let probes = Probes::new("/nowhere".into());
        let (ready, text) = hawser_telemetry::report("readyz", &probes.ready().await);
        assert!(!ready && text.starts_with("[-]loop not yet: it joins"), "{text}");
        assert!(probes.live().await.is_empty(), "and a new start would not help");
    }
}
