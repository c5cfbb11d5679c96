//! us-east with two peers, eu-west that lies and ap-south that does not: mirrored over TLS, served, and followed by a node's view.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use clustermesh_apiserver::chart::CiliumChart;
use clustermesh_apiserver::config::Config;
use clustermesh_apiserver::dial::Line;
use clustermesh_apiserver::limits::Readers;
use clustermesh_apiserver::listen;
use clustermesh_apiserver::own::Own;
use clustermesh_apiserver::peers;
use clustermesh_apiserver::trust::{Certificates, Trust};
use hawser_agent_core::{ClusterView, MeshView};
use hawser_etcd::client::{Client, Follow, FollowConfig, FollowEvent, Pace};
use hawser_etcd::mirror::{ForeignConfig, Intake, Mirror, MirrorConfig};
use hawser_etcd::pb;
use hawser_etcd::server::{AllowAll, EtcdServer, KeyspaceHandle, Keyspaces, MemoryWriter, SharedKeyspace};
use hawser_kvstore::{DeleteRange, Identity, KeyRange, Keyspace, Limits, Op, Put, RangeQuery};
use hawser_model::{CiliumPeer, ClusterName, MeshPlan, Peer, PeerKind, ServerUrl, Timestamp};
use hawser_pki::{Ca, CaSet, TrustStore};
use hawser_wire::Entry;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};

use crate::entries::{HOSTILE, Say, WIDTH, cluster};
use crate::lies::{Liar, Lie, Lies};

/// Of one value; large enough for every honest one.
pub(crate) const VALUE_BYTES: usize = 8 << 10;
const HONEST: u32 = 3;
/// Without canaries, so that everything is read at once.
const CONFIG: (&str, &str) = (
    "cilium/cluster-config/eu-west",
    r#"{"id":2,"capabilities":{"maxConnectedClusters":255,"endpointSlicesExportMode":"services-and-endpointslices"}}"#,
);
/// What is read of a cluster on Cilium, beside what it says of itself.
const READ_OF_CILIUM: [&[u8]; 4] = [
    b"cilium/state/nodes/v1/eu-west/",
    b"cilium/state/identities/v1/id/",
    b"cilium/state/ip/v1/default/",
    b"cilium/state/services/v1/eu-west/",
];

pub(crate) fn on_cilium() -> PeerKind {
    PeerKind::Cilium(CiliumPeer::default())
}

