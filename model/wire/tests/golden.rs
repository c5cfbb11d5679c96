//! What Hawser writes, to the byte: the examples of cilium-facts.md §1, which Cilium's readers accept, and contracts.md.

#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only test functions, not their helpers")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hawser_model::{
    AddressFamily, AddressKind, Affinity, Algorithm, BootId, CiliumPeer, ClusterConfig, ClusterId,
    ClusterIdWidth, ClusterName, ClusterRef, Endpoint, EndpointSlice, Epoch, ExportMode, ExportedPort,
    Fallback, GlobalService, Identity, IdentityId, ImportKind, InternalTrafficPolicy, Labels, MeshPlan,
    MinHealthy, MorePorts, Node, NodeAddress, NodeIndex, NodeName, NodePath, OnLoss, Outside, Peer, PeerKind,
    PortName, Protocol, PublicKey, ResetAfter, Routing, ServerUrl, ServiceExport, ServiceKey, ServicePort,
    SessionAffinity, SharedService, SliceEndpoint, SliceKey, SlicePort, Timestamp, TrafficDistribution,
    TunnelEnd, TunnelNode, ZoneAffinity,
};
use hawser_wire::{Context, Entry, Key, Resource, decode};

const WIDTH: ClusterIdWidth = ClusterIdWidth::Bits8;

