//! `hawser/local/peers/v1`: a cluster admitted here, for the own agents and API servers (contracts.md).

use std::collections::BTreeMap;
use std::net::IpAddr;

use bytes::Bytes;
use hawser_model::{
    CiliumPeer, ClusterId, ClusterName, ClusterRef, IpNet, Peer, PeerKind, ServerUrl, Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::entry::{Context, same};
use crate::error::{Fault, Reason, short, within};
use crate::json::{List, Pairs, Text, bounded, ip, parse, print};
use crate::limits;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct In<'a> {
    #[serde(borrow)]
    name: Text<'a>,
    id: u32,
    #[serde(borrow)]
    endpoints: List<Text<'a>, { limits::ENDPOINTS }>,
    #[serde(rename = "podCIDRs", borrow)]
    pod_cidrs: List<Text<'a>, { limits::CIDRS }>,
    #[serde(rename = "nodeCIDRs", borrow)]
    node_cidrs: List<Text<'a>, { limits::CIDRS }>,
    #[serde(borrow)]
    ca: Text<'a>,
    #[serde(borrow)]
    admitted: Text<'a>,
    #[serde(borrow, default)]
    kind: Option<Text<'a>>,
    #[serde(borrow, default)]
    server_name: Option<Text<'a>>,
    #[serde(borrow, default)]
    aliases: Pairs<'a, List<Text<'a>, { limits::ENDPOINTS }>, { limits::ENDPOINTS }>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Out<'a> {
    name: &'a str,
    id: u16,
    endpoints: Vec<&'a str>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
    #[serde(rename = "nodeCIDRs")]
    node_cidrs: Vec<String>,
    ca: &'a str,
    admitted: String,
    /// Absent of a Hawser cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aliases: Option<&'a BTreeMap<String, Vec<IpAddr>>>,
}

const HAWSER: &str = "hawser";
const CILIUM: &str = "cilium";

pub(crate) fn decode(key: &ClusterName, value: &[u8], cx: &Context) -> Result<Peer, Fault> {
    let raw: In<'_> = parse(value)?;
    same("name", &raw.name, key.as_str(), "the key")?;
    let id = ClusterId::new(raw.id, cx.width).map_err(|why| Reason::from(why).at("id"))?;
    let endpoints = raw.endpoints.0.iter().map(|text| ServerUrl::parse(text));
    let cidrs = |list: &List<Text<'_>, { limits::CIDRS }>, field: &str| {
        let parse = |text: &Text<'_>| match text.parse::<IpNet>() {
            Ok(net) if net.trunc() == net => Ok(net),
            _ => Err(Reason::Cidr { text: short(text) }.at(field)),
        };
        list.0.iter().map(parse).collect::<Result<Vec<_>, _>>()
    };
    let kind = match raw.kind.as_deref() {
        None | Some(HAWSER) => PeerKind::Hawser,
        Some(CILIUM) => PeerKind::Cilium(cilium(&raw)?),
        Some(other) => {
            return Err(Reason::Word { text: short(other), of: "hawser, cilium" }.at("kind"));
        }
    };
    Ok(Peer {
        cluster: ClusterRef { name: key.clone(), id },
        endpoints: endpoints.collect::<Result<_, _>>().map_err(|why| Reason::from(why).at("endpoints"))?,
        pod_cidrs: cidrs(&raw.pod_cidrs, "podCIDRs")?,
        node_cidrs: cidrs(&raw.node_cidrs, "nodeCIDRs")?,
        ca: bounded(Some(&raw.ca), "ca", limits::CA_BYTES)?,
        admitted: Timestamp::parse(&raw.admitted).map_err(|why| Reason::from(why).at("admitted"))?,
        kind,
    })
}

fn cilium(raw: &In<'_>) -> Result<CiliumPeer, Fault> {
    let name = |text: &Text<'_>| bounded(Some(text), "serverName", limits::NAME_BYTES);
    let mut aliases = BTreeMap::new();
    for (host, addresses) in &raw.aliases.0 {
        let at = within("aliases", host);
        let host = bounded(Some(host), &at, limits::NAME_BYTES)?;
        let addresses = addresses.0.iter().map(|text| ip(text).map_err(|why| why.at(at.clone())));
        let addresses: Vec<IpAddr> = addresses.collect::<Result<_, _>>()?;
        if addresses.is_empty() {
            return Err(Reason::Missing.at(at));
        }
        if aliases.insert(host, addresses).is_some() {
            return Err(Reason::Duplicate { text: at }.at("aliases"));
        }
    }
    Ok(CiliumPeer { server_name: raw.server_name.as_ref().map(name).transpose()?, aliases })
}

pub fn encode(peer: &Peer) -> Bytes {
    let text = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect();
    let cilium = match &peer.kind {
        PeerKind::Hawser => None,
        PeerKind::Cilium(cilium) => Some(cilium),
    };
    print(&Out {
        name: peer.cluster.name.as_str(),
        id: peer.cluster.id.get(),
        endpoints: peer.endpoints.iter().map(ServerUrl::as_str).collect(),
        pod_cidrs: text(&peer.pod_cidrs),
        node_cidrs: text(&peer.node_cidrs),
        ca: &peer.ca,
        admitted: peer.admitted.to_string(),
        kind: cilium.map(|_| CILIUM),
        server_name: cilium.and_then(|cilium| cilium.server_name.as_deref()),
        aliases: cilium.map(|cilium| &cilium.aliases).filter(|aliases| !aliases.is_empty()),
    })
}
