//! Whatever the model can hold is read back as it was written.

#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only test functions, not their helpers")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hawser_model::{
    AddressFamily, AddressKind, BootId, ClusterId, ClusterIdWidth, ClusterName, ClusterRef, Endpoint,
    EndpointSlice, ExportedPort, Identity, IdentityId, ImportKind, InternalTrafficPolicy, IpNet, Ipv4Net,
    Ipv6Net, Labels, Node, NodeAddress, NodeName, PortMap, PortName, Protocol, PublicKey, ServiceExport,
    ServiceKey, ServicePort, SessionAffinity, SharedService, SliceEndpoint, SliceKey, SlicePort, Timestamp,
    TrafficDistribution,
};
use hawser_wire::{Context, Entry, Key, decode};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;

fn cx() -> Context {
    let width = ClusterIdWidth::Bits9;
    let name = ClusterName::parse("c1").unwrap();
    Context { cluster: ClusterRef { name, id: ClusterId::new(300, width).unwrap() }, width }
}

fn check(entry: &Entry) {
    let key = entry.key(&cx().cluster);
    assert_eq!(Key::parse(key.to_string().as_bytes()).unwrap(), key);
    assert_eq!(decode(&key, &entry.encode(), &cx()).unwrap(), *entry);
}

fn v4() -> impl Strategy<Value = IpAddr> {
    any::<u32>().prop_map(|bits| Ipv4Addr::from(bits).into())
}

fn v6() -> impl Strategy<Value = IpAddr> {
    // Short runs of zeros are where the two spellings of an address could differ.
    let group = prop_oneof![Just(0_u16), any::<u16>()];
    prop::array::uniform8(group)
        .prop_map(|groups| IpAddr::from(Ipv6Addr::from(groups)))
        .prop_filter("IPv4 in IPv6 clothes", |ip| ip.to_canonical() == *ip)
}

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![v4(), v6()]
}

fn label() -> impl Strategy<Value = String> {
    "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?"
}

fn texts() -> impl Strategy<Value = BTreeMap<String, String>> {
    btree_map("[ -~é]{0,20}", "\\PC{0,20}", 0..4)
}

fn ports() -> impl Strategy<Value = BTreeMap<PortName, ServicePort>> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
    let port = (protocol, 1..=u16::MAX).prop_map(|(protocol, port)| ServicePort { protocol, port });
    btree_map("[a-z0-9-]{0,15}".prop_map(|name| PortName::parse(&name).unwrap()), port, 0..4)
}

fn port_map() -> impl Strategy<Value = PortMap> {
    btree_map(ip(), ports(), 0..5)
}

prop_compose! {
    fn node()(
        name in label(),
        addresses in vec((0..3_usize, ip()), 0..4),
        v4 in vec((any::<u32>(), 0_u8..=32), 0..3),
        v6 in vec((any::<u128>(), 0_u8..=96), 0..3),
        key in option::of(any::<[u8; 32]>()),
        boot in any::<u128>(),
        labels in texts(),
        annotations in texts(),
    ) -> Node {
        let kinds = [AddressKind::InternalIp, AddressKind::ExternalIp, AddressKind::CiliumInternalIp];
        let v4: Vec<IpNet> =
            v4.iter().map(|(ip, len)| Ipv4Net::new(Ipv4Addr::from(*ip), *len).unwrap().trunc().into()).collect();
        // fd00::/8, so that no prefix covers IPv4 in IPv6 clothes.
        let ula = |ip: u128| Ipv6Addr::from(ip >> 8 | 0xfd << 120);
        let v6: Vec<IpNet> =
            v6.iter().map(|(ip, len)| Ipv6Net::new(ula(*ip), *len).unwrap().trunc().into()).collect();
        let firsts = v4.iter().take(1).chain(v6.iter().take(1));
        let hex = format!("{boot:032x}");
        let boot = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
        Node {
            cluster: cx().cluster,
            name: NodeName::parse(&name).unwrap(),
            addresses: addresses.into_iter().map(|(at, ip)| NodeAddress { kind: kinds[at], ip }).collect(),
            pod_cidrs: firsts.chain(v4.iter().skip(1)).chain(v6.iter().skip(1)).copied().collect(),
            boot_id: Some(BootId::parse(&boot).unwrap()),
            wireguard_key: key.and_then(|key| PublicKey::new(key).ok()),
            labels,
            annotations,
        }
    }
}

prop_compose! {
    fn service()(
        names in (label(), label()),
        (frontends, backends) in (port_map(), port_map()),
        hostnames in btree_map(ip(), "[a-z0-9.-]{0,20}", 0..3),
        zones in btree_map(ip(), "[a-z0-9.-]{0,20}", 0..3),
        draining in btree_set(ip(), 0..3),
        (labels, selector) in (texts(), texts()),
        (include_external, shared) in any::<(bool, bool)>(),
    ) -> SharedService {
        let key = ServiceKey::new(&names.0, &names.1).unwrap();
        let cluster = cx().cluster;
        SharedService {
            cluster, key, frontends, backends, draining, hostnames, zones, labels, selector, include_external, shared,
        }
    }
}

