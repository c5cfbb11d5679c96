//! `hawser export`: what each peer may read of this cluster.

use anyhow::Result;
use hawser_api::admin::{ExportCount, ExportsReply, ExportsRequest, PeerExport};

use crate::args::{Format, Global};
use crate::connection::{admin, answer};
use crate::output::{json, line, table};

async fn ask(global: &Global, peer: &str) -> Result<ExportsReply> {
    let request = ExportsRequest { peer: peer.to_owned() };
    answer(admin(global).await?.exports(request).await)
}

pub(crate) async fn list(global: &Global, format: Format) -> Result<()> {
    let reply = ask(global, "").await?;
    if format == Format::Json {
        return json(&reply);
    }
    if reply.peers.is_empty() {
        return line(
            "no peers. hint: `hawser connect FILE` admits one; cluster.yaml says under `exports` what it reads",
        );
    }
    let head = ["PEER", "CONNECTED", "FILTER", "VIEW", "SERVICES", "ENDPOINTS", "IDENTITIES", "NODES"];
    table(&head, &reply.peers.iter().map(row).collect::<Vec<_>>())
}

fn row(peer: &PeerExport) -> Vec<String> {
    let mut row = vec![
        peer.peer.clone(),
        if peer.connected { "yes" } else { "no" }.to_owned(),
        peer.filter.clone(),
        peer.view.clone(),
    ];
    row.extend([peer.services, peer.endpoints, peer.identities, peer.nodes].map(count));
    row
}

/// `3 of 5`: what is visible of what there is.
fn count(count: Option<ExportCount>) -> String {
    let count = count.unwrap_or_default();
    format!("{} of {}", count.visible, u64::from(count.visible) + u64::from(count.hidden))
}

pub(crate) async fn show(global: &Global, peer: &str, format: Format) -> Result<()> {
    let reply = ask(global, peer).await?;
    if format == Format::Json {
        return json(&reply);
    }
    for export in &reply.peers {
        let connected = if export.connected { "" } else { " (not connected)" };
        line(&format!(
            "{}{connected} reads of {} what exports.{} selects",
            export.peer, reply.cluster, export.filter
        ))?;
        line(&export.selects)?;
        line(&format!(
            "{} services, {} endpoints, {} identities, {} nodes; view {}",
            count(export.services),
            count(export.endpoints),
            count(export.identities),
            count(export.nodes),
            export.view
        ))?;
    }
    if reply.services.is_empty() {
        return line("no global service. hint: annotate a Service with hawser.io/global: \"true\"");
    }
    let rows = reply.services.iter().map(|service| {
        let exported = if service.visible { "yes" } else { "no" };
        vec![service.service.clone(), exported.to_owned()]
    });
    table(&["SERVICE", "EXPORTED"], &rows.collect::<Vec<_>>())?;
    match reply.services_left_out {
        0 => Ok(()),
        more => line(&format!("and {more} more services")),
    }
}
