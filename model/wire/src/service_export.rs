//! `serviceexports/v1`: a Service exported to the clusterset (cilium-facts §1.9), and the name that its endpoints travel under.

use std::collections::BTreeMap;

use bytes::Bytes;
use hawser_model::{
    AddressFamily, ExportedPort, ImportKind, InternalTrafficPolicy, PortName, Protocol, ServiceExport,
    ServiceKey, SessionAffinity, Timestamp, TrafficDistribution,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::entry::{Context, same};
use crate::error::{Fault, Reason, short};
use crate::json::{List, Pairs, Text, bounded, or_null, parse, port, print, strings};
use crate::limits;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct In<'a> {
    #[serde(borrow)]
    cluster: Text<'a>,
    #[serde(borrow)]
    name: Text<'a>,
    #[serde(borrow)]
    namespace: Text<'a>,
    // Cilium 1.18 writes both with a capital, later ones need not: Go's readers know no case.
    #[serde(alias = "Annotations", borrow, default)]
    annotations: Pairs<'a, Text<'a>, { limits::LABELS }>,
    #[serde(alias = "Labels", borrow, default)]
    labels: Pairs<'a, Text<'a>, { limits::LABELS }>,
    #[serde(borrow)]
    export_creation_timestamp: Text<'a>,
    #[serde(borrow, default)]
    ports: List<PortIn<'a>, { limits::PORTS }>,
    #[serde(rename = "type", borrow)]
    kind: Text<'a>,
    #[serde(borrow)]
    session_affinity: Text<'a>,
    #[serde(default)]
    session_affinity_config: Option<AffinityIn>,
    #[serde(borrow, default)]
    ip_families: List<Text<'a>, 2>,
    #[serde(borrow, default)]
    internal_traffic_policy: Option<Text<'a>>,
    #[serde(borrow, default)]
    traffic_distribution: Option<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortIn<'a> {
    #[serde(borrow, default)]
    name: Option<Text<'a>>,
    /// Kubernetes' default is TCP.
    #[serde(borrow, default)]
    protocol: Option<Text<'a>>,
    #[serde(borrow, default)]
    app_protocol: Option<Text<'a>>,
    port: u16,
}

#[derive(Deserialize)]
struct AffinityIn {
    #[serde(rename = "clientIP", default)]
    client_ip: Option<ClientIpIn>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClientIpIn {
    #[serde(default)]
    timeout_seconds: Option<u32>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Out<'a> {
    cluster: &'a str,
    name: &'a str,
    namespace: &'a str,
    #[serde(rename = "Annotations")]
    annotations: Option<&'a BTreeMap<String, String>>,
    #[serde(rename = "Labels")]
    labels: Option<&'a BTreeMap<String, String>>,
    export_creation_timestamp: String,
    ports: Vec<PortOut<'a>>,
    #[serde(rename = "type")]
    kind: &'static str,
    session_affinity: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_affinity_config: Option<AffinityOut>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ip_families: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    internal_traffic_policy: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traffic_distribution: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PortOut<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    app_protocol: Option<&'a str>,
    port: u16,
}

#[derive(Serialize)]
struct AffinityOut {
    #[serde(rename = "clientIP")]
    client_ip: ClientIpOut,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ClientIpOut {
    timeout_seconds: u32,
}

impl<'a> From<&'a ExportedPort> for PortOut<'a> {
    fn from(port: &'a ExportedPort) -> Self {
        let ExportedPort { name, protocol, app_protocol, port } = port;
        let app_protocol = app_protocol.as_deref();
        Self { name: name.as_str(), protocol: protocol.as_str(), app_protocol, port: *port }
    }
}

const NONE: &str = "None";
const CLIENT_IP: &str = "ClientIP";

pub(crate) fn decode(key: &ServiceKey, value: &[u8], cx: &Context) -> Result<ServiceExport, Fault> {
    let raw: In<'_> = parse(value)?;
    same("cluster", &raw.cluster, cx.cluster.name.as_str(), "the keyspace")?;
    same("namespace", &raw.namespace, key.namespace(), "the key")?;
    same("name", &raw.name, key.name(), "the key")?;
    let created = Timestamp::parse(&raw.export_creation_timestamp)
        .map_err(|why| Reason::from(why).at("exportCreationTimestamp"))?;
    // Go's zero time: whoever never was created would win every conflict.
    if created == Timestamp::from_unix(i64::MIN) {
        return Err(Reason::Missing.at("exportCreationTimestamp"));
    }
    let family = |text: &Text<'_>| match &**text {
        "IPv4" => Ok(AddressFamily::V4),
        "IPv6" => Ok(AddressFamily::V6),
        other => Err(Reason::AddressType { text: short(other) }.at("ipFamilies")),
    };
    let ip_families: Vec<_> = raw.ip_families.0.iter().map(family).collect::<Result<_, _>>()?;
    if let [one, two] = &ip_families[..]
        && one == two
    {
        return Err(Reason::Duplicate { text: family_text(*one).to_owned() }.at("ipFamilies"));
    }
    Ok(ServiceExport {
        cluster: cx.cluster.clone(),
        key: key.clone(),
        kind: word(&raw.kind, ImportKind::parse, "ClusterSetIP, Headless", "type")?,
        session_affinity: affinity(&raw)?,
        internal_traffic_policy: raw
            .internal_traffic_policy
            .map(|text| word(&text, InternalTrafficPolicy::parse, "Cluster, Local", "internalTrafficPolicy"))
            .transpose()?,
        traffic_distribution: raw.traffic_distribution.as_ref().map(distribution).transpose()?,
        created,
        ports: ports(raw.ports.0)?,
        annotations: strings(raw.annotations, "annotations", limits::ANNOTATION_BYTES)?,
        labels: strings(raw.labels, "labels", limits::LABEL_VALUE_BYTES)?,
        ip_families,
    })
}

