//! Servers on loopback, a wire that can be cut and moved, a real etcd that can be killed, and a reader that keeps a copy.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hawser_etcd::client::{Client, Follow, FollowConfig, FollowEvent, Pace};
use hawser_etcd::server::{AllowAll, EtcdServer, KeyspaceHandle, Keyspaces, MemoryWriter, SharedKeyspace};
use hawser_kvstore::{DeleteRange, Identity, KeyRange, KeyValue, Keyspace, Limits, Op, Put, RangeQuery};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint};

/// A server for as long as the value lives.
pub(crate) struct TestServer {
    pub(crate) addr: SocketAddr,
    pub(crate) keyspaces: Keyspaces,
    task: tokio::task::JoinHandle<()>,
}

impl TestServer {
    pub(crate) async fn serving(own: KeyspaceHandle) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let keyspaces = Keyspaces::new(own);
        let server = EtcdServer::new(keyspaces.clone(), Arc::new(AllowAll), vec![format!("http://{addr}")]);
        let serving = tonic::transport::Server::builder()
            .add_routes(server.routes())
            .serve_with_incoming(TcpListenerStream::new(listener));
        let task = tokio::spawn(async move { serving.await.unwrap() });
        Self { addr, keyspaces, task }
    }

    pub(crate) fn own(&self) -> &KeyspaceHandle {
        self.keyspaces.own()
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(channel(self.addr))
    }

    pub(crate) async fn put(&self, key: &str, value: &str) -> i64 {
        let put = Put::new(key.to_owned(), value.to_owned());
        self.own().writer().write(Op::Put(put)).await.unwrap().revision
    }

    pub(crate) async fn delete(&self, prefix: &str) {
        let delete = DeleteRange::new(KeyRange::prefix(prefix.to_owned()));
        self.own().writer().write(Op::DeleteRange(delete)).await.unwrap();
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn memory(cluster: &str, lineage: u64) -> KeyspaceHandle {
    let keyspace = SharedKeyspace::new(Keyspace::new(Identity::new(cluster, lineage, 0), Limits::default()));
    KeyspaceHandle::new(cluster, keyspace.clone(), MemoryWriter::spawn(keyspace))
}

pub(crate) fn channel(addr: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{addr}")).unwrap().connect_lazy()
}

/// Everything in `keyspace`, revisions and all.
pub(crate) fn everything(keyspace: &SharedKeyspace) -> Vec<KeyValue> {
    let all = keyspace.read(|keyspace| keyspace.range(&RangeQuery::new(KeyRange::all()))).unwrap();
    all.kvs.iter().map(|kv| KeyValue::clone(kv)).collect()
}

/// Looks again until it is so; a test that waits for ever says what for.
pub(crate) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(60), "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Impatient, so that tests need not wait.
pub(crate) fn pace() -> Pace {
    Pace {
        ask_after: Duration::from_millis(300),
        silent_after: Duration::from_millis(1500),
        behind_grace: Duration::from_millis(500),
        retry_first: Duration::from_millis(20),
        retry_most: Duration::from_millis(200),
        seed: 1,
    }
}

/// What happens to bytes on a [`Wire`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    To(SocketAddr),
    /// Connections are closed and none is taken.
    Cut,
    /// Connections stay, and nothing passes.
    Frozen,
}

/// A TCP proxy: the network between two parties, in the test's hand.
pub(crate) struct Wire {
    pub(crate) addr: SocketAddr,
    flow: watch::Sender<Flow>,
    task: tokio::task::JoinHandle<()>,
}

impl Wire {
    pub(crate) async fn to(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (flow, receiver) = watch::channel(Flow::To(upstream));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, receiver.clone()));
            }
        });
        Self { addr, flow, task }
    }

    pub(crate) fn cut(&self) {
        self.flow.send_replace(Flow::Cut);
    }

    pub(crate) fn freeze(&self) {
        self.flow.send_replace(Flow::Frozen);
    }

    pub(crate) fn connect(&self, upstream: SocketAddr) {
        self.flow.send_replace(Flow::To(upstream));
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut client: TcpStream, mut flow: watch::Receiver<Flow>) {
    let Flow::To(upstream) = *flow.borrow_and_update() else { return };
    let Ok(mut server) = TcpStream::connect(upstream).await else { return };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => return,
        _ = flow.wait_for(|flow| *flow != Flow::To(upstream)) => {}
    }
    // Frozen: both ends stay open and hear nothing, until the wire is another one.
    let _ = flow.wait_for(|flow| *flow != Flow::Frozen).await;
}

/// A reader as an agent is one: it keeps what it was told, by key.
pub(crate) struct Copy {
    pub(crate) kvs: BTreeMap<Bytes, (Bytes, i64)>,
    /// What came, in short.
    pub(crate) resets: Vec<String>,
    pub(crate) follow: Follow,
}

