//! The agent's state as the protobufs of the local API.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hawser_agent_core::{Agent, BackendStatus, Noted, ServiceStatus, State};
use hawser_api::local;
use hawser_discovery::{About, NodeId};
use hawser_discovery_net::ProberSnapshot;
use hawser_ebpf_abi::{Kind, Reason};
use hawser_model::{ClusterHealth, ClusterId, ClusterName, Encryption, HealthWord, Routing, Time};
use hawser_tunnels::{Carrier, Family, longest};
use hawser_tunnels_linux::{Choice, Stats};

use crate::clock::{self, Clock, millis};
use crate::sweep::Swept;

/// Peers without a tunnel that are named one by one.
const MOST_WITHOUT: usize = 8;

/// Everything but what has to be asked of the kernel and of other tasks.
pub(crate) fn status(agent: &Agent, clock: Clock, driver_problems: &[String]) -> local::StatusReply {
    let (config, now) = (agent.config(), clock.now());
    let mesh = config.mesh_addresses();
    let names: BTreeMap<ClusterId, ClusterName> =
        agent.view().peers().map(|(peer, _)| (peer.cluster.id, peer.cluster.name.clone())).collect();
    let clusters = agent.clusters(now).into_iter().map(|status| local::ClusterStatus {
        name: status.cluster.name.to_string(),
        id: status.cluster.id.get().into(),
        own: status.own,
        revision: status.revision,
        synced: status.synced,
        data_plane: status.data_plane.to_string(),
        since_ms_ago: ago(status.since, now),
        reason: status.reason,
        heard_ms_ago: ago(status.heard, now),
        nodes: count(status.nodes),
        services: count(status.services),
        endpoints: count(status.endpoints),
        identities: count(status.identities),
        control_plane: status.control_plane.verdict.to_string(),
        control_plane_since_ms_ago: ago(status.control_plane.since, now),
        control_plane_reason: status.control_plane.reason,
        data_plane_reason: status.data_plane_reason,
        standing: status.standing.name().to_owned(),
        standing_text: status.standing.to_string(),
    });
    let words = agent.word_counts();
    let carrier = match config.encryption {
        Encryption::Wireguard => Carrier::Wireguard,
        // In UDP with a peer whose agent carries itself.
        Encryption::Ipsec => Carrier::EspInUdp,
    };
    local::StatusReply {
        cluster: config.cluster.name.to_string(),
        cluster_id: config.cluster.id.get().into(),
        node: config.node.to_string(),
        mesh_ipv4: mesh.ipv4.to_string(),
        mesh_ipv6: mesh.ipv6.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        problems: agent.problems().into_iter().chain(driver_problems.iter().cloned()).collect(),
        clusters: clusters.collect(),
        tunnels: tunnels(agent, now),
        reasons: Vec::new(),
        services: count(agent.service_count()),
        local_pods: count(agent.local_pods().len()),
        cluster_word_writes: words.clusters,
        node_word_writes: words.nodes,
        transitions: agent.transitions().map(|t| transition(t, agent, &names, clock)).collect(),
        wireguard: String::new(),
        probing: None,
        stuck_connections: None,
        encryption: config.encryption.to_string(),
        tunnel_mtu: config.mtu.into(),
        overhead_ipv4: longest(config.mtu, carrier, Family::V4).saturating_sub(config.mtu).into(),
        overhead_ipv6: longest(config.mtu, carrier, Family::V6).saturating_sub(config.mtu).into(),
        ipsec_keys: None,
    }
}

/// What becomes of connections to what is down; `missing` as the sweep has it.
pub(crate) fn stuck(agent: &Agent, swept: &Swept, missing: Option<&str>) -> local::StuckConnections {
    let keep_alive = hawser_ebpf::can_set_keep_alive();
    let silent = (!keep_alive).then_some(
        "before kernel 6.1 a program's own keep-alive cannot be told from none, so none is set: connections that only wait are left to the sweep",
    );
    let closed = (!agent.local_pods().is_empty() && swept.namespaces == 1).then_some(
        "no pod's network namespace was found (neither in /proc, which takes hostPID, nor in /run/netns): silent connections of pods end at their next packet or keep-alive",
    );
    let missing_parts = [missing, silent, closed, swept.problem.as_deref()];
    local::StuckConnections {
        reset: 0,
        swept: swept.ended,
        keep_alive,
        sweep: missing.is_none(),
        cut_off: agent.is_cut_off(),
        missing: missing_parts.into_iter().flatten().map(str::to_owned).collect(),
    }
}

