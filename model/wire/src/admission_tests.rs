//! One negative test per rule: a remote that speaks about what is not its own.

use std::collections::BTreeMap;

use hawser_model::{
    AddressFamily, ClusterConfig, ClusterId, ClusterName, Endpoint, ExportMode, GlobalService, Identity,
    Labels, MeshAddresses, NodeAddress, NodeIndex, NodeName, PeerKind, ServiceKey, SharedService,
    SliceEndpoint, SliceKey, Timestamp,
};

use super::*;

const WIDTH: ClusterIdWidth = ClusterIdWidth::Bits8;

fn cluster(name: &str, id: u32) -> ClusterRef {
    ClusterRef { name: ClusterName::parse(name).unwrap(), id: ClusterId::new(id, WIDTH).unwrap() }
}

fn west() -> PeerRecord {
    PeerRecord {
        cluster: cluster("eu-west", 2),
        width: WIDTH,
        mesh: MeshPlan::default(),
        pod_cidrs: vec!["10.2.0.0/16".parse().unwrap(), "fd00:2::/48".parse().unwrap()],
        node_cidrs: vec!["172.16.2.0/24".parse().unwrap()],
    }
}

fn check(entry: Entry) -> Result<(), Refusal> {
    let west = west();
    admit(&west, &entry.key(&west.cluster), &entry)
}

/// The metric of the refusal, after making sure that its sentence names the cluster.
fn refused(entry: Entry) -> &'static str {
    let refusal = check(entry).unwrap_err();
    assert!(refusal.to_string().contains("eu-west (id 2)"), "{refusal}");
    refusal.metric()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn node(kind: AddressKind, address: &str, pods: &str) -> Node {
    Node {
        cluster: cluster("eu-west", 2),
        name: NodeName::parse("node-1").unwrap(),
        addresses: vec![NodeAddress { kind, ip: ip(address) }],
        pod_cidrs: vec![pods.parse().unwrap()],
        boot_id: None,
        wireguard_key: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    }
}

fn endpoint(address: &str, host: &str, identity: u32) -> Entry {
    Entry::Endpoint(Endpoint {
        ip: ip(address),
        host: Some(ip(host)),
        identity: IdentityId::from_wire(identity).unwrap(),
        encryption_key: 0,
        namespace: "shop".into(),
        pod: "cart-1".into(),
        service_account: String::new(),
        named_ports: BTreeMap::new(),
        left_out: false,
    })
}

fn service(of: ClusterRef, backend: &str) -> SharedService {
    SharedService {
        cluster: of,
        key: ServiceKey::new("shop", "cart").unwrap(),
        frontends: BTreeMap::from([(ip("10.96.0.1"), BTreeMap::new())]),
        backends: BTreeMap::from([(ip(backend), BTreeMap::new())]),
        draining: Default::default(),
        hostnames: BTreeMap::new(),
        zones: BTreeMap::new(),
        labels: BTreeMap::new(),
        selector: BTreeMap::new(),
        include_external: true,
        shared: true,
    }
}

fn tunnel_node(index: u32, mesh: MeshAddresses) -> Entry {
    Entry::TunnelNode(TunnelNode {
        cluster: cluster("eu-west", 2),
        name: NodeName::parse("node-1").unwrap(),
        index: NodeIndex::new(index).unwrap(),
        mesh,
        boot_id: None,
        wireguard: None,
        public_endpoint: None,
        gateway: false,
    })
}