impl Copy {
    pub(crate) fn of(client: &Client, prefixes: &[&'static str]) -> Self {
        let ranges = prefixes.iter().map(|prefix| KeyRange::prefix(*prefix)).collect();
        Self::following(client, FollowConfig { pace: pace(), ..FollowConfig::new(ranges) })
    }

    pub(crate) fn following(client: &Client, config: FollowConfig) -> Self {
        Self { kvs: BTreeMap::new(), resets: Vec::new(), follow: client.follow(config).unwrap() }
    }

    pub(crate) fn take(&mut self, event: FollowEvent) {
        match event {
            FollowEvent::Put { kv, .. } => {
                self.kvs.insert(kv.key, (kv.value, kv.mod_revision));
            }
            FollowEvent::Delete { key, .. } => {
                assert!(self.kvs.remove(&key).is_some(), "a spurious delete of {key:?}");
            }
            FollowEvent::Reset { reason, .. } => self.resets.push(format!("{reason:?}")),
            _ => {}
        }
    }

    /// Takes events until the copy equals what `keyspace` holds under `prefixes`.
    pub(crate) async fn until_equal(&mut self, keyspace: &SharedKeyspace, prefixes: &[&str]) {
        let began = Instant::now();
        loop {
            let ours = |key: &Bytes| prefixes.iter().any(|prefix| key.starts_with(prefix.as_bytes()));
            let there = everything(keyspace).into_iter().filter(|kv| ours(&kv.key));
            let there: BTreeMap<_, _> = there.map(|kv| (kv.key, (kv.value, kv.mod_revision))).collect();
            if self.kvs == there {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "a copy hangs: {:?} {there:?}", self.kvs);
            while let Ok(Some(event)) =
                tokio::time::timeout(Duration::from_millis(50), self.follow.next()).await
            {
                self.take(event);
            }
        }
    }
}

/// A real etcd on loopback that can be killed and started again with the same data, or without.
pub(crate) struct RealEtcd {
    pub(crate) addr: SocketAddr,
    peer: SocketAddr,
    child: Child,
    data: TempDir,
    /// Where ca.crt, server.crt and server.key are, when it asks its clients for certificates.
    tls: Option<PathBuf>,
}

impl RealEtcd {
    pub(crate) async fn start() -> Self {
        let etcd = Self::spawn(None);
        etcd.up().await;
        etcd
    }

    /// With `--client-cert-auth`. Whether it answers is for whoever has a certificate to find out.
    pub(crate) fn start_with_tls(files: &Path) -> Self {
        Self::spawn(Some(files.to_owned()))
    }

    fn spawn(tls: Option<PathBuf>) -> Self {
        let free_port = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (addr, peer, data) = (free_port(), free_port(), TempDir::new().unwrap());
        Self { child: spawn(addr, peer, &data, tls.as_deref()), addr, peer, data, tls }
    }

    /// SIGKILL, by the pid we started.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) async fn start_again(&mut self) {
        self.child = spawn(self.addr, self.peer, &self.data, self.tls.as_deref());
        if self.tls.is_none() {
            self.up().await;
        }
    }

    /// Loses everything it had.
    pub(crate) fn wipe(&mut self) {
        self.kill();
        self.data = TempDir::new().unwrap();
    }

    async fn up(&self) {
        let client = Client::new(channel(self.addr));
        for _ in 0..200 {
            if client.status(hawser_etcd::pb::StatusRequest {}).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("etcd does not answer at {}", self.addr);
    }

    pub(crate) fn uri(&self) -> String {
        format!("etcd{}://{}", if self.tls.is_some() { "s" } else { "" }, self.addr)
    }
}

fn spawn(addr: SocketAddr, peer: SocketAddr, data: &TempDir, tls: Option<&Path>) -> Child {
    let (client, peer) = match tls {
        Some(_) => (format!("https://{addr}"), format!("http://{peer}")),
        None => (format!("http://{addr}"), format!("http://{peer}")),
    };
    let mut command = Command::new("etcd");
    if let Some(files) = tls {
        command.arg("--client-cert-auth");
        for (flag, file) in
            [("--trusted-ca-file", "ca.crt"), ("--cert-file", "server.crt"), ("--key-file", "server.key")]
        {
            command.arg(flag).arg(files.join(file));
        }
    }
    command
        .args(["--name", "us-east", "--data-dir"])
        .arg(data.path())
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("us-east={peer}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("/usr/bin/etcd cannot be run. fix: apt-get install etcd-server")
}

impl Drop for RealEtcd {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// `etcdctl`, run off the runtime's threads: its server may be one of ours.
pub(crate) async fn etcdctl(endpoint: SocketAddr, line: &str) -> String {
    let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let run = move || {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg("--endpoints").arg(endpoint.to_string()).args(args);
        command
            .stdin(Stdio::null())
            .output()
            .expect("etcdctl cannot be run. fix: apt-get install etcd-client")
    };
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    assert!(output.status.success(), "etcdctl {line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
