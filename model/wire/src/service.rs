//! `services/v1`: a global service as its cluster shares it (cilium-facts §1.7).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bytes::Bytes;
use hawser_model::{ServiceKey, SharedService};
use serde::{Deserialize, Serialize};

use crate::entry::{Context, same, same_cluster};
use crate::error::{Fault, within};
use crate::json::{
    List, Pairs, PortMapIn, PortMapOut, Text, bounded, ip, parse, port_map, port_map_out, print, strings,
};
use crate::limits;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct In<'a> {
    #[serde(borrow)]
    cluster: Text<'a>,
    #[serde(borrow)]
    namespace: Text<'a>,
    #[serde(borrow)]
    name: Text<'a>,
    #[serde(borrow, default)]
    frontends: PortMapIn<'a, { limits::FRONTENDS }>,
    #[serde(borrow, default)]
    backends: PortMapIn<'a, { limits::BACKENDS }>,
    #[serde(borrow, default)]
    hostnames: Pairs<'a, Text<'a>, { limits::BACKENDS }>,
    #[serde(borrow, default)]
    zones: Pairs<'a, ZoneIn<'a>, { limits::BACKENDS }>,
    #[serde(borrow, default)]
    hawser_draining: List<Text<'a>, { limits::BACKENDS }>,
    #[serde(borrow, default)]
    labels: Pairs<'a, Text<'a>, { limits::LABELS }>,
    #[serde(borrow, default)]
    selector: Pairs<'a, Text<'a>, { limits::LABELS }>,
    #[serde(default)]
    include_external: bool,
    #[serde(default)]
    shared: bool,
    #[serde(rename = "clusterID", default)]
    cluster_id: u32,
}

#[derive(Deserialize)]
struct ZoneIn<'a> {
    #[serde(borrow, default)]
    zone: Option<Text<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Out<'a> {
    cluster: &'a str,
    namespace: &'a str,
    name: &'a str,
    frontends: PortMapOut<'a>,
    backends: PortMapOut<'a>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    hostnames: BTreeMap<String, &'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    zones: BTreeMap<String, ZoneOut<'a>>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    hawser_draining: &'a BTreeSet<IpAddr>,
    labels: &'a BTreeMap<String, String>,
    selector: &'a BTreeMap<String, String>,
    include_external: bool,
    shared: bool,
    #[serde(rename = "clusterID")]
    cluster_id: u16,
}

#[derive(Serialize)]
struct ZoneOut<'a> {
    zone: &'a str,
}

pub(crate) fn decode(key: &ServiceKey, value: &[u8], cx: &Context) -> Result<SharedService, Fault> {
    let raw: In<'_> = parse(value)?;
    same_cluster(cx, ("cluster", &raw.cluster), ("clusterID", raw.cluster_id))?;
    same("namespace", &raw.namespace, key.namespace(), "the key")?;
    same("name", &raw.name, key.name(), "the key")?;
    let zones = raw.zones.0.into_iter().filter_map(|(ip, zone)| Some((ip, zone.zone?))).collect();
    Ok(SharedService {
        cluster: cx.cluster.clone(),
        key: key.clone(),
        frontends: port_map(raw.frontends, "frontends")?,
        backends: port_map(raw.backends, "backends")?,
        draining: addresses(&raw.hawser_draining.0, "hawserDraining")?,
        hostnames: by_address(raw.hostnames.0, "hostnames")?,
        zones: by_address(zones, "zones")?,
        labels: strings(raw.labels, "labels", limits::LABEL_VALUE_BYTES)?,
        selector: strings(raw.selector, "selector", limits::LABEL_VALUE_BYTES)?,
        include_external: raw.include_external,
        shared: raw.shared,
    })
}

pub(crate) fn addresses(texts: &[Text<'_>], field: &str) -> Result<BTreeSet<IpAddr>, Fault> {
    texts.iter().map(|text| ip(text).map_err(|why| why.at(field))).collect()
}

pub(crate) fn by_address(
    pairs: Vec<(Text<'_>, Text<'_>)>,
    field: &str,
) -> Result<BTreeMap<IpAddr, String>, Fault> {
    pairs
        .into_iter()
        .map(|(address, text)| {
            let at = within(field, &address);
            let ip = ip(&address).map_err(|why| why.at(at.clone()))?;
            Ok((ip, bounded(Some(&text), &at, limits::NAME_BYTES)?))
        })
        .collect()
}

pub fn encode(service: &SharedService) -> Bytes {
    print(&Out {
        cluster: service.cluster.name.as_str(),
        namespace: service.key.namespace(),
        name: service.key.name(),
        frontends: port_map_out(&service.frontends),
        backends: port_map_out(&service.backends),
        hawser_draining: &service.draining,
        hostnames: service.hostnames.iter().map(|(ip, name)| (ip.to_string(), name.as_str())).collect(),
        zones: service.zones.iter().map(|(ip, zone)| (ip.to_string(), ZoneOut { zone })).collect(),
        labels: &service.labels,
        selector: &service.selector,
        include_external: service.include_external,
        shared: service.shared,
        cluster_id: service.cluster.id.get(),
    })
}