fn tunnels(agent: &Agent, now: Time) -> Vec<local::TunnelStatus> {
    let ids = node_ids(agent);
    let peers = agent.plan().tunnels.iter().flat_map(|desired| &desired.peers);
    let verdict = |peer: &hawser_tunnels::Peer| {
        let name = (peer.name.cluster.name.to_string(), peer.name.node.to_string());
        agent.node_verdict(*ids.get(&name)?)
    };
    let grey = |peer: &hawser_tunnels::Peer| {
        let name = (peer.name.cluster.name.to_string(), peer.name.node.to_string());
        agent.node_grey(*ids.get(&name)?)
    };
    let stated = |peer: &hawser_tunnels::Peer| {
        let stated = agent.stated_endpoints(&peer.public_key).unwrap_or_default();
        stated.iter().map(ToString::to_string).collect()
    };
    let gateways: BTreeMap<_, _> =
        peers.clone().filter(|peer| peer.via.is_none()).map(|peer| (peer.public_key, peer)).collect();
    let gateway = |peer: &hawser_tunnels::Peer| peer.via.and_then(|via| gateways.get(&via).copied());
    let own = |peer: &hawser_tunnels::Peer| peer.name.cluster == agent.config().cluster;
    let tunnel = |peer: &hawser_tunnels::Peer| local::TunnelStatus {
        cluster: peer.name.cluster.name.to_string(),
        node: peer.name.node.to_string(),
        endpoint: gateway(peer).unwrap_or(peer).endpoint.to_string(),
        stated_endpoints: stated(peer),
        public_key: STANDARD.encode(peer.public_key.as_bytes()),
        allowed_ips: peer.allowed.iter().map(ToString::to_string).collect(),
        last_handshake_ms_ago: -1,
        rtt_us: -1,
        rx_bytes: 0,
        tx_bytes: 0,
        // Nobody probes the own cluster.
        health: if own(peer) { "-".to_owned() } else { ClusterHealth::Unknown.to_string() },
        probes_lost_per_mille: 0,
        probes_until_down: 0,
        health_since_ms_ago: ago(verdict(peer).map(|verdict| verdict.at), now),
        health_reason: match grey(peer) {
            Some(grey) => grey.why.to_string(),
            None => verdict(peer).map(|verdict| verdict.because.to_string()).unwrap_or_default(),
        },
        weight: u32::from(grey(peer).map_or(HealthWord::FULL_WEIGHT, |grey| grey.weight)),
        heard_by_users: false,
        proves: if peer.via.is_some() { "cluster" } else { "node" }.to_owned(),
        via: gateway(peer).map(|gateway| gateway.name.to_string()).unwrap_or_default(),
        sessions: 0,
        mtu: 0,
    };
    peers.map(tunnel).collect()
}

/// Nodes by cluster and name, for what the probing task knows by numbers.
pub(crate) fn node_ids(agent: &Agent) -> BTreeMap<(String, String), NodeId> {
    let nodes = agent.view().peers().filter_map(|(peer, view)| Some((peer, view?)));
    nodes
        .flat_map(|(peer, view)| {
            view.tunnel_nodes.values().map(|node| {
                let id = NodeId { cluster: peer.cluster.id, index: node.index };
                ((peer.cluster.name.to_string(), node.name.to_string()), id)
            })
        })
        .collect()
}