fn now() -> Timestamp {
    Timestamp::from_system(SystemTime::now())
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Impatient, so that tests need not wait.
fn pace() -> Pace {
    Pace {
        ask_after: Duration::from_millis(200),
        silent_after: Duration::from_millis(1000),
        behind_grace: Duration::from_millis(300),
        retry_first: Duration::from_millis(20),
        retry_most: Duration::from_millis(200),
        seed: 1,
    }
}

fn memory(c: u32) -> KeyspaceHandle {
    let identity = Identity::new(cluster(c).name.as_str(), u64::from(c), 0);
    let keyspace = SharedKeyspace::new(Keyspace::new(identity, Limits::default()));
    KeyspaceHandle::new(cluster(c).name.as_str(), keyspace.clone(), MemoryWriter::spawn(keyspace))
}

/// A CA, the configuration that names it, and the certificates of the cluster's API server.
struct Home {
    _dir: tempfile::TempDir,
    config: Arc<Config>,
    certificates: Arc<Certificates>,
}

impl Home {
    fn of(c: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let name = cluster(c).name;
        let ca = Ca::create(&name, now()).unwrap();
        fs::create_dir(dir.path().join("pki")).unwrap();
        fs::write(dir.path().join("pki/ca.crt"), ca.cert().pem()).unwrap();
        fs::write(dir.path().join("pki/ca.key"), ca.key_pem()).unwrap();
        let text = format!(
            "cluster: {{ name: {name}, id: {c} }}\nlisten: 127.0.0.1:0\nadvertise: [\"https://127.0.0.1:1\"]\n\
             podCIDRs: [\"10.{c}.0.0/16\"]\nnodeCIDRs: [\"172.16.{c}.0/24\"]\n\
             source: {{ dir: {dir} }}\nstore: embedded:{dir}/store\npki: {dir}/pki\n",
            dir = dir.path().display()
        );
        let config = Arc::new(Config::parse(Path::new("cluster.yaml"), &text).unwrap());
        let certificates =
            Certificates::open(Arc::clone(&config), vec!["127.0.0.1".into()], provider()).unwrap();
        Self { _dir: dir, config, certificates: Arc::new(certificates) }
    }

    fn peer(&self, c: u32, port: u16, kind: PeerKind) -> Peer {
        Peer {
            cluster: cluster(c),
            endpoints: vec![ServerUrl::parse(&format!("https://127.0.0.1:{port}")).unwrap()],
            pod_cidrs: self.config.pod_cidrs.clone(),
            node_cidrs: self.config.node_cidrs.clone(),
            ca: self.certificates.authority().trusted().pem(),
            admitted: now(),
            kind,
        }
    }
}

/// A peer's API server, as far as it can be read.
pub(crate) struct Origin {
    raw: KeyspaceHandle,
    pub(crate) lies: Lies,
    peer: Peer,
    _home: Home,
    _stop: DropGuard,
}

impl Origin {
    async fn start(c: u32, us: &Home, kind: PeerKind) -> Self {
        let (raw, home) = (memory(c), Home::of(c));
        let (behind, lies) = (plain(Keyspaces::new(raw.clone())).await, Lies::none());
        let liar = Liar { behind: channel(behind), lies: lies.clone() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = home.peer(c, listener.local_addr().unwrap().port(), kind);
        let trust = Trust::new(TrustStore::new(cluster(c).name, home.certificates.authority().trusted()));
        let reader = us.peer(1, 1, PeerKind::Hawser);
        let cas = CaSet::from_pem(&reader.ca).unwrap();
        trust.admit(&reader, cas);
        let tls = listen::tls(&home.certificates, provider()).unwrap();
        let readers = Readers::new(Arc::clone(&home.config), Own::new(raw.clone()));
        let kv = pb::kv_server::KvServer::new(liar.clone());
        let routes = Routes::new(kv).add_service(pb::watch_server::WatchServer::new(liar));
        let stop = CancellationToken::new();
        let (_, exports) = tokio::sync::watch::channel(Arc::default());
        tokio::spawn(listen::serve(listener, tls, trust, readers, exports, routes, stop.clone()));
        Self { raw, lies, peer, _home: home, _stop: stop.drop_guard() }
    }

    async fn write(&self, op: Op) {
        self.raw.writer().write(op).await.unwrap();
    }
}

impl Origin {
    pub(crate) fn is_on_cilium(&self) -> bool {
        matches!(self.peer.kind, PeerKind::Cilium(_))
    }

    /// It lives, and so may delete.
    async fn beat(&self) {
        let beat = format!("2026-11-21T07:00:00.{:09}Z", self.raw.keyspace().read(Keyspace::revision));
        self.write(Op::Put(Put::new("cilium/.heartbeat", beat))).await;
    }
}

/// On loopback, for whoever asks.
async fn plain(keyspaces: Keyspaces) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = EtcdServer::new(keyspaces, Arc::new(AllowAll), Vec::new());
    let serving = tonic::transport::Server::builder()
        .add_routes(server.routes())
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(async move { serving.await.unwrap() });
    addr
}

fn channel(addr: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{addr}")).unwrap().connect_lazy()
}

pub(crate) struct World {
    name: String,
    pub(crate) origin: Origin,
    honest: Origin,
    pub(crate) mirror: Mirror,
    _other: Mirror,
    keyspaces: Keyspaces,
    intake: Intake,
    view: MeshView,
    follows: [(ClusterName, Follow); 2],
    /// What ap-south and the own cluster are in every node, always.
    others: String,
    _us: Home,
}

/// As the API server mirrors a peer of its kind.
fn mirror_of(origin: &Origin, us: &Home, intake: Intake, keyspaces: &Keyspaces) -> Mirror {
    let line = Line::new(&origin.peer, None, &us.certificates, provider()).unwrap();
    let limits = Limits { history_bytes: 4 << 20, history_events: 64, ..Limits::default() };
    let cluster = origin.peer.cluster.clone();
    if origin.is_on_cilium() {
        let config = ForeignConfig {
            cluster: cluster.name.to_string(),
            connect: Box::new(move || Client::new(line.another())),
            chart: Box::new(CiliumChart { cluster, width: WIDTH }),
            admit: peers::admission(&origin.peer, &us.config),
            limits,
            intake,
            pace: pace(),
            keep: None,
        };
        return Mirror::start_foreign(config, keyspaces);
    }
    let config = MirrorConfig {
        cluster: cluster.name.to_string(),
        client: Client::new(line.channel()),
        ranges: peers::ranges(&cluster.name),
        admit: peers::admission(&origin.peer, &us.config),
        limits,
        intake,
        afresh: false,
        pace: pace(),
        keep: None,
    };
    Mirror::start(config, keyspaces).unwrap()
}

impl World {
    pub(crate) fn intake() -> Intake {
        Intake { value_bytes: VALUE_BYTES, keys: 20_000, bytes: 32 << 20, ..Intake::default() }
    }

    pub(crate) async fn new(name: &str, kind: PeerKind) -> Self {
        Self::with(name, Self::intake(), kind).await
    }

    pub(crate) async fn with(name: &str, intake: Intake, kind: PeerKind) -> Self {
        let us = Home::of(1);
        let origin = Origin::start(HOSTILE, &us, kind).await;
        let honest = Origin::start(HONEST, &us, PeerKind::Hawser).await;
        if origin.is_on_cilium() {
            origin.write(Op::Put(Put::new(CONFIG.0, CONFIG.1))).await;
            origin.beat().await;
        }
        for n in 1..50 {
            let key = format!("cilium/state/ip/v1/default/10.3.1.{n}");
            let value =
                format!(r#"{{"IP":"10.3.1.{n}","HostIP":"172.16.3.1","ID":{},"Key":0}}"#, (3 << 16) + n);
            honest.write(Op::Put(Put::new(key, value))).await;
        }
        let keyspaces = Keyspaces::new(memory(1));
        let mirror = |origin| mirror_of(origin, &us, intake, &keyspaces);
        let (mirror, other) = (mirror(&origin), mirror(&honest));
        let mut view = MeshView::new(cluster(1), WIDTH, MeshPlan::default());
        let addr = plain(keyspaces.clone()).await;
        let follows = [&origin, &honest].map(|origin| {
            let entry = Entry::LocalPeer(origin.peer.clone());
            view.upsert(&cluster(1).name, entry.key(&cluster(1)).to_string().as_bytes(), &entry.encode());
            let name = origin.peer.cluster.name.clone();
            view.begin(&name);
            let config = FollowConfig {
                trust_progress: true,
                pace: pace(),
                ..FollowConfig::new(vec![KeyRange::all()])
            };
            let client = Client::for_cluster(channel(addr), name.as_str()).unwrap();
            (name, client.follow(config).unwrap())
        });
        let name = name.to_owned();
        let mut world = Self {
            name,
            origin,
            honest,
            mirror,
            _other: other,
            keyspaces,
            intake,
            view,
            follows,
            others: String::new(),
            _us: us,
        };
        world.until("both are there", |world| world.keyspaces.all().len() == 3).await;
        let endpoints = |world: &Self| world.of(HONEST).map_or(0, |view| view.endpoints.len());
        world.until("ap-south is held", |world| endpoints(world) == 49).await;
        world.others = world.others();
        world
    }

    /// Takes in what has come, as an agent does.
    pub(crate) fn pump(&mut self) {
        for (name, follow) in &mut self.follows {
            while let Some(event) = follow.try_next() {
                match event {
                    FollowEvent::Put { kv, .. } => drop(self.view.upsert(name, &kv.key, &kv.value)),
                    FollowEvent::Delete { key, .. } => drop(self.view.remove(name, &key)),
                    FollowEvent::Listed { .. } => drop(self.view.listed(name)),
                    _ => {}
                }
            }
        }
    }

    pub(crate) async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        loop {
            self.pump();
            if is_so(self) {
                return;
            }
            let status = self.mirror.status();
            assert!(
                began.elapsed() < Duration::from_secs(30),
                "{}: never came true: {what}: {status:?}",
                self.name
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn of(&self, c: u32) -> Option<&ClusterView> {
        self.view.cluster(&cluster(c).name)
    }

    /// A fence goes through everything behind what was said; then the node holds exactly `held`.
    pub(crate) async fn until_held(&mut self, what: &str, held: &BTreeMap<Vec<u8>, Vec<u8>>) {
        let mut expected = MeshView::new(cluster(1), WIDTH, MeshPlan::default());
        let peer = Entry::LocalPeer(self.origin.peer.clone());
        expected.upsert(&cluster(1).name, peer.key(&cluster(1)).to_string().as_bytes(), &peer.encode());
        let name = cluster(HOSTILE).name;
        expected.begin(&name);
        let stated = self.stated();
        for (key, value) in held.iter().chain(&stated) {
            expected.upsert(&name, key, value);
        }
        let expected_of = expected.cluster(&name).unwrap();
        assert_eq!(expected_of.refused.count, 0, "{:?}", expected_of.refused);
        let all = content(expected_of);
        let raw = self.origin.raw.keyspace().clone();
        let through =
            move |world: &Self| world.keyspace().read(Keyspace::revision) >= raw.read(Keyspace::revision);
        match self.origin.is_on_cilium() {
            // Its mirror counts for itself. Many deletions at once wait for the next heartbeat.
            true => self.origin.beat().await,
            false => self.until(&format!("{what}: everything is mirrored"), through).await,
        }
        let began = Instant::now();
        while self.of(HOSTILE).is_none_or(|view| content(view) != all) {
            let has = self.of(HOSTILE).map(content);
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "{}: {what}: a node holds\n{has:?}\nand not\n{all}\n{:?}",
                self.name,
                self.mirror.status()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
            self.pump();
        }
    }

    /// The lie was told a few times, whatever became of it.
    pub(crate) async fn until_told(&mut self, lie: Lie) {
        let began = Instant::now();
        // What is left out is noticed by nobody, unless everything is.
        let noticed = |world: &Self| lie != Lie::Silent || world.mirror.status().reconnects > 0;
        while !(self.origin.lies.told() >= 6 && noticed(self)) && began.elapsed() < Duration::from_secs(20) {
            self.origin.beat().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            self.pump();
        }
        assert!(self.origin.lies.told() >= 3, "{}: the lie was told {}x", self.name, self.origin.lies.told());
    }

    pub(crate) async fn say(&self, say: &Say) {
        match &say.value {
            Some(value) => self.raw(&say.key, value).await,
            None => {
                let delete = DeleteRange::new(KeyRange::key(say.key.clone()));
                self.origin.write(Op::DeleteRange(delete)).await;
            }
        }
    }

    pub(crate) async fn raw(&self, key: &[u8], value: &[u8]) {
        self.origin.write(Op::Put(Put::new(key.to_vec(), value.to_vec()))).await;
    }

    pub(crate) async fn delete(&self, prefix: &str) {
        self.origin.write(Op::DeleteRange(DeleteRange::new(KeyRange::prefix(prefix.to_owned())))).await;
    }

    /// What a mirror of a cluster on Cilium says of its own, whatever the cluster has.
    fn stated(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        if !self.origin.is_on_cilium() {
            return BTreeMap::new();
        }
        let config = RangeQuery::new(KeyRange::key(CONFIG.0));
        let kvs = self.keyspace().read(|keyspace| keyspace.range(&config)).unwrap().kvs;
        kvs.iter().map(|kv| (kv.key.to_vec(), kv.value.to_vec())).collect()
    }

    /// Whether the mirror reads such a key at all.
    pub(crate) fn is_read(&self, say: &Say) -> bool {
        !self.origin.is_on_cilium() || READ_OF_CILIUM.iter().any(|prefix| say.key.starts_with(prefix))
    }

    /// Nothing is left of what was said before.
    pub(crate) async fn clear(&mut self) {
        let all =
            if self.origin.is_on_cilium() { KeyRange::prefix("cilium/state/") } else { KeyRange::all() };
        self.origin.write(Op::DeleteRange(DeleteRange::new(all))).await;
        self.until_held("nothing is said", &BTreeMap::new()).await;
    }

    pub(crate) fn refused(&self) -> u64 {
        self.mirror.status().refused.values().sum()
    }

    pub(crate) fn keyspace(&self) -> SharedKeyspace {
        self.keyspaces.get(cluster(HOSTILE).name.as_str()).unwrap().keyspace().clone()
    }

    pub(crate) fn held_endpoints(&self) -> BTreeSet<String> {
        let view = self.of(HOSTILE).unwrap();
        view.endpoints.keys().map(ToString::to_string).collect()
    }

    fn others(&self) -> String {
        let own = format!("{:?}", self.view.own().peers);
        let own_keys = self.keyspaces.own().keyspace().read(Keyspace::revision);
        format!("{own} {own_keys} {}", self.of(HONEST).map(content).unwrap_or_default())
    }

    pub(crate) fn nobody_else_changed(&mut self) {
        self.pump();
        assert_eq!(self.others, self.others(), "{}", self.name);
        assert_eq!(self.honest.raw.keyspace().read(Keyspace::live_keys), 49);
    }

    /// Whatever it says, and whatever of it is here now.
    pub(crate) fn only_its_own(&self) {
        let view = self.of(HOSTILE).unwrap();
        let outside: Vec<_> = view
            .endpoints
            .keys()
            .filter(|ip| !self.origin.peer.pod_cidrs.iter().any(|net| net.contains(*ip)))
            .collect();
        assert!(outside.is_empty(), "{}: {outside:?}", self.name);
        assert_eq!(view.refused.count, 0, "{}: an agent had to refuse {:?}", self.name, view.refused);
    }

    pub(crate) fn is_bounded(&self) {
        let (keys, bytes, history) = self
            .keyspace()
            .read(|keyspace| (keyspace.live_keys(), keyspace.live_bytes(), keyspace.history_size().1));
        assert!(keys <= self.intake.keys && bytes <= self.intake.bytes, "{}: {keys} {bytes}", self.name);
        assert!(history <= 8 << 20, "{}: {history}", self.name);
    }
}

fn content(view: &ClusterView) -> String {
    format!(
        "{:?} {:?} {:?} {:?} {:?} {:?}",
        view.nodes, view.tunnel_nodes, view.endpoints, view.identities, view.services, view.config
    )
}
