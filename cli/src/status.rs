//! `hawser status`: one verdict, then clusters, nodes, tunnels and what is wrong; each half may be absent.

use anyhow::{Result, anyhow};
use hawser_api::admin::{self, PeerStatus};
use hawser_api::local::{self, ClusterStatus, TunnelStatus};
use serde::Serialize;

use crate::args::{Format, Global};
use crate::connection::{admin, agent, answer};
use crate::output::{ago, chain, json, line, table};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Whole {
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<local::StatusReply>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_server: Option<admin::StatusReply>,
}

pub(crate) async fn show(global: &Global, format: Format) -> Result<()> {
    let server = ask_server(global).await;
    let agent = ask_agent(global).await;
    if let (Err(server), Err(agent)) = (&server, &agent) {
        return Err(anyhow!("neither half answers\n  {}\n  {}", chain(server), chain(agent)));
    }
    if format == Format::Json {
        return json(&Whole { agent: agent.ok(), api_server: server.ok() });
    }
    match &server {
        Ok(status) => server_section(status)?,
        Err(error) => line(&format!("API server: {}", chain(error)))?,
    }
    line("")?;
    match &agent {
        Ok(status) => agent_section(status),
        Err(error) => line(&format!("node agent: {}", chain(error))),
    }
}

async fn ask_server(global: &Global) -> Result<admin::StatusReply> {
    answer(admin(global).await?.status(admin::StatusRequest {}).await)
}

async fn ask_agent(global: &Global) -> Result<local::StatusReply> {
    answer(agent(&global.socket).await?.status(local::StatusRequest {}).await)
}

fn server_section(status: &admin::StatusReply) -> Result<()> {
    let synced = status.peers.iter().filter(|peer| peer.state == "synced").count();
    line(&format!(
        "cluster {} (id {}): {synced}/{} peers synced, revision {}, {}",
        status.cluster,
        status.cluster_id,
        status.peers.len(),
        status.revision,
        status.store
    ))?;
    status.replica.as_ref().map_or(Ok(()), replica_line)?;
    line(&format!(
        "exports {} services, {} endpoints, {} identities",
        status.services, status.endpoints, status.identities
    ))?;
    let node = |node: &admin::NodeStatus| {
        vec![node.name.clone(), node.index.to_string(), node.mesh_ipv4.clone(), ago(node.reported_ms_ago)]
    };
    table(
        &["NODE", "INDEX", "MESH-ADDRESS", "REPORTED"],
        &status.nodes.iter().map(node).collect::<Vec<_>>(),
    )?;
    if status.peers.is_empty() {
        line(
            "no peers. hint: `hawser ca bundle --for <cluster>` here, `hawser connect <file>` there, and back",
        )?;
    } else {
        let rows: Vec<_> = status.peers.iter().map(peer_row).collect();
        table(
            &[
                "PEER",
                "ID",
                "STATE",
                "REVISION",
                "HEARD",
                "NODES",
                "SERVICES",
                "ENDPOINTS",
                "IDENTITIES",
                "REFUSED",
                "READS",
            ],
            &rows,
        )?;
        let rows: Vec<_> = status.peers.iter().map(limits_row).collect();
        table(&["PEER", "KEYS", "BYTES", "HELD-BACK", "CONNECTIONS", "WATCHES", "REFUSED-REQUESTS"], &rows)?;
    }
    for (peer, cilium) in status.peers.iter().filter_map(|peer| Some((peer, peer.cilium.as_ref()?))) {
        line(&cilium_line(&peer.name, cilium))?;
    }
    for peer in status.peers.iter().filter(|peer| !peer.reason.is_empty()) {
        line(&format!("! {}: {}", peer.name, peer.reason))?;
    }
    for peer in &status.peers {
        let mut refused: Vec<_> = peer.refused.iter().collect();
        refused.sort();
        for (reason, count) in refused {
            line(&format!("! {}: {count} entries refused: {reason}", peer.name))?;
        }
        let mut refused: Vec<_> = peer.refused_requests.iter().collect();
        refused.sort();
        for (limit, count) in refused {
            line(&format!("! {}: {count} times refused what it asked of us: {limit}", peer.name))?;
        }
    }
    status.source_errors.iter().try_for_each(|error| line(&format!("! {error}")))
}