/// Adds what the engine and the probing task measured.
pub(crate) fn measure(
    reply: &mut local::StatusReply,
    ids: &BTreeMap<(String, String), NodeId>,
    stats: Option<&Stats>,
    probes: Option<&ProberSnapshot>,
) {
    let by_key: BTreeMap<String, _> = stats
        .iter()
        .flat_map(|stats| &stats.peers)
        .map(|(key, peer)| (STANDARD.encode(key.as_bytes()), peer))
        .collect();
    if let Some(stats) = stats {
        let choice = if stats.in_kernel { Choice::Kernel } else { Choice::Userspace };
        choice.as_str().clone_into(&mut reply.wireguard);
        reply.problems.extend(stats.without.iter().take(MOST_WITHOUT).cloned());
        if let Some(more) = stats.without.len().checked_sub(MOST_WITHOUT).filter(|more| *more > 0) {
            reply.problems.push(format!("no IPsec tunnel to {more} more peers: the log names them"));
        }
        reply.ipsec_keys = stats.keys.as_ref().map(|keys| local::IpsecKeys {
            receives: keys.receives.iter().map(ToString::to_string).collect(),
            sends: keys.sends.iter().map(|(epoch, peers)| (epoch.get(), count(*peers))).collect(),
            leaving: keys.leaving.iter().map(ToString::to_string).collect(),
        });
    }
    reply.probing = probes.and_then(probing);
    for tunnel in &mut reply.tunnels {
        if let Some(peer) = by_key.get(&tunnel.public_key) {
            tunnel.last_handshake_ms_ago = peer.last_handshake.map_or(-1, |at| millis(clock::ago(at)));
            (tunnel.rx_bytes, tunnel.tx_bytes) = (peer.rx_bytes, peer.tx_bytes);
            tunnel.sessions = peer.sessions.unwrap_or(0);
            tunnel.mtu = peer.mtu.unwrap_or(0).into();
            if let Some(endpoint) = peer.endpoint {
                tunnel.endpoint = endpoint.to_string();
            }
        }
        let id = ids.get(&(tunnel.cluster.clone(), tunnel.node.clone()));
        if let Some(node) = id.and_then(|id| probes?.nodes.get(id)) {
            tunnel.health = node.verdict.to_string();
            let rtt = node.rtt_smoothed.and_then(|rtt| i64::try_from(rtt.as_micros()).ok());
            tunnel.rtt_us = rtt.unwrap_or(-1);
            tunnel.probes_lost_per_mille = (node.loss * 1_000.0) as u32;
            tunnel.probes_until_down = node.multiplier;
            tunnel.heard_by_users = node.by_users;
            if node.admin_down {
                "its agent was stopped on purpose and the kernel answers: the last verdict is kept"
                    .clone_into(&mut tunnel.health_reason);
            }
        }
    }
}

/// What liveness lacks on this kernel; and why probes are not shared, if they are not.
pub(crate) fn lack(reply: &mut local::StatusReply, no_users: Option<String>, alone: Option<String>) {
    if let Some(probing) = &mut reply.probing {
        probing.sharing_problem = alone.unwrap_or_default();
    }
    if let (Some(probing), Some(why)) = (&mut reply.probing, no_users) {
        probing.missing.push(format!(
            "users' connections are not counted, so a node that answers probes and fails users keeps its weight unless large probes are lost: {why}"
        ));
    }
}

fn probing(seen: &ProberSnapshot) -> Option<local::Probing> {
    let (budget, counters) = (seen.budget.as_ref()?, seen.counters);
    let millis = |interval: std::time::Duration| u32::try_from(interval.as_millis()).unwrap_or(u32::MAX);
    Some(local::Probing {
        watched: count(budget.watched.len()),
        others: count(budget.others),
        interval_ms: millis(budget.interval),
        interval_of_others_ms: millis(budget.interval_of_others),
        packets_per_second: budget.packets_per_second().ceil() as u32,
        sent: counters.sent,
        replies: counters.replies,
        refused: counters.refused,
        heard_by_users: count(seen.nodes.values().filter(|node| node.by_users).count()),
        large: counters.large,
        missing: Vec::new(),
        shared: count(budget.shared.len()),
        interval_of_shared_ms: millis(budget.interval_of_shared),
        sharers: count(seen.sharing.sharers),
        hinted: count(seen.sharing.hinted),
        hints_confirmed: seen.sharing.confirmed,
        hints_refuted: seen.sharing.refuted,
        sharing_problem: String::new(),
    })
}

/// Packets and connections by reason; what the engine dropped comes last.
pub(crate) fn reasons(counts: &[(Reason, u64)], stats: Option<&Stats>) -> Vec<local::ReasonCount> {
    let programs = counts.iter().map(|(reason, packets)| local::ReasonCount {
        reason: reason.name().to_owned(),
        drop: reason.kind() == Kind::Drop,
        packets: *packets,
        explanation: reason.text().to_owned(),
    });
    let engine =
        stats.into_iter().flat_map(|stats| &stats.drops).map(|(reason, packets)| local::ReasonCount {
            reason: format!("engine-{reason}"),
            drop: true,
            packets: *packets,
            explanation: "Dropped by the tunnel engine.".to_owned(),
        });
    programs.chain(engine).collect()
}

