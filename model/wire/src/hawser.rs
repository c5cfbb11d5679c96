//! What only Hawser writes: tunnel nodes for everyone, global services for the own cluster (contracts.md).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hawser_model::{
    Affinity, Algorithm, BootId, ClusterName, Epoch, EspEnd, Fallback, Generation, GlobalService,
    MeshAddresses, MinHealthy, MorePorts, NodeIndex, NodeName, OnLoss, Outside, ParseRoutingError, PortName,
    Protocol, ResetAfter, Routing, ServiceKey, ServicePort, TunnelEnd, TunnelNode, ZoneAffinity,
};
use serde::{Deserialize, Serialize};

use crate::entry::{Context, same, same_cluster};
use crate::error::{Fault, Reason, short};
use crate::json::{List, Pairs, PortMapIn, PortMapOut, Text, ip, parse, port, port_map, port_map_out, print};
use crate::limits;
use crate::node::{boot_id, public_key};
use crate::service::{addresses, by_address};

#[derive(Deserialize)]
struct NodeIn<'a> {
    #[serde(borrow)]
    name: Text<'a>,
    #[serde(borrow)]
    cluster: Text<'a>,
    #[serde(rename = "clusterID")]
    cluster_id: u32,
    index: u32,
    #[serde(rename = "meshIPv4", borrow)]
    mesh_ipv4: Text<'a>,
    #[serde(rename = "meshIPv6", borrow)]
    mesh_ipv6: Text<'a>,
    #[serde(rename = "bootID", borrow, default)]
    boot_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    wireguard: Option<EndIn<'a>>,
    #[serde(rename = "publicEndpoint", borrow, default)]
    public_endpoint: Option<Text<'a>>,
    #[serde(default)]
    gateway: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndIn<'a> {
    epoch: u32,
    #[serde(borrow)]
    public_key: Text<'a>,
    port: u16,
    mtu: u16,
    #[serde(default)]
    more_ports: List<u16, { MorePorts::MOST }>,
    #[serde(default)]
    esp: Option<EspIn>,
}

#[derive(Deserialize)]
struct EspIn {
    receives: List<GenerationText, { EspEnd::MOST }>,
    #[serde(rename = "inUDP", default)]
    in_udp: bool,
}

#[derive(Serialize)]
struct EspOut {
    receives: Vec<GenerationText>,
    #[serde(rename = "inUDP", skip_serializing_if = "std::ops::Not::not")]
    in_udp: bool,
}

#[derive(Serialize, Deserialize)]
struct GenerationText {
    epoch: u32,
    turn: u32,
}

#[derive(Serialize)]
struct NodeOut<'a> {
    name: &'a str,
    cluster: &'a str,
    #[serde(rename = "clusterID")]
    cluster_id: u16,
    index: u16,
    #[serde(rename = "meshIPv4")]
    mesh_ipv4: Ipv4Addr,
    #[serde(rename = "meshIPv6")]
    mesh_ipv6: Ipv6Addr,
    #[serde(rename = "bootID", skip_serializing_if = "Option::is_none")]
    boot_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wireguard: Option<EndOut>,
    #[serde(rename = "publicEndpoint", skip_serializing_if = "Option::is_none")]
    public_endpoint: Option<SocketAddr>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    gateway: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EndOut {
    epoch: u32,
    public_key: String,
    port: u16,
    mtu: u16,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    more_ports: Vec<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    esp: Option<EspOut>,
}

