//! Malformed values are refused with the key, the field and the reason.

#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only test functions, not their helpers")]

use hawser_model::{ClusterId, ClusterIdWidth, ClusterName, ClusterRef};
use hawser_wire::{Context, DecodeError, Key, decode, limits};

fn c1() -> Context {
    let width = ClusterIdWidth::Bits8;
    let name = ClusterName::parse("c1").unwrap();
    Context { cluster: ClusterRef { name, id: ClusterId::new(1, width).unwrap() }, width }
}

fn refused(key: &str, value: &[u8]) -> DecodeError {
    let error = decode(&Key::parse(key.as_bytes()).unwrap(), value, &c1()).unwrap_err();
    assert_eq!(error.key, key);
    assert!(error.to_string().starts_with(key), "{error}");
    assert!(error.to_string().len() < 1000, "hostile text is quoted, but not all of it: {error}");
    error
}

/// Every replacement in a good value is refused at that field for that reason.
fn table(key: &str, good: &str, cases: &[(&str, &str, &str, &str)]) {
    assert!(decode(&Key::parse(key.as_bytes()).unwrap(), good.as_bytes(), &c1()).is_ok(), "{good}");
    for (from, to, field, why) in cases {
        assert!(good.contains(from), "{from}");
        let error = refused(key, good.replace(from, to).as_bytes());
        assert!(error.fault.field.starts_with(field), "{to}: {error}");
        assert!(error.to_string().contains(why), "{to}: {error}");
    }
}

