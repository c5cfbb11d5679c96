//! A cluster for tests: the real binary on loopback, a CA, a directory of manifests, and clients of every role.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hawser_api::admin::admin_client::AdminClient;
use hawser_api::admin::{
    BundleRequest, ConnectReply, ConnectRequest, CreateJoinTokenRequest, StatusReply, StatusRequest,
};
use hawser_api::agent::agent_client::AgentClient;
use hawser_api::agent::{JoinReply, JoinRequest};
use hawser_etcd::client::Client;
use hawser_etcd::pb;
use hawser_kvstore::KeyRange;
use hawser_model::{ClusterName, Timestamp};
use hawser_pki::{Ca, IssuedWithKey, JoinFile, UserName};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};

pub(crate) const SHOP: &str = include_str!("../../sources/testdata/shop.yaml");

pub(crate) fn now() -> Timestamp {
    Timestamp::from_system(SystemTime::now())
}

/// Without its NetworkPolicy, which would keep the cluster from connecting.
pub(crate) fn open_shop() -> String {
    let start = SHOP.find("\n- apiVersion: networking.k8s.io/v1").unwrap();
    let end = SHOP.find("\n- apiVersion: apps/v1").unwrap();
    format!("{}{}", &SHOP[..start], &SHOP[end..])
}

pub(crate) struct Cluster {
    pub(crate) name: &'static str,
    pub(crate) id: u16,
    pub(crate) port: u16,
    pub(crate) ca: Ca,
    pub(crate) dir: tempfile::TempDir,
    process: Option<Child>,
}

/// A client certificate with its key.
#[derive(Clone)]
pub(crate) struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

impl From<IssuedWithKey> for Identity {
    fn from(issued: IssuedWithKey) -> Self {
        Self { chain: vec![issued.cert.der], key: issued.key_der }
    }
}

impl Cluster {
    /// Files of a cluster whose addresses are 10.<id>.0.0/16 and 172.16.<id>.0/24; nothing runs yet.
    pub(crate) fn new(name: &'static str, id: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let ca = Ca::create(&ClusterName::parse(name).unwrap(), now()).unwrap();
        let cluster = Self { name, id, port, ca, dir, process: None };
        fs::create_dir(cluster.path("pki")).unwrap();
        fs::create_dir(cluster.path("manifests")).unwrap();
        fs::write(cluster.path("pki/ca.crt"), cluster.ca.cert().pem()).unwrap();
        fs::write(cluster.path("pki/ca.key"), cluster.ca.key_pem()).unwrap();
        cluster.write_config(&cluster.config());
        cluster
    }

    /// With the shop of testdata, moved into this cluster's addresses.
    pub(crate) fn with_shop(name: &'static str, id: u16) -> Self {
        let cluster = Self::new(name, id);
        cluster.manifest("shop.yaml", &open_shop());
        cluster
    }

    /// Another replica of the same cluster, with the same CA and manifests.
    pub(crate) fn twin(&self) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let ca = Ca::from_pem(&self.ca.cert().pem(), &self.ca.key_pem()).unwrap();
        let twin =
            Self { name: self.name, id: self.id, port, ca, dir: tempfile::tempdir().unwrap(), process: None };
        for shared in ["pki", "manifests"] {
            std::os::unix::fs::symlink(self.path(shared), twin.path(shared)).unwrap();
        }
        twin.write_config(&twin.config());
        twin
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn config(&self) -> String {
        let (name, id, port, dir) = (self.name, self.id, self.port, self.dir.path().display());
        format!(
            "cluster: {{ name: {name}, id: {id} }}\nlisten: 127.0.0.1:{port}\n\
             advertise: [\"https://127.0.0.1:{port}\"]\n\
             podCIDRs: [\"10.{id}.0.0/16\", \"fd00:10:{id}::/48\"]\nnodeCIDRs: [\"172.16.{id}.0/24\"]\n\
             source: {{ dir: {dir}/manifests }}\nstore: embedded:{dir}/store\npki: {dir}/pki\n"
        )
    }

    pub(crate) fn write_config(&self, text: &str) {
        fs::write(self.path("cluster.yaml"), text).unwrap();
    }

    /// As a careful editor writes, with the addresses of this cluster.
    pub(crate) fn manifest(&self, file: &str, text: &str) {
        let text = text
            .replace("10.1.", &format!("10.{}.", self.id))
            .replace("172.16.1.", &format!("172.16.{}.", self.id))
            .replace("fd00:10:1:", &format!("fd00:10:{}:", self.id));
        let temporary = self.path("manifests/.new");
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.path("manifests").join(file)).unwrap();
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clustermesh-apiserver"));
        command.arg("--config").arg(self.path("cluster.yaml")).env("RUST_LOG", "debug,h2=info,hyper=info");
        command
    }

    /// Starts the server and waits until everything is exported.
    pub(crate) async fn start(&mut self, args: &[&str]) {
        self.spawn(args);
        let canary = format!("cilium/synced/{}/hawser/state/nodes/v1", self.name);
        let admin = self.admin_identity();
        eventually("the server exports", async || {
            let client = self.etcd(Some(&admin), None).await.map_err(|error| error.to_string())?;
            match get(&client, &canary).await? {
                Some(_) => Ok(()),
                None => Err("no canary".into()),
            }
        })
        .await;
    }

    pub(crate) fn spawn(&mut self, args: &[&str]) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let child = self.command().args(args).stderr(log).stdin(Stdio::null()).spawn().unwrap();
        self.process = Some(child);
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        let mut child = self.process.take().unwrap();
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }

    /// SIGTERM, and its exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        let mut child = self.process.take().unwrap();
        assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
        child.wait().unwrap().code()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut child) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of {} ---\n{}", self.name, self.log());
        }
    }
}