pub(crate) fn decode_node(key: &NodeName, value: &[u8], cx: &Context) -> Result<TunnelNode, Fault> {
    let raw: NodeIn<'_> = parse(value)?;
    same("name", &raw.name, key.as_str(), "the key")?;
    same_cluster(cx, ("cluster", &raw.cluster), ("clusterID", raw.cluster_id))?;
    let range = |number: u32, max: u32| Reason::OutOfRange { number: number.into(), min: 1, max: max.into() };
    let index = NodeIndex::new(raw.index).ok_or_else(|| range(raw.index, 65_535).at("index"))?;
    let Ok(IpAddr::V4(ipv4)) = ip(&raw.mesh_ipv4) else {
        return Err(Reason::Address { text: short(&raw.mesh_ipv4) }.at("meshIPv4"));
    };
    let Ok(IpAddr::V6(ipv6)) = ip(&raw.mesh_ipv6) else {
        return Err(Reason::Address { text: short(&raw.mesh_ipv6) }.at("meshIPv6"));
    };
    let wireguard = raw.wireguard.as_ref().map(|end| {
        let epoch = Epoch::new(end.epoch).ok_or_else(|| range(end.epoch, u32::MAX).at("wireguard.epoch"))?;
        let public_key = public_key(Some(&end.public_key), "wireguard.publicKey")?
            .ok_or_else(|| Reason::Missing.at("wireguard.publicKey"))?;
        let port = port(end.port).map_err(|why| why.at("wireguard.port"))?;
        if end.mtu < MIN_MTU {
            let reason = Reason::OutOfRange { number: end.mtu.into(), min: MIN_MTU.into(), max: 65_535 };
            return Err(reason.at("wireguard.mtu"));
        }
        let esp = end.esp.as_ref().map(decode_esp).transpose()?;
        let more_ports = MorePorts::new(&end.more_ports.0).filter(|more| !more.as_slice().contains(&port));
        let more_ports = more_ports.ok_or_else(|| {
            let ports = end.more_ports.0.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
            Reason::Duplicate { text: short(&ports) }.at("wireguard.morePorts")
        })?;
        Ok(TunnelEnd { epoch, public_key, port, mtu: end.mtu, more_ports, esp })
    });
    Ok(TunnelNode {
        cluster: cx.cluster.clone(),
        name: key.clone(),
        index,
        mesh: MeshAddresses { ipv4, ipv6 },
        boot_id: boot_id(raw.boot_id.as_ref(), "bootID")?,
        wireguard: wireguard.transpose()?,
        public_endpoint: raw.public_endpoint.as_deref().map(public_endpoint).transpose()?,
        gateway: raw.gateway,
    })
}

fn decode_esp(esp: &EspIn) -> Result<EspEnd, Fault> {
    let epoch = |number| {
        let reason = Reason::OutOfRange { number: u64::from(number), min: 1, max: u32::MAX.into() };
        Epoch::new(number).ok_or_else(|| reason.at("wireguard.esp.receives.epoch"))
    };
    let generations =
        esp.receives.0.iter().map(|text| Ok(Generation { epoch: epoch(text.epoch)?, turn: text.turn }));
    let generations = generations.collect::<Result<Vec<_>, _>>()?;
    EspEnd::new(generations, esp.in_udp).ok_or_else(|| Reason::Missing.at("wireguard.esp.receives"))
}

fn encode_esp(esp: &EspEnd) -> EspOut {
    let text = |of: Generation| GenerationText { epoch: of.epoch.get(), turn: of.turn };
    EspOut { receives: esp.receives().map(text).collect(), in_udp: esp.in_udp }
}

fn public_endpoint(text: &str) -> Result<SocketAddr, Fault> {
    let endpoint = text.parse::<SocketAddr>().ok().filter(|endpoint| endpoint.port() != 0);
    endpoint.ok_or_else(|| Reason::Address { text: short(text) }.at("publicEndpoint"))
}

/// The smallest link that carries IPv4 hosts' packets whole (RFC 791); IPv6 asks for 1280 and checks that itself.
const MIN_MTU: u16 = 576;

