//! A cluster on Cilium is read: what a real clustermesh-apiserver wrote, in real etcds with Cilium's certificates and roles.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hawser_api::admin::{CiliumCluster, ConnectRequest, HostAlias, PeerStatus};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

use crate::cluster::{Cluster, eventually, get, until_gone, until_says};

const FIXTURE: &str = include_str!("../../../model/wire/testdata/cilium-keyspace.txt");

/// What cluster c1 (id 1) published, in the order it is dumped in: canaries come last.
const STATE: usize = 0;
/// What a KVStoreMesh made of that. It writes no heartbeat unless it is told to.
const CACHE: usize = 1;

fn published(dump: usize) -> Vec<(&'static str, &'static str)> {
    let lines: Vec<_> = FIXTURE.split("\n#####").nth(dump).unwrap().lines().collect();
    let pairs = lines
        .windows(2)
        .filter_map(|pair| Some((pair[0].strip_prefix("KEY   ")?, pair[1].strip_prefix("VALUE ")?)));
    pairs.collect()
}

/// Cilium's CA, and the files that its etcd and its readers have.
struct Pki {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = named("Cilium CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        let pki = Self { dir, issuer: Issuer::new(params, key) };
        pki.issue("clustermesh-apiserver.kube-system.svc", &["*.mesh.cilium.io"]);
        pki.issue("root", &[]);
        pki.issue("remote", &[]);
        pki
    }