/// Tries until it works; a test that hangs says what it waited for.
pub(crate) async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Result<T, String>) -> T {
    let mut last = String::new();
    for _ in 0..600 {
        match attempt().await {
            Ok(done) => return done,
            Err(error) => last = error,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what}: not within a minute: {last}");
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

impl Cluster {
    pub(crate) fn admin_identity(&self) -> Identity {
        self.ca.issue_admin(&UserName::parse("test").unwrap(), now()).unwrap().into()
    }

    /// What this cluster shows to its peers.
    pub(crate) fn remote_identity(&self) -> Identity {
        self.ca.issue_remote(now()).unwrap().into()
    }

    /// A client's view of the own keyspace, or of `keyspace`.
    pub(crate) async fn etcd(
        &self,
        identity: Option<&Identity>,
        keyspace: Option<&str>,
    ) -> io::Result<Client> {
        let channel = self.channel(identity).await?;
        Ok(match keyspace {
            None => Client::new(channel),
            Some(cluster) => Client::for_cluster(channel, cluster).unwrap(),
        })
    }

    pub(crate) async fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel(Some(&self.admin_identity())).await.unwrap())
    }

    pub(crate) async fn agent(&self, identity: Option<&Identity>) -> AgentClient<Channel> {
        AgentClient::new(self.channel(identity).await.unwrap())
    }

    /// TLS to this server, verified as `<cluster>.mesh.hawser.io`, as `identity` or as nobody.
    pub(crate) async fn channel(&self, identity: Option<&Identity>) -> io::Result<Channel> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.cert().der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            None => config.with_no_client_auth(),
            Some(identity) => {
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key.clone()));
                config.with_client_auth_cert(identity.chain.clone(), key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from(format!("{}.mesh.hawser.io", self.name)).unwrap();
        let port = self.port;
        let dial = tower::service_fn(move |_: Uri| {
            let (connector, name) = (connector.clone(), name.clone());
            async move {
                let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
                Ok::<_, io::Error>(TokioIo::new(connector.connect(name, stream).await?))
            }
        });
        let endpoint = Endpoint::from(Uri::from_static("https://api-server"));
        endpoint.connect_with_connector(dial).await.map_err(io::Error::other)
    }

    pub(crate) async fn status(&self) -> StatusReply {
        self.admin().await.status(StatusRequest {}).await.unwrap().into_inner()
    }

    pub(crate) async fn bundle_for(&self, reader: &str) -> String {
        let request = BundleRequest { for_cluster: reader.into() };
        self.admin().await.bundle(request).await.unwrap().into_inner().bundle
    }

    pub(crate) async fn connect(&self, bundle: String) -> Result<ConnectReply, Status> {
        let request = ConnectRequest { bundle, ..Default::default() };
        self.admin().await.connect(request).await.map(tonic::Response::into_inner)
    }

    /// Both ways, as two operators would.
    pub(crate) async fn connect_with(&self, other: &Self) {
        self.connect(other.bundle_for(self.name).await).await.unwrap();
        other.connect(self.bundle_for(other.name).await).await.unwrap();
    }

    pub(crate) async fn token(&self, node: &str) -> JoinFile {
        let request = CreateJoinTokenRequest { node: node.into() };
        let reply = self.admin().await.create_join_token(request).await.unwrap().into_inner();
        JoinFile::from_yaml(&reply.join).unwrap()
    }

    /// Joins a node as its agent does.
    pub(crate) async fn join(&self, node: &str, token: &str) -> Result<Identity, Status> {
        let key = rcgen::KeyPair::generate().unwrap();
        let request =
            JoinRequest { node: node.into(), token: token.into(), csr: csr(&key), ..Default::default() };
        let reply: JoinReply = self.agent(None).await.join(request).await?.into_inner();
        let chain = CertificateDer::from_pem_slice(reply.certificate.as_bytes()).unwrap();
        Ok(Identity { chain: vec![chain], key: key.serialize_der() })
    }

    pub(crate) async fn agent_identity(&self, node: &str) -> Identity {
        let token = self.token(node).await.token.reveal();
        self.join(node, &token).await.unwrap()
    }
}

pub(crate) fn csr(key: &rcgen::KeyPair) -> Vec<u8> {
    rcgen::CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

/// A value as text; none when the key is not there.
pub(crate) async fn get(client: &Client, key: &str) -> Result<Option<String>, String> {
    Ok(list(client, KeyRange::key(key.to_owned())).await?.into_iter().next().map(|(_, value)| value))
}

/// Keys and values as text.
pub(crate) async fn list(client: &Client, range: KeyRange) -> Result<Vec<(String, String)>, String> {
    let (key, range_end) = range.to_wire();
    let request = pb::RangeRequest { key, range_end, ..Default::default() };
    let reply = client.range(request).await.map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(reply.kvs.iter().map(|kv| (text(&kv.key), text(&kv.value))).collect())
}

/// Waits until the value says something.
pub(crate) async fn until_says(client: &Client, key: &str, says: &str) {
    let wish = format!("{key} says {says}");
    eventually(&wish, async || match get(client, key).await? {
        Some(value) if value.contains(says) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

pub(crate) async fn until_gone(client: &Client, key: &str) {
    eventually(&format!("{key} is gone"), async || match get(client, key).await? {
        None => Ok(()),
        Some(value) => Err(value),
    })
    .await;
}