pub fn encode_node(node: &TunnelNode) -> Bytes {
    print(&NodeOut {
        name: node.name.as_str(),
        cluster: node.cluster.name.as_str(),
        cluster_id: node.cluster.id.get(),
        index: node.index.get(),
        mesh_ipv4: node.mesh.ipv4,
        mesh_ipv6: node.mesh.ipv6,
        boot_id: node.boot_id.as_ref().map(BootId::as_str),
        wireguard: node.wireguard.as_ref().map(|end| EndOut {
            epoch: end.epoch.get(),
            public_key: STANDARD.encode(end.public_key.as_bytes()),
            port: end.port,
            mtu: end.mtu,
            more_ports: end.more_ports.as_slice().to_vec(),
            esp: end.esp.as_ref().map(encode_esp),
        }),
        public_endpoint: node.public_endpoint,
        gateway: node.gateway,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceIn<'a> {
    #[serde(borrow)]
    cluster: Text<'a>,
    #[serde(rename = "clusterID")]
    cluster_id: u32,
    #[serde(borrow)]
    namespace: Text<'a>,
    #[serde(borrow)]
    name: Text<'a>,
    #[serde(rename = "clusterIPs", borrow)]
    cluster_ips: List<Text<'a>, { limits::ADDRESSES }>,
    #[serde(borrow)]
    ports: List<PortIn<'a>, { limits::PORTS }>,
    #[serde(borrow)]
    affinity: Text<'a>,
    #[serde(borrow, default)]
    min_healthy: Option<Text<'a>>,
    #[serde(borrow, default)]
    cluster_weights: Pairs<'a, u16, { Routing::MAX_CLUSTERS }>,
    #[serde(borrow, default)]
    cluster_order: List<Text<'a>, { Routing::MAX_CLUSTERS }>,
    #[serde(borrow, default)]
    fallback: Option<Text<'a>>,
    #[serde(default)]
    session_seconds: Option<u32>,
    #[serde(borrow, default)]
    on_data_plane_loss: Option<Text<'a>>,
    #[serde(borrow, default)]
    reset_after: Option<Text<'a>>,
    #[serde(borrow, default)]
    on_control_plane_loss: Option<Text<'a>>,
    #[serde(default)]
    drain_grace_seconds: u32,
    #[serde(borrow, default)]
    zone_affinity: Option<Text<'a>>,
    #[serde(borrow, default)]
    algorithm: Option<Text<'a>>,
    shared: bool,
    #[serde(borrow)]
    backends: PortMapIn<'a, { limits::BACKENDS }>,
    #[serde(borrow, default)]
    draining: List<Text<'a>, { limits::BACKENDS }>,
    #[serde(borrow, default)]
    zones: Pairs<'a, Text<'a>, { limits::BACKENDS }>,
    #[serde(rename = "externalIPs", borrow, default)]
    external_ips: List<Text<'a>, { limits::ADDRESSES }>,
    #[serde(borrow, default)]
    node_ports: Pairs<'a, u16, { limits::PORTS }>,
}

#[derive(Deserialize)]
struct PortIn<'a> {
    #[serde(borrow)]
    name: Text<'a>,
    #[serde(borrow)]
    protocol: Text<'a>,
    port: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceOut<'a> {
    cluster: &'a str,
    #[serde(rename = "clusterID")]
    cluster_id: u16,
    namespace: &'a str,
    name: &'a str,
    #[serde(rename = "clusterIPs")]
    cluster_ips: &'a [IpAddr],
    ports: Vec<PortOut<'a>>,
    affinity: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_healthy: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    cluster_weights: BTreeMap<&'a str, u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cluster_order: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fallback: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_seconds: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_data_plane_loss: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reset_after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_control_plane_loss: Option<&'static str>,
    #[serde(skip_serializing_if = "is_zero")]
    drain_grace_seconds: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone_affinity: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    algorithm: Option<&'static str>,
    shared: bool,
    backends: PortMapOut<'a>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    draining: &'a BTreeSet<IpAddr>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    zones: &'a BTreeMap<IpAddr, String>,
    #[serde(rename = "externalIPs", skip_serializing_if = "BTreeSet::is_empty")]
    external_ips: &'a BTreeSet<IpAddr>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    node_ports: BTreeMap<&'a str, u16>,
}

#[derive(Serialize)]
struct PortOut<'a> {
    name: &'a str,
    protocol: &'static str,
    port: u16,
}

