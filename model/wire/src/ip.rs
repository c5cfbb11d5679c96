//! `ip/v1`: an endpoint's address and who it is (cilium-facts §1.6).

use std::collections::BTreeMap;
use std::net::IpAddr;

use bytes::Bytes;
use hawser_model::{Endpoint, IdentityId, PortName, Protocol, ServicePort};
use serde::{Deserialize, Serialize};

use crate::entry::{Context, same};
use crate::error::{Fault, Reason};
use crate::json::{List, Text, bounded, ip, parse, port, print};
use crate::limits;

#[derive(Deserialize)]
struct In<'a> {
    #[serde(rename = "IP", borrow)]
    ip: Text<'a>,
    #[serde(rename = "HostIP", borrow, default)]
    host_ip: Option<Text<'a>>,
    #[serde(rename = "ID")]
    id: u32,
    #[serde(rename = "Key", default)]
    key: u8,
    #[serde(rename = "K8sNamespace", borrow, default)]
    namespace: Option<Text<'a>>,
    #[serde(rename = "K8sPodName", borrow, default)]
    pod: Option<Text<'a>>,
    #[serde(rename = "K8sServiceAccount", borrow, default)]
    service_account: Option<Text<'a>>,
    #[serde(rename = "NamedPorts", borrow, default)]
    named_ports: List<NamedPortIn<'a>, { limits::PORTS }>,
    #[serde(rename = "hawserLeftOut", default)]
    left_out: bool,
}

#[derive(Deserialize)]
struct NamedPortIn<'a> {
    #[serde(rename = "Name", borrow)]
    name: Text<'a>,
    #[serde(rename = "Port")]
    port: u16,
    #[serde(rename = "Protocol", borrow)]
    protocol: Text<'a>,
}

#[derive(Serialize)]
struct Out<'a> {
    #[serde(rename = "IP")]
    ip: IpAddr,
    #[serde(rename = "HostIP")]
    host_ip: String,
    #[serde(rename = "ID")]
    id: u32,
    #[serde(rename = "Key")]
    key: u8,
    #[serde(rename = "Metadata")]
    metadata: &'static str,
    #[serde(rename = "K8sNamespace", skip_serializing_if = "str::is_empty")]
    namespace: &'a str,
    #[serde(rename = "K8sPodName", skip_serializing_if = "str::is_empty")]
    pod: &'a str,
    #[serde(rename = "K8sServiceAccount", skip_serializing_if = "str::is_empty")]
    service_account: &'a str,
    #[serde(rename = "NamedPorts", skip_serializing_if = "Vec::is_empty")]
    named_ports: Vec<NamedPortOut<'a>>,
    /// Ours; other readers pass it by.
    #[serde(rename = "hawserLeftOut", skip_serializing_if = "std::ops::Not::not")]
    left_out: bool,
}

#[derive(Serialize)]
struct NamedPortOut<'a> {
    #[serde(rename = "Name")]
    name: &'a str,
    #[serde(rename = "Port")]
    port: u16,
    #[serde(rename = "Protocol")]
    protocol: &'static str,
}

pub(crate) fn decode(key: IpAddr, value: &[u8], cx: &Context) -> Result<Endpoint, Fault> {
    let raw: In<'_> = parse(value)?;
    same("IP", &raw.ip, &key.to_string(), "the key")?;
    let host = match raw.host_ip.as_deref() {
        None | Some("") => None,
        Some(text) => Some(ip(text).map_err(|why| why.at("HostIP"))?),
    };
    let identity = IdentityId::from_wire(raw.id).map_err(|why| Reason::from(why).at("ID"))?;
    if !identity.is_reserved() && !identity.belongs_to(cx.cluster.id, cx.width) {
        let cluster = cx.cluster.to_string();
        return Err(Reason::ForeignIdentity { id: raw.id, cluster }.at("ID"));
    }
    // Another machine's host is no host of ours (Cilium's readers do the same).
    let identity = if identity == IdentityId::HOST { IdentityId::REMOTE_NODE } else { identity };
    let mut named_ports = BTreeMap::new();
    for raw in raw.named_ports.0 {
        let at = |why: Reason| why.at("NamedPorts");
        let name = PortName::parse(&raw.name).map_err(|why| at(why.into()))?;
        let protocol = Protocol::parse(&raw.protocol).map_err(|why| at(why.into()))?;
        named_ports.insert(name, ServicePort { protocol, port: port(raw.port).map_err(at)? });
    }
    let name = |text: Option<&Text<'_>>, field| bounded(text.map(|text| &**text), field, limits::NAME_BYTES);
    Ok(Endpoint {
        ip: key,
        host,
        identity,
        encryption_key: raw.key,
        namespace: name(raw.namespace.as_ref(), "K8sNamespace")?,
        pod: name(raw.pod.as_ref(), "K8sPodName")?,
        service_account: name(raw.service_account.as_ref(), "K8sServiceAccount")?,
        named_ports,
        left_out: raw.left_out,
    })
}

pub fn encode(endpoint: &Endpoint) -> Bytes {
    let ports = endpoint.named_ports.iter().map(|(name, port)| NamedPortOut {
        name: name.as_str(),
        port: port.port,
        protocol: port.protocol.as_str(),
    });
    print(&Out {
        ip: endpoint.ip.to_canonical(),
        host_ip: endpoint.host.map(|ip| ip.to_canonical().to_string()).unwrap_or_default(),
        id: endpoint.identity.get(),
        key: endpoint.encryption_key,
        metadata: "",
        namespace: &endpoint.namespace,
        pod: &endpoint.pod,
        service_account: &endpoint.service_account,
        named_ports: ports.collect(),
        left_out: endpoint.left_out,
    })
}
