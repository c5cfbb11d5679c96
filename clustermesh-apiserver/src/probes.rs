//! `/readyz` and `/livez`: whether clients should be sent here, and whether a new start would help.
//!
//! What is elsewhere never fails a probe for good. A cluster that cannot be reached holds us up for a minute after the
//! start, and a source that cannot be read not at all if an earlier run left an export to serve.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hawser_etcd::mirror::{MirrorState, MirrorStatus};
use hawser_etcd::server::Keyspaces;
use hawser_model::{Peer, Timestamp};
use hawser_telemetry::{Check, Family, Observed, Watchdog, process_families};
use tokio_util::sync::CancellationToken;

use crate::board::{Board, Facts};
use crate::metrics::{self, Commits, Counted};
use crate::mirrors::Mirrors;
use crate::own::Own;
use crate::sharing::Sharing;
use crate::trust::{Certificates, now};

/// What mirrors are waited for after a start: Cilium's `clustermesh-sync-timeout`.
const MIRRORS: Duration = Duration::from_secs(60);
/// What reading a keyspace may take; its lock is held for milliseconds.
const LOCK: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_secs(5);
/// Clusters named in one line.
const NAMED: usize = 5;

/// Answers from the first moment on, and knows more once the store is open.
#[derive(Debug)]
pub struct Probes {
    started: Instant,
    board: Arc<Board>,
    open: OnceLock<Open>,
}

/// The parts that are looked at.
#[derive(Debug)]
pub struct Open {
    pub store: String,
    /// The key that an export writes last: here if there ever was one.
    pub announced: String,
    pub keyspaces: Keyspaces,
    pub own: Own,
    pub mirrors: Mirrors,
    pub certificates: Arc<Certificates>,
    pub commits: Commits,
    pub counted: Counted,
    pub sharing: Arc<Sharing>,
}

impl Probes {
    pub fn new(board: Arc<Board>) -> Arc<Self> {
        Arc::new(Self { started: Instant::now(), board, open: OnceLock::new() })
    }

    /// Said once: everything is open now.
    pub fn opened(&self, open: Open) {
        // There is one server in a process, and it opens once.
        let _ = self.open.set(open);
    }

    /// The checks that fail, by name alone: anybody may ask.
    pub fn unready(&self) -> Option<String> {
        let bad: Vec<_> =
            self.readiness().into_iter().filter(|check| !check.is_ok()).map(|check| check.name).collect();
        (!bad.is_empty()).then(|| format!("not ready: {}", bad.join(", ")))
    }

    fn readiness(&self) -> Vec<Check> {
        let Some(open) = self.open.get() else {
            return vec![Check::bad("store", "not open yet: see the log for what it waits for")];
        };
        let facts = self.board.read();
        let statuses = open.mirrors.status();
        vec![
            store(&open.store, &facts),
            source(&facts, || open.own.get(&open.announced).is_some()),
            certificates(open.certificates.ends(), now()),
            mirrors(waiting(&statuses), self.started.elapsed()),
        ]
    }
}

impl Observed for Probes {
    fn live(&self) -> BoxFuture<'_, Vec<Check>> {
        futures::future::ready(self.board.watchdog().checks(Instant::now())).boxed()
    }

    fn ready(&self) -> BoxFuture<'_, Vec<Check>> {
        futures::future::ready(self.readiness()).boxed()
    }

    fn metrics(&self) -> BoxFuture<'_, Result<Vec<Family>, String>> {
        let scrape = || {
            let open = self.open.get().ok_or("the store is not open yet")?;
            let (now, wall) = (Instant::now(), SystemTime::now());
            let mut families = process_families(env!("CARGO_PKG_VERSION"));
            families.extend(metrics::own(&self.board.read(), open.certificates.ends(), now));
            families.extend(metrics::sharing(open.sharing.counts()));
            families.extend(metrics::served(&open.keyspaces, &open.commits));
            families.extend(metrics::remotes(&open.mirrors, &open.counted, now, wall));
            Ok(families)
        };
        // Counting a large mirror takes milliseconds that other tasks need not wait for.
        async move { tokio::task::block_in_place(scrape) }.boxed()
    }
}