/// Who answered, who exports and since when, and who else is there.
fn replica_line(replica: &admin::ReplicaStatus) -> Result<()> {
    let since = ago(replica.leader_ms_ago);
    let exports = match (&replica.leader, replica.exports) {
        (leader, _) if leader.is_empty() => "no replica exports now".to_owned(),
        (leader, true) if *leader == replica.name => format!("exports, leads for {since}"),
        (leader, false) if *leader == replica.name => {
            format!("leads for {since}, has not exported its source yet")
        }
        (leader, _) => format!("{leader} exports, leads for {since}"),
    };
    let others = match replica.replicas.len() {
        0 | 1 => String::new(),
        count => format!("; {count} replicas: {}", replica.replicas.join(", ")),
    };
    line(&format!("replica {}: {exports}{others}", replica.name))
}

/// How a cluster on Cilium is read.
fn cilium_line(name: &str, cilium: &admin::CiliumOrigin) -> String {
    let layout = match cilium.layout.as_str() {
        "" => "its config was not read yet".to_owned(),
        layout => format!("{layout} layout"),
    };
    let held = match cilium.held_back {
        0 => String::new(),
        count => format!(", {count} deletions held back"),
    };
    let (beat, changes) = (ago(cilium.beat_ms_ago), cilium.replica_changes);
    format!("{name} runs Cilium: {layout}, heartbeat {beat}, {changes} changes of its etcd{held}")
}

fn peer_row(peer: &PeerStatus) -> Vec<String> {
    vec![
        peer.name.clone(),
        peer.id.to_string(),
        peer.state.clone(),
        peer.revision.to_string(),
        ago(peer.heard_ms_ago),
        peer.nodes.to_string(),
        peer.services.to_string(),
        peer.endpoints.to_string(),
        peer.identities.to_string(),
        peer.refused.values().sum::<u64>().to_string(),
        format!("exports.{}", peer.exports),
    ]
}

/// What a peer uses of its limits.
fn limits_row(peer: &PeerStatus) -> Vec<String> {
    let of = |name: &str| {
        let limit = peer.limits.iter().find(|limit| limit.name == name);
        limit.map_or_else(|| "-".to_owned(), |limit| format!("{}/{}", limit.used.max(0), limit.limit))
    };
    vec![
        peer.name.clone(),
        of("keys"),
        of("bytes"),
        if peer.held_ms < 0 { "no".to_owned() } else { ago(peer.held_ms) },
        of("connections"),
        of("watches"),
        peer.refused_requests.values().sum::<u64>().to_string(),
    ]
}

/// By which secrets, and the turns of each that this node is sent to by.
fn ipsec(keys: &local::IpsecKeys) -> String {
    let mut sends: Vec<_> = keys.sends.iter().collect();
    sends.sort_unstable();
    let sends = match sends[..] {
        [] => "nobody".to_owned(),
        [(epoch, peers)] => format!("{peers} tunnels by epoch {epoch} alone"),
        _ => {
            let of: Vec<_> = sends.iter().map(|(epoch, peers)| format!("{peers} by epoch {epoch}")).collect();
            format!("tunnels: {}", of.join(", "))
        }
    };
    let stay: Vec<_> =
        keys.receives.iter().filter(|of| !keys.leaving.contains(of)).map(String::as_str).collect();
    let leaving = match &keys.leaving[..] {
        [] => String::new(),
        leaving => format!(", and until they are silent by {}", leaving.join(", ")),
    };
    format!("mesh secret: sends to {sends}; receives by {} (epoch.turn){leaving}", stay.join(", "))
}

/// ESP has no ports, so what knows UDP and TCP alone, and every second node behind one NAT, loses it without a word.
fn unheard_esp(status: &local::StatusReply) -> Option<String> {
    let unheard = |tunnel: &&TunnelStatus| tunnel.health == "down" && tunnel.rx_bytes == 0;
    let count = status.tunnels.iter().filter(unheard).count();
    let kernels = status.encryption == "ipsec" && status.wireguard == "kernel";
    (kernels && count > 0).then(|| {
        format!(
            "no packet has ever come through {count} tunnels that are down. fix: let IP protocol 50 through between the nodes; where a \
             NAT is on the way, set ipsec: userspace in the agent.yaml of one of the two, and ESP goes in UDP"
        )
    })
}

