//! What eu-west (2) may say, and what it may not: keys and values, each with what a node should make of it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use hawser_model::{
    AddressKind, ClusterId, ClusterIdWidth, ClusterName, ClusterRef, Endpoint, Epoch, Identity, IdentityId,
    Labels, MeshPlan, Node, NodeAddress, NodeIndex, NodeName, PortMap, PortName, Protocol, PublicKey,
    ServiceKey, ServicePort, SharedService, TunnelEnd, TunnelNode,
};
use hawser_wire::Entry;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::world::VALUE_BYTES;

pub(crate) const WIDTH: ClusterIdWidth = ClusterIdWidth::Bits8;
pub(crate) const HOSTILE: u32 = 2;

/// What becomes of what the key held in a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Held,
    Gone,
    AsBefore,
}

#[derive(Clone)]
pub(crate) struct Say {
    pub(crate) key: Vec<u8>,
    /// None deletes.
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) effect: Effect,
}

impl std::fmt::Debug for Say {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |bytes: &[u8]| bytes[..bytes.len().min(200)].escape_ascii().to_string();
        write!(f, "{:?} {} = {:?}", self.effect, text(&self.key), self.value.as_deref().map(text))
    }
}

impl Say {
    fn honest(entry: &Entry) -> Self {
        Self { effect: Effect::Held, ..Self::hostile(entry) }
    }

    /// A value that encodes well, and is not for eu-west to say.
    fn hostile(entry: &Entry) -> Self {
        let key = entry.key(&cluster(HOSTILE)).to_string().into_bytes();
        Self { key, value: Some(entry.encode().to_vec()), effect: Effect::Gone }
    }

    /// Whether the mirror is asked about it, and refuses.
    pub(crate) fn is_counted(&self) -> bool {
        self.value.is_some() && self.effect != Effect::Held && !self.key.starts_with(b"hawser/local/")
    }
}

