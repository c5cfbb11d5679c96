//! What a Cilium cluster needs of us: its agents read this cluster, in both layouts and both modes, with the files that we write.

use std::path::Path;
use std::process::Command;

use hawser_api::admin::{CiliumCluster, CiliumConfigRequest, ConnectRequest, DisconnectRequest};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256,
};
use tonic::Status;

use crate::cluster::{Cluster, eventually, open_shop};
use crate::fake_cilium_agent::FakeCiliumAgent;

/// More than Cilium reads in one page, and the export of one.
fn services() -> String {
    let service = |n| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{ name: s{n}, namespace: shop, annotations: {{ service.cilium.io/global: \"true\" }} }}\nspec: {{ clusterIP: 10.96.{}.{}, ports: [{{ port: 80 }}] }}\n---\n",
            n / 250,
            n % 250 + 1
        )
    };
    let export = "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: { name: cart, namespace: shop, creationTimestamp: \"2026-11-20T21:44:04Z\" }\n";
    (0..300).map(service).collect::<String>() + export
}

/// Cilium's own CA, as its Helm chart makes one: RSA, one for all of its clusters.
struct CiliumCa {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl CiliumCa {
    fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Cilium CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Certificate and key.
    fn client(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// A cluster on Cilium whose own etcd nobody finds: here it only reads.
fn on_cilium(name: &str, id: u32, ca: &CiliumCa) -> CiliumCluster {
    CiliumCluster {
        name: name.into(),
        id,
        endpoints: vec!["https://127.0.0.1:1".into()],
        pod_cidrs: vec![format!("10.{id}.0.0/16")],
        node_cidrs: vec![format!("172.16.{id}.0/24")],
        ca: ca.pem.clone(),
        ..Default::default()
    }
}

impl Cluster {
    async fn connect_cilium(&self, cluster: CiliumCluster) -> Result<(), Status> {
        let request = ConnectRequest { cilium: Some(cluster), ..Default::default() };
        self.admin().await.connect(request).await.map(drop)
    }

    /// Writes what an operator mounts.
    async fn mount(&self, reader: &str, dir: &Path) -> Result<(), Status> {
        let request = CiliumConfigRequest { for_cluster: reader.into() };
        let reply = self.admin().await.cilium_config(request).await?.into_inner();
        for file in reply.files {
            assert_eq!(file.secret, file.text.contains("PRIVATE KEY"), "{}", file.name);
            std::fs::write(dir.join(file.name), file.text).unwrap();
        }
        Ok(())
    }

    fn etcdctl(&self, dir: &Path, stem: &str, args: &[&str]) -> (bool, String) {
        let file = |ending: &str| dir.join(format!("{stem}{ending}"));
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints=https://127.0.0.1:{}", self.port))
            .arg("--cacert")
            .arg(file("-ca.crt"))
            .arg("--cert")
            .arg(file(".crt"))
            .arg("--key")
            .arg(file(".key"))
            .args(args)
            .output()
            .expect("etcdctl: apt install etcd-client");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }
}

#[tokio::test]
async fn a_cilium_agent_reads_this_cluster_with_the_files_we_write() {
    let mut us = Cluster::new("us-east", 1);
    us.manifest("shop.yaml", &open_shop());
    us.manifest("services.yaml", &services());
    us.write_config(&format!("{}serviceExports: true\n", us.config()));
    us.start(&[]).await;
    let (ca, mount) = (CiliumCa::new(), tempfile::tempdir().unwrap());
    let refused = us.mount("c1", mount.path()).await.unwrap_err();
    assert!(refused.message().contains("hawser connect --cilium"), "{refused}");
    us.connect_cilium(on_cilium("c1", 7, &ca)).await.unwrap();
    us.mount("c1", mount.path()).await.unwrap();

    let mut agent = FakeCiliumAgent::read(mount.path(), "us-east", 255).await.unwrap();
    let capabilities = &agent.config["capabilities"];
    assert_eq!(capabilities["serviceExportsEnabled"], true);
    assert_eq!(capabilities["endpointSlicesExportMode"], "services-and-endpointslices");
    assert_eq!(capabilities["maxConnectedClusters"], 255);
    let of = |kind: &str| {
        agent.read.keys().filter(|key| key.starts_with(&format!("cilium/state/{kind}/"))).count()
    };
    // 300, the shop's, and the one that carries the exported endpoints.
    assert_eq!((of("services/v1"), of("serviceexports/v1")), (302, 1));
    // Of the pod's addresses the one that the service has: a peer is exported no more.
    assert_eq!((of("nodes/v1"), of("identities/v1"), of("ip/v1"), of("endpointslices/v1")), (1, 1, 1, 2));
    assert!(agent.pages > 8, "services take more than one page: {}", agent.pages);

    // What changes is told.
    us.manifest("shop.yaml", &open_shop().replace("port: 80\n", "port: 8088\n"));
    let (key, value) = agent.next_of("services/v1").await.unwrap();
    assert!(key.starts_with("cilium/state/services/v1/us-east/shop/"), "{key}");
    assert!(String::from_utf8_lossy(&value.unwrap()).contains("8088"));

    // Cilium's own certificates do as well, whichever way it names its readers.
    for name in ["remote", "remote-c1"] {
        let (cert, key) = ca.client(name);
        std::fs::write(mount.path().join("us-east.etcd-client.crt"), cert).unwrap();
        std::fs::write(mount.path().join("us-east.etcd-client.key"), key).unwrap();
        FakeCiliumAgent::read(mount.path(), "us-east", 255).await.unwrap();
    }
    let (stranger, key) = ca.client("admin-c1");
    std::fs::write(mount.path().join("us-east.etcd-client.crt"), stranger).unwrap();
    std::fs::write(mount.path().join("us-east.etcd-client.key"), key).unwrap();
    let refused = FakeCiliumAgent::read(mount.path(), "us-east", 255).await.err().unwrap();
    assert!(refused.contains("trusted for the name remote-c1 alone"), "{refused}");
}

#[tokio::test]
async fn etcdctl_and_probes_read_it_with_the_same_files() {
    let mut us = Cluster::with_shop("us-east", 1);
    us.start(&[]).await;
    let (ca, mount) = (CiliumCa::new(), tempfile::tempdir().unwrap());
    us.connect_cilium(on_cilium("c1", 7, &ca)).await.unwrap();
    us.mount("c1", mount.path()).await.unwrap();
    let ctl = |args: &[&str]| us.etcdctl(mount.path(), "us-east.etcd-client", args);
    let (ok, keys) = ctl(&["get", "--prefix", "--keys-only", "cilium/state/"]);
    assert!(ok && keys.contains("cilium/state/services/v1/us-east/shop/cart"), "{keys}");
    let (ok, status) = ctl(&["endpoint", "status"]);
    assert!(ok && status.contains("3.5.17"), "{status}");
    for refused in [
        &["get", "--prefix", "hawser/private/"][..],
        &["put", "cilium/state/x", "y"],
        &["del", "--prefix", "cilium/"],
        &["lease", "grant", "60"],
        &["user", "list"],
        &["auth", "enable"],
    ] {
        let (ok, said) = ctl(refused);
        assert!(!ok, "{refused:?}: {said}");
    }
    let curl = |path: &str| {
        let output = Command::new("curl")
            .args(["-sS", "--http1.1", "--cacert"])
            .arg(mount.path().join("us-east.etcd-client-ca.crt"))
            .arg(format!("https://127.0.0.1:{}{path}", us.port))
            .output()
            .expect("curl");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    assert!(curl("/version").contains(r#""etcdserver":"3.5.17""#));
    // The cluster on Cilium is not to be reached, and is waited for a while.
    let health = curl("/health");
    assert!(
        health == r#"{"health":"true","reason":""}"#
            || health == r#"{"health":"false","reason":"not ready: mirrors"}"#,
        "{health}"
    );
}

#[tokio::test]
async fn a_wide_mesh_is_read_by_an_agent_of_a_wide_mesh_alone() {
    let mut us = Cluster::new("us-east", 1);
    us.manifest("shop.yaml", &open_shop());
    us.write_config(&format!("{}mesh: {{ maxConnectedClusters: 511 }}\n", us.config()));
    us.start(&[]).await;
    let (ca, mount) = (CiliumCa::new(), tempfile::tempdir().unwrap());
    let wide = CiliumCluster { pod_cidrs: vec!["10.7.0.0/16".into()], id: 300, ..on_cilium("c1", 7, &ca) };
    us.connect_cilium(wide).await.unwrap();
    us.mount("c1", mount.path()).await.unwrap();
    let agent = FakeCiliumAgent::read(mount.path(), "us-east", 511).await.unwrap();
    // 9 bits of the cluster, 15 of its own.
    let first = (1 << 15) + 1;
    assert!(
        agent.read.contains_key(&format!("cilium/state/identities/v1/id/{first}")),
        "{:?}",
        agent.read.keys()
    );

    let mut narrow = Cluster::with_shop("eu-west", 2);
    narrow.start(&[]).await;
    let refused =
        narrow.connect_cilium(CiliumCluster { id: 300, ..on_cilium("c1", 7, &ca) }).await.unwrap_err();
    assert!(refused.message().contains("id above 255"), "{refused}");
    narrow.connect_cilium(on_cilium("c1", 7, &ca)).await.unwrap();
    let mount = tempfile::tempdir().unwrap();
    narrow.mount("c1", mount.path()).await.unwrap();
    let refused = FakeCiliumAgent::read(mount.path(), "eu-west", 511).await.err().unwrap();
    assert!(refused.contains("maxConnectedClusters"), "{refused}");
}

#[tokio::test]
async fn ciliums_agents_in_this_cluster_read_the_connected_ones_in_the_cached_layout() {
    let (mut us, mut eu) = (Cluster::with_shop("us-east", 1), Cluster::with_shop("eu-west", 2));
    us.start(&[]).await;
    eu.start(&[]).await;
    let off = us.mount("", tempfile::tempdir().unwrap().path()).await.unwrap_err();
    assert!(off.message().contains("cachedLayout: true"), "{off}");
    us.stop();
    us.write_config(&format!("{}cachedLayout: true\n", us.config()));
    us.start(&[]).await;
    us.connect_with(&eu).await;
    let mount = tempfile::tempdir().unwrap();
    us.mount("", mount.path()).await.unwrap();
    // The file of a remote cluster leads to the own one, as with KVStoreMesh.
    let mut agent = eventually("eu-west is in the cached layout", async || {
        FakeCiliumAgent::read(mount.path(), "eu-west", 255).await
    })
    .await;
    assert_eq!(agent.config["id"], 2);
    assert_eq!(agent.config["capabilities"]["cached"], true);
    let cart =
        String::from_utf8_lossy(&agent.read["cilium/cache/services/v1/eu-west/shop/cart"]).into_owned();
    let origin = eu.etcd(Some(&eu.admin_identity()), None).await.unwrap();
    let of_origin = crate::cluster::get(&origin, "cilium/state/services/v1/eu-west/shop/cart").await.unwrap();
    assert_eq!(Some(cart), of_origin, "values are as they were written");
    assert!(agent.read.contains_key("cilium/cache/ip/v1/eu-west/10.2.0.9"));
    assert!(agent.read.contains_key("cilium/cache/identities/v1/eu-west/id/131073"));
    assert!(!agent.read.keys().any(|key| key.contains("us-east") || key.contains("hawser/")));

    eu.manifest("shop.yaml", &open_shop().replace("port: 80\n", "port: 8088\n"));
    let (key, value) = agent.next_of("services/v1").await.unwrap();
    assert_eq!(key, "cilium/cache/services/v1/eu-west/shop/cart");
    assert!(String::from_utf8_lossy(&value.unwrap()).contains("8088"));

    let ctl = |args: &[&str]| us.etcdctl(mount.path(), "local-etcd-client", args);
    let (ok, said) = ctl(&["get", "--prefix", "--keys-only", "cilium/cache/nodes/"]);
    assert!(ok && said.trim() == "cilium/cache/nodes/v1/eu-west/node-1", "{said}");
    for refused in
        [&["get", "--prefix", "cilium/state/"][..], &["get", "--prefix", ""], &["put", "cilium/cache/x", "y"]]
    {
        let (ok, said) = ctl(refused);
        assert!(!ok, "{refused:?}: {said}");
    }

    // A cluster that goes: nobody begins to read it, and what was read stays for a while (three minutes).
    us.admin().await.disconnect(DisconnectRequest { cluster: "eu-west".into() }).await.unwrap();
    eventually("its config is gone", async || {
        match ctl(&["get", "--prefix", "--keys-only", "cilium/cluster-config/"]) {
            (true, said) if said.trim().is_empty() => Ok(()),
            (_, said) => Err(said),
        }
    })
    .await;
    let (ok, said) = ctl(&["get", "--prefix", "--keys-only", "cilium/cache/nodes/"]);
    assert!(ok && said.contains("eu-west"), "{said}");
}

#[tokio::test]
async fn what_an_operator_says_of_a_cluster_on_cilium_is_checked_before_anything_is_changed() {
    let mut us = Cluster::with_shop("us-east", 1);
    us.start(&[]).await;
    let ca = CiliumCa::new();
    let (certificate, key) = ca.client("remote-us-east");
    let (_, other_key) = ca.client("remote-us-east");
    let good = || on_cilium("c1", 7, &ca);
    for (cluster, why) in [
        (CiliumCluster { name: "C1".into(), ..good() }, "C1"),
        (CiliumCluster { id: 1, ..good() }, "has the id of this cluster"),
        (CiliumCluster { id: 0, ..good() }, "out of range"),
        (CiliumCluster { endpoints: vec![], ..good() }, "endpoints has 0 entries"),
        (CiliumCluster { endpoints: vec!["http://a:1".into()], ..good() }, "https://"),
        (CiliumCluster { pod_cidrs: vec!["10.7.0.1/16".into()], ..good() }, "no CIDR"),
        (CiliumCluster { pod_cidrs: vec!["10.1.7.0/24".into()], ..good() }, "overlaps"),
        (CiliumCluster { ca: "PEM".into(), ..good() }, "the cluster's CA"),
        (CiliumCluster { ca: us.ca.cert().pem(), ..good() }, "uses the CA key of cluster us-east"),
        (CiliumCluster { certificate: certificate.clone(), ..good() }, "needs its key"),
        (
            CiliumCluster { certificate: certificate.clone(), key: other_key, ..good() },
            "cannot be used together",
        ),
        (CiliumCluster { server_name: "a b".into(), ..good() }, "no host name"),
    ] {
        let refused = us.connect_cilium(cluster).await.unwrap_err();
        assert!(refused.message().contains(why), "{why}: {refused}");
    }
    assert!(us.status().await.peers.is_empty());
    us.connect_cilium(CiliumCluster { certificate, key, ..good() }).await.unwrap();
    let admin = us.etcd(Some(&us.admin_identity()), None).await.unwrap();
    let stored = crate::cluster::get(&admin, "hawser/local/peers/v1/c1").await.unwrap().unwrap();
    assert!(stored.contains(r#""kind":"cilium""#) && !stored.contains("PRIVATE KEY"), "{stored}");
    let shown = crate::cluster::get(&admin, "hawser/private/peers/v1/c1").await.unwrap().unwrap();
    assert!(shown.contains("PRIVATE KEY"));
    us.admin().await.disconnect(DisconnectRequest { cluster: "c1".into() }).await.unwrap();
    assert_eq!(crate::cluster::get(&admin, "hawser/private/peers/v1/c1").await, Ok(None));
}
