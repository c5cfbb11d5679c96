//! `nodes/v1`: a node as a Go struct without tags prints it, all keys always present (cilium-facts §1.4).

use std::collections::BTreeMap;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hawser_model::{AddressKind, BootId, IpNet, Node, NodeAddress, NodeName, PublicKey};
use serde::{Deserialize, Serialize};

use crate::cidr::{CidrIn, CidrOut};
use crate::entry::{Context, same, same_cluster};
use crate::error::{Fault, Reason};
use crate::json::{List, Pairs, Text, ip, or_null, parse, print, strings};
use crate::limits;

#[derive(Deserialize)]
struct In<'a> {
    #[serde(rename = "Name", borrow)]
    name: Text<'a>,
    #[serde(rename = "Cluster", borrow)]
    cluster: Text<'a>,
    #[serde(rename = "IPAddresses", borrow, default)]
    addresses: List<AddressIn<'a>, { limits::ADDRESSES }>,
    #[serde(rename = "IPv4AllocCIDR", borrow, default)]
    v4: Option<CidrIn<'a>>,
    #[serde(rename = "IPv4SecondaryAllocCIDRs", borrow, default)]
    v4_more: List<CidrIn<'a>, { limits::CIDRS }>,
    #[serde(rename = "IPv6AllocCIDR", borrow, default)]
    v6: Option<CidrIn<'a>>,
    #[serde(rename = "IPv6SecondaryAllocCIDRs", borrow, default)]
    v6_more: List<CidrIn<'a>, { limits::CIDRS }>,
    #[serde(rename = "ClusterID")]
    cluster_id: u32,
    #[serde(rename = "Labels", borrow, default)]
    labels: Pairs<'a, Text<'a>, { limits::LABELS }>,
    #[serde(rename = "Annotations", borrow, default)]
    annotations: Pairs<'a, Text<'a>, { limits::LABELS }>,
    #[serde(rename = "WireguardPubKey", borrow, default)]
    wireguard: Option<Text<'a>>,
    #[serde(rename = "BootID", borrow, default)]
    boot_id: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct AddressIn<'a> {
    #[serde(rename = "Type", borrow)]
    kind: Text<'a>,
    #[serde(rename = "IP", borrow, default)]
    ip: Option<Text<'a>>,
}

#[derive(Serialize)]
struct Out<'a> {
    #[serde(rename = "Name")]
    name: &'a str,
    #[serde(rename = "Cluster")]
    cluster: &'a str,
    #[serde(rename = "IPAddresses")]
    addresses: Vec<AddressOut>,
    #[serde(rename = "IPv4AllocCIDR")]
    v4: Option<CidrOut>,
    #[serde(rename = "IPv4SecondaryAllocCIDRs")]
    v4_more: Option<Vec<CidrOut>>,
    #[serde(rename = "IPv6AllocCIDR")]
    v6: Option<CidrOut>,
    #[serde(rename = "IPv6SecondaryAllocCIDRs")]
    v6_more: Option<Vec<CidrOut>>,
    #[serde(rename = "IPv4HealthIP")]
    v4_health: &'static str,
    #[serde(rename = "IPv6HealthIP")]
    v6_health: &'static str,
    #[serde(rename = "IPv4IngressIP")]
    v4_ingress: &'static str,
    #[serde(rename = "IPv6IngressIP")]
    v6_ingress: &'static str,
    #[serde(rename = "ClusterID")]
    cluster_id: u16,
    #[serde(rename = "Source")]
    source: &'static str,
    #[serde(rename = "EncryptionKey")]
    encryption_key: u8,
    #[serde(rename = "Labels")]
    labels: Option<&'a BTreeMap<String, String>>,
    #[serde(rename = "Annotations")]
    annotations: Option<&'a BTreeMap<String, String>>,
    #[serde(rename = "WireguardPubKey")]
    wireguard: String,
    #[serde(rename = "BootID")]
    boot_id: &'a str,
}

#[derive(Serialize)]
struct AddressOut {
    #[serde(rename = "Type")]
    kind: &'static str,
    #[serde(rename = "IP")]
    ip: IpAddr,
}

/// `EncryptionKey` of a node that encrypts with WireGuard.
const WIREGUARD: u8 = 255;