fn cx() -> Context {
    let name = ClusterName::parse("hawser-a").unwrap();
    Context { cluster: ClusterRef { name, id: ClusterId::new(7, WIDTH).unwrap() }, width: WIDTH }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn port(name: &str, port: u16) -> BTreeMap<PortName, ServicePort> {
    BTreeMap::from([(PortName::parse(name).unwrap(), ServicePort { protocol: Protocol::Tcp, port })])
}

/// Encodes to exactly this key and value, and reads back as the same.
fn golden(entry: Entry, key: &str, value: &str) {
    let of = entry.key(&cx().cluster);
    assert_eq!(of.to_string(), key);
    assert_eq!(str::from_utf8(&entry.encode()).unwrap(), value);
    assert_eq!(decode(&of, value.as_bytes(), &cx()).unwrap(), entry);
}

#[test]
fn a_node() {
    let node = Node {
        cluster: cx().cluster,
        name: NodeName::parse("gw-1").unwrap(),
        addresses: vec![
            NodeAddress { kind: AddressKind::InternalIp, ip: ip("192.0.2.11") },
            NodeAddress { kind: AddressKind::CiliumInternalIp, ip: ip("10.4.0.1") },
        ],
        pod_cidrs: vec!["10.4.0.0/16".parse().unwrap()],
        boot_id: Some(BootId::parse("6c1f0c1e-1111-4222-8333-444455556666").unwrap()),
        wireguard_key: Some(PublicKey::new([1; 32]).unwrap()),
        labels: BTreeMap::from([("kubernetes.io/hostname".into(), "gw-1".into())]),
        annotations: BTreeMap::new(),
    };
    golden(
        Entry::Node(node.clone()),
        "cilium/state/nodes/v1/hawser-a/gw-1",
        r#"{"Name":"gw-1","Cluster":"hawser-a","IPAddresses":[{"Type":"InternalIP","IP":"192.0.2.11"},{"Type":"CiliumInternalIP","IP":"10.4.0.1"}],"IPv4AllocCIDR":{"IP":"10.4.0.0","Mask":"//8AAA=="},"IPv4SecondaryAllocCIDRs":null,"IPv6AllocCIDR":null,"IPv6SecondaryAllocCIDRs":null,"IPv4HealthIP":"","IPv6HealthIP":"","IPv4IngressIP":"","IPv6IngressIP":"","ClusterID":7,"Source":"custom-resource","EncryptionKey":255,"Labels":{"kubernetes.io/hostname":"gw-1"},"Annotations":null,"WireguardPubKey":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=","BootID":"6c1f0c1e-1111-4222-8333-444455556666"}"#,
    );
    let nets = ["10.4.0.0/24", "fd00:4::/64", "10.4.1.0/24", "fd00:4:0:1::/64"];
    let dual = Node { pod_cidrs: nets.iter().map(|net| net.parse().unwrap()).collect(), ..node };
    let json = hawser_wire::encode_node(&dual);
    let json = str::from_utf8(&json).unwrap();
    for part in [
        r#""IPv4AllocCIDR":{"IP":"10.4.0.0","Mask":"////AA=="},"IPv4SecondaryAllocCIDRs":[{"IP":"10.4.1.0","Mask":"////AA=="}]"#,
        r#""IPv6AllocCIDR":{"IP":"fd00:4::","Mask":"//////////8AAAAAAAAAAA=="},"IPv6SecondaryAllocCIDRs":[{"IP":"fd00:4:0:1::""#,
    ] {
        assert!(json.contains(part), "{json}");
    }
}

#[test]
fn plain_cidrs_are_read_too() {
    let key = Key::parse(b"cilium/state/nodes/v1/hawser-a/gw-1").unwrap();
    let value = r#"{"Name":"gw-1","Cluster":"hawser-a","ClusterID":7,"IPv4AllocCIDR":"10.4.0.0/16","IPv6SecondaryAllocCIDRs":["fd00:4::/64",{"IP":"fd00:5::","Mask":"//////////8AAAAAAAAAAA=="}]}"#;
    let Entry::Node(node) = decode(&key, value.as_bytes(), &cx()).unwrap() else { panic!("not a node") };
    let nets: Vec<String> = node.pod_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(nets, ["10.4.0.0/16", "fd00:4::/64", "fd00:5::/64"]);
}

#[test]
fn an_identity() {
    let text = "k8s:app=cart;k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop;k8s:io.cilium.k8s.policy.cluster=hawser-a;k8s:io.cilium.k8s.policy.serviceaccount=default;k8s:io.kubernetes.pod.namespace=shop;";
    let mut labels = Labels::default();
    // The order they come in does not matter.
    for (key, value) in [
        (Labels::NAMESPACE_KEY, "shop"),
        (Labels::CLUSTER_KEY, "hawser-a"),
        ("app", "cart"),
        (Labels::SERVICE_ACCOUNT_KEY, "default"),
        ("io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name", "shop"),
    ] {
        labels.insert(Labels::K8S, key, value);
    }
    let id = IdentityId::new(cx().cluster.id, WIDTH, 79).unwrap();
    golden(Entry::Identity(Identity { id, labels }), "cilium/state/identities/v1/id/458831", text);
}

#[test]
fn an_endpoint() {
    let endpoint = Endpoint {
        ip: ip("10.4.3.9"),
        host: Some(ip("192.0.2.11")),
        identity: IdentityId::from_wire(458_831).unwrap(),
        encryption_key: 255,
        namespace: "shop".into(),
        pod: "cart-5d9".into(),
        service_account: "default".into(),
        named_ports: port("http", 8080),
        left_out: false,
    };
    golden(
        Entry::Endpoint(endpoint.clone()),
        "cilium/state/ip/v1/default/10.4.3.9",
        r#"{"IP":"10.4.3.9","HostIP":"192.0.2.11","ID":458831,"Key":255,"Metadata":"","K8sNamespace":"shop","K8sPodName":"cart-5d9","K8sServiceAccount":"default","NamedPorts":[{"Name":"http","Port":8080,"Protocol":"TCP"}]}"#,
    );
    let bare = Endpoint {
        ip: ip("fd00:4::1f"),
        host: None,
        namespace: String::new(),
        pod: String::new(),
        service_account: String::new(),
        named_ports: BTreeMap::new(),
        left_out: false,
        ..endpoint
    };
    golden(
        Entry::Endpoint(bare),
        "cilium/state/ip/v1/default/fd00:4::1f",
        r#"{"IP":"fd00:4::1f","HostIP":"","ID":458831,"Key":255,"Metadata":""}"#,
    );
}

#[test]
fn another_machines_host_is_a_remote_node() {
    let key = Key::parse(b"cilium/state/ip/v1/default/192.0.2.11").unwrap();
    let value = br#"{"IP":"192.0.2.11","Mask":null,"HostIP":"192.0.2.11","ID":1}"#;
    let Entry::Endpoint(endpoint) = decode(&key, value, &cx()).unwrap() else { panic!("no endpoint") };
    assert_eq!(endpoint.identity, IdentityId::REMOTE_NODE);
}

fn shared() -> SharedService {
    SharedService {
        cluster: cx().cluster,
        key: ServiceKey::new("shop", "cart").unwrap(),
        frontends: BTreeMap::from([(ip("172.30.8.4"), port("http", 80))]),
        backends: BTreeMap::from([(ip("10.4.3.9"), port("http", 8080))]),
        draining: BTreeSet::new(),
        hostnames: BTreeMap::new(),
        zones: BTreeMap::new(),
        labels: BTreeMap::new(),
        selector: BTreeMap::from([("app".into(), "cart".into())]),
        include_external: true,
        shared: true,
    }
}

#[test]
fn a_service() {
    golden(
        Entry::Service(shared()),
        "cilium/state/services/v1/hawser-a/shop/cart",
        r#"{"cluster":"hawser-a","namespace":"shop","name":"cart","frontends":{"172.30.8.4":{"http":{"Protocol":"TCP","Port":80}}},"backends":{"10.4.3.9":{"http":{"Protocol":"TCP","Port":8080}}},"labels":{},"selector":{"app":"cart"},"includeExternal":true,"shared":true,"clusterID":7}"#,
    );
    // Addresses are sorted as text, like Go prints maps; a headless service has no frontends; the unnamed port is "".
    let headless = SharedService {
        frontends: BTreeMap::new(),
        backends: ["10.4.3.9", "10.4.3.10", "fd00:4::1"].map(|text| (ip(text), port("", 5432))).into(),
        hostnames: BTreeMap::from([(ip("10.4.3.9"), "db-0".into())]),
        zones: BTreeMap::from([(ip("10.4.3.9"), "z1".into())]),
        draining: BTreeSet::from([ip("10.4.3.10")]),
        selector: BTreeMap::new(),
        include_external: false,
        ..shared()
    };
    golden(
        Entry::Service(headless),
        "cilium/state/services/v1/hawser-a/shop/cart",
        r#"{"cluster":"hawser-a","namespace":"shop","name":"cart","frontends":{},"backends":{"10.4.3.10":{"":{"Protocol":"TCP","Port":5432}},"10.4.3.9":{"":{"Protocol":"TCP","Port":5432}},"fd00:4::1":{"":{"Protocol":"TCP","Port":5432}}},"hostnames":{"10.4.3.9":"db-0"},"zones":{"10.4.3.9":{"zone":"z1"}},"hawserDraining":["10.4.3.10"],"labels":{},"selector":{},"includeExternal":false,"shared":true,"clusterID":7}"#,
    );
}

#[test]
fn the_example_with_zone_hints_decodes() {
    let value = r#"{"cluster":"hawser-a","namespace":"shop","name":"cart","frontends":{"172.30.8.4":{"http":{"Protocol":"TCP","Port":80}}},"backends":{"10.4.3.9":{"http":{"Protocol":"TCP","Port":8080}}},"zones":{"10.4.3.9":{"zone":"z1","forZones":[{"name":"z1"}]}},"labels":{},"selector":{"app":"cart"},"includeExternal":true,"shared":true,"clusterID":7}"#;
    let key = Key::parse(b"cilium/state/services/v1/hawser-a/shop/cart").unwrap();
    let expected = SharedService { zones: BTreeMap::from([(ip("10.4.3.9"), "z1".to_owned())]), ..shared() };
    assert_eq!(decode(&key, value.as_bytes(), &cx()).unwrap(), Entry::Service(expected));
}

#[test]
fn a_cluster_config() {
    let config = ClusterConfig {
        cluster: cx().cluster,
        width: WIDTH,
        synced_canaries: true,
        cached: false,
        service_exports: Some(false),
        endpoint_slices: ExportMode::ServicesAndSlices,
        path: NodePath::Gateways,
    };
    golden(
        Entry::ClusterConfig(config.clone()),
        "cilium/cluster-config/hawser-a",
        r#"{"id":7,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":false,"endpointSlicesExportMode":"services-and-endpointslices","hawserPath":"gateways"}}"#,
    );
    let least = ClusterConfig {
        synced_canaries: false,
        service_exports: None,
        endpoint_slices: ExportMode::ServicesOnly,
        path: NodePath::Direct,
        ..config
    };
    golden(
        Entry::ClusterConfig(least.clone()),
        "cilium/cluster-config/hawser-a",
        r#"{"id":7,"capabilities":{"maxConnectedClusters":255}}"#,
    );
    let key = Entry::ClusterConfig(least.clone()).key(&cx().cluster);
    let oldest = decode(&key, br#"{"id":7,"later":{"a":[1]}}"#, &cx()).unwrap();
    assert_eq!(oldest, Entry::ClusterConfig(least), "no capabilities mean 255; later fields are passed over");
}

#[test]
fn heartbeat_and_canaries() {
    let at = Timestamp::parse("2026-11-20T21:44:55Z").unwrap();
    golden(Entry::Heartbeat(at), "cilium/.heartbeat", "2026-11-20T21:44:55Z");
    let canaries: Vec<String> =
        Resource::ALL.iter().map(|kind| Key::synced(&cx().cluster.name, *kind).to_string()).collect();
    assert_eq!(
        canaries,
        [
            "cilium/synced/hawser-a/cilium/state/nodes/v1",
            "cilium/synced/hawser-a/cilium/state/identities/v1",
            "cilium/synced/hawser-a/cilium/state/ip/v1",
            "cilium/synced/hawser-a/cilium/state/services/v1",
            "cilium/synced/hawser-a/cilium/state/endpointslices/v1",
            "cilium/synced/hawser-a/cilium/state/serviceexports/v1",
            "cilium/synced/hawser-a/hawser/state/nodes/v1",
        ]
    );
    for resource in Resource::ALL {
        let entry = Entry::Synced { resource, at: Some(at) };
        golden(entry, &Key::synced(&cx().cluster.name, resource).to_string(), "2026-11-20T21:44:55Z");
        let key = Key::synced(&cx().cluster.name, resource);
        let odd = decode(&key, b"whatever", &cx()).unwrap();
        assert_eq!(odd, Entry::Synced { resource, at: None }, "a canary counts by being there");
    }
}

#[test]
fn an_endpoint_slice() {
    let slice = EndpointSlice {
        cluster: cx().cluster,
        key: SliceKey::new("shop", "cart-x7f2p").unwrap(),
        labels: BTreeMap::from([(EndpointSlice::SERVICE_LABEL.into(), "cart".into())]),
        annotations: BTreeMap::from([("service.cilium.io/weight".into(), "3".into())]),
        family: AddressFamily::V4,
        endpoints: vec![
            SliceEndpoint {
                addresses: vec![ip("10.4.3.9")],
                ready: Some(false),
                serving: Some(true),
                terminating: Some(true),
                hostname: Some("cart-0".into()),
                node_name: Some("gw-1".into()),
                zone: Some("z1".into()),
                hint_zones: vec!["z1".into(), "z2".into()],
            },
            SliceEndpoint { addresses: vec![ip("10.4.3.10")], ..SliceEndpoint::default() },
        ],
        ports: vec![
            SlicePort { name: PortName::parse("http").unwrap(), protocol: Protocol::Tcp, port: Some(8080) },
            SlicePort { name: PortName::default(), protocol: Protocol::Udp, port: None },
        ],
    };
    let entry = Entry::Slice(slice.clone());
    let key = entry.key(&cx().cluster);
    assert_eq!(key.to_string(), "cilium/state/endpointslices/v1/hawser-a/shop/cart-x7f2p");
    let bytes = entry.encode();
    assert_eq!(&bytes[..4], &[0x28, 0xb5, 0x2f, 0xfd], "a zstd frame (RFC 8878 §3.1.1)");
    assert_eq!(decode(&key, &bytes, &cx()).unwrap(), entry);
    assert_eq!(slice.service(), ServiceKey::new("shop", "cart").ok());
    let plain = zstd::decode_all(&bytes[..]).unwrap();
    // Field 1, length-delimited: the cluster; field 2, varint: its id; field 3: the namespace; field 4: the name.
    let head = b"\x0a\x08hawser-a\x10\x07\x1a\x04shop\x22\x0acart-x7f2p\x2a";
    assert_eq!(&plain[..head.len()], head);
}

#[test]
fn a_tunnel_node() {
    let (name, index) = (NodeName::parse("node-1").unwrap(), NodeIndex::new(1).unwrap());
    let mesh = MeshPlan::default().addresses(cx().cluster.id, index, &name);
    let end = TunnelEnd {
        epoch: Epoch::FIRST,
        public_key: PublicKey::new([1; 32]).unwrap(),
        port: 51871,
        mtu: 1420,
        more_ports: MorePorts::new(&[51880, 51881]).unwrap(),
        esp: None,
    };
    let node = TunnelNode {
        cluster: cx().cluster,
        name,
        index,
        mesh,
        boot_id: Some(BootId::parse("6c1f0c1e-1111-4222-8333-444455556666").unwrap()),
        wireguard: Some(end),
        public_endpoint: Some("203.0.113.7:4500".parse().unwrap()),
        gateway: true,
    };
    let v6 = mesh.ipv6;
    golden(
        Entry::TunnelNode(node.clone()),
        "hawser/state/nodes/v1/hawser-a/node-1",
        &format!(
            r#"{{"name":"node-1","cluster":"hawser-a","clusterID":7,"index":1,"meshIPv4":"240.7.0.1","meshIPv6":"{v6}","bootID":"6c1f0c1e-1111-4222-8333-444455556666","wireguard":{{"epoch":1,"publicKey":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=","port":51871,"mtu":1420,"morePorts":[51880,51881]}},"publicEndpoint":"203.0.113.7:4500","gateway":true}}"#
        ),
    );
    let least = TunnelNode { boot_id: None, wireguard: None, public_endpoint: None, gateway: false, ..node };
    golden(
        Entry::TunnelNode(least),
        "hawser/state/nodes/v1/hawser-a/node-1",
        &format!(
            r#"{{"name":"node-1","cluster":"hawser-a","clusterID":7,"index":1,"meshIPv4":"240.7.0.1","meshIPv6":"{v6}"}}"#
        ),
    );
}

#[test]
fn a_local_service() {
    let service = GlobalService {
        cluster: cx().cluster,
        key: ServiceKey::new("shop", "cart").unwrap(),
        cluster_ips: vec![ip("172.30.8.4")],
        ports: port("http", 80),
        routing: Routing { affinity: Affinity::Local, ..Routing::default() },
        shared: true,
        backends: BTreeMap::from([(ip("10.4.3.9"), port("http", 8080))]),
        draining: BTreeSet::new(),
        zones: BTreeMap::new(),
        outside: Outside::default(),
    };
    let wishes = Routing {
        affinity: Affinity::None,
        min_healthy: Some(MinHealthy::Percent(50)),
        weights: Routing::parse_weights("hawser-a=80,eu-west=20").unwrap(),
        order: Routing::parse_order("eu-west,hawser-a").unwrap(),
        fallback: Fallback::None,
        session_seconds: Some(600),
        on_data_plane_loss: OnLoss::Keep,
        reset_after: Some(ResetAfter::Never),
        on_control_plane_loss: OnLoss::Drain,
        drain_grace_seconds: 30,
        zone_affinity: ZoneAffinity::Local,
        algorithm: Algorithm::Maglev,
    };
    golden(
        Entry::LocalService(GlobalService {
            routing: wishes,
            backends: BTreeMap::new(),
            draining: BTreeSet::from([ip("10.4.3.9")]),
            zones: BTreeMap::from([(ip("10.4.3.9"), "z1".into())]),
            outside: Outside {
                ips: BTreeSet::from([ip("198.51.100.7")]),
                node_ports: BTreeMap::from([(PortName::parse("http").unwrap(), 30_080)]),
            },
            ..service.clone()
        }),
        "hawser/local/services/v1/hawser-a/shop/cart",
        r#"{"cluster":"hawser-a","clusterID":7,"namespace":"shop","name":"cart","clusterIPs":["172.30.8.4"],"ports":[{"name":"http","protocol":"TCP","port":80}],"affinity":"none","minHealthy":"50%","clusterWeights":{"eu-west":20,"hawser-a":80},"clusterOrder":["eu-west","hawser-a"],"fallback":"none","sessionSeconds":600,"onDataPlaneLoss":"keep","resetAfter":"never","onControlPlaneLoss":"drain","drainGraceSeconds":30,"zoneAffinity":"local","algorithm":"maglev","shared":true,"backends":{},"draining":["10.4.3.9"],"zones":{"10.4.3.9":"z1"},"externalIPs":["198.51.100.7"],"nodePorts":{"http":30080}}"#,
    );
    golden(
        Entry::LocalService(service),
        "hawser/local/services/v1/hawser-a/shop/cart",
        r#"{"cluster":"hawser-a","clusterID":7,"namespace":"shop","name":"cart","clusterIPs":["172.30.8.4"],"ports":[{"name":"http","protocol":"TCP","port":80}],"affinity":"local","shared":true,"backends":{"10.4.3.9":{"http":{"Protocol":"TCP","Port":8080}}}}"#,
    );
}

#[test]
fn a_peer_of_ours_and_one_on_cilium() {
    let name = ClusterName::parse("eu-west").unwrap();
    let peer = Peer {
        cluster: ClusterRef { name, id: ClusterId::new(2, WIDTH).unwrap() },
        endpoints: vec![ServerUrl::parse("https://172.16.2.11:2379").unwrap()],
        pod_cidrs: vec!["10.2.0.0/16".parse().unwrap()],
        node_cidrs: vec!["172.16.2.0/24".parse().unwrap()],
        ca: "-----BEGIN CERTIFICATE-----\n".into(),
        admitted: Timestamp::parse("2026-11-20T21:44:55Z").unwrap(),
        kind: PeerKind::Hawser,
    };
    golden(
        Entry::LocalPeer(peer.clone()),
        "hawser/local/peers/v1/eu-west",
        r#"{"name":"eu-west","id":2,"endpoints":["https://172.16.2.11:2379"],"podCIDRs":["10.2.0.0/16"],"nodeCIDRs":["172.16.2.0/24"],"ca":"-----BEGIN CERTIFICATE-----\n","admitted":"2026-11-20T21:44:55Z"}"#,
    );
    let plain = Peer { kind: PeerKind::Cilium(CiliumPeer::default()), ..peer.clone() };
    let named = CiliumPeer {
        server_name: Some("clustermesh-apiserver.cilium.svc".into()),
        aliases: BTreeMap::from([("c1.mesh.cilium.io".into(), vec![ip("198.51.100.7"), ip("fd00::7")])]),
    };
    let named = Peer { kind: PeerKind::Cilium(named), ..peer };
    for (peer, kind) in [
        (plain, r#""kind":"cilium"}"#),
        (
            named,
            r#""kind":"cilium","serverName":"clustermesh-apiserver.cilium.svc","aliases":{"c1.mesh.cilium.io":["198.51.100.7","fd00::7"]}}"#,
        ),
    ] {
        golden(
            Entry::LocalPeer(peer),
            "hawser/local/peers/v1/eu-west",
            &format!(
                r#"{{"name":"eu-west","id":2,"endpoints":["https://172.16.2.11:2379"],"podCIDRs":["10.2.0.0/16"],"nodeCIDRs":["172.16.2.0/24"],"ca":"-----BEGIN CERTIFICATE-----\n","admitted":"2026-11-20T21:44:55Z",{kind}"#
            ),
        );
    }
}

#[test]
fn a_service_export() {
    let export = ServiceExport {
        cluster: cx().cluster,
        key: ServiceKey::new("shop", "cart").unwrap(),
        annotations: BTreeMap::from([("c".into(), "d".into())]),
        labels: BTreeMap::from([("a".into(), "b".into())]),
        created: Timestamp::parse("2026-11-20T21:44:04Z").unwrap(),
        ports: vec![ExportedPort {
            name: PortName::parse("http").unwrap(),
            protocol: Protocol::Tcp,
            app_protocol: Some("http".into()),
            port: 80,
        }],
        kind: ImportKind::ClusterSetIp,
        session_affinity: SessionAffinity::ClientIp(Some(600)),
        ip_families: Vec::new(),
        internal_traffic_policy: None,
        traffic_distribution: None,
    };
    let key = "cilium/state/serviceexports/v1/hawser-a/shop/cart";
    golden(
        Entry::Export(export.clone()),
        key,
        r#"{"cluster":"hawser-a","name":"cart","namespace":"shop","Annotations":{"c":"d"},"Labels":{"a":"b"},"exportCreationTimestamp":"2026-11-20T21:44:04Z","ports":[{"name":"http","protocol":"TCP","appProtocol":"http","port":80}],"type":"ClusterSetIP","sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":600}}}"#,
    );
    let other = ServiceExport {
        annotations: BTreeMap::new(),
        labels: BTreeMap::new(),
        ports: vec![ExportedPort {
            name: PortName::default(),
            protocol: Protocol::Udp,
            app_protocol: None,
            port: 53,
        }],
        kind: ImportKind::Headless,
        session_affinity: SessionAffinity::None,
        ip_families: vec![AddressFamily::V6, AddressFamily::V4],
        internal_traffic_policy: Some(InternalTrafficPolicy::Local),
        traffic_distribution: Some(TrafficDistribution::PreferSameZone),
        ..export.clone()
    };
    golden(
        Entry::Export(other),
        key,
        r#"{"cluster":"hawser-a","name":"cart","namespace":"shop","Annotations":null,"Labels":null,"exportCreationTimestamp":"2026-11-20T21:44:04Z","ports":[{"protocol":"UDP","port":53}],"type":"Headless","sessionAffinity":"None","ipFamilies":["IPv6","IPv4"],"internalTrafficPolicy":"Local","trafficDistribution":"PreferSameZone"}"#,
    );
    // The spelling of the facts, with what Go may leave out.
    let least = r#"{"cluster":"hawser-a","name":"cart","namespace":"shop","annotations":{"c":"d"},"labels":{"a":"b"},"exportCreationTimestamp":"2026-11-20T21:44:04Z","ports":[{"name":"http","appProtocol":"http","port":80}],"type":"ClusterSetIP","sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":600}},"later":1}"#;
    assert_eq!(
        decode(&Key::parse(key.as_bytes()).unwrap(), least.as_bytes(), &cx()).unwrap(),
        Entry::Export(export)
    );
}

#[test]
fn an_exported_service_has_a_derived_one() {
    // As coreutils say: printf shop/cart | sha256sum | xxd -r -p | basenc --base32hex | head -c 10
    for (name, derived) in [("exported", "derived-o5q7lodl2q"), ("cart", "derived-bsqa4s8pq5")] {
        let of = ServiceKey::new("shop", name).unwrap();
        assert_eq!(hawser_wire::derived(&of), ServiceKey::new("shop", derived).unwrap());
    }
}