fn agent_section(status: &local::StatusReply) -> Result<()> {
    let up = status.tunnels.iter().filter(|tunnel| tunnel.health == "up").count();
    // Those inside the own cluster are to gateways, or of one, and probed by nobody.
    let probed = status.tunnels.iter().filter(|tunnel| tunnel.cluster != status.cluster).count();
    line(&format!(
        "node {}/{} ({}): {up}/{} tunnels up, {} by {}, {} services, {} pods here",
        status.cluster,
        status.node,
        status.mesh_ipv4,
        probed,
        if status.encryption == "ipsec" { "IPsec" } else { "WireGuard" },
        if status.wireguard == "kernel" { "the kernel" } else { "the agent" },
        status.services,
        status.local_pods
    ))?;
    if let Some(keys) = &status.ipsec_keys {
        line(&ipsec(keys))?;
    }
    // An agent of before says nothing of it.
    if status.tunnel_mtu > 0 {
        line(&format!(
            "tunnel MTU {}; with what is put around a packet {} over IPv4 and {} over IPv6: the underlay's MTU must be as large",
            status.tunnel_mtu,
            status.tunnel_mtu + status.overhead_ipv4,
            status.tunnel_mtu + status.overhead_ipv6
        ))?;
    }
    let rows: Vec<_> = status.clusters.iter().map(cluster_row).collect();
    table(
        &[
            "CLUSTER",
            "ID",
            "DATA-PLANE",
            "SINCE",
            "CONTROL-PLANE",
            "SINCE",
            "SYNCED",
            "REVISION",
            "HEARD",
            "NODES",
            "SERVICES",
            "ENDPOINTS",
        ],
        &rows,
    )?;
    if !status.tunnels.is_empty() {
        let rows: Vec<_> = status.tunnels.iter().map(tunnel_row).collect();
        table(
            &[
                "TUNNEL",
                "ENDPOINT",
                "VIA",
                "PROVES",
                "HEALTH",
                "SINCE",
                "HANDSHAKE",
                "SESSIONS",
                "MTU",
                "RTT",
                "RX",
                "TX",
            ],
            &rows,
        )?;
    }
    status.probing.as_ref().map_or(Ok(()), probing_line)?;
    status.stuck_connections.as_ref().map_or(Ok(()), stuck_lines)?;
    trouble_lines(status)
}

/// What is not well, and why.
fn trouble_lines(status: &local::StatusReply) -> Result<()> {
    let drops = status.reasons.iter().filter(|reason| reason.drop && reason.packets > 0);
    for reason in drops {
        line(&format!("dropped {} packets: {} ({})", reason.packets, reason.explanation, reason.reason))?;
    }
    for cluster in &status.clusters {
        // Each verdict with its own reason, and what they come to.
        if cluster.data_plane == "down" {
            line(&format!("! {}: {}: {}", cluster.name, cluster.data_plane_reason, cluster.standing_text))?;
        } else if cluster.standing == "degraded" {
            line(&format!("! {}: {}", cluster.name, cluster.standing_text))?;
        }
        if cluster.control_plane == "down" {
            line(&format!("! {}: {}", cluster.name, cluster.control_plane_reason))?;
        }
    }
    let lowered = |tunnel: &TunnelStatus| (1..FULL_WEIGHT).contains(&tunnel.weight);
    for tunnel in status.tunnels.iter().filter(|tunnel| tunnel.health == "down" || lowered(tunnel)) {
        line(&format!("! {}/{}: {}", tunnel.cluster, tunnel.node, tunnel.health_reason))?;
    }
    let problems = status.problems.iter().cloned().chain(unheard_esp(status));
    problems.into_iter().try_for_each(|problem| line(&format!("! {problem}")))
}

fn stuck_lines(stuck: &local::StuckConnections) -> Result<()> {
    if stuck.reset + stuck.swept > 0 {
        let (reset, swept) = (stuck.reset, stuck.swept);
        line(&format!(
            "stuck connections: {reset} packets answered with a reset, {swept} silent ones ended"
        ))?;
    }
    stuck.missing.iter().try_for_each(|missing| line(&format!("! {missing}")))
}

fn probing_line(probing: &local::Probing) -> Result<()> {
    line(&format!(
        "liveness: {} nodes in use asked every {} ms, {} others every {} ms, {} probes a second",
        probing.watched,
        probing.interval_ms,
        probing.others,
        probing.interval_of_others_ms,
        probing.packets_per_second
    ))?;
    if probing.sharers > 0 && probing.shared > 0 {
        line(&format!(
            "liveness: {} more every {} ms for the cluster, whose {} nodes divide it; {} remote nodes are down by their word, \
             {} of such words were true here and {} were not",
            probing.shared,
            probing.interval_of_shared_ms,
            probing.sharers,
            probing.hinted,
            probing.hints_confirmed,
            probing.hints_refuted
        ))?;
    } else if probing.interval_of_others_ms > probing.interval_ms && !probing.sharing_problem.is_empty() {
        line(&format!(
            "! liveness: nothing is shared with this cluster's nodes: {}",
            probing.sharing_problem
        ))?;
    }
    if probing.heard_by_users > 0 {
        line(&format!(
            "liveness: {} of them are heard by users, and asked a quarter as often",
            probing.heard_by_users
        ))?;
    }
    probing.missing.iter().try_for_each(|missing| line(&format!("! {missing}")))
}