#[test]
fn a_cluster_may_say_what_is_its_own() {
    let west = west();
    let mesh = MeshPlan::default().addresses(
        west.cluster.id,
        NodeIndex::new(1).unwrap(),
        &NodeName::parse("node-1").unwrap(),
    );
    let labels = Labels::parse("k8s:io.cilium.k8s.policy.cluster=eu-west;").unwrap();
    let slice = EndpointSlice {
        cluster: west.cluster.clone(),
        key: SliceKey::new("shop", "cart-1").unwrap(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        family: AddressFamily::V6,
        endpoints: vec![SliceEndpoint { addresses: vec![ip("fd00:2::7")], ..SliceEndpoint::default() }],
        ports: vec![],
    };
    for entry in [
        Entry::Heartbeat(Timestamp::from_unix(0)),
        Entry::Node(node(AddressKind::InternalIp, "172.16.2.11", "10.2.1.0/24")),
        Entry::Node(node(AddressKind::CiliumInternalIp, "10.2.1.1", "10.2.1.0/24")),
        Entry::Node(node(AddressKind::ExternalIp, "203.0.113.9", "10.2.0.0/16")),
        Entry::Identity(Identity { id: IdentityId::from_wire(2 << 16 | 7).unwrap(), labels }),
        endpoint("10.2.1.7", "172.16.2.11", 2 << 16 | 7),
        endpoint("172.16.2.11", "172.16.2.11", 6),
        Entry::Service(service(west.cluster.clone(), "10.2.1.7")),
        Entry::Slice(slice),
        tunnel_node(1, mesh),
    ] {
        assert_eq!(check(entry.clone()), Ok(()), "{entry:?}");
    }
}

#[test]
fn nobody_speaks_for_another_cluster() {
    let east = cluster("us-east", 1);
    let mut foreign = service(east.clone(), "10.2.1.7");
    let key = Key::Service { cluster: cluster("eu-west", 2).name, service: foreign.key.clone() };
    let as_ours = admit(&west(), &key, &Entry::Service(foreign.clone())).unwrap_err();
    assert_eq!(as_ours.metric(), "foreign_key");
    assert_eq!(refused(Entry::Service(foreign.clone())), "foreign_cluster");
    // The right name with the wrong id is another cluster too.
    foreign.cluster = ClusterRef { name: cluster("eu-west", 2).name, id: east.id };
    assert_eq!(refused(Entry::Service(foreign)), "foreign_cluster");
    let config = ClusterConfig {
        cluster: ClusterRef { name: cluster("eu-west", 2).name, id: east.id },
        width: WIDTH,
        synced_canaries: true,
        cached: false,
        service_exports: None,
        endpoint_slices: ExportMode::ServicesOnly,
        path: hawser_model::NodePath::Direct,
    };
    assert_eq!(refused(Entry::ClusterConfig(config)), "foreign_cluster");
}

#[test]
fn identities_stay_in_their_range_and_name_their_cluster() {
    let identity = |id, labels| {
        let (id, labels) = (IdentityId::from_wire(id).unwrap(), Labels::parse(labels).unwrap());
        Entry::Identity(Identity { id, labels })
    };
    let ours = "k8s:io.cilium.k8s.policy.cluster=eu-west;";
    for id in [1 << 16 | 7, 3 << 16 | 7, 2 << 16, 2, 0] {
        assert_eq!(refused(identity(id, ours)), "identity_range", "{id}");
    }
    assert_eq!(
        refused(identity(2 << 16 | 7, "k8s:io.cilium.k8s.policy.cluster=us-east;")),
        "identity_labels"
    );
    assert_eq!(
        refused(identity(2 << 16 | 7, "any:io.cilium.k8s.policy.cluster=eu-west;")),
        "identity_labels"
    );
    assert_eq!(refused(endpoint("10.2.1.7", "172.16.2.11", 1 << 16 | 7)), "identity_range");
}

#[test]
fn addresses_stay_inside_the_admitted_ranges() {
    assert_eq!(refused(endpoint("10.1.0.7", "172.16.2.11", 2 << 16 | 7)), "address_range");
    assert_eq!(refused(endpoint("fd00:3::7", "172.16.2.11", 2 << 16 | 7)), "address_range");
    assert_eq!(refused(endpoint("10.2.1.7", "172.16.1.11", 2 << 16 | 7)), "node_address");
    assert_eq!(refused(endpoint("10.2.1.7", "10.2.1.8", 2 << 16 | 7)), "node_address");
    assert_eq!(refused(Entry::Service(service(cluster("eu-west", 2), "10.1.0.7"))), "address_range");
    let internal = AddressKind::InternalIp;
    assert_eq!(refused(Entry::Node(node(internal, "172.16.1.11", "10.2.1.0/24"))), "node_address");
    assert_eq!(refused(Entry::Node(node(internal, "172.16.2.11", "10.1.1.0/24"))), "pod_cidr");
    assert_eq!(refused(Entry::Node(node(internal, "172.16.2.11", "10.0.0.0/8"))), "pod_cidr");
    let external = AddressKind::ExternalIp;
    assert_eq!(refused(Entry::Node(node(external, "240.1.0.1", "10.2.1.0/24"))), "node_address");
    assert_eq!(refused(Entry::Node(node(external, "10.2.1.1", "10.2.1.0/24"))), "node_address");
    let cilium = AddressKind::CiliumInternalIp;
    assert_eq!(refused(Entry::Node(node(cilium, "10.1.1.1", "10.2.1.0/24"))), "address_range");
}

#[test]
fn a_mesh_address_is_computed_never_believed() {
    let name = NodeName::parse("node-1").unwrap();
    let plan = MeshPlan::default();
    let of =
        |id, index| plan.addresses(ClusterId::new(id, WIDTH).unwrap(), NodeIndex::new(index).unwrap(), &name);
    let east = of(1, 1);
    assert_eq!(refused(tunnel_node(1, east)), "mesh_address");
    let other_node = MeshAddresses { ipv4: of(2, 2).ipv4, ipv6: of(2, 1).ipv6 };
    assert_eq!(refused(tunnel_node(1, other_node)), "mesh_address");
    let other_v6 = MeshAddresses { ipv4: of(2, 1).ipv4, ipv6: east.ipv6 };
    assert_eq!(refused(tunnel_node(1, other_v6)), "mesh_address");
}

#[test]
fn local_keys_never_come_from_a_peer() {
    let west = west();
    let local = Entry::LocalService(GlobalService {
        cluster: west.cluster.clone(),
        key: ServiceKey::new("shop", "cart").unwrap(),
        cluster_ips: vec![],
        ports: BTreeMap::new(),
        routing: hawser_model::Routing::default(),
        shared: true,
        backends: BTreeMap::new(),
        draining: Default::default(),
        zones: BTreeMap::new(),
        outside: Default::default(),
    });
    assert_eq!(refused(local), "foreign_key");
    let peer = Entry::LocalPeer(Peer {
        cluster: cluster("evil", 9),
        endpoints: vec![],
        pod_cidrs: vec![],
        node_cidrs: vec![],
        ca: String::new(),
        admitted: Timestamp::from_unix(0),
        kind: PeerKind::Hawser,
    });
    assert_eq!(refused(peer), "foreign_key");
}