pub(crate) fn cluster(id: u32) -> ClusterRef {
    let name = ["us-east", "eu-west", "ap-south"][id as usize - 1];
    ClusterRef { name: ClusterName::parse(name).unwrap(), id: ClusterId::new(id, WIDTH).unwrap() }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn identity(c: u32, local: u32) -> IdentityId {
    IdentityId::new(cluster(c).id, WIDTH, local).unwrap()
}

fn an_endpoint(address: &str, host: &str, identity: IdentityId) -> Entry {
    Entry::Endpoint(Endpoint {
        ip: ip(address),
        host: Some(ip(host)),
        identity,
        encryption_key: 255,
        namespace: "shop".into(),
        pod: "cart".into(),
        service_account: "default".into(),
        named_ports: BTreeMap::new(),
        left_out: false,
    })
}

pub(crate) fn endpoint_at(address: &str, host: u32, local: u32) -> Say {
    Say::honest(&an_endpoint(address, &format!("172.16.2.{host}"), identity(HOSTILE, local)))
}

/// The nth of an honest cluster, as it is said the `time`th time.
pub(crate) fn endpoint(n: u32, time: u32) -> Say {
    endpoint_at(&format!("10.2.1.{n}"), time, 7)
}

fn node(of: u32, n: u32, address: &str, pods: &str) -> Entry {
    Entry::Node(Node {
        cluster: cluster(of),
        name: NodeName::parse(&format!("node-{n}")).unwrap(),
        addresses: vec![NodeAddress { kind: AddressKind::InternalIp, ip: ip(address) }],
        pod_cidrs: vec![pods.parse().unwrap()],
        boot_id: None,
        wireguard_key: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    })
}

/// Node `n` of cluster `c`, at the mesh address of node `at` of cluster `of`.
fn tunnel_node(c: u32, n: u32, of: u32, at: u32) -> Entry {
    let name = |n: u32| NodeName::parse(&format!("node-{n}")).unwrap();
    let index = |n: u32| NodeIndex::new(n).unwrap();
    Entry::TunnelNode(TunnelNode {
        cluster: cluster(c),
        name: name(n),
        index: index(n),
        mesh: MeshPlan::default().addresses(cluster(of).id, index(at), &name(at)),
        boot_id: None,
        wireguard: Some(TunnelEnd {
            epoch: Epoch::FIRST,
            public_key: PublicKey::new([n as u8; 32]).unwrap(),
            port: 51_871,
            mtu: 1_420,
            more_ports: hawser_model::MorePorts::default(),
            esp: None,
        }),
        public_endpoint: None,
        gateway: false,
    })
}

fn service(of: u32, n: u32, backend: &str) -> Entry {
    let port = ServicePort { protocol: Protocol::Tcp, port: 8_080 };
    let ports = BTreeMap::from([(PortName::parse("http").unwrap(), port)]);
    Entry::Service(SharedService {
        cluster: cluster(of),
        key: ServiceKey::new("shop", &format!("cart-{n}")).unwrap(),
        frontends: PortMap::new(),
        backends: [(ip(backend), ports)].into_iter().collect(),
        draining: Default::default(),
        hostnames: BTreeMap::new(),
        zones: BTreeMap::new(),
        labels: BTreeMap::new(),
        selector: BTreeMap::new(),
        include_external: true,
        shared: true,
    })
}

fn labelled(of: u32, id: IdentityId) -> Entry {
    let name = cluster(of).name;
    let labels =
        format!("k8s:app=cart;k8s:io.cilium.k8s.policy.cluster={name};k8s:io.kubernetes.pod.namespace=shop;");
    Entry::Identity(Identity { id, labels: Labels::parse(&labels).unwrap() })
}

/// What a cluster may say of itself, in few keys, so that much is said twice.
fn honest() -> impl Strategy<Value = Say> {
    (0..5_u32, 1..12_u32, 1..5_u32).prop_map(|(kind, n, m)| match kind {
        0 => endpoint(n, m),
        1 => Say::honest(&node(HOSTILE, n, &format!("172.16.2.{m}"), &format!("10.2.{n}.0/24"))),
        2 => Say::honest(&tunnel_node(HOSTILE, n, HOSTILE, n)),
        3 => Say::honest(&service(HOSTILE, n, &format!("10.2.1.{m}"))),
        _ => Say::honest(&labelled(HOSTILE, identity(HOSTILE, n))),
    })
}

/// Ours, another peer's, of the mesh, of nobody, everybody's.
const OUTSIDE: &[&str] =
    &["10.1.1.9", "10.3.1.9", "240.1.0.1", "8.8.8.8", "127.0.0.1", "172.16.1.9", "0.0.0.0"];

/// Well formed, and about others: names, id ranges, addresses, mesh addresses.
fn foreign() -> impl Strategy<Value = Say> {
    (0..11_u32, 1..12_u32, prop::sample::select(OUTSIDE)).prop_map(|(kind, n, outside)| {
        let other = 1 + 2 * (n % 2);
        let host = format!("172.16.2.{n}");
        let pod = format!("10.2.1.{n}");
        Say::hostile(&match kind {
            0 => an_endpoint(outside, &host, identity(HOSTILE, n)),
            1 => an_endpoint(&pod, outside, identity(HOSTILE, n)),
            2 => an_endpoint(&pod, &host, identity(other, n)),
            3 => node(HOSTILE, n, outside, "10.2.1.0/24"),
            4 => node(HOSTILE, n, &host, &format!("10.{other}.0.0/24")),
            5 => node(other, n, &host, "10.2.1.0/24"),
            6 => tunnel_node(HOSTILE, n, other, n),
            7 => tunnel_node(HOSTILE, n, HOSTILE, n + 1),
            8 => service(HOSTILE, n, outside),
            9 => labelled(HOSTILE, identity(other, n)),
            _ => labelled(other, identity(HOSTILE, n)),
        })
    })
}

/// Keys that stand for others, or for nothing: the value is well enough.
fn strange_keys() -> impl Strategy<Value = Say> {
    let keys: Vec<Vec<u8>> = vec![
        b"cilium/state/nodes/v1/ap-south/node-1".to_vec(),
        b"cilium/state/nodes/v1/us-east/node-1".to_vec(),
        b"cilium/state/services/v1/us-east/shop/cart".to_vec(),
        b"cilium/state/identities/v1/id/1".to_vec(),
        b"cilium/state/identities/v1/id/131072".to_vec(),
        b"cilium/state/identities/v1/id/99999999999".to_vec(),
        b"cilium/state/ip/v1/default/10.2.1.1/33".to_vec(),
        b"cilium/state/ip/v1/default/\xff\xfe".to_vec(),
        b"cilium/state/\0".to_vec(),
        b"cilium/state/".to_vec(),
        b"cilium/state/unknown/v1/x".to_vec(),
        b"hawser/state/nodes/v1/ap-south/node-1".to_vec(),
        b"hawser/state/nodes/v1/eu-west/../../local/peers/v1/us-east".to_vec(),
        b"hawser/state/trust/v1/us-east".to_vec(),
        b"cilium/cluster-config/eu-west".to_vec(),
        [b"cilium/state/ip/v1/default/", &vec![b'1'; 5_000][..]].concat(),
    ];
    (prop::sample::select(keys), any::<prop::sample::Index>()).prop_map(|(key, of)| {
        let values = [endpoint(1, 1), Say::honest(&node(HOSTILE, 1, "172.16.2.1", "10.2.1.0/24"))];
        Say { key, value: of.get(&values).value.clone(), effect: Effect::Gone }
    })
}

/// Honest keys with values that are none: cut off, deep, of other types, of any bytes.
fn malformed() -> impl Strategy<Value = Say> {
    let value = prop_oneof![
        vec(any::<u8>(), 0..64),
        (1..VALUE_BYTES).prop_map(|depth| vec![b'['; depth]),
        (1..VALUE_BYTES / 6).prop_map(|depth| br#"{"IP":"#.repeat(depth)),
        Just(b"null".to_vec()),
        Just(br#"{"IP":"10.2.1.1","IP":"8.8.8.8"}"#.to_vec()),
        Just(br#"{"name":"shop/cart","cluster":"eu-west","clusterID":2e0}"#.to_vec()),
    ];
    let cut = honest()
        .prop_filter("an identity cut off is another one", |say| say.key.starts_with(b"cilium/state/ip/"));
    let cut = (cut, any::<prop::sample::Index>()).prop_map(|(say, at)| {
        let whole = say.value.unwrap();
        let value = whole[..at.index(whole.len())].to_vec();
        Say { value: Some(value), effect: Effect::Gone, ..say }
    });
    let broken =
        (honest(), value).prop_map(|(say, value)| Say { value: Some(value), effect: Effect::Gone, ..say });
    prop_oneof![cut, broken]
}

/// What there is no room for leaves what was said before.
fn oversized() -> impl Strategy<Value = Say> {
    (honest(), 1..3_usize).prop_map(|(say, times)| {
        let mut value = say.value.unwrap();
        value.resize(VALUE_BYTES * times + 1, b' ');
        Say { value: Some(value), effect: Effect::AsBefore, ..say }
    })
}

/// What a peer never shows, and nobody asks it for.
fn unasked() -> impl Strategy<Value = Say> {
    honest().prop_map(|say| {
        let key = [b"hawser/local/", &say.key[..]].concat();
        Say { key, effect: Effect::AsBefore, ..say }
    })
}

fn deleted() -> impl Strategy<Value = Say> {
    prop_oneof![honest(), foreign(), strange_keys()].prop_map(|say| Say {
        value: None,
        effect: Effect::Gone,
        ..say
    })
}

pub(crate) fn say() -> impl Strategy<Value = Say> {
    prop_oneof![
        6 => honest(),
        4 => foreign(),
        2 => strange_keys(),
        2 => malformed(),
        1 => oversized(),
        1 => unasked(),
        2 => deleted(),
    ]
}
