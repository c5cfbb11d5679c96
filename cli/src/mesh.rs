//! `hawser connect`, `disconnect` and `plan`.

use std::path::Path;

use anyhow::Result;
use hawser_api::admin::{ConnectReply, ConnectRequest, DisconnectRequest};
use hawser_api::local::PlanRequest;

use crate::args::{Format, Global};
use crate::connection::{admin, agent, answer};
use crate::output::{Refused, json, line, table};

/// What is given to connect is smaller than this many bytes; a larger file is something else.
const BUNDLE_MAX: u64 = 64 << 10;

/// A file that an operator names; `fix` says which.
pub(crate) fn small(path: &Path, fix: &str) -> Result<String> {
    let unreadable = |error| Refused(format!("{} cannot be read: {error}. fix: {fix}", path.display()));
    if std::fs::metadata(path).map_err(unreadable)?.len() > BUNDLE_MAX {
        return Err(Refused(format!("{} is larger than 64 KiB. fix: {fix}", path.display())).into());
    }
    Ok(std::fs::read_to_string(path).map_err(unreadable)?)
}

pub(crate) async fn connect(global: &Global, path: &Path, dry_run: bool, bypass: bool) -> Result<()> {
    let fix = "name the file that `hawser ca bundle --for <this cluster>` made at the other one";
    let bundle = small(path, fix)?;
    let request = ConnectRequest { bundle, policy_bypass_accepted: bypass, dry_run, cilium: None };
    let reply = answer(admin(global).await?.connect(request).await)?;
    connected(dry_run, &reply)?;
    line(&format!("fingerprint {}", reply.ca_fingerprint))?;
    line(&format!("compare it with what {} prints: `hawser ca bundle --for <this cluster>`", reply.cluster))
}

pub(crate) fn connected(dry_run: bool, reply: &ConnectReply) -> Result<()> {
    let cluster = format!("{} (id {})", reply.cluster, reply.cluster_id);
    line(&match (dry_run, reply.unchanged) {
        (true, _) => format!("{cluster} can be connected; nothing was changed"),
        (false, true) => format!("{cluster} was connected before; nothing changed"),
        (false, false) => format!("connected {cluster}"),
    })
}

pub(crate) async fn disconnect(global: &Global, cluster: &str) -> Result<()> {
    let request = DisconnectRequest { cluster: cluster.to_owned() };
    answer(admin(global).await?.disconnect(request).await)?;
    line(&format!(
        "disconnected {cluster}: its services drain on every node, then its tunnels and routes go"
    ))?;
    line(&format!("{cluster} still admits this cluster until it runs `hawser disconnect` too"))
}

pub(crate) async fn plan(global: &Global, format: Format) -> Result<()> {
    let reply = answer(agent(&global.socket).await?.plan(PlanRequest {}).await)?;
    if format == Format::Json {
        return json(&reply);
    }
    if reply.operations.is_empty() {
        return line("nothing to do: the node is as it should be");
    }
    let row = |op: hawser_api::local::Operation| vec![op.part, op.text];
    table(&["PART", "OPERATION"], &reply.operations.into_iter().map(row).collect::<Vec<_>>())
}