fn word<T>(text: &str, parse: impl Fn(&str) -> Option<T>, of: &'static str, field: &str) -> Result<T, Fault> {
    parse(text).ok_or_else(|| Reason::Word { text: short(text), of }.at(field))
}

fn distribution(text: &Text<'_>) -> Result<TrafficDistribution, Fault> {
    const OF: &str = "PreferClose, PreferSameZone, PreferSameNode";
    word(text, TrafficDistribution::parse, OF, "trafficDistribution")
}

fn affinity(raw: &In<'_>) -> Result<SessionAffinity, Fault> {
    match &*raw.session_affinity {
        NONE => Ok(SessionAffinity::None),
        CLIENT_IP => {
            let config = raw.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
            let timeout = config.and_then(|config| config.timeout_seconds);
            if let Some(seconds) = timeout
                && !(1..=limits::AFFINITY_SECONDS).contains(&seconds)
            {
                let (number, max) = (seconds.into(), limits::AFFINITY_SECONDS.into());
                return Err(Reason::OutOfRange { number, min: 1, max }.at("sessionAffinityConfig"));
            }
            Ok(SessionAffinity::ClientIp(timeout))
        }
        other => Err(Reason::Word { text: short(other), of: "ClientIP, None" }.at("sessionAffinity")),
    }
}

fn ports(raw: Vec<PortIn<'_>>) -> Result<Vec<ExportedPort>, Fault> {
    let one = |raw: PortIn<'_>| {
        let at = |why: Reason| why.at("ports");
        let protocol = raw.protocol.as_deref().filter(|text| !text.is_empty()).unwrap_or("TCP");
        let app = raw.app_protocol.filter(|text| !text.is_empty());
        let app = app.map(|text| bounded(Some(&text), "ports.appProtocol", limits::APP_PROTOCOL_BYTES));
        Ok(ExportedPort {
            name: PortName::parse(raw.name.as_deref().unwrap_or_default()).map_err(|why| at(why.into()))?,
            protocol: Protocol::parse(protocol).map_err(|why| at(why.into()))?,
            app_protocol: app.transpose()?,
            port: port(raw.port).map_err(at)?,
        })
    };
    raw.into_iter().map(one).collect()
}

fn family_text(family: AddressFamily) -> &'static str {
    match family {
        AddressFamily::V4 => "IPv4",
        AddressFamily::V6 => "IPv6",
    }
}

pub fn encode(export: &ServiceExport) -> Bytes {
    let (session_affinity, timeout) = match export.session_affinity {
        SessionAffinity::None => (NONE, None),
        SessionAffinity::ClientIp(timeout) => (CLIENT_IP, timeout),
    };
    let config = |timeout_seconds| AffinityOut { client_ip: ClientIpOut { timeout_seconds } };
    print(&Out {
        cluster: export.cluster.name.as_str(),
        name: export.key.name(),
        namespace: export.key.namespace(),
        annotations: or_null(&export.annotations),
        labels: or_null(&export.labels),
        export_creation_timestamp: export.created.to_string(),
        ports: export.ports.iter().map(PortOut::from).collect(),
        kind: export.kind.as_str(),
        session_affinity,
        session_affinity_config: timeout.map(config),
        ip_families: export.ip_families.iter().map(|family| family_text(*family)).collect(),
        internal_traffic_policy: export.internal_traffic_policy.map(InternalTrafficPolicy::as_str),
        traffic_distribution: export.traffic_distribution.map(TrafficDistribution::as_str),
    })
}

/// The global service that carries an exported service's endpoints: `derived-` and the first ten characters of
/// lower-case base32hex (RFC 4648 §7) of SHA-256 of `namespace/name`, in the same namespace.
pub fn derived(exported: &ServiceKey) -> ServiceKey {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
    let digest = Sha256::digest(exported.to_string());
    // Ten characters of five bits lie in the first seven bytes.
    let bits = digest[..7].iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
    let digit = |at: u32| char::from(DIGITS[(bits >> (51 - 5 * at) & 31) as usize]);
    let name: String = "derived-".chars().chain((0..10).map(digit)).collect();
    ServiceKey::new(exported.namespace(), &name).expect("letters, digits and a '-' make a label")
}