    fn issue(&self, name: &str, hosts: &[&str]) {
        let key = KeyPair::generate().unwrap();
        let mut params = named(name);
        let dns = hosts.iter().map(|host| SanType::DnsName((*host).try_into().unwrap()));
        params.subject_alt_names = dns.chain([SanType::IpAddress([127, 0, 0, 1].into())]).collect();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path(&format!("{name}.crt")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn text(&self, file: &str) -> String {
        std::fs::read_to_string(self.path(file)).unwrap()
    }
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// One replica of c1's clustermesh-apiserver: its own etcd, with Cilium's users and roles (cilium-facts §2).
struct Replica<'a> {
    pki: &'a Pki,
    port: u16,
    process: Child,
    _data: tempfile::TempDir,
}

impl<'a> Replica<'a> {
    async fn start(pki: &'a Pki, dump: usize, beat: &str) -> Self {
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (port, peers, data) = (free(), free(), tempfile::tempdir().unwrap());
        let file = |ending: &str| pki.path(&format!("clustermesh-apiserver.kube-system.svc.{ending}"));
        let (client, peer) = (format!("https://127.0.0.1:{port}"), format!("http://127.0.0.1:{peers}"));
        let flag = |name: &str, value: &Path| [format!("--{name}"), value.display().to_string()];
        let process = Command::new("etcd")
            .args(["--name", "c1", "--client-cert-auth", "--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client, "--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("c1={peer}")])
            .args(flag("data-dir", data.path()))
            .args(flag("trusted-ca-file", &pki.path("ca.crt")))
            .args(flag("cert-file", &file("crt")))
            .args(flag("key-file", &file("key")))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("/usr/bin/etcd: apt install etcd-server");
        let replica = Self { pki, port, process, _data: data };
        eventually("etcd answers", async || replica.try_ctl(&["endpoint", "health"])).await;
        for line in [
            "user add root --no-password",
            "user grant-role root root",
            "role add remote",
            "role grant-permission remote read --prefix cilium/.heartbeat",
            "role grant-permission remote read --prefix cilium/state/",
            "role grant-permission remote read --prefix cilium/cache/",
            "role grant-permission remote read cilium/cluster-config/c1",
            "role grant-permission remote read --prefix cilium/synced/c1/",
            "user add remote --no-password",
            "user grant-role remote remote",
            "auth enable",
        ] {
            replica.ctl(&line.split(' ').collect::<Vec<_>>());
        }
        replica.ctl(&["put", "cilium/.heartbeat", beat]);
        for (key, value) in published(dump).into_iter().filter(|(key, _)| *key != "cilium/.heartbeat") {
            replica.ctl(&["put", key, value]);
        }
        replica
    }

    fn try_ctl(&self, args: &[&str]) -> Result<(), String> {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints=https://127.0.0.1:{}", self.port))
            .arg("--cacert")
            .arg(self.pki.path("ca.crt"))
            .arg("--cert")
            .arg(self.pki.path("root.crt"))
            .arg("--key")
            .arg(self.pki.path("root.key"))
            .args(args)
            .output()
            .expect("etcdctl: apt install etcd-client");
        match output.status.success() {
            true => Ok(()),
            false => Err(format!("{args:?}: {}", String::from_utf8_lossy(&output.stderr))),
        }
    }

    fn ctl(&self, args: &[&str]) {
        self.try_ctl(args).unwrap();
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Replica<'_> {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// c1 as its client configuration and an operator describe it.
fn c1(pki: &Pki, replicas: &[&Replica<'_>]) -> CiliumCluster {
    CiliumCluster {
        name: "c1".into(),
        id: 1,
        endpoints: replicas.iter().map(|at| format!("https://c1.mesh.cilium.io:{}", at.port)).collect(),
        pod_cidrs: vec!["10.1.0.0/16".into(), "fd00:10:1::/48".into()],
        node_cidrs: vec!["192.168.1.0/24".into(), "fd00:1::/64".into()],
        ca: pki.text("ca.crt"),
        certificate: pki.text("remote.crt"),
        key: pki.text("remote.key"),
        server_name: String::new(),
        aliases: vec![HostAlias { hostname: "c1.mesh.cilium.io".into(), ips: vec!["127.0.0.1".into()] }],
    }
}

async fn until(us: &Cluster, what: &str, is_so: impl Fn(&PeerStatus) -> bool) -> PeerStatus {
    eventually(what, async || {
        let peers = us.status().await.peers;
        let peer = peers.iter().find(|peer| peer.name == "c1" && is_so(peer));
        peer.cloned().ok_or(format!("{peers:?}"))
    })
    .await
}

#[tokio::test]
async fn what_a_cilium_cluster_publishes_is_mirrored_and_followed_from_replica_to_replica() {
    let pki = Pki::new();
    let (mut first, second) = (
        Replica::start(&pki, STATE, "2026-11-20T21:45:01Z").await,
        Replica::start(&pki, STATE, "2026-11-20T21:45:02Z").await,
    );
    let mut us = Cluster::new("us-east", 2);
    us.start(&[]).await;
    let request = ConnectRequest { cilium: Some(c1(&pki, &[&first, &second])), ..Default::default() };
    us.admin().await.connect(request).await.unwrap();
    let peer = until(&us, "c1 is synced", |peer| peer.state == "synced").await;
    let counts = [peer.nodes, peer.services, peer.endpoints, peer.identities];
    assert_eq!((counts, peer.refused.len()), ([2, 3, 4, 2], 0), "{peer:?}");
    assert_eq!(peer.cilium.unwrap().layout, "state");

    let admin = us.admin_identity();
    let mirror = us.etcd(Some(&admin), Some("c1")).await.unwrap();
    for (key, value) in published(STATE) {
        let here = get(&mirror, key).await.unwrap();
        let ours = key == "cilium/.heartbeat" || key.starts_with("cilium/synced/");
        assert!(here.as_deref() == Some(value) || (ours && here.is_some()), "{key}: {here:?}");
    }
    let web = "cilium/state/services/v1/c1/shop/web";
    let at = |replica: &Replica<'_>, args: &[&str]| replica.ctl(args);
    // Who is read first is chance: both are told, as their publishers would.
    let both = |args: &[&str]| [&first, &second].into_iter().for_each(|replica| at(replica, args));
    let renamed = get(&mirror, web).await.unwrap().unwrap().replace("8080", "8088");
    both(&["put", web, &renamed]);
    until_says(&mirror, web, "8088").await;
    both(&["del", "cilium/state/services/v1/c1/shop/headless"]);
    until_gone(&mirror, "cilium/state/services/v1/c1/shop/headless").await;
    let stolen = r#"{"IP":"10.2.0.9","HostIP":"192.168.1.10","ID":65793,"Key":0,"Metadata":""}"#;
    both(&["put", "cilium/state/ip/v1/default/10.2.0.9", stolen]);
    until(&us, "an address of another cluster is refused", |peer| peer.refused.contains_key("address_range"))
        .await;

    first.kill();
    let before = get(&mirror, web).await.unwrap();
    second.ctl(&["put", "cilium/state/ip/v1/default/10.1.0.77", &stolen.replace("10.2.0.9", "10.1.0.77")]);
    until_says(&mirror, "cilium/state/ip/v1/default/10.1.0.77", "10.1.0.77").await;
    let peer = until(&us, "the other replica is followed", |peer| peer.state == "synced").await;
    assert_eq!((peer.services, peer.endpoints, get(&mirror, web).await.unwrap()), (2, 5, before));
}

#[tokio::test]
async fn a_cluster_that_is_not_the_one_that_was_admitted_is_refused_with_a_sentence() {
    let pki = Pki::new();
    let replica = Replica::start(&pki, STATE, "2026-11-20T21:45:01Z").await;
    replica.ctl(&["put", "cilium/cluster-config/c1", r#"{"id":9,"capabilities":{"syncedCanaries":true}}"#]);
    let mut us = Cluster::new("us-east", 2);
    us.start(&[]).await;
    let request = ConnectRequest { cilium: Some(c1(&pki, &[&replica])), ..Default::default() };
    us.admin().await.connect(request).await.unwrap();
    let peer = until(&us, "it is refused", |peer| peer.reason.contains("cluster c1 is not read")).await;
    assert!(peer.reason.contains("fix: ") && peer.endpoints == 0 && peer.state == "connecting", "{peer:?}");
    replica.ctl(&["put", "cilium/cluster-config/c1", r#"{"id":1,"capabilities":{"syncedCanaries":true}}"#]);
    until(&us, "and read when it is", |peer| peer.state == "synced" && peer.endpoints == 4).await;
}

#[tokio::test]
async fn what_a_kvstoremesh_holds_of_a_cluster_is_the_same_mirror() {
    let pki = Pki::new();
    let replica = Replica::start(&pki, CACHE, "2026-11-20T21:45:01Z").await;
    let mut us = Cluster::new("us-east", 2);
    us.start(&[]).await;
    let request = ConnectRequest { cilium: Some(c1(&pki, &[&replica])), ..Default::default() };
    us.admin().await.connect(request).await.unwrap();
    let peer = until(&us, "c1 is synced", |peer| peer.state == "synced").await;
    assert_eq!(peer.cilium.unwrap().layout, "cache");
    let mirror = us.etcd(Some(&us.admin_identity()), Some("c1")).await.unwrap();
    for (key, value) in published(STATE).into_iter().filter(|(key, _)| key.starts_with("cilium/state/")) {
        assert_eq!(get(&mirror, key).await.unwrap().as_deref(), Some(value), "{key}");
    }
    let config = get(&mirror, "cilium/cluster-config/c1").await.unwrap().unwrap();
    assert!(!config.contains("cached"), "{config}");
}
