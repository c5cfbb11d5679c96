//! Act 4: nothing left in clear, and nothing forged comes in.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::report::Facts;
use super::{HOME, LOST, MARKER, Stage};
use crate::lab::Lab;
use crate::net::forge::{Forged, Transport, send};
use crate::net::frame::{Carried, parse};
use crate::net::secrecy::Secrecy;
use crate::net::sniffer::Sniffer;
use crate::plan::POD_PORT;

const FORGED_PACKETS: u64 = 20;
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn prove(stage: &mut Stage) -> Result<Facts> {
    let capture = stage.capture.take().context("the capture of act 3")?;
    let seen = capture.stop()?;
    judge(&stage.lab, &seen)?;
    let reasons = forge(&mut stage.lab)?;
    let carried = match stage.lab.over_ipsec() {
        true => format!("{} packets of ESP", seen.esp),
        false => format!("{} WireGuard messages", seen.wireguard.values().sum::<u64>()),
    };
    Ok(Facts {
        lines: vec![
            format!(
                "{} frames at the router since act 1: {carried}, {} TLS records, nothing else",
                seen.frames, seen.tls_records
            ),
            "the marker reached the servers and was never seen on the way".to_owned(),
            format!("{FORGED_PACKETS} forged packets: none arrived; counted as {reasons}"),
        ],
        details: json!({ "capture": seen, "forged": FORGED_PACKETS, "reasons": reasons }),
    })
}

fn judge(lab: &Lab, seen: &Secrecy) -> Result<()> {
    ensure!(seen.violation_count == 0, "{} frames in clear: {:#?}", seen.violation_count, seen.violations);
    ensure!(seen.marker_seen == 0, "the marker was seen in {} frames", seen.marker_seen);
    let data = if lab.over_ipsec() { seen.esp } else { seen.wireguard.get("data").copied().unwrap_or(0) };
    ensure!(data > 0, "nothing was seen of the tunnels at all");
    ensure!(seen.tls_records > 0, "no TLS was seen at all");
    for name in lab.clusters.iter().map(|cluster| &cluster.plan.name).filter(|name| *name != HOME) {
        let log = lab.cluster(name).pod("cart-0").server_log()?;
        ensure!(log.contains(MARKER), "the marker never reached {name}, so its absence proves nothing");
    }
    Ok(())
}

/// A stranger on the underlay sends to a local pod in the name of a remote one. Gives the reasons counted.
fn forge(lab: &mut Lab) -> Result<String> {
    let victim = lab.cluster(HOME).pod("cart-0");
    let pretended = lab.cluster(LOST).pod("cart-0").plan.address;
    let node = lab.cluster(HOME).node("node-1");
    let drops = |lab: &Lab| -> Result<Vec<(String, u64)>> {
        let status = lab.cluster(HOME).node("node-1").status()?;
        Ok(status.drops().map(|reason| (reason.reason.clone(), reason.packets)).collect())
    };
    let before = drops(lab)?;
    let watch = Sniffer::start(Some(&victim.place), &["eth0".to_owned()], Vec::new())?;
    let mac = node.mac()?;
    let packets: Vec<Forged> = (0..FORGED_PACKETS as u16)
        .map(|number| Forged {
            destination_mac: mac,
            source: pretended,
            destination: victim.plan.address,
            source_port: 40_000 + number,
            port: POD_PORT,
            transport: if number % 2 == 0 { Transport::Tcp } else { Transport::Udp },
            payload: MARKER.as_bytes().to_vec(),
        })
        .collect();
    send(&lab.stranger, &packets)?;
    let counted = lab.wait("the drop of the forged packets is counted", PATIENCE, |lab| {
        let mut grown = Vec::new();
        let mut total = 0;
        for (reason, packets) in drops(lab)? {
            let earlier = before.iter().find(|(name, _)| *name == reason).map_or(0, |(_, packets)| *packets);
            if packets > earlier {
                total += packets - earlier;
                grown.push(format!("{reason} ({})", packets - earlier));
            }
        }
        ensure!(total >= FORGED_PACKETS, "{total} of {FORGED_PACKETS} are counted");
        Ok(grown.join(", "))
    })?;
    let arrived = watch.stop()?.iter().filter(|frame| comes_from(frame, pretended)).count();
    ensure!(arrived == 0, "{arrived} of {FORGED_PACKETS} forged packets arrived at the pod");
    Ok(counted)
}

fn comes_from(frame: &[u8], source: Ipv4Addr) -> bool {
    matches!(parse(frame), Carried::Ipv4(packet) if packet.source == source)
}
