//! What the clusters of the benchmark say: Cilium's schema, encoded by the product, made from numbers alone.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use hawser_kvstore::{Identity, KeyRange, KeyValue, Snapshot};
use hawser_model::{
    AddressKind, CiliumPeer, ClusterConfig, ClusterId, ClusterIdWidth, ClusterName, ClusterRef, Endpoint,
    ExportMode, IdentityId, Labels, Node, NodeAddress, NodeName, Peer, PeerKind, PortName, Protocol,
    ServerUrl, ServiceKey, ServicePort, SharedService, Timestamp,
};
use hawser_wire::{Entry, Key, Resource, prefix};
use serde::{Deserialize, Serialize};

pub(super) const WIDTH: ClusterIdWidth = ClusterIdWidth::Bits8;
const WHEN: &str = "2026-11-21T00:00:00Z";

/// How large a mesh is: every remote cluster has the same.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Shape {
    pub(super) clusters: u32,
    pub(super) nodes: u32,
    pub(super) identities: u32,
    pub(super) endpoints: u32,
    pub(super) services: u32,
    pub(super) backends: u32,
}

/// What stands for the remotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Origins {
    /// API servers like ours, one for each.
    Hawser,
    /// One etcd with all of them, as KVStoreMesh leaves clusters on Cilium in it.
    Cached,
}

/// Remote `n`, from 1.
pub(super) fn cluster(n: u32) -> Result<ClusterRef> {
    Ok(ClusterRef { name: ClusterName::parse(&format!("remote-{n}"))?, id: ClusterId::new(n, WIDTH)? })
}

/// Whose API server and agent are measured.
pub(super) fn home() -> Result<ClusterRef> {
    Ok(ClusterRef { name: ClusterName::parse("home")?, id: ClusterId::new(255, WIDTH)? })
}

fn pod(cluster: u32, n: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 | cluster << 16 | n).into()
}

fn host(cluster: u32, n: u32) -> IpAddr {
    Ipv4Addr::from(0xac10_0000 | cluster << 8 | n).into()
}

fn identity(cluster: u32, n: u32) -> Result<IdentityId> {
    Ok(IdentityId::new(ClusterId::new(cluster, WIDTH)?, WIDTH, 256 + n)?)
}

/// Endpoint `n`; its pod's name is what the measurement writes into it.
pub(super) fn endpoint(cluster: u32, n: u32, shape: &Shape, pod_name: String) -> Result<Entry> {
    Ok(Entry::Endpoint(Endpoint {
        ip: pod(cluster, n),
        host: Some(host(cluster, n % shape.nodes.max(1))),
        identity: identity(cluster, n % shape.identities.max(1))?,
        encryption_key: 255,
        namespace: format!("team-{}", n % 20),
        pod: pod_name,
        service_account: "default".into(),
        named_ports: BTreeMap::new(),
        left_out: false,
    }))
}

fn node(of: &ClusterRef, cluster: u32, n: u32) -> Result<Entry> {
    let address = NodeAddress { kind: AddressKind::InternalIp, ip: host(cluster, n) };
    Ok(Entry::Node(Node {
        cluster: of.clone(),
        name: NodeName::parse(&format!("node-{n}"))?,
        addresses: vec![address],
        pod_cidrs: vec![format!("10.{cluster}.{n}.0/24").parse()?],
        boot_id: None,
        wireguard_key: None,
        labels: BTreeMap::from([("topology.kubernetes.io/zone".into(), format!("zone-{}", n % 3))]),
        annotations: BTreeMap::new(),
    }))
}

fn service(of: &ClusterRef, cluster: u32, n: u32, backends: u32) -> Result<Entry> {
    let port = |number| ServicePort { protocol: Protocol::Tcp, port: number };
    let http = PortName::parse("http")?;
    let ports = |number| BTreeMap::from([(http.clone(), port(number))]);
    let service_ip = Ipv4Addr::from(0x0a00_0000 | cluster << 16 | 0xff00 | (n & 0xff));
    Ok(Entry::Service(SharedService {
        cluster: of.clone(),
        key: ServiceKey::new(&format!("team-{}", n % 20), &format!("service-{n}"))?,
        frontends: BTreeMap::from([(service_ip.into(), ports(80))]),
        backends: (0..backends).map(|b| (pod(cluster, n * backends + b), ports(8080))).collect(),
        draining: Default::default(),
        hostnames: BTreeMap::new(),
        zones: BTreeMap::new(),
        labels: BTreeMap::new(),
        selector: BTreeMap::from([("app".into(), format!("service-{n}"))]),
        include_external: true,
        shared: true,
    }))
}

