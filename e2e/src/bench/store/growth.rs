//! How memory, bytes on the wire and the first sync grow with the number of clusters: the points of the picture.

use anyhow::Result;

use super::mirroring::{Agent, Changes, Mesh, Replica};
use super::wire::Pki;
use super::{Shape, Sizes, replica, view};
use crate::bench::result::Row;

/// Enough that the heartbeat of a connection does not show.
const CHANGES: u32 = 500;

/// All sizes but the largest, which the whole mesh is measured with.
pub(super) fn measure(sizes: &Sizes, pki: &Pki) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let [.., all] = sizes.growth;
    for clusters in sizes.growth.into_iter().filter(|clusters| *clusters != all) {
        let mut mesh = Mesh::start(pki, Shape { clusters, ..sizes.mesh })?;
        let mut replica = mesh.replica(None, None)?;
        let mut agent = mesh.agent(&replica)?;
        grown(&mut mesh, &mut replica, &mut agent, &mut rows)?;
    }
    Ok(rows)
}

/// The points of one size. Changes come one by one from all remotes in turn: each is a message of its own on every wire.
pub(super) fn grown(
    mesh: &mut Mesh<'_>,
    replica: &mut Replica,
    agent: &mut Agent,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let clusters = mesh.shape.clusters;
    let mut point = |what: &str, value: f64, unit| {
        rows.push(Row::plain(&format!("{clusters} clusters: {what}"), value, unit, "lower", None));
    };
    let per_key = |mib: f64| mib * 1024.0 * 1024.0 / mesh.up.keys as f64;
    point("API server, peak RSS", replica.peak_mib, "MiB");
    point("agent, peak RSS", agent.peak_mib, "MiB");
    point("API server, peak RSS per key", per_key(replica.peak_mib), "B");
    point("agent, peak RSS per key", per_key(agent.peak_mib), "B");
    point("API server, first sync", replica.up.seconds, "s");
    point("agent, first sync", agent.up.seconds, "s");
    let listed: u64 = replica.part.ask(&replica::Command::Received)?;
    point("remotes to API server, bytes per key listed", listed as f64 / mesh.up.keys as f64, "B");

    let before: [u64; 2] =
        [replica.part.ask(&replica::Command::Received)?, agent.part.ask(&view::Command::Received)?];
    mesh.changes(replica, Some(agent), Changes { clusters, count: CHANGES, rate: 500 })?;
    let after: [u64; 2] =
        [replica.part.ask(&replica::Command::Received)?, agent.part.ask(&view::Command::Received)?];
    let per_event = |at: usize| (after[at] - before[at]) as f64 / f64::from(CHANGES);
    point("remotes to API server, bytes per event", per_event(0), "B");
    point("API server to agent, bytes per event", per_event(1), "B");
    Ok(())
}
