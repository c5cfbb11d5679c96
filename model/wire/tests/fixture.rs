//! What a real Cilium 1.18-dev clustermesh-apiserver and KVStoreMesh wrote decodes, every value of it.

#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only test functions, not their helpers")]

use hawser_model::{
    AddressKind, ClusterId, ClusterIdWidth, ClusterName, ClusterRef, ExportMode, IdentityId, PortName,
};
use hawser_wire::{Context, Entry, Key, Resource, decode};

const FIXTURE: &str = include_str!("../testdata/cilium-keyspace.txt");

fn c1() -> Context {
    let width = ClusterIdWidth::Bits8;
    let cluster =
        ClusterRef { name: ClusterName::parse("c1").unwrap(), id: ClusterId::new(1, width).unwrap() };
    Context { cluster, width }
}

/// Keys with their values: the dumps (`KEY`, `VALUE`) and the watched events (`PUT`, key, value).
fn pairs() -> Vec<(&'static str, &'static str)> {
    let lines: Vec<&str> = FIXTURE.lines().collect();
    let mut pairs = Vec::new();
    for at in 0..lines.len() {
        if let Some(key) = lines[at].strip_prefix("KEY   ") {
            pairs.push((key, lines[at + 1].strip_prefix("VALUE ").unwrap()));
        } else if lines[at] == "PUT" {
            pairs.push((lines[at + 1], lines[at + 2]));
        }
    }
    pairs
}

/// Either layout.
fn parse(key: &str) -> Key {
    match key.contains("cilium/cache/") {
        true => Key::parse_cached(key.as_bytes()).unwrap().1,
        false => Key::parse(key.as_bytes()).unwrap(),
    }
}

fn entry(key: &str) -> Entry {
    let (_, value) = pairs().into_iter().find(|(found, _)| *found == key).unwrap();
    decode(&parse(key), value.as_bytes(), &c1()).unwrap()
}

#[test]
fn every_value_decodes_and_survives_being_written_by_us() {
    let (mut decoded, mut others) = (0, 0);
    for (text, value) in pairs() {
        let key = parse(text);
        if let Key::Other(_) = key {
            assert!(text.contains(".initlock"), "{text} is not read");
            others += 1;
            continue;
        }
        let entry = decode(&key, value.as_bytes(), &c1()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(entry.key(&c1().cluster), key);
        assert_eq!(decode(&key, &entry.encode(), &c1()).unwrap(), entry, "{text}");
        decoded += 1;
    }
    assert_eq!((decoded, others), (68, 2), "the fixture's values, and the locks of Cilium's own writers");
}

#[test]
fn the_values_mean_what_they_say() {
    let Entry::Node(node) = entry("cilium/state/nodes/v1/c1/node-a") else { panic!("not a node") };
    assert_eq!(node.addresses.iter().filter(|a| a.kind == AddressKind::CiliumInternalIp).count(), 2);
    let cidrs: Vec<String> = node.pod_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(cidrs, ["10.1.0.0/24", "fd00:10:1::/64", "10.1.100.0/24"]);
    assert!(node.wireguard_key.is_some() && node.boot_id.is_some());

    let Entry::Endpoint(end) = entry("cilium/state/ip/v1/default/fd00:10:1::b") else { panic!("no ip") };
    assert_eq!((end.identity.get(), end.encryption_key, end.pod.as_str()), (65_793, 255, "frontend-1"));
    let Entry::Endpoint(end) = entry("cilium/state/ip/v1/default/10.1.1.13") else { panic!("no ip") };
    assert_eq!(end.identity, IdentityId::UNKNOWN);

    let Entry::Service(web) = entry("cilium/cache/services/v1/c1/shop/web") else { panic!("no service") };
    let ports = &web.backends[&"fd00:10:1::b".parse().unwrap()];
    assert_eq!(ports[&PortName::parse("dns").unwrap()].port, 5353);
    assert_eq!((web.backends.len(), web.hostnames.len(), web.shared), (4, 1, true));
    let Entry::Service(empty) = entry("cilium/state/services/v1/c1/shop/noeps") else { panic!("none") };
    assert!(empty.backends.is_empty());

    let Entry::Identity(odd) = entry("cilium/state/identities/v1/id/65794") else { panic!("no identity") };
    assert_eq!(odd.labels.get("odd").unwrap().value, "a=b_c");

    let Entry::ClusterConfig(config) = entry("cilium/cluster-config/c1") else { panic!("no config") };
    assert_eq!(config.service_exports, Some(true));
    assert_eq!(config.endpoint_slices, ExportMode::ServicesOnly);
    assert!(config.synced_canaries && !config.cached);

    let canary = Key::parse(b"cilium/synced/c1/cilium/state/ip/v1").unwrap();
    assert_eq!(canary, Key::synced(&c1().cluster.name, Resource::Ips));
    assert!(
        matches!(entry("cilium/.heartbeat"), Entry::Heartbeat(at) if at.to_string() == "2026-11-20T21:44:55Z")
    );
}

/// Where the model holds everything the value says, our bytes are Cilium's bytes.
#[test]
fn identities_services_exports_and_configs_are_byte_for_byte_what_cilium_wrote() {
    for (text, value) in pairs() {
        let ours = match decode(&parse(text), value.as_bytes(), &c1()) {
            Ok(entry @ (Entry::Identity(_) | Entry::ClusterConfig(_) | Entry::Export(_))) => entry.encode(),
            // This version prints empty host names, later ones leave them out.
            Ok(entry @ Entry::Service(_)) if !value.contains(r#""hostnames":{}"#) => entry.encode(),
            _ => continue,
        };
        assert_eq!(str::from_utf8(&ours).unwrap(), value, "{text}");
    }
}
