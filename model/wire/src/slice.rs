//! `endpointslices/v1`: a zstd frame of a proto2 message (cilium-facts §1.8).
//!
//! A kilobyte can decompress into gigabytes, and a megabyte of empty messages into a gigabyte of structs: the first is
//! stopped by bounds on window and output, the second by counting fields before any struct is made.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Read;

use bytes::Bytes;
use hawser_model::{AddressFamily, EndpointSlice, PortName, Protocol, SliceEndpoint, SliceKey, SlicePort};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::entry::{Context, same, same_cluster};
use crate::error::{Fault, Reason, short, within};
use crate::json::{bounded, ip, port};
use crate::limits;

#[derive(Clone, PartialEq, Message)]
struct PbSlice {
    #[prost(string, optional, tag = "1")]
    cluster: Option<String>,
    #[prost(uint32, optional, tag = "2")]
    cluster_id: Option<u32>,
    #[prost(string, optional, tag = "3")]
    namespace: Option<String>,
    #[prost(string, optional, tag = "4")]
    name: Option<String>,
    #[prost(btree_map = "string, string", tag = "5")]
    labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "6")]
    annotations: BTreeMap<String, String>,
    #[prost(string, optional, tag = "7")]
    address_type: Option<String>,
    #[prost(message, repeated, tag = "8")]
    endpoints: Vec<PbEndpoint>,
    #[prost(message, repeated, tag = "9")]
    ports: Vec<PbPort>,
}