pub(crate) fn decode_service(key: &ServiceKey, value: &[u8], cx: &Context) -> Result<GlobalService, Fault> {
    let raw: ServiceIn<'_> = parse(value)?;
    same_cluster(cx, ("cluster", &raw.cluster), ("clusterID", raw.cluster_id))?;
    same("namespace", &raw.namespace, key.namespace(), "the key")?;
    same("name", &raw.name, key.name(), "the key")?;
    let cluster_ips = raw.cluster_ips.0.iter().map(|text| ip(text).map_err(|why| why.at("clusterIPs")));
    let mut ports = BTreeMap::new();
    for raw in &raw.ports.0 {
        let at = |why: Reason| why.at("ports");
        let name = PortName::parse(&raw.name).map_err(|why| at(why.into()))?;
        let protocol = Protocol::parse(&raw.protocol).map_err(|why| at(why.into()))?;
        let port = port(raw.port).map_err(at)?;
        if ports.insert(name, ServicePort { protocol, port }).is_some() {
            return Err(at(Reason::Duplicate { text: short(&raw.name) }));
        }
    }
    Ok(GlobalService {
        cluster: cx.cluster.clone(),
        key: key.clone(),
        cluster_ips: cluster_ips.collect::<Result<_, _>>()?,
        ports,
        routing: routing(&raw)?,
        shared: raw.shared,
        backends: port_map(raw.backends, "backends")?,
        draining: addresses(&raw.draining.0, "draining")?,
        outside: outside(&raw.external_ips.0, &raw.node_ports.0)?,
        zones: by_address(raw.zones.0, "zones")?,
    })
}

fn outside(ips: &[Text<'_>], node_ports: &[(Text<'_>, u16)]) -> Result<Outside, Fault> {
    let mut outside = Outside { ips: addresses(ips, "externalIPs")?, node_ports: BTreeMap::new() };
    for (name, number) in node_ports {
        let at = |why: Reason| why.at("nodePorts");
        let name = PortName::parse(name).map_err(|why| at(why.into()))?;
        outside.node_ports.insert(name, port(*number).map_err(at)?);
    }
    Ok(outside)
}