#[test]
fn nodes() {
    let good = r#"{"Name":"n1","Cluster":"c1","IPAddresses":[{"Type":"InternalIP","IP":"192.0.2.1"},{"Type":"Hostname","IP":""}],"IPv4AllocCIDR":{"IP":"10.4.0.0","Mask":"//8AAA=="},"IPv6AllocCIDR":null,"ClusterID":1,"Labels":{"a":"b"},"WireguardPubKey":"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=","BootID":""}"#;
    table(
        "cilium/state/nodes/v1/c1/n1",
        good,
        &[
            (r#""Name":"n1""#, r#""Name":"n2""#, "Name", r#"says "n2", but the key says "n1""#),
            (r#""Cluster":"c1""#, r#""Cluster":"c2""#, "Cluster", r#"says "c2", but the keyspace says "c1""#),
            (r#""ClusterID":1"#, r#""ClusterID":2"#, "ClusterID", r#"says "2", but the keyspace says "1""#),
            (r#","ClusterID":1"#, "", "", "missing field `ClusterID`"),
            (r#""ClusterID":1"#, r#""ClusterID":-1"#, "ClusterID", "invalid value"),
            ("192.0.2.1", "192.0.2.256", "IPAddresses", "is not an IP address"),
            ("192.0.2.1", "::ffff:192.0.2.1", "IPAddresses", "is not an IP address"),
            ("192.0.2.1", "fe80::1%eth0", "IPAddresses", "is not an IP address"),
            ("//8AAA==", "//8A", "IPv4AllocCIDR", "is not a CIDR"),
            ("//8AAA==", "/w8AAA==", "IPv4AllocCIDR", "is not a CIDR"),
            ("//8AAA==", "!", "IPv4AllocCIDR", "is not a CIDR"),
            (r#""Mask":"//8AAA==""#, r#""Mask":null"#, "IPv4AllocCIDR.Mask", "expected a string"),
            (r#"{"IP":"10.4.0.0","Mask":"//8AAA=="}"#, r#""10.4.0.0/33""#, "IPv4AllocCIDR", "is not a CIDR"),
            (r#"{"IP":"10.4.0.0","Mask":"//8AAA=="}"#, r#""fd00::/64""#, "IPv4AllocCIDR", "is not a CIDR"),
            (r#"{"IP":"10.4.0.0","Mask":"//8AAA=="}"#, "7", "IPv4AllocCIDR", "expected"),
            ("xTIBA5rboUv", "xTIB", "WireguardPubKey", "not 32 bytes in base64"),
            (
                "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
                "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
                "WireguardPubKey",
                "zeros",
            ),
            (r#""BootID":"""#, r#""BootID":"x""#, "BootID", "not a UUID"),
            (r#""a":"b""#, r#""a":1"#, "Labels.a", "expected a string"),
            ("}]", "}", "", "expected"),
        ],
    );
    let many = |n: usize, one: &str| vec![one; n].join(",");
    let addresses = many(limits::ADDRESSES + 1, r#"{"Type":"InternalIP","IP":"192.0.2.1"}"#);
    let value = format!(r#"{{"Name":"n1","Cluster":"c1","ClusterID":1,"IPAddresses":[{addresses}]}}"#);
    let error = refused("cilium/state/nodes/v1/c1/n1", value.as_bytes());
    assert!(error.to_string().contains("more than 128 entries"), "{error}");
    let long = "x".repeat(limits::LABEL_VALUE_BYTES + 1);
    let error =
        refused("cilium/state/nodes/v1/c1/n1", good.replace(r#""b""#, &format!(r#""{long}""#)).as_bytes());
    assert_eq!(error.fault.field, "Labels.a");
}

#[test]
fn identities() {
    let good = "k8s:app=x;k8s:io.cilium.k8s.policy.cluster=c1;";
    table(
        "cilium/state/identities/v1/id/65793",
        good,
        &[
            (
                "cluster=c1",
                "cluster=c2",
                "labels.io.cilium.k8s.policy.cluster",
                r#"says Some("c2"), not "c1""#,
            ),
            ("k8s:io.", "any:io.", "labels.io.cilium.k8s.policy.cluster", "with source k8s"),
            ("k8s:io.cilium.k8s.policy.cluster=c1;", "", "labels", "says None"),
            ("c1;", "c1", "labels", "do not end with ';'"),
            ("k8s:app=x", "app=x", "labels", "is not source:key=value"),
            (good, "", "labels", "do not end with ';'"),
        ],
    );
    for foreign in ["131329", "65536", "100", "0"] {
        let error = refused(&format!("cilium/state/identities/v1/id/{foreign}"), good.as_bytes());
        assert!(error.to_string().contains("not in the range of cluster c1 (id 1)"), "{error}");
    }
    let many = format!("{good}{}", "k8s:a=b;".repeat(limits::LABELS));
    assert!(refused("cilium/state/identities/v1/id/65793", many.as_bytes()).to_string().contains("entries"));
    let long = format!("k8s:{}=b;{good}", "a".repeat(limits::LABEL_KEY_BYTES + 1));
    refused("cilium/state/identities/v1/id/65793", long.as_bytes());
    assert!(refused("cilium/state/identities/v1/id/65793", b"\xff;").to_string().contains("UTF-8"));
}

#[test]
fn endpoints() {
    let good = r#"{"IP":"10.1.0.7","HostIP":"192.0.2.1","ID":65793,"Key":255,"K8sPodName":"p","NamedPorts":[{"Name":"http","Port":80,"Protocol":"TCP"}]}"#;
    table(
        "cilium/state/ip/v1/default/10.1.0.7",
        good,
        &[
            (
                r#""IP":"10.1.0.7""#,
                r#""IP":"10.1.0.8""#,
                "IP",
                r#"says "10.1.0.8", but the key says "10.1.0.7""#,
            ),
            (r#""IP":"10.1.0.7""#, r#""IP":"10.1.0.7/32""#, "IP", "but the key says"),
            ("192.0.2.1", "host", "HostIP", "is not an IP address"),
            ("65793", "131329", "ID", "not in the range of cluster c1 (id 1)"),
            ("65793", "65536", "ID", "not in the range"),
            ("65793", "16777217", "ID", "more than 24 bits"),
            ("65793", "-1", "ID", "invalid value"),
            ("255", "256", "Key", "invalid value"),
            (r#""Port":80"#, r#""Port":0"#, "NamedPorts", "out of range 1..=65535"),
            ("TCP", "tcp", "NamedPorts", "none of TCP, UDP, SCTP"),
            ("http", "HTTP", "NamedPorts", "port name"),
            (r#""p""#, &format!(r#""{}""#, "p".repeat(254)), "K8sPodName", "254 bytes long, more than 253"),
        ],
    );
}

#[test]
fn services() {
    let good = r#"{"cluster":"c1","namespace":"shop","name":"web","frontends":{},"backends":{"10.1.0.1":{"http":{"Protocol":"TCP","Port":80}}},"hostnames":{"10.1.0.1":"h"},"labels":{},"selector":{},"shared":true,"clusterID":1}"#;
    let key = "cilium/state/services/v1/c1/shop/web";
    table(
        key,
        good,
        &[
            (r#""cluster":"c1""#, r#""cluster":"c2""#, "cluster", "but the keyspace says"),
            (r#""clusterID":1"#, r#""clusterID":2"#, "clusterID", "but the keyspace says"),
            (r#","clusterID":1"#, "", "clusterID", r#"says "0""#),
            ("shop", "bank", "namespace", r#"but the key says "shop""#),
            (r#""web""#, r#""wet""#, "name", r#"but the key says "web""#),
            (r#""name":"web","#, "", "", "missing field `name`"),
            (
                r#"{"10.1.0.1":{"http""#,
                r#"{"10.1.0.1%e":{"http""#,
                "backends.10.1.0.1%e",
                "is not an IP address",
            ),
            (r#"{"10.1.0.1":{"http""#, r#"{"x":{"http""#, "backends.x", "is not an IP address"),
            ("TCP", "ICMP", "backends.10.1.0.1.http", "none of TCP, UDP, SCTP"),
            (r#""Port":80"#, r#""Port":0"#, "backends.10.1.0.1.http", "out of range"),
            (r#""Port":80"#, r#""Port":70000"#, "backends.10.1.0.1.http.Port", "expected u16"),
            (r#""http""#, r#""H""#, "backends.10.1.0.1.H", "port name"),
            (r#"{"10.1.0.1":"h"}"#, r#"{"":"h"}"#, "hostnames.", "is not an IP address"),
            (r#""backends":{"#, r#""backends":{"10.1.0.1":{},"#, "backends", "appears twice"),
            ("true", "1", "shared", "expected a boolean"),
        ],
    );
    let backends: Vec<String> =
        (0..=limits::BACKENDS).map(|n| format!(r#""10.1.{}.{}":{{}}"#, n / 256, n % 256)).collect();
    let many = good.replace(r#""backends":{"#, &format!(r#""backends":{{{},"#, backends[1..].join(",")));
    let error = refused(key, many.as_bytes());
    assert_eq!(error.fault.field, "backends");
    assert!(error.to_string().contains("more than 9999 entries"), "{error}");
}

#[test]
fn cluster_configs() {
    let good = r#"{"id":1,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"endpointSlicesExportMode":"endpointslices-only"}}"#;
    table(
        "cilium/cluster-config/c1",
        good,
        &[
            (r#""id":1"#, r#""id":0"#, "id", "out of range 1..=255"),
            (r#""id":1"#, r#""id":256"#, "id", "out of range 1..=255"),
            (r#""id":1"#, r#""id":2"#, "id", r#"says "2", but the bundle it was admitted with says "1""#),
            ("255", "511", "capabilities.maxConnectedClusters", r#"says "511", but this mesh says "255""#),
            ("255", "300", "capabilities.maxConnectedClusters", "neither 255 nor 511"),
            (
                "endpointslices-only",
                "services-v3",
                "capabilities.endpointSlicesExportMode",
                "\"services-v3\" is unknown",
            ),
            ("true", "\"yes\"", "capabilities.syncedCanaries", "expected a boolean"),
        ],
    );
}

#[test]
fn our_own() {
    let node = r#"{"name":"n1","cluster":"c1","clusterID":1,"index":1,"meshIPv4":"240.1.0.1","meshIPv6":"fd68::1","wireguard":{"epoch":1,"publicKey":"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=","port":51871,"mtu":1420}}"#;
    table(
        "hawser/state/nodes/v1/c1/n1",
        node,
        &[
            (r#""name":"n1""#, r#""name":"n2""#, "name", "but the key says"),
            (r#""clusterID":1"#, r#""clusterID":3"#, "clusterID", "but the keyspace says"),
            (r#""index":1"#, r#""index":0"#, "index", "out of range 1..=65535"),
            (r#""index":1"#, r#""index":65536"#, "index", "out of range 1..=65535"),
            ("240.1.0.1", "fd68::1", "meshIPv4", "is not an IP address"),
            (r#""fd68::1""#, r#""240.1.0.1""#, "meshIPv6", "is not an IP address"),
            (r#""epoch":1"#, r#""epoch":0"#, "wireguard.epoch", "out of range"),
            ("xTIBA5", "x", "wireguard.publicKey", "base64"),
            ("xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=", "", "wireguard.publicKey", "missing or empty"),
            ("51871", "0", "wireguard.port", "out of range"),
            ("1420", "100", "wireguard.mtu", "out of range 576..=65535"),
            (r#","port":51871"#, "", "wireguard", "missing field `port`"),
        ],
    );
    let service = r#"{"cluster":"c1","clusterID":1,"namespace":"shop","name":"cart","clusterIPs":["10.96.0.1"],"ports":[{"name":"http","protocol":"TCP","port":80}],"affinity":"none","shared":true,"backends":{}}"#;
    table(
        "hawser/local/services/v1/c1/shop/cart",
        service,
        &[
            ("10.96.0.1", "None", "clusterIPs", "is not an IP address"),
            ("none", "nearest", "affinity", "none of none, local, remote"),
            (r#""shared""#, r#""minHealthy":"half","shared""#, "minHealthy", "neither a number"),
            (r#""shared""#, r#""clusterWeights":{"a b":1},"shared""#, "clusterWeights", "a b"),
            (r#""shared""#, r#""clusterWeights":{"b":4097},"shared""#, "clusterWeights", "0..=4096"),
            (r#""shared""#, r#""clusterOrder":["a b"],"shared""#, "clusterOrder", "a b"),
            (r#""shared""#, r#""fallback":"some","shared""#, "fallback", "none of any, none"),
            (r#""shared""#, r#""sessionSeconds":0,"shared""#, "sessionSeconds", "1..=86400"),
            (r#""shared""#, r#""onDataPlaneLoss":"x","shared""#, "onDataPlaneLoss", "none of keep, drain"),
            (r#""shared""#, r#""resetAfter":"2","shared""#, "resetAfter", "nor never"),
            (r#""port":80"#, r#""port":0"#, "ports", "out of range"),
            (r#""backends":{}"#, r#""backends":[]"#, "backends", "expected a map"),
            (
                r#"],"affinity""#,
                r#",{"name":"http","protocol":"TCP","port":81}],"affinity""#,
                "ports",
                "appears twice",
            ),
        ],
    );
    let peer = r#"{"name":"eu-west","id":2,"endpoints":["https://a:1"],"podCIDRs":["10.2.0.0/16"],"nodeCIDRs":[],"ca":"PEM","admitted":"2026-11-20T21:44:55Z"}"#;
    table(
        "hawser/local/peers/v1/eu-west",
        peer,
        &[
            (r#""eu-west""#, r#""eu-east""#, "name", "but the key says"),
            (r#""id":2"#, r#""id":300"#, "id", "out of range 1..=255"),
            ("https://a:1", "http://a:1", "endpoints", "https://"),
            ("10.2.0.0/16", "10.2.0.1/16", "podCIDRs", "is not a CIDR"),
            ("2026-11-20T21:44:55Z", "yesterday", "admitted", "not RFC 3339"),
            (r#","ca":"PEM""#, "", "", "missing field `ca`"),
            (r#""ca":"PEM""#, r#""ca":"PEM","kind":"istio""#, "kind", "none of hawser, cilium"),
            (
                r#""ca":"PEM""#,
                r#""ca":"PEM","kind":"cilium","aliases":{"h":["x"]}"#,
                "aliases.h",
                "is not an IP address",
            ),
            (r#""ca":"PEM""#, r#""ca":"PEM","kind":"cilium","aliases":{"h":[]}"#, "aliases.h", "is missing"),
        ],
    );
}

#[test]
fn service_exports() {
    let good = r#"{"cluster":"c1","name":"cart","namespace":"shop","labels":{"a":"b"},"exportCreationTimestamp":"2026-11-20T21:44:04Z","ports":[{"name":"http","protocol":"TCP","appProtocol":"http","port":80}],"type":"ClusterSetIP","sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":600}},"ipFamilies":["IPv4","IPv6"]}"#;
    let families = r#"["IPv4","IPv6"]"#;
    table(
        "cilium/state/serviceexports/v1/c1/shop/cart",
        good,
        &[
            (r#""c1""#, r#""c2""#, "cluster", "but the keyspace says"),
            (r#""name":"cart""#, r#""name":"till""#, "name", "but the key says"),
            (r#""shop""#, r#""bank""#, "namespace", "but the key says"),
            ("2026-11-20T21:44:04Z", "0001-01-01T00:00:00Z", "exportCreationTimestamp", "missing"),
            ("2026-11-20T21:44:04Z", "never", "exportCreationTimestamp", "not RFC 3339"),
            ("ClusterSetIP", "ExternalName", "type", "none of ClusterSetIP, Headless"),
            (r#""ClientIP""#, r#""""#, "sessionAffinity", "none of ClientIP, None"),
            ("600", "0", "sessionAffinityConfig", "out of range 1..=86400"),
            ("600", "86401", "sessionAffinityConfig", "out of range 1..=86400"),
            (r#""port":80"#, r#""port":0"#, "ports", "out of range"),
            (r#""TCP""#, r#""tcp""#, "ports", "none of TCP"),
            (families, r#"["IPv4","IPv4"]"#, "ipFamilies", "appears twice"),
            (families, r#"["IPv5"]"#, "ipFamilies", "neither IPv4 nor IPv6"),
            (families, r#"["IPv4","IPv6","IPv4"]"#, "ipFamilies", "more than 2 entries"),
            (families, r#"[],"internalTrafficPolicy":"Zone""#, "internalTrafficPolicy", "none of Cluster"),
            (families, r#"[],"trafficDistribution":"Far""#, "trafficDistribution", "none of PreferClose"),
            (r#"{"a":"b"}"#, r#"{"a":1}"#, "labels.a", "expected a string"),
        ],
    );
    let long = "x".repeat(limits::APP_PROTOCOL_BYTES + 1);
    let value = good.replace(r#""appProtocol":"http""#, &format!(r#""appProtocol":"{long}""#));
    let error = refused("cilium/state/serviceexports/v1/c1/shop/cart", value.as_bytes());
    assert_eq!(error.fault.field, "ports.appProtocol");
}

#[test]
fn slices() {
    let key = "cilium/state/endpointslices/v1/c1/shop/web-1";
    let zip = |plain: &[u8]| zstd::bulk::compress(plain, 1).unwrap();
    // cluster c1, id 1, namespace shop, name web-1, IPv4.
    let head = b"\x0a\x02c1\x10\x01\x1a\x04shop\x22\x05web-1".to_vec();
    let with = |more: &[u8]| zip(&[head.as_slice(), more].concat());
    let v4 = b"\x3a\x04IPv4";
    assert!(decode(&Key::parse(key.as_bytes()).unwrap(), &with(v4), &c1()).is_ok());
    let with_v4 = |more: &[u8]| with(&[v4.as_slice(), more].concat());
    let why = |value: &[u8]| {
        let error = refused(key, value);
        (error.fault.field.clone(), error.to_string())
    };
    for (value, field, reason) in [
        (b"not zstd".to_vec(), "", "does not decompress"),
        (with(v4)[..12].to_vec(), "", "does not decompress"),
        (zip(b"\x0a\x7f"), "", "longer than the message"),
        (zip(b"\x0b"), "", "protobuf"),
        (with(b"\x3a\x04FQDN"), "addressType", "neither IPv4 nor IPv6"),
        (with(b""), "addressType", "neither IPv4 nor IPv6"),
        (zip(b"\x0a\x02c2\x10\x01"), "cluster", "but the keyspace says"),
        (zip(b"\x0a\x02c1\x10\x02"), "clusterID", "but the keyspace says"),
        (zip(b"\x0a\x02c1\x10\x01\x1a\x04bank"), "namespace", "but the key says"),
        (with_v4(b"\x42\x09\x0a\x07fd00::1"), "endpoints.addresses", "is not an IP address"),
        (with_v4(b"\x42\x03\x0a\x01x"), "endpoints.addresses", "is not an IP address"),
        (with_v4(b"\x4a\x02\x18\x00"), "ports", "out of range"),
        (with_v4(b"\x4a\x0b\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), "ports", "out of range"),
        (with_v4(b"\x4a\x05\x12\x03tcp"), "ports", "none of TCP"),
        (
            with_v4(&b"\x42\x00".repeat(limits::SLICE_ENDPOINTS + 1)),
            "endpoints",
            "1001 entries, more than 1000",
        ),
        (with_v4(&b"\x4a\x00".repeat(limits::PORTS + 1)), "ports", "257 entries"),
        (with_v4(&b"\x42\x00".repeat(1_000_000)), "", "50001 entries, more than 50000"),
        (vec![0; limits::VALUE_BYTES + 1], "", "more than 1572864"),
    ] {
        let (found, text) = why(&value);
        assert_eq!(found, field, "{text}");
        assert!(text.contains(reason), "{reason}: {text}");
    }
}

#[test]
fn a_decompression_bomb_stops_at_its_limit() {
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
    assert!(bomb.len() < 10_000, "{} bytes for 64 MiB", bomb.len());
    let error = refused("cilium/state/endpointslices/v1/c1/shop/web-1", &bomb);
    assert!(error.to_string().contains("more than 16777216"), "{error}");
    // A window of 128 MiB asks for that much memory before the first byte.
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    std::io::Write::write_all(&mut encoder, &[0; 1000]).unwrap();
    let error = refused("cilium/state/endpointslices/v1/c1/shop/web-1", &encoder.finish().unwrap());
    assert!(error.to_string().contains("does not decompress"), "{error}");
}

#[test]
fn a_keyspace_holds_nobody_elses_keys() {
    for key in
        ["cilium/state/nodes/v1/c2/n1", "cilium/cluster-config/c2", "cilium/synced/c2/cilium/state/ip/v1"]
    {
        let error = refused(key, b"{}");
        assert_eq!(error.fault.field, "key");
        assert!(error.to_string().contains(r#"says "c2", but the keyspace says "c1""#), "{error}");
    }
    for key in ["hawser/private/tokens/v1/a", "something/else"] {
        assert!(refused(key, b"{}").to_string().contains("does not read"));
    }
    assert!(refused("cilium/.heartbeat", b"now").to_string().contains("RFC 3339"));
}