#[derive(Clone, PartialEq, Message)]
struct PbEndpoint {
    #[prost(string, repeated, tag = "1")]
    addresses: Vec<String>,
    #[prost(message, optional, tag = "2")]
    conditions: Option<PbConditions>,
    #[prost(string, optional, tag = "3")]
    hostname: Option<String>,
    #[prost(string, optional, tag = "6")]
    node_name: Option<String>,
    #[prost(string, optional, tag = "7")]
    zone: Option<String>,
    #[prost(message, optional, tag = "8")]
    hints: Option<PbHints>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct PbConditions {
    #[prost(bool, optional, tag = "1")]
    ready: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    serving: Option<bool>,
    #[prost(bool, optional, tag = "3")]
    terminating: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct PbHints {
    #[prost(message, repeated, tag = "1")]
    zones: Vec<PbZone>,
}

#[derive(Clone, PartialEq, Message)]
struct PbZone {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct PbPort {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "2")]
    protocol: Option<String>,
    #[prost(int32, optional, tag = "3")]
    port: Option<i32>,
}

pub(crate) fn decode(key: &SliceKey, value: &[u8], cx: &Context) -> Result<EndpointSlice, Fault> {
    let plain = decompress(value).map_err(|why| why.at(""))?;
    count_fields(&plain).map_err(|why| why.at(""))?;
    let raw = PbSlice::decode(plain.as_slice())
        .map_err(|error| Reason::Protobuf { message: short(&error.to_string()) }.at(""))?;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let id = raw.cluster_id.unwrap_or_default();
    same_cluster(cx, ("cluster", &text(&raw.cluster)), ("clusterID", id))?;
    same("namespace", &text(&raw.namespace), key.namespace(), "the key")?;
    same("name", &text(&raw.name), key.name(), "the key")?;
    let family = match raw.address_type.as_deref().unwrap_or_default() {
        "IPv4" => AddressFamily::V4,
        "IPv6" => AddressFamily::V6,
        other => return Err(Reason::AddressType { text: short(other) }.at("addressType")),
    };
    let count = raw.endpoints.len();
    if count > limits::SLICE_ENDPOINTS {
        return Err(Reason::TooMany { count, max: limits::SLICE_ENDPOINTS }.at("endpoints"));
    }
    let count = raw.ports.len();
    if count > limits::PORTS {
        return Err(Reason::TooMany { count, max: limits::PORTS }.at("ports"));
    }
    Ok(EndpointSlice {
        cluster: cx.cluster.clone(),
        key: key.clone(),
        labels: strings(raw.labels, "labels", limits::LABEL_VALUE_BYTES)?,
        annotations: strings(raw.annotations, "annotations", limits::ANNOTATION_BYTES)?,
        family,
        endpoints: raw.endpoints.into_iter().map(|raw| endpoint(raw, family)).collect::<Result<_, _>>()?,
        ports: raw.ports.into_iter().map(slice_port).collect::<Result<_, _>>()?,
    })
}

fn decompress(value: &[u8]) -> Result<Vec<u8>, Reason> {
    let failed = |error: std::io::Error| Reason::Zstd { message: short(&error.to_string()) };
    let mut reader = zstd::Decoder::with_buffer(value).map_err(failed)?.single_frame();
    reader.window_log_max(limits::WINDOW_LOG).map_err(failed)?;
    let mut plain = Vec::new();
    let one_more = limits::DECOMPRESSED_BYTES as u64 + 1;
    reader.take(one_more).read_to_end(&mut plain).map_err(failed)?;
    if plain.len() > limits::DECOMPRESSED_BYTES {
        return Err(Reason::TooLarge { len: plain.len(), max: limits::DECOMPRESSED_BYTES });
    }
    Ok(plain)
}

/// Counts the fields that decoding would turn into values: those of the slice, of its endpoints and of their hints.
fn count_fields(slice: &[u8]) -> Result<(), Reason> {
    let mut count = 0;
    each_field(slice, &mut count, &mut |tag, endpoint, count| match tag {
        8 => each_field(endpoint, count, &mut |tag, hints, count| match tag {
            8 => each_field(hints, count, &mut |_, _, _| Ok(())),
            _ => Ok(()),
        }),
        _ => Ok(()),
    })
}

type Inner<'a> = &'a mut dyn FnMut(u32, &[u8], &mut usize) -> Result<(), Reason>;

fn each_field(mut message: &[u8], count: &mut usize, inner: Inner<'_>) -> Result<(), Reason> {
    let broken = |error: prost::DecodeError| Reason::Protobuf { message: short(&error.to_string()) };
    while !message.is_empty() {
        *count += 1;
        if *count > limits::SLICE_FIELDS {
            return Err(Reason::TooMany { count: *count, max: limits::SLICE_FIELDS });
        }
        let (tag, wire_type) = decode_key(&mut message).map_err(broken)?;
        if wire_type != WireType::LengthDelimited {
            skip_field(wire_type, tag, &mut message, DecodeContext::default()).map_err(broken)?;
            continue;
        }
        let len = decode_varint(&mut message).map_err(broken)?;
        let len = usize::try_from(len).ok().filter(|len| *len <= message.len());
        let Some(len) = len else {
            return Err(Reason::Protobuf { message: "a field is longer than the message".into() });
        };
        let (field, rest) = message.split_at(len);
        inner(tag, field, count)?;
        message = rest;
    }
    Ok(())
}

fn strings(
    map: BTreeMap<String, String>,
    field: &str,
    value_max: usize,
) -> Result<BTreeMap<String, String>, Fault> {
    if map.len() > limits::LABELS {
        return Err(Reason::TooMany { count: map.len(), max: limits::LABELS }.at(field));
    }
    for (key, value) in &map {
        let at = || within(field, key);
        if key.len() > limits::LABEL_KEY_BYTES {
            return Err(Reason::TooLarge { len: key.len(), max: limits::LABEL_KEY_BYTES }.at(at()));
        }
        if value.len() > value_max {
            return Err(Reason::TooLarge { len: value.len(), max: value_max }.at(at()));
        }
    }
    Ok(map)
}

fn endpoint(raw: PbEndpoint, family: AddressFamily) -> Result<SliceEndpoint, Fault> {
    let count = raw.addresses.len();
    if count > limits::ADDRESSES {
        return Err(Reason::TooMany { count, max: limits::ADDRESSES }.at("endpoints.addresses"));
    }
    let address = |text: &String| match ip(text) {
        Ok(ip) if AddressFamily::of(ip) == family => Ok(ip),
        _ => Err(Reason::Address { text: short(text) }.at("endpoints.addresses")),
    };
    let name = |text: Option<String>, field| {
        text.map(|text| bounded(Some(&text), field, limits::NAME_BYTES)).transpose()
    };
    let conditions = raw.conditions.unwrap_or_default();
    let zones = raw.hints.unwrap_or_default().zones;
    if zones.len() > limits::ADDRESSES {
        return Err(Reason::TooMany { count: zones.len(), max: limits::ADDRESSES }.at("endpoints.hints"));
    }
    Ok(SliceEndpoint {
        addresses: raw.addresses.iter().map(address).collect::<Result<_, _>>()?,
        ready: conditions.ready,
        serving: conditions.serving,
        terminating: conditions.terminating,
        hostname: name(raw.hostname, "endpoints.hostname")?,
        node_name: name(raw.node_name, "endpoints.nodeName")?,
        zone: name(raw.zone, "endpoints.zone")?,
        hint_zones: zones
            .into_iter()
            .map(|zone| bounded(zone.name.as_deref(), "endpoints.hints", limits::NAME_BYTES))
            .collect::<Result<_, _>>()?,
    })
}

fn slice_port(raw: PbPort) -> Result<SlicePort, Fault> {
    let at = |why: Reason| why.at("ports");
    let name = PortName::parse(raw.name.as_deref().unwrap_or_default()).map_err(|why| at(why.into()))?;
    // Kubernetes' default.
    let protocol = Protocol::parse(raw.protocol.as_deref().unwrap_or("TCP")).map_err(|why| at(why.into()))?;
    let number = |number: i32| match u16::try_from(number) {
        Ok(number) => port(number),
        Err(_) => Err(Reason::OutOfRange { number: u64::from(number.unsigned_abs()), min: 1, max: 65_535 }),
    };
    Ok(SlicePort { name, protocol, port: raw.port.map(number).transpose().map_err(at)? })
}

pub fn encode(slice: &EndpointSlice) -> Bytes {
    let endpoints = slice.endpoints.iter().map(|end| PbEndpoint {
        addresses: end.addresses.iter().map(|ip| ip.to_canonical().to_string()).collect(),
        conditions: Some(PbConditions {
            ready: end.ready,
            serving: end.serving,
            terminating: end.terminating,
        }),
        hostname: end.hostname.clone(),
        node_name: end.node_name.clone(),
        zone: end.zone.clone(),
        hints: (!end.hint_zones.is_empty()).then(|| PbHints {
            zones: end.hint_zones.iter().map(|name| PbZone { name: Some(name.clone()) }).collect(),
        }),
    });
    let ports = slice.ports.iter().map(|port| PbPort {
        name: Some(port.name.as_str().to_owned()),
        protocol: Some(port.protocol.as_str().to_owned()),
        port: port.port.map(i32::from),
    });
    let message = PbSlice {
        cluster: Some(slice.cluster.name.to_string()),
        cluster_id: Some(slice.cluster.id.get().into()),
        namespace: Some(slice.key.namespace().to_owned()),
        name: Some(slice.key.name().to_owned()),
        labels: slice.labels.clone(),
        annotations: slice.annotations.clone(),
        address_type: Some(
            match slice.family {
                AddressFamily::V4 => "IPv4",
                AddressFamily::V6 => "IPv6",
            }
            .to_owned(),
        ),
        endpoints: endpoints.collect(),
        ports: ports.collect(),
    };
    compress(&message.encode_to_vec())
}

thread_local! {
    /// A compressor's tables are some hundred kilobytes, and making them takes longer than compressing a slice.
    static COMPRESSOR: RefCell<zstd::bulk::Compressor<'static>> = RefCell::default();
}

fn compress(plain: &[u8]) -> Bytes {
    let packed = COMPRESSOR.with_borrow_mut(|compressor| compressor.compress(plain));
    packed.expect("compressing a bounded message in memory does not fail").into()
}