pub(crate) fn decode(key: &NodeName, value: &[u8], cx: &Context) -> Result<Node, Fault> {
    let raw: In<'_> = parse(value)?;
    same("Name", &raw.name, key.as_str(), "the key")?;
    same_cluster(cx, ("Cluster", &raw.cluster), ("ClusterID", raw.cluster_id))?;
    let mut addresses = Vec::with_capacity(raw.addresses.0.len());
    for address in &raw.addresses.0 {
        let kind = match &*address.kind {
            "InternalIP" => AddressKind::InternalIp,
            "ExternalIP" => AddressKind::ExternalIp,
            "CiliumInternalIP" => AddressKind::CiliumInternalIp,
            // Host names and DNS names carry no IP; later kinds are not ours to read.
            _ => continue,
        };
        let text = address.ip.as_deref().unwrap_or_default();
        let ip = ip(text).map_err(|why| why.at("IPAddresses"))?;
        addresses.push(NodeAddress { kind, ip });
    }
    let v4 = cidrs(raw.v4.as_ref(), &raw.v4_more.0, false)?;
    let v6 = cidrs(raw.v6.as_ref(), &raw.v6_more.0, true)?;
    let annotations = strings(raw.annotations, "Annotations", limits::ANNOTATION_BYTES)?;
    let size = annotations.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
    if size > limits::ANNOTATION_BYTES {
        return Err(Reason::TooLarge { len: size, max: limits::ANNOTATION_BYTES }.at("Annotations"));
    }
    Ok(Node {
        cluster: cx.cluster.clone(),
        name: key.clone(),
        addresses,
        pod_cidrs: primaries_first(&v4, &v6),
        boot_id: boot_id(raw.boot_id.as_ref(), "BootID")?,
        wireguard_key: public_key(raw.wireguard.as_ref(), "WireguardPubKey")?,
        labels: strings(raw.labels, "Labels", limits::LABEL_VALUE_BYTES)?,
        annotations,
    })
}

fn cidrs(primary: Option<&CidrIn<'_>>, more: &[CidrIn<'_>], v6: bool) -> Result<Vec<IpNet>, Fault> {
    let [first, rest] = match v6 {
        false => ["IPv4AllocCIDR", "IPv4SecondaryAllocCIDRs"],
        true => ["IPv6AllocCIDR", "IPv6SecondaryAllocCIDRs"],
    };
    let primary = primary.into_iter().map(|cidr| (cidr, first));
    let all = primary.chain(more.iter().map(|cidr| (cidr, rest)));
    all.map(|(cidr, field)| cidr.parse(v6).map_err(|why| why.at(field))).collect()
}

/// The first of each family, then the others: the order that survives being split and read again.
fn primaries_first(v4: &[IpNet], v6: &[IpNet]) -> Vec<IpNet> {
    let firsts = v4.iter().take(1).chain(v6.iter().take(1));
    firsts.chain(v4.iter().skip(1)).chain(v6.iter().skip(1)).copied().collect()
}

/// An empty text is no boot id.
pub(crate) fn boot_id(text: Option<&Text<'_>>, field: &str) -> Result<Option<BootId>, Fault> {
    match text.map(|text| &**text) {
        None | Some("") => Ok(None),
        Some(text) => BootId::parse(text).map(Some).map_err(|why| Reason::from(why).at(field)),
    }
}

/// Base64 of 32 bytes; an empty text is no key.
pub(crate) fn public_key(text: Option<&Text<'_>>, field: &str) -> Result<Option<PublicKey>, Fault> {
    let text = match text.map(|text| &**text) {
        None | Some("") => return Ok(None),
        Some(text) => text,
    };
    // 44 characters hold 32 bytes; anything else is not decoded.
    let bytes = (text.len() == 44).then(|| STANDARD.decode(text).ok()).flatten();
    let bytes = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let bytes = bytes.ok_or_else(|| Reason::PublicKey.at(field))?;
    PublicKey::new(bytes).map(Some).map_err(|why| Reason::from(why).at(field))
}

pub fn encode(node: &Node) -> Bytes {
    let family = |v6: bool| node.pod_cidrs.iter().filter(move |net| net.addr().is_ipv6() == v6);
    let more = |v6| {
        let rest: Vec<CidrOut> = family(v6).skip(1).map(CidrOut::from).collect();
        (!rest.is_empty()).then_some(rest)
    };
    let addresses = node.addresses.iter().map(|address| AddressOut {
        kind: match address.kind {
            AddressKind::InternalIp => "InternalIP",
            AddressKind::ExternalIp => "ExternalIP",
            AddressKind::CiliumInternalIp => "CiliumInternalIP",
        },
        ip: address.ip.to_canonical(),
    });
    print(&Out {
        name: node.name.as_str(),
        cluster: node.cluster.name.as_str(),
        addresses: addresses.collect(),
        v4: family(false).next().map(CidrOut::from),
        v4_more: more(false),
        v6: family(true).next().map(CidrOut::from),
        v6_more: more(true),
        v4_health: "",
        v6_health: "",
        v4_ingress: "",
        v6_ingress: "",
        cluster_id: node.cluster.id.get(),
        source: "custom-resource",
        encryption_key: if node.wireguard_key.is_some() { WIREGUARD } else { 0 },
        labels: or_null(&node.labels),
        annotations: or_null(&node.annotations),
        wireguard: node.wireguard_key.map(|key| STANDARD.encode(key.as_bytes())).unwrap_or_default(),
        boot_id: node.boot_id.as_ref().map_or("", BootId::as_str),
    })
}