/// What is not there is the default, so that agents and API servers of different ages understand each other.
fn routing(raw: &ServiceIn<'_>) -> Result<Routing, Fault> {
    let affinity = Affinity::parse(&raw.affinity).map_err(|why| Reason::from(why).at("affinity"))?;
    let default = Routing { affinity, ..Routing::default() };
    let mut weights = BTreeMap::new();
    for (name, weight) in &raw.cluster_weights.0 {
        let at = |why: Reason| why.at("clusterWeights");
        let name = ClusterName::parse(name).map_err(|why| at(why.into()))?;
        if *weight > Routing::MAX_WEIGHT {
            let max = Routing::MAX_WEIGHT.into();
            return Err(at(Reason::OutOfRange { number: (*weight).into(), min: 0, max }));
        }
        weights.insert(name, *weight);
    }
    let order = raw.cluster_order.0.iter().map(|name| ClusterName::parse(name));
    let order: Result<Vec<_>, _> = order.collect();
    let seconds = raw.session_seconds;
    if let Some(seconds) = seconds.filter(|s| !(1..=Routing::MAX_SESSION_SECONDS).contains(s)) {
        let (number, max) = (seconds.into(), Routing::MAX_SESSION_SECONDS.into());
        return Err(Reason::OutOfRange { number, min: 1, max }.at("sessionSeconds"));
    }
    let grace = raw.drain_grace_seconds;
    if grace > Routing::MAX_DRAIN_GRACE_SECONDS {
        let max = Routing::MAX_DRAIN_GRACE_SECONDS.into();
        return Err(Reason::OutOfRange { number: grace.into(), min: 0, max }.at("drainGraceSeconds"));
    }
    let on_loss = |text: &Option<Text<'_>>, at| parsed(text.as_ref(), at, OnLoss::parse);
    Ok(Routing {
        min_healthy: parsed(raw.min_healthy.as_ref(), "minHealthy", MinHealthy::parse)?,
        weights,
        order: order.map_err(|why| Reason::from(why).at("clusterOrder"))?,
        fallback: parsed(raw.fallback.as_ref(), "fallback", Fallback::parse)?.unwrap_or(default.fallback),
        session_seconds: seconds,
        on_data_plane_loss: on_loss(&raw.on_data_plane_loss, "onDataPlaneLoss")?
            .unwrap_or(default.on_data_plane_loss),
        on_control_plane_loss: on_loss(&raw.on_control_plane_loss, "onControlPlaneLoss")?
            .unwrap_or(default.on_control_plane_loss),
        drain_grace_seconds: grace,
        zone_affinity: parsed(raw.zone_affinity.as_ref(), "zoneAffinity", ZoneAffinity::parse)?
            .unwrap_or(default.zone_affinity),
        algorithm: parsed(raw.algorithm.as_ref(), "algorithm", Algorithm::parse)?
            .unwrap_or(default.algorithm),
        reset_after: parsed(raw.reset_after.as_ref(), "resetAfter", ResetAfter::parse)?,
        ..default
    })
}

fn parsed<T>(
    text: Option<&Text<'_>>,
    at: &str,
    parse: impl Fn(&str) -> Result<T, ParseRoutingError>,
) -> Result<Option<T>, Fault> {
    text.map(|text| parse(text).map_err(|why| Reason::from(why).at(at))).transpose()
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Only what differs from the default is written.
fn unless<T: PartialEq>(value: T, default: T) -> Option<T> {
    (value != default).then_some(value)
}

pub fn encode_service(service: &GlobalService) -> Bytes {
    let (routing, default) = (&service.routing, Routing::default());
    let ports = service.ports.iter().map(|(name, port)| PortOut {
        name: name.as_str(),
        protocol: port.protocol.as_str(),
        port: port.port,
    });
    print(&ServiceOut {
        cluster: service.cluster.name.as_str(),
        cluster_id: service.cluster.id.get(),
        namespace: service.key.namespace(),
        name: service.key.name(),
        cluster_ips: &service.cluster_ips,
        ports: ports.collect(),
        affinity: routing.affinity.as_str(),
        min_healthy: routing.min_healthy.map(|min| min.to_string()),
        cluster_weights: routing.weights.iter().map(|(name, weight)| (name.as_str(), *weight)).collect(),
        cluster_order: routing.order.iter().map(ClusterName::as_str).collect(),
        fallback: unless(routing.fallback, default.fallback).map(Fallback::as_str),
        session_seconds: routing.session_seconds,
        on_data_plane_loss: unless(routing.on_data_plane_loss, default.on_data_plane_loss)
            .map(OnLoss::as_str),
        reset_after: routing.reset_after.map(|after| after.to_string()),
        on_control_plane_loss: unless(routing.on_control_plane_loss, default.on_control_plane_loss)
            .map(OnLoss::as_str),
        drain_grace_seconds: routing.drain_grace_seconds,
        zone_affinity: unless(routing.zone_affinity, default.zone_affinity).map(ZoneAffinity::as_str),
        algorithm: unless(routing.algorithm, default.algorithm).map(Algorithm::as_str),
        shared: service.shared,
        backends: port_map_out(&service.backends),
        draining: &service.draining,
        zones: &service.zones,
        external_ips: &service.outside.ips,
        node_ports: service.outside.node_ports.iter().map(|(name, port)| (name.as_str(), *port)).collect(),
    })
}