fn cluster_row(cluster: &ClusterStatus) -> Vec<String> {
    let own = if cluster.own { " (own)" } else { "" };
    vec![
        format!("{}{own}", cluster.name),
        cluster.id.to_string(),
        cluster.data_plane.clone(),
        ago(cluster.since_ms_ago),
        cluster.control_plane.clone(),
        ago(cluster.control_plane_since_ms_ago),
        if cluster.synced { "yes" } else { "no" }.to_owned(),
        cluster.revision.to_string(),
        ago(cluster.heard_ms_ago),
        cluster.nodes.to_string(),
        cluster.services.to_string(),
        cluster.endpoints.to_string(),
    ]
}

/// Of a node's weight, in status.
const FULL_WEIGHT: u32 = 256;

fn tunnel_row(tunnel: &TunnelStatus) -> Vec<String> {
    let rtt =
        if tunnel.rtt_us < 0 { "-".into() } else { format!("{:.2} ms", tunnel.rtt_us as f64 / 1_000.0) };
    vec![
        format!("{}/{}", tunnel.cluster, tunnel.node),
        // Of an agent of before nothing is known.
        match tunnel.stated_endpoints.is_empty() || tunnel.stated_endpoints.contains(&tunnel.endpoint) {
            true => tunnel.endpoint.clone(),
            false => format!("{} (roamed)", tunnel.endpoint),
        },
        if tunnel.via.is_empty() { "-".into() } else { tunnel.via.clone() },
        if tunnel.proves.is_empty() { "-".into() } else { tunnel.proves.clone() },
        match tunnel.weight {
            // An agent of before says nothing of it.
            0 | FULL_WEIGHT => tunnel.health.clone(),
            weight => format!("{} ({weight}/{FULL_WEIGHT})", tunnel.health),
        },
        ago(tunnel.health_since_ms_ago),
        ago(tunnel.last_handshake_ms_ago),
        if tunnel.sessions > 0 { tunnel.sessions.to_string() } else { "-".into() },
        if tunnel.mtu > 0 { tunnel.mtu.to_string() } else { "-".into() },
        rtt,
        bytes(tunnel.rx_bytes),
        bytes(tunnel.tx_bytes),
    ]
}

fn bytes(count: u64) -> String {
    match count {
        0..10_000 => format!("{count} B"),
        10_000..10_000_000 => format!("{} KiB", count >> 10),
        10_000_000..10_000_000_000 => format!("{} MiB", count >> 20),
        _ => format!("{} GiB", count >> 30),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over_ipsec(rx_bytes: u64) -> local::StatusReply {
        let tunnel = TunnelStatus { health: "down".into(), rx_bytes, ..TunnelStatus::default() };
        local::StatusReply {
            encryption: "ipsec".into(),
            wireguard: "kernel".into(),
            tunnels: vec![tunnel],
            ..local::StatusReply::default()
        }
    }

    #[test]
    fn a_tunnel_through_which_no_esp_ever_came_names_the_ways_out() {
        let said = unheard_esp(&over_ipsec(0)).unwrap();
        assert!(said.contains("IP protocol 50") && said.contains("ipsec: userspace"), "{said}");
        assert_eq!(unheard_esp(&over_ipsec(1)), None, "it is another's fault");
    }

    #[test]
    fn a_secret_that_is_left_is_told_apart_from_one_that_stays() {
        let mut keys = local::IpsecKeys {
            receives: vec!["1.1".into(), "2.2".into()],
            sends: [(2, 3)].into(),
            leaving: Vec::new(),
        };
        let begin = "mesh secret: sends to 3 tunnels by epoch 2 alone; receives by";
        assert_eq!(ipsec(&keys), format!("{begin} 1.1, 2.2 (epoch.turn)"));
        keys.leaving.push("1.1".into());
        assert_eq!(ipsec(&keys), format!("{begin} 2.2 (epoch.turn), and until they are silent by 1.1"));
    }
}