prop_compose! {
    fn slice_endpoint(family: AddressFamily)(
        addresses in vec(match family { AddressFamily::V4 => v4().boxed(), AddressFamily::V6 => v6().boxed() }, 0..3),
        (ready, serving, terminating) in any::<(Option<bool>, Option<bool>, Option<bool>)>(),
        (hostname, node_name, zone) in (option::of(label()), option::of(label()), option::of(label())),
        hint_zones in vec(label(), 0..3),
    ) -> SliceEndpoint {
        SliceEndpoint { addresses, ready, serving, terminating, hostname, node_name, zone, hint_zones }
    }
}

fn slice_ports() -> impl Strategy<Value = Vec<SlicePort>> {
    (ports(), option::of(1..=u16::MAX)).prop_map(|(ports, port)| {
        let slice_port =
            |(name, named): (PortName, ServicePort)| SlicePort { name, protocol: named.protocol, port };
        ports.into_iter().map(slice_port).collect()
    })
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let family = prop_oneof![Just(AddressFamily::V4), Just(AddressFamily::V6)];
    let ends = family.prop_flat_map(|family| (Just(family), vec(slice_endpoint(family), 0..4)));
    let parts = (label(), label(), texts(), texts(), ends, slice_ports());
    parts.prop_map(|(namespace, name, labels, annotations, (family, endpoints), ports)| EndpointSlice {
        cluster: cx().cluster,
        key: SliceKey::new(&namespace, &name).unwrap(),
        labels,
        annotations,
        family,
        endpoints,
        ports,
    })
}

fn kinds() -> impl Strategy<Value = (ImportKind, SessionAffinity, Vec<AddressFamily>)> {
    use AddressFamily::{V4, V6};
    let kind = prop_oneof![Just(ImportKind::ClusterSetIp), Just(ImportKind::Headless)];
    let timeout = option::of(1..86_400_u32).prop_map(SessionAffinity::ClientIp);
    let affinity = prop_oneof![Just(SessionAffinity::None), timeout];
    let families = prop_oneof![Just(vec![]), Just(vec![V6]), Just(vec![V4, V6])];
    (kind, affinity, families)
}

prop_compose! {
    fn export()(
        (namespace, name) in (label(), label()),
        (annotations, labels) in (texts(), texts()),
        created in 0..4_000_000_000_i64,
        ports in ports(),
        app_protocol in option::of(label()),
        (kind, session_affinity, ip_families) in kinds(),
        (local, zone) in any::<(Option<bool>, Option<bool>)>(),
    ) -> ServiceExport {
        let port = |(name, port): (PortName, ServicePort)| ExportedPort {
            name, protocol: port.protocol, app_protocol: app_protocol.clone(), port: port.port,
        };
        ServiceExport {
            cluster: cx().cluster,
            key: ServiceKey::new(&namespace, &name).unwrap(),
            annotations,
            labels,
            created: Timestamp::from_unix(created),
            ports: ports.into_iter().map(port).collect(),
            kind,
            session_affinity,
            ip_families,
            internal_traffic_policy: local.map(|local| match local {
                true => InternalTrafficPolicy::Local,
                false => InternalTrafficPolicy::Cluster,
            }),
            traffic_distribution: zone.map(|zone| match zone {
                true => TrafficDistribution::PreferSameZone,
                false => TrafficDistribution::PreferClose,
            }),
        }
    }
}

proptest! {
    #[test]
    fn exports(export in export()) {
        assert!(hawser_wire::derived(&export.key).name().starts_with("derived-"));
        check(&Entry::Export(export));
    }

    #[test]
    fn nodes(node in node()) {
        check(&Entry::Node(node));
    }

    #[test]
    fn services(service in service()) {
        check(&Entry::Service(service));
    }

    #[test]
    fn slices(slice in slice()) {
        check(&Entry::Slice(slice));
    }

    #[test]
    fn endpoints(ip in ip(), host in option::of(ip()), local in 1..0x7fff_u32, key: u8, names in (label(), label()), named_ports in ports(), left_out: bool) {
        let identity = IdentityId::new(cx().cluster.id, cx().width, local).unwrap();
        let (namespace, pod) = names;
        let service_account = String::new();
        check(&Entry::Endpoint(Endpoint {
            ip, host, identity, encryption_key: key, namespace, pod, service_account, named_ports, left_out,
        }));
    }

    #[test]
    fn identities(local in 1..0x7fff_u32, labels in btree_map("[a-z./]{1,20}", "[ -~]{0,20}", 0..5)) {
        let mut set = Labels::default();
        for (key, value) in labels {
            set.insert(Labels::K8S, &key, &value);
        }
        set.insert(Labels::K8S, Labels::CLUSTER_KEY, "c1");
        let id = IdentityId::new(cx().cluster.id, cx().width, local).unwrap();
        check(&Entry::Identity(Identity { id, labels: set }));
    }
}
