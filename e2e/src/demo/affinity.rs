//! Act 5: `hawser.io/affinity: local` keeps requests home, until nothing is left there.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::report::Facts;
use super::{HOME, Stage};
use crate::pod::client::{Request, unix_ms};

const PATIENCE: Duration = Duration::from_secs(10);
const REQUESTS: u64 = 60;
/// Requests that must be seen at the remotes before the act goes on.
const ENOUGH: Duration = Duration::from_millis(500);

pub(super) fn play(stage: &mut Stage) -> Result<Facts> {
    let lab = &mut stage.lab;
    let target = lab.cluster(HOME).service_address();
    let ask = Request::to(&target).requests(REQUESTS).concurrency(4);

    lab.cluster_mut(HOME).set_affinity(Some("local"))?;
    lab.wait("the affinity is known on the client's node", PATIENCE, |lab| {
        let node = lab.cluster(HOME).node("node-1");
        let affinity = node.service_view()?.affinity;
        ensure!(affinity == "local", "`hawser service get` shows {affinity}");
        node.settled()
    })?;
    let home = lab.cluster(HOME).pod("client").ask(&ask)?;
    home.all_ok()?;
    ensure!(home.from_cluster(HOME) == REQUESTS, "not all requests stayed home: {}", home.shares());

    let load = Request::to(&target).concurrency(4).every(Duration::from_millis(10));
    let running = lab.cluster(HOME).pod("client").keep_asking(&load)?;
    lab.cluster_mut(HOME).set_endpoints(false)?;
    lab.wait("the local endpoints are gone on the client's node", PATIENCE, |lab| {
        let node = lab.cluster(HOME).node("node-1");
        let left = node.service_view()?.backends_of(HOME);
        ensure!(left == 0, "{left} are left");
        node.settled()
    })?;
    let gone = unix_ms();
    std::thread::sleep(ENOUGH);
    let away = running.stop()?;
    away.all_ok()?;
    let later = away.records.iter().filter(|record| record.opened_ms > gone);
    let at_home = later.clone().filter(|record| record.cluster.as_deref() == Some(HOME)).count();
    let later = later.count();
    ensure!(later > 0, "no request was made after the endpoints were gone");
    ensure!(at_home == 0, "{at_home} of {later} requests went to endpoints that are gone");

    lab.cluster_mut(HOME).set_endpoints(true)?;
    lab.cluster_mut(HOME).set_affinity(None)?;
    lab.wait("everything is as before", PATIENCE, |lab| {
        let node = lab.cluster(HOME).node("node-1");
        let view = node.service_view()?;
        ensure!(view.affinity != "local" && view.backends_of(HOME) == 2, "affinity {}", view.affinity);
        node.settled()
    })?;
    let again = lab.cluster(HOME).pod("client").ask(&ask)?;
    again.all_ok()?;
    ensure!(again.by_cluster.len() == lab.clusters.len(), "not all answer again: {}", again.shares());
    Ok(Facts {
        lines: vec![
            format!("local: {REQUESTS} of {REQUESTS} requests stayed in {HOME}"),
            format!(
                "no endpoint left there: {} requests under way, none failed; then {later} remote",
                away.ok
            ),
            format!("restored: {}", again.shares()),
        ],
        details: json!({ "stayed": REQUESTS, "duringMove": away.ok, "afterMove": later }),
    })
}