/// Reads the own keyspace now and then, so that a lock that nobody gives back is noticed. One thread at most waits there.
pub async fn watch_lock(own: Own, watchdog: Watchdog, stop: CancellationToken) {
    let pulse = watchdog.task("keyspace", LOCK);
    loop {
        pulse.busy();
        let keyspace = own.clone();
        // It cannot panic, and there is nothing to do if it did.
        let _ = tokio::task::spawn_blocking(move || keyspace.revision()).await;
        pulse.idle();
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Open is enough: what cannot be written can still be read here.
fn store(describe: &str, facts: &Facts) -> Check {
    match &facts.heartbeat_problem {
        Some(problem) => Check::ok("store", format!("{describe}; {problem}")),
        None => Check::ok("store", describe),
    }
}

fn source(facts: &Facts, exported_before: impl FnOnce() -> bool) -> Check {
    if facts.exported {
        return Check::ok("source", "");
    }
    if exported_before() {
        return Check::ok("source", "not read yet; what was exported before is served");
    }
    let why = facts.source_problems.iter().chain(&facts.export_problems).next();
    let why = why.map_or("it is being read", String::as_str);
    Check::bad("source", format!("not synced: {why}"))
}

fn certificates(ends: [(&'static str, Option<Timestamp>); 3], now: Timestamp) -> Check {
    let over = |(role, end): &(&'static str, Option<Timestamp>)| match end {
        Some(end) if *end > now => None,
        Some(end) => Some(format!(
            "the {role} certificate ended at {end}; fix: see the log for why it was not renewed"
        )),
        None => Some(format!("the {role} certificate cannot be read; fix: restart, and report this")),
    };
    match ends.iter().find_map(over) {
        None => Check::ok("certificates", ""),
        Some(why) => Check::bad("certificates", why),
    }
}

/// Clusters of which nothing is served yet, and why.
fn waiting(statuses: &[(Peer, Result<MirrorStatus, String>)]) -> Vec<String> {
    let waits = |(peer, status): &(Peer, Result<MirrorStatus, String>)| {
        let name = &peer.cluster.name;
        match status {
            Ok(status) => match status.state {
                MirrorState::Synced | MirrorState::Restored | MirrorState::CutOff => None,
                MirrorState::Syncing => Some(format!("{name} (listing)")),
                MirrorState::Connecting => {
                    Some(format!("{name} ({})", status.last_trouble.as_deref().unwrap_or("connecting")))
                }
            },
            // Nothing will come of waiting.
            Err(_) => None,
        }
    };
    statuses.iter().filter_map(waits).collect()
}

fn mirrors(waiting: Vec<String>, since_start: Duration) -> Check {
    if waiting.is_empty() {
        return Check::ok("mirrors", "");
    }
    let more = waiting.len().saturating_sub(NAMED);
    let mut named = waiting[..waiting.len().min(NAMED)].join(", ");
    if more > 0 {
        named = format!("{named} and {more} more");
    }
    if since_start < MIRRORS {
        Check::bad("mirrors", format!("not synced: {named}"))
    } else {
        Check::ok("mirrors", format!("not synced, and not waited for any longer: {named}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_system(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }

    #[test]
    fn a_source_that_was_never_read_holds_readiness_unless_an_earlier_run_exported_it() {
        let mut facts = Facts { source_problems: vec!["shop.yaml: line 3".into()], ..Facts::default() };
        let unread = source(&facts, || false);
        assert_eq!(unread.state.unwrap_err(), "not synced: shop.yaml: line 3");
        assert!(source(&facts, || true).is_ok());
        facts.exported = true;
        assert!(source(&facts, || false).is_ok());
    }

    #[test]
    fn a_certificate_that_ended_is_named_with_its_time() {
        let ends = |server| [("server", Some(at(server))), ("remote", Some(at(100))), ("ca", Some(at(100)))];
        assert!(certificates(ends(60), at(50)).is_ok());
        let why = certificates(ends(40), at(50)).state.unwrap_err();
        assert!(why.starts_with("the server certificate ended at 1970-01-01T00:00:40"), "{why}");
    }

    #[test]
    fn a_cluster_that_cannot_be_reached_holds_readiness_for_a_minute_and_is_named_ever_after() {
        let lost = || vec!["eu-west (connection refused)".to_owned()];
        let early = mirrors(lost(), Duration::from_secs(59));
        assert_eq!(early.state.unwrap_err(), "not synced: eu-west (connection refused)");
        let late = mirrors(lost(), Duration::from_secs(60)).state.unwrap();
        assert_eq!(late, "not synced, and not waited for any longer: eu-west (connection refused)");
        let many = (0..255).map(|n| format!("c{n}")).collect();
        assert!(mirrors(many, Duration::ZERO).state.unwrap_err().ends_with("c4 and 250 more"));
    }

    #[test]
    fn a_disk_that_is_full_takes_no_reader_away() {
        let facts = Facts { heartbeat_problem: Some("no room".into()), ..Facts::default() };
        assert_eq!(
            store("embedded store in /x", &facts),
            Check::ok("store", "embedded store in /x; no room")
        );
    }
}
