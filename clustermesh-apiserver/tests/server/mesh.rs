//! Two clusters, each with its own API server, CA and manifests, connected as two operators would.

use std::fs;
use std::process::Command;

use crate::cluster::{Cluster, SHOP, eventually, get, list, open_shop, until_gone, until_says};
use hawser_api::admin::{ConnectRequest, DisconnectRequest};
use hawser_etcd::client::Client;
use hawser_kvstore::KeyRange;

pub(crate) const CART: &str = "cilium/state/services/v1/us-east/shop/cart";

async fn two() -> (Cluster, Cluster) {
    let (mut us, mut eu) = (Cluster::with_shop("us-east", 1), Cluster::with_shop("eu-west", 2));
    us.start(&[]).await;
    eu.start(&[]).await;
    us.connect_with(&eu).await;
    (us, eu)
}

async fn all(client: &Client) -> Vec<(String, String)> {
    list(client, KeyRange::all()).await.unwrap()
}

#[tokio::test]
async fn what_one_cluster_exports_the_other_serves_and_edits_follow() {
    let (us, eu) = two().await;
    let admin = eu.admin_identity();
    let mirror = eu.etcd(Some(&admin), Some("us-east")).await.unwrap();
    until_says(&mirror, CART, r#""backends":{"10.1.0.9""#).await;
    // Everything a peer may read, and nothing that is ours alone.
    let keys: Vec<String> = all(&mirror).await.into_iter().map(|(key, _)| key).collect();
    for key in ["cilium/.heartbeat", "cilium/cluster-config/us-east", "hawser/state/nodes/v1/us-east/node-1"]
    {
        assert!(keys.iter().any(|k| k == key), "{key}: {keys:?}");
    }
    assert!(!keys.iter().any(|key| key.starts_with("hawser/local/") || key.contains("private")), "{keys:?}");
    let own = us.etcd(Some(&us.admin_identity()), None).await.unwrap();
    assert_eq!(get(&own, CART).await.unwrap(), get(&mirror, CART).await.unwrap());

    us.manifest("shop.yaml", &open_shop().replace("10.1.0.9", "10.1.0.10"));
    until_says(&mirror, CART, r#""backends":{"10.1.0.10""#).await;
    until_gone(&mirror, "cilium/state/ip/v1/default/10.1.0.9").await;

    us.manifest("shop.yaml", &open_shop().replace("hawser.io/global", "example.io/local"));
    until_gone(&mirror, CART).await;
}

#[tokio::test]
async fn status_says_how_the_mirror_is_doing() {
    let (us, eu) = two().await;
    let peer = eventually("the mirror is synced", async || {
        let status = eu.status().await;
        match &status.peers[..] {
            [peer] if peer.state == "synced" && peer.services == 1 => Ok(peer.clone()),
            peers => Err(format!("{peers:?}")),
        }
    })
    .await;
    assert_eq!((peer.name.as_str(), peer.id, peer.nodes), ("us-east", 1, 1));
    // Of the pod's two addresses the one that the service is served at.
    assert_eq!((peer.endpoints, peer.identities, peer.exports.as_str()), (1, 1, "default"));
    assert!(peer.refused.is_empty() && peer.heard_ms_ago >= 0, "{peer:?}");
    let status = us.status().await;
    assert_eq!((status.services, status.endpoints, status.identities), (1, 2, 1));
    assert_eq!((status.nodes[0].name.as_str(), status.nodes[0].mesh_ipv4.as_str()), ("node-1", "240.1.0.1"));
    assert_eq!(status.nodes[0].reported_ms_ago, -1);
    assert_eq!(status.source_errors, [""; 0]);
}

#[tokio::test]
async fn a_broken_file_is_named_with_its_line_and_takes_nothing_away() {
    let mut us = Cluster::with_shop("us-east", 1);
    us.start(&[]).await;
    let own = us.etcd(Some(&us.admin_identity()), None).await.unwrap();
    let before: Vec<_> = all(&own).await.into_iter().filter(|(key, _)| key != "cilium/.heartbeat").collect();
    us.manifest(
        "shop.yaml",
        &open_shop().replace("  - name: http\n    port: 8080", "  - name: http\n    port: many"),
    );
    let error = eventually("the broken file is told", async || {
        us.status().await.source_errors.pop().ok_or_else(|| "no error".into())
    })
    .await;
    let line = open_shop().lines().position(|line| line.contains("port: 8080")).unwrap() + 1;
    assert!(error.starts_with(&format!("shop.yaml:{line}: ")), "{error}");
    let after: Vec<_> = all(&own).await.into_iter().filter(|(key, _)| key != "cilium/.heartbeat").collect();
    assert_eq!(before, after);
    us.manifest("shop.yaml", &open_shop());
    eventually("the file is healed", async || match us.status().await.source_errors.pop() {
        None => Ok(()),
        Some(error) => Err(error),
    })
    .await;
}

#[tokio::test]
async fn a_killed_server_goes_on_where_it_was_and_its_peer_does_not_list_again() {
    let (mut us, eu) = two().await;
    let mirror = eu.etcd(Some(&eu.admin_identity()), Some("us-east")).await.unwrap();
    until_says(&mirror, CART, "10.1.0.9").await;
    let admin = us.admin_identity();
    let before = all(&us.etcd(Some(&admin), None).await.unwrap()).await;
    us.kill();
    eventually("the cut is seen, and nothing is forgotten", async || {
        let state = eu.status().await.peers[0].state.clone();
        if state == "cut off" { Ok(()) } else { Err(state) }
    })
    .await;
    assert!(get(&mirror, CART).await.unwrap().is_some());
    us.start(&[]).await;
    let after = all(&us.etcd(Some(&admin), None).await.unwrap()).await;
    let data = |all: &[(String, String)]| {
        all.iter()
            // Which CAs of its peers a cluster trusts is written when it has looked.
            .filter(|(key, _)| !key.starts_with("hawser/state/trusted/"))
            .filter(|(key, _)| key != "cilium/.heartbeat" && !key.contains("/synced/"))
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(data(&before), data(&after));
    us.manifest("shop.yaml", &open_shop().replace("10.1.0.9", "10.1.0.11"));
    until_says(&mirror, CART, "10.1.0.11").await;
    let peer = eu.status().await.peers[0].clone();
    assert!(peer.reconnects > 0, "{peer:?}");
    assert_eq!(peer.relists, 0, "it resumed: {peer:?}");
}

#[tokio::test]
async fn a_server_that_starts_again_while_its_peer_is_gone_serves_what_it_kept_and_then_resumes() {
    let (mut us, mut eu) = two().await;
    let admin = eu.admin_identity();
    let mirror = eu.etcd(Some(&admin), Some("us-east")).await.unwrap();
    until_says(&mirror, CART, "10.1.0.9").await;
    let kept = eu.path("store/mirrors/us-east.snapshot");
    eventually("the mirror is on disk", async || kept.metadata().map_err(|error| error.to_string())).await;
    // Later than the first snapshot, and told to end in order: the last word is kept.
    us.manifest("shop.yaml", &open_shop().replace("10.1.0.9", "10.1.0.10"));
    until_says(&mirror, CART, "10.1.0.10").await;
    until_gone(&mirror, "cilium/state/ip/v1/default/10.1.0.9").await;
    us.kill();
    assert_eq!(eu.stop(), Some(0));
    eu.start(&[]).await;
    let mirror = eu.etcd(Some(&admin), Some("us-east")).await.unwrap();
    let cart = get(&mirror, CART).await.unwrap().unwrap();
    assert!(cart.contains("10.1.0.10"), "{cart}");
    let peer = eu.status().await.peers[0].clone();
    assert_eq!((peer.state.as_str(), peer.services, peer.endpoints), ("restored", 1, 1), "{peer:?}");
    assert!(peer.heard_ms_ago > 0 && peer.reason.contains("kept on disk"), "{peer:?}");

    us.start(&[]).await;
    us.manifest("shop.yaml", &open_shop().replace("10.1.0.9", "10.1.0.11"));
    until_says(&mirror, CART, "10.1.0.11").await;
    let peer = eventually("the mirror is synced", async || match eu.status().await.peers.remove(0) {
        peer if peer.state == "synced" => Ok(peer),
        peer => Err(format!("{peer:?}")),
    })
    .await;
    assert_eq!((peer.relists, peer.reason.as_str()), (0, ""), "{peer:?}");

    eu.admin().await.disconnect(DisconnectRequest { cluster: "us-east".into() }).await.unwrap();
    assert!(!kept.exists(), "a disconnected cluster leaves nothing");
}

#[tokio::test]
async fn losing_most_of_the_manifests_at_once_deletes_nothing_until_confirmed() {
    let mut us = Cluster::with_shop("us-east", 1);
    us.start(&[]).await;
    let admin = us.admin_identity();
    let own = us.etcd(Some(&admin), None).await.unwrap();
    fs::remove_file(us.path("manifests/shop.yaml")).unwrap();
    let error = eventually("it is told", async || {
        us.status().await.source_errors.pop().ok_or_else(|| "no error".into())
    })
    .await;
    assert!(error.contains("--accept-mass-delete"), "{error}");
    assert!(get(&own, CART).await.unwrap().is_some());
    // Nor does a restart that finds an empty directory.
    us.kill();
    us.start(&[]).await;
    let own = us.etcd(Some(&admin), None).await.unwrap();
    assert!(get(&own, CART).await.unwrap().is_some());
    assert_eq!(us.stop(), Some(0));
    us.start(&["--accept-mass-delete"]).await;
    let own = us.etcd(Some(&admin), None).await.unwrap();
    until_gone(&own, CART).await;
}

#[tokio::test]
async fn disconnect_drains_the_mirror_and_shuts_the_peer_out() {
    let (us, eu) = two().await;
    let mirror = eu.etcd(Some(&eu.admin_identity()), Some("us-east")).await.unwrap();
    until_says(&mirror, CART, "10.1.0.9").await;
    // us-east shows this to eu-west; it works while it is connected.
    let remote = us.remote_identity();
    let as_peer = eu.etcd(Some(&remote), None).await.unwrap();
    assert!(get(&as_peer, "cilium/.heartbeat").await.unwrap().is_some());
    let request = DisconnectRequest { cluster: "us-east".into() };
    eu.admin().await.disconnect(request.clone()).await.unwrap();
    let error = get(&mirror, CART).await.unwrap_err();
    assert!(error.contains("NotFound"), "{error}");
    eventually("the open connection ends", async || match get(&as_peer, "cilium/.heartbeat").await {
        Err(error) => Ok(error),
        Ok(_) => Err("still served".into()),
    })
    .await;
    let again = eu.etcd(Some(&remote), None).await.unwrap();
    let error = get(&again, "cilium/.heartbeat").await.unwrap_err();
    assert!(error.contains("PermissionDenied") && error.contains("ca-us-east"), "{error}");
    assert!(eu.status().await.peers.is_empty());
    let error = eu.admin().await.disconnect(request).await.unwrap_err();
    assert!(error.message().contains("fix:"), "{error}");
}

#[tokio::test]
async fn connecting_is_checked_whole_before_anything_is_changed() {
    let (mut us, mut eu) = (Cluster::with_shop("us-east", 1), Cluster::with_shop("eu-west", 2));
    let mut twin = Cluster::with_shop("ap-south", 2);
    us.start(&[]).await;
    eu.start(&[]).await;
    twin.start(&[]).await;
    let bundle = eu.bundle_for("us-east").await;
    for (bundle, says) in [
        ("kind: Pod\n".to_owned(), "not readable"),
        (bundle.replace("10.2.0.0/16", "10.9.0.0/16"), "signature"),
        (eu.bundle_for("ap-south").await, "is for ap-south, and this is us-east"),
    ] {
        let error = us.connect(bundle).await.unwrap_err();
        assert!(error.message().contains(says) && error.message().contains("fix:"), "{error}");
    }
    // A NetworkPolicy guards what the mesh would reach.
    us.manifest("shop.yaml", SHOP);
    let request = |dry_run, policy_bypass_accepted| ConnectRequest {
        bundle: bundle.clone(),
        dry_run,
        policy_bypass_accepted,
        cilium: None,
    };
    let error = eventually("the policy is seen", async || {
        us.admin().await.connect(request(true, false)).await.err().ok_or_else(|| "accepted".into())
    })
    .await;
    assert!(error.message().contains("NetworkPolicy shop/only-shop"), "{error}");
    assert!(us.connect(bundle.clone()).await.is_err());
    us.admin().await.connect(request(true, true)).await.unwrap();
    assert!(us.status().await.peers.is_empty(), "dry runs and refusals admit nobody");
    us.admin().await.connect(request(false, true)).await.unwrap();
    assert!(us.connect(bundle).await.unwrap().unchanged, "the same bundle again changes nothing");
    let error = us.connect(twin.bundle_for("us-east").await).await.unwrap_err();
    assert!(
        error.message().contains("ap-south (id 2)") && error.message().contains("eu-west (id 2)"),
        "{error}"
    );
}

#[tokio::test]
async fn etcdctl_reads_it_with_a_certificate() {
    let mut us = Cluster::with_shop("us-east", 1);
    us.start(&[]).await;
    let admin =
        us.ca.issue_admin(&hawser_pki::UserName::parse("bob").unwrap(), crate::cluster::now()).unwrap();
    fs::write(us.path("admin.crt"), admin.cert.pem()).unwrap();
    fs::write(us.path("admin.key"), admin.key_pem).unwrap();
    let etcdctl = |args: &[&str]| {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg("--endpoints").arg(format!("https://127.0.0.1:{}", us.port));
        command.arg("--cacert").arg(us.path("pki/ca.crt"));
        command.arg("--cert").arg(us.path("admin.crt")).arg("--key").arg(us.path("admin.key"));
        let output = command.args(args).output().expect("etcdctl is installed (Debian: etcd-client)");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let service = etcdctl(&["get", CART, "--print-value-only"]);
    assert!(service.contains(r#""cluster":"us-east""#), "{service}");
    let keys = etcdctl(&["get", "--prefix", "cilium/synced/us-east/", "--keys-only"]);
    assert_eq!(keys.split_whitespace().count(), 7, "{keys}");
    let config = etcdctl(&["get", "cilium/cluster-config/us-east", "--print-value-only"]);
    assert_eq!(
        config.trim(),
        r#"{"id":1,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":false,"endpointSlicesExportMode":"services-and-endpointslices"}}"#
    );
}

/// An etcd of its own, on loopback, ended with the test.
pub(crate) struct Etcd {
    process: std::process::Child,
    pub(crate) port: u16,
    _dir: tempfile::TempDir,
}

impl Etcd {
    pub(crate) fn start() -> Self {
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (port, peer, dir) = (free(), free(), tempfile::tempdir().unwrap());
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(dir.path())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("etcd is installed (Debian: etcd-server)");
        Self { process, port, _dir: dir }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn a_real_etcd_keeps_the_keyspace_and_the_peer_notices_no_difference() {
    let etcd = Etcd::start();
    let (mut us, mut eu) = (Cluster::with_shop("us-east", 1), Cluster::with_shop("eu-west", 2));
    let mirrors = format!("mirrors: {}/mirrors\n", us.dir.path().display());
    let embedded = format!("embedded:{}/store", us.dir.path().display());
    let config = us.config().replace(&embedded, &format!("etcd://127.0.0.1:{}", etcd.port));
    us.write_config(&(config + &mirrors));
    us.start(&[]).await;
    eu.start(&[]).await;
    us.connect_with(&eu).await;
    let mirror = eu.etcd(Some(&eu.admin_identity()), Some("us-east")).await.unwrap();
    until_says(&mirror, CART, "10.1.0.9").await;
    us.kill();
    us.start(&[]).await;
    us.manifest("shop.yaml", &open_shop().replace("10.1.0.9", "10.1.0.12"));
    until_says(&mirror, CART, "10.1.0.12").await;
    let peer = eu.status().await.peers[0].clone();
    assert_eq!(peer.relists, 0, "it resumed: {peer:?}");
    let status = us.status().await;
    assert!(status.store.contains("etcd at 127.0.0.1"), "{}", status.store);
    assert_eq!(status.peers[0].name, "eu-west", "the peer list is in etcd too");
}