/// Everything remote `n` publishes.
pub(super) fn entries(n: u32, shape: &Shape) -> Result<Vec<Entry>> {
    let of = cluster(n)?;
    let config = ClusterConfig {
        cluster: of.clone(),
        width: WIDTH,
        synced_canaries: true,
        cached: false,
        service_exports: None,
        endpoint_slices: ExportMode::default(),
        path: hawser_model::NodePath::Direct,
    };
    let mut all = vec![Entry::ClusterConfig(config), Entry::Heartbeat(Timestamp::parse(WHEN)?)];
    all.extend(Resource::ALL.map(|resource| Entry::Synced { resource, at: None }));
    for i in 0..shape.nodes {
        all.push(node(&of, n, i)?);
    }
    for i in 0..shape.identities {
        let mut labels = Labels::default();
        labels.insert("k8s", "app", &format!("app-{i}"));
        labels.insert("k8s", "io.kubernetes.pod.namespace", &format!("team-{}", i % 20));
        labels.insert("k8s", "io.cilium.k8s.policy.cluster", of.name.as_str());
        all.push(Entry::Identity(hawser_model::Identity { id: identity(n, i)?, labels }));
    }
    for i in 0..shape.endpoints {
        all.push(endpoint(n, i, shape, format!("app-{i}-7d9c5b8f6d-x2x4z"))?);
    }
    for i in 0..shape.services {
        all.push(service(&of, n, i, shape.backends)?);
    }
    Ok(all)
}

/// Remote `n`'s keyspace as its store would restore it.
pub(super) fn snapshot(n: u32, shape: &Shape) -> Result<Snapshot> {
    let of = cluster(n)?;
    let mut kvs: Vec<KeyValue> = entries(n, shape)?
        .iter()
        .zip(2..)
        .map(|(entry, revision)| KeyValue {
            key: entry.key(&of).to_string().into(),
            value: entry.encode(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            lease: 0,
        })
        .collect();
    kvs.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    let revision = i64::try_from(kvs.len())? + 1;
    let identity = Identity::new(of.name.as_str(), u64::from(n), 0);
    Ok(Snapshot { identity, revision, kvs, leases: Vec::new() })
}

/// The same as KVStoreMesh writes it into an etcd that holds many clusters: every key names its cluster, what only Hawser
/// has is not there, and of all clusters there is one heartbeat, which is not among them.
pub(super) fn cached(n: u32, shape: &Shape) -> Result<Vec<(String, Bytes)>> {
    let of = cluster(n)?;
    let mut all = Vec::new();
    for entry in entries(n, shape)? {
        match entry {
            Entry::Heartbeat(_) | Entry::Synced { resource: Resource::TunnelNodes, .. } => {}
            Entry::ClusterConfig(config) => {
                let config = Entry::ClusterConfig(ClusterConfig { cached: true, ..config });
                all.push((config.key(&of).to_string(), config.encode()));
            }
            entry => all.push((cached_key(&of, &entry)?, entry.encode())),
        }
    }
    Ok(all)
}

/// Where KVStoreMesh has an entry of `of`.
pub(super) fn cached_key(of: &ClusterRef, entry: &Entry) -> Result<String> {
    let key = entry.key(of).to_string();
    if let Entry::Synced { .. } = entry {
        return Ok(key.replacen(prefix::STATE, prefix::CACHE, 1));
    }
    let cached = Resource::ALL.iter().find_map(|kind| {
        let rest = key.strip_prefix(&kind.prefix(&of.name))?;
        Some(format!("{}{rest}", kind.cached_prefix(&of.name)))
    });
    cached.with_context(|| format!("{key} is not cached"))
}

/// Remote `n` as it was admitted.
pub(super) fn peer(n: u32, origins: Origins) -> Result<Peer> {
    Ok(Peer {
        cluster: cluster(n)?,
        endpoints: vec![ServerUrl::parse("https://127.0.0.1:2379")?],
        pod_cidrs: vec![format!("10.{n}.0.0/16").parse()?],
        node_cidrs: vec![format!("172.16.{n}.0/24").parse()?],
        ca: "PEM".into(),
        admitted: Timestamp::parse(WHEN)?,
        kind: match origins {
            Origins::Hawser => PeerKind::Hawser,
            Origins::Cached => PeerKind::Cilium(CiliumPeer::default()),
        },
    })
}

/// What an API server reads of a remote (contracts.md, Roles).
pub(super) fn ranges(of: &ClusterName) -> Vec<KeyRange> {
    vec![
        KeyRange::key(prefix::HEARTBEAT),
        KeyRange::key(Key::ClusterConfig(of.clone()).to_string()),
        KeyRange::prefix(format!("{}{of}/", prefix::SYNCED)),
        KeyRange::prefix(prefix::STATE),
        KeyRange::prefix(prefix::HAWSER_STATE),
    ]
}