fn transition(
    noted: &Noted,
    agent: &Agent,
    names: &BTreeMap<ClusterId, ClusterName>,
    clock: Clock,
) -> local::Transition {
    let cluster = |id: ClusterId| names.get(&id).map_or_else(|| format!("cluster-{id}"), ToString::to_string);
    let (about, at) = match noted {
        Noted::Verdict(transition) => (transition.about, transition.at),
        Noted::Grey { grey, .. } => (About::Node(grey.node), grey.at),
    };
    let about = match about {
        About::Cluster(id) => cluster(id),
        About::Node(node) => {
            let view = names.get(&node.cluster).and_then(|name| agent.view().cluster(name));
            let mut nodes = view.iter().flat_map(|view| view.tunnel_nodes.values());
            let name = nodes.find(|tunnel| tunnel.index == node.index).map(|tunnel| tunnel.name.to_string());
            let name = name.unwrap_or_else(|| format!("node-index-{}", node.index));
            format!("{}/{name}", cluster(node.cluster))
        }
    };
    let weighed = |weight: u16| match weight {
        HealthWord::FULL_WEIGHT => ClusterHealth::Up.to_string(),
        weight => format!("grey ({weight}/{})", HealthWord::FULL_WEIGHT),
    };
    let (from, to, reason) = match noted {
        Noted::Verdict(t) => (t.from.to_string(), t.to.to_string(), t.because.to_string()),
        Noted::Grey { grey, before } => (weighed(*before), weighed(grey.weight), grey.why.to_string()),
    };
    // Rounded up: at that moment the word was written.
    local::Transition { about, from, to, reason, unix_ms: clock.unix_ms(at) + 1 }
}

pub(crate) fn services(agent: &Agent, only: &str) -> local::ListServicesReply {
    let wanted = |status: &ServiceStatus| only.is_empty() || status.service.key.to_string() == only;
    let services = agent.services().into_iter().filter(wanted);
    local::ListServicesReply { services: services.map(service).collect() }
}

fn service(status: ServiceStatus) -> local::Service {
    let service = status.service;
    let ports =
        service.ports.iter().zip(status.backends).map(|((name, port), backends)| local::ServicePort {
            name: name.to_string(),
            protocol: port.port.protocol.to_string(),
            port: port.port.port.into(),
            backends: backends.into_iter().map(backend).collect(),
        });
    local::Service {
        namespace: service.key.namespace().to_owned(),
        name: service.key.name().to_owned(),
        affinity: service.routing.affinity.to_string(),
        wishes: wishes(&service.routing),
        shared: service.shared,
        cluster_ips: service.cluster_ips.iter().map(ToString::to_string).collect(),
        ports: ports.collect(),
    }
}

/// What differs from the default, by the annotation's name; affinity has its own place.
fn wishes(routing: &Routing) -> BTreeMap<String, String> {
    let default = Routing::default();
    let join = |texts: Vec<String>| (!texts.is_empty()).then(|| texts.join(","));
    let weights = routing.weights.iter().map(|(cluster, weight)| format!("{cluster}={weight}"));
    let changed = |text: &str, is: bool| is.then(|| text.to_owned());
    let all = [
        ("affinity-min-healthy", routing.min_healthy.map(|min| min.to_string())),
        ("cluster-weights", join(weights.collect())),
        ("cluster-order", join(routing.order.iter().map(ToString::to_string).collect())),
        ("fallback", changed(routing.fallback.as_str(), routing.fallback != default.fallback)),
        ("session-affinity", routing.session_seconds.map(|seconds| format!("ClientIP={seconds}s"))),
        (
            "on-data-plane-loss",
            changed(
                routing.on_data_plane_loss.as_str(),
                routing.on_data_plane_loss != default.on_data_plane_loss,
            ),
        ),
        (
            "on-control-plane-loss",
            changed(
                routing.on_control_plane_loss.as_str(),
                routing.on_control_plane_loss != default.on_control_plane_loss,
            ),
        ),
        (
            "drain-grace",
            Some(routing.drain_grace_seconds).filter(|grace| *grace > 0).map(|grace| format!("{grace}s")),
        ),
        ("algorithm", changed(routing.algorithm.as_str(), routing.algorithm != default.algorithm)),
        (
            "zone-affinity",
            changed(routing.zone_affinity.as_str(), routing.zone_affinity != default.zone_affinity),
        ),
        ("reset-after", routing.reset_after.map(|after| after.to_string())),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

fn backend(status: BackendStatus) -> local::Backend {
    local::Backend {
        cluster: status.cluster.name.to_string(),
        node: status.backend.node.as_ref().map(|(_, name)| name.to_string()).unwrap_or_default(),
        address: status.backend.ip.to_string(),
        port: status.backend.port.into(),
        health: health(&status).to_owned(),
        eligible: status.eligible,
    }
}

fn health(status: &BackendStatus) -> &'static str {
    match status.backend.state {
        _ if !status.healthy => "down",
        State::Ready => "up",
        State::Draining => "draining",
        State::Withdrawn => "withdrawn",
    }
}

fn ago(at: Option<Time>, now: Time) -> i64 {
    at.map_or(-1, |at| millis(now.since(at)))
}

fn count(items: usize) -> u32 {
    u32::try_from(items).unwrap_or(u32::MAX)
}
