//! Kubernetes' fields to our types: the only file that knows both.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hawser_model::{
    AddressFamily, AddressKind, BootId, InternalTrafficPolicy, IpNet, NodeAddress, NodeName, Outside,
    PortName, Protocol, ServiceKey, ServicePort, SessionAffinity, SliceKey, SlicePort, Timestamp,
    TrafficDistribution,
};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::fields;
use crate::left_out;
use crate::{
    Endpoint, Expression, Kind, Namespace, Node, Object, Pairs, Place, Pod, PodPhase, Policy, Selector,
    Service, ServiceExport, Slice, Traffic,
};

#[derive(Debug, thiserror::Error)]
enum ConvertError {
    #[error("metadata.name is missing")]
    NoName,
    #[error("{field} {text:?} is not {wanted}")]
    Field { field: &'static str, text: String, wanted: &'static str },
    #[error("{field}: {reason}")]
    Value { field: &'static str, reason: String },
}

fn value<E: std::fmt::Display>(field: &'static str) -> impl FnOnce(E) -> ConvertError {
    move |error| ConvertError::Value { field, reason: error.to_string() }
}

/// Reads one object whose kind is known.
pub(crate) fn read<'de, D: Deserializer<'de>>(kind: Kind, from: D) -> Result<Object, D::Error> {
    match kind {
        Kind::Namespace => namespace(fields::Namespace::deserialize(from)?),
        Kind::Node => node(fields::Node::deserialize(from)?),
        Kind::Pod => pod(fields::Pod::deserialize(from)?),
        Kind::Service => service(fields::Service::deserialize(from)?),
        Kind::EndpointSlice => slice(fields::EndpointSlice::deserialize(from)?),
        Kind::NetworkPolicy => policy(fields::NetworkPolicy::deserialize(from)?),
        Kind::ServiceExport => service_export(fields::ServiceExport::deserialize(from)?),
    }
    .map_err(D::Error::custom)
}

/// Kubernetes' name for "no namespace given" is the namespace `default`.
fn names(meta: &fields::Meta) -> Result<(String, String), ConvertError> {
    let name = meta.name.clone().filter(|name| !name.is_empty()).ok_or(ConvertError::NoName)?;
    let namespace = meta.namespace.clone().filter(|ns| !ns.is_empty());
    let namespace = namespace.unwrap_or_else(|| "default".into());
    for (field, text) in [("metadata.name", &name), ("metadata.namespace", &namespace)] {
        // Both become parts of keys.
        if text.len() > 253 || text.contains('/') {
            return Err(ConvertError::Field { field, text: text.clone(), wanted: "a Kubernetes name" });
        }
    }
    Ok((namespace, name))
}

/// Those of our prefix and of Cilium's. The others are nobody's to read here, and among them is the copy of the whole
/// object that `kubectl apply` leaves.
fn annotations(given: Option<&Pairs>) -> Pairs {
    let ours = |(name, _): &(&str, &str)| {
        name.split_once('/').is_some_and(|(of, _)| of.ends_with("hawser.io") || of.ends_with("cilium.io"))
    };
    given.into_iter().flat_map(Pairs::iter).filter(ours).collect()
}

fn address(field: &'static str, text: &str) -> Result<IpAddr, ConvertError> {
    text.parse().map_err(|_| ConvertError::Field { field, text: text.into(), wanted: "an IP address" })
}

fn port_number(field: &'static str, port: i32) -> Result<u16, ConvertError> {
    u16::try_from(port).ok().filter(|port| *port != 0).ok_or_else(|| ConvertError::Field {
        field,
        text: port.to_string(),
        wanted: "a port number (1 to 65535)",
    })
}

fn protocol(field: &'static str, text: Option<&str>) -> Result<Protocol, ConvertError> {
    Protocol::parse(text.unwrap_or("TCP")).map_err(value(field))
}

fn namespace(from: fields::Namespace) -> Result<Object, ConvertError> {
    let (_, name) = names(&from.metadata)?;
    Ok(Object::Namespace(Arc::new(Namespace { name, labels: from.metadata.labels.unwrap_or_default() })))
}

fn node(from: fields::Node) -> Result<Object, ConvertError> {
    let (_, name) = names(&from.metadata)?;
    let spec = from.spec.unwrap_or_default();
    let status = from.status.unwrap_or_default();
    let mut cidrs = spec.pod_cidrs.unwrap_or_default();
    if cidrs.is_empty() {
        cidrs.extend(spec.pod_cidr.filter(|cidr| !cidr.is_empty()));
    }
    let pod_cidrs = cidrs
        .into_iter()
        .map(|cidr| {
            cidr.parse::<IpNet>().map_err(|_| ConvertError::Field {
                field: "spec.podCIDRs",
                text: cidr,
                wanted: "a CIDR",
            })
        })
        .collect::<Result<_, _>>()?;
    let mut addresses = Vec::new();
    for given in status.addresses.unwrap_or_default() {
        let kind = match given.type_.as_str() {
            "InternalIP" => AddressKind::InternalIp,
            "ExternalIP" => AddressKind::ExternalIp,
            // Host names: nothing in a mesh dials a node by name.
            _ => continue,
        };
        addresses.push(NodeAddress { kind, ip: address("status.addresses", &given.address)? });
    }
    // A boot id in another shape (some virtual kubelets) is as good as none.
    let boot_id = status.node_info.and_then(|info| BootId::parse(&info.boot_id).ok());
    let annotations = from.metadata.annotations.iter().flat_map(Pairs::iter);
    Ok(Object::Node(Arc::new(Node {
        name: NodeName::parse(&name).map_err(value("metadata.name"))?,
        uid: from.metadata.uid.unwrap_or_default().into(),
        annotations: annotations.filter(|(name, _)| name.starts_with("hawser.io/")).collect(),
        labels: from.metadata.labels.unwrap_or_default(),
        addresses,
        pod_cidrs,
        boot_id,
    })))
}

fn pod(from: fields::Pod) -> Result<Object, ConvertError> {
    let (namespace, name) = names(&from.metadata)?;
    let (left_out, unknown_socket_lb) = left_out::of(&from);
    let spec = from.spec.unwrap_or_default();
    let status = from.status.unwrap_or_default();
    let mut ips = Vec::new();
    for ip in status.pod_ips.unwrap_or_default() {
        ips.push(address("status.podIPs", &ip.ip)?);
    }
    if ips.is_empty()
        && let Some(ip) = status.pod_ip.filter(|ip| !ip.is_empty())
    {
        ips.push(address("status.podIP", &ip)?);
    }
    let node = spec.node_name.filter(|node| !node.is_empty());
    Ok(Object::Pod(Arc::new(Pod {
        namespace,
        name,
        labels: from.metadata.labels.unwrap_or_default(),
        ips,
        node: node.map(|node| NodeName::parse(&node).map_err(value("spec.nodeName"))).transpose()?,
        service_account: spec.service_account_name.or(spec.service_account).unwrap_or_default(),
        host_network: spec.host_network.unwrap_or(false),
        phase: match status.phase.as_deref() {
            Some("Pending") => PodPhase::Pending,
            Some("Running") => PodPhase::Running,
            Some("Succeeded") => PodPhase::Succeeded,
            Some("Failed") => PodPhase::Failed,
            _ => PodPhase::Unknown,
        },
        left_out,
        unknown_socket_lb,
    })))
}

fn service(from: fields::Service) -> Result<Object, ConvertError> {
    let (namespace, name) = names(&from.metadata)?;
    let mut spec = from.spec.unwrap_or_default();
    let mut given = spec.cluster_ips.take().unwrap_or_default();
    if given.is_empty() {
        given.extend(spec.cluster_ip.take());
    }
    let mut cluster_ips = Vec::new();
    for ip in given.iter().filter(|ip| !ip.is_empty() && *ip != "None") {
        cluster_ips.push(address("spec.clusterIPs", ip)?);
    }
    let (mut ports, mut app_protocols) = (BTreeMap::new(), BTreeMap::new());
    let mut node_ports = BTreeMap::new();
    for port in spec.ports.take().unwrap_or_default() {
        let name =
            PortName::parse(port.name.as_deref().unwrap_or_default()).map_err(value("spec.ports.name"))?;
        if let Some(app) = port.app_protocol.filter(|app| !app.is_empty()) {
            app_protocols.insert(name.clone(), app);
        }
        if port.node_port != 0 {
            node_ports.insert(name.clone(), port_number("spec.ports.nodePort", port.node_port)?);
        }
        let port = ServicePort {
            protocol: protocol("spec.ports.protocol", port.protocol.as_deref())?,
            port: port_number("spec.ports.port", port.port)?,
        };
        if ports.insert(name.clone(), port).is_some() {
            let reason = format!("two ports are named {:?}", name.as_str());
            return Err(ConvertError::Value { field: "spec.ports", reason });
        }
    }
    let outside = Outside { ips: outside_ips(&spec, from.status)?, node_ports };
    // A node without a backend turns clients away, and the others show the backend who they are: that is kube-proxy's.
    let everywhere = spec.external_traffic_policy.as_deref() != Some("Local");
    Ok(Object::Service(Arc::new(Service {
        key: ServiceKey::new(&namespace, &name).map_err(value("metadata"))?,
        uid: from.metadata.uid.unwrap_or_default().into(),
        labels: from.metadata.labels.unwrap_or_default(),
        annotations: annotations(from.metadata.annotations.as_ref()),
        selector: spec.selector.take().unwrap_or_default(),
        cluster_ips: cluster_ips.into(),
        ports: ports.into_iter().collect(),
        external_name: spec.type_.as_deref() == Some("ExternalName"),
        outside: (everywhere && !outside.is_nowhere()).then(|| Box::new(outside)),
        traffic: traffic(&spec, app_protocols),
    })))
}

/// External addresses, and those of a load balancer that hands packets on as they are, to whoever asks.
fn outside_ips(
    spec: &fields::ServiceSpec,
    status: Option<fields::ServiceStatus>,
) -> Result<BTreeSet<IpAddr>, ConvertError> {
    let mut ips = BTreeSet::new();
    for text in spec.external_ips.iter().flatten() {
        ips.insert(address("spec.externalIPs", text)?);
    }
    if spec.load_balancer_source_ranges.as_ref().is_some_and(|ranges| !ranges.is_empty()) {
        return Ok(ips);
    }
    let balancer = status.and_then(|status| status.load_balancer);
    for ingress in balancer.and_then(|balancer| balancer.ingress).into_iter().flatten() {
        if let Some(text) = ingress.ip.filter(|_| ingress.ip_mode.as_deref() != Some("Proxy")) {
            ips.insert(address("status.loadBalancer.ingress.ip", &text)?);
        }
    }
    Ok(ips)
}

/// Words that are newer than this are as good as none: the Service itself is not refused for them.
fn traffic(spec: &fields::ServiceSpec, app_protocols: BTreeMap<PortName, String>) -> Traffic {
    let timeout = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let timeout = timeout.and_then(|client| client.timeout_seconds);
    let mut families = spec.ip_families.iter().flatten().filter_map(|family| match family.as_str() {
        "IPv4" => Some(AddressFamily::V4),
        "IPv6" => Some(AddressFamily::V6),
        _ => None,
    });
    Traffic {
        session_affinity: match spec.session_affinity.as_deref() {
            Some("ClientIP") => SessionAffinity::ClientIp(timeout),
            _ => SessionAffinity::None,
        },
        ip_families: [families.next(), families.next()],
        internal_policy: spec.internal_traffic_policy.as_deref().and_then(InternalTrafficPolicy::parse),
        distribution: spec.traffic_distribution.as_deref().and_then(TrafficDistribution::parse),
        app_protocols,
    }
}

fn service_export(from: fields::ServiceExport) -> Result<Object, ConvertError> {
    let (namespace, name) = names(&from.metadata)?;
    let spec = from.spec.unwrap_or_default();
    let created = from.metadata.creation_timestamp.as_deref().map(Timestamp::parse);
    Ok(Object::ServiceExport(Arc::new(ServiceExport {
        key: ServiceKey::new(&namespace, &name).map_err(value("metadata"))?,
        created: created.transpose().map_err(value("metadata.creationTimestamp"))?,
        labels: spec.exported_labels.unwrap_or_default(),
        annotations: spec.exported_annotations.unwrap_or_default(),
    })))
}

fn slice(from: fields::EndpointSlice) -> Result<Object, ConvertError> {
    let (namespace, name) = names(&from.metadata)?;
    let family = match from.address_type.as_str() {
        "IPv4" => Some(AddressFamily::V4),
        "IPv6" => Some(AddressFamily::V6),
        "FQDN" => None,
        other => {
            let wanted = "one of IPv4, IPv6, FQDN";
            return Err(ConvertError::Field { field: "addressType", text: other.into(), wanted });
        }
    };
    let mut endpoints = Vec::new();
    if let Some(family) = family {
        for endpoint in from.endpoints.unwrap_or_default() {
            endpoints.push(slice_endpoint(endpoint, family)?);
        }
    }
    let mut ports = Vec::new();
    for port in from.ports.unwrap_or_default() {
        ports.push(SlicePort {
            name: PortName::parse(port.name.as_deref().unwrap_or_default()).map_err(value("ports.name"))?,
            protocol: protocol("ports.protocol", port.protocol.as_deref())?,
            port: port.port.map(|port| port_number("ports.port", port)).transpose()?,
        });
    }
    Ok(Object::EndpointSlice(Arc::new(Slice {
        key: SliceKey::new(&namespace, &name).map_err(value("metadata"))?,
        labels: from.metadata.labels.unwrap_or_default(),
        family,
        endpoints: endpoints.into(),
        ports: ports.into(),
    })))
}

fn slice_endpoint(from: fields::Endpoint, family: AddressFamily) -> Result<Endpoint, ConvertError> {
    let mut addresses = Vec::new();
    for text in from.addresses.iter().flatten() {
        let ip = address("endpoints.addresses", text)?;
        if AddressFamily::of(ip) != family {
            return Err(ConvertError::Field {
                field: "endpoints.addresses",
                text: text.clone(),
                wanted: "of the slice's addressType",
            });
        }
        addresses.push(ip);
    }
    let conditions = from.conditions.unwrap_or_default();
    let for_zones = from.hints.and_then(|hints| hints.for_zones).unwrap_or_default();
    Ok(Endpoint {
        addresses: addresses.into(),
        ready: conditions.ready,
        serving: conditions.serving,
        terminating: conditions.terminating,
        hostname: from.hostname.map(Box::from),
        place: Arc::new(Place {
            node_name: from.node_name,
            zone: from.zone,
            hint_zones: for_zones.into_iter().map(|zone| zone.name).collect(),
        }),
    })
}

fn policy(from: fields::NetworkPolicy) -> Result<Object, ConvertError> {
    let (namespace, name) = names(&from.metadata)?;
    let spec = from.spec.unwrap_or_default();
    // Kubernetes: with no policyTypes, Ingress always applies.
    let ingress =
        spec.policy_types.is_none_or(|types| types.is_empty() || types.iter().any(|t| t == "Ingress"));
    let pods = selector(spec.pod_selector.unwrap_or_default())?;
    Ok(Object::NetworkPolicy(Arc::new(Policy { namespace, name, pods, ingress })))
}

fn selector(from: fields::LabelSelector) -> Result<Selector, ConvertError> {
    let mut expressions: Vec<_> = from
        .match_labels
        .unwrap_or_default()
        .iter()
        .map(|(key, value)| Expression::In { key: key.to_owned(), values: vec![value.to_owned()] })
        .collect();
    for requirement in from.match_expressions.unwrap_or_default() {
        let (key, values) = (requirement.key, requirement.values.unwrap_or_default());
        expressions.push(match requirement.operator.as_str() {
            "In" => Expression::In { key, values },
            "NotIn" => Expression::NotIn { key, values },
            "Exists" => Expression::Exists { key },
            "DoesNotExist" => Expression::DoesNotExist { key },
            other => {
                let wanted = "one of In, NotIn, Exists, DoesNotExist";
                let field = "matchExpressions.operator";
                return Err(ConvertError::Field { field, text: other.into(), wanted });
            }
        });
    }
    Ok(Selector { expressions })
}
