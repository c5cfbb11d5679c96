//! What a peer is exported, over real TLS with a real peer's certificate, at its mirror and at its agents.

use std::fmt::Write as _;

use hawser_api::admin::{ExportCount, ExportsRequest};
use hawser_etcd::client::{Client, Follow, FollowConfig, FollowEvent, Resume};
use hawser_etcd::pb;
use hawser_kvstore::KeyRange;

use crate::cluster::{Cluster, eventually, get, list, open_shop, until_gone, until_says};
use crate::mesh::{CART, Etcd};

const LEDGER: &str = "cilium/state/services/v1/us-east/bank/ledger";
const CART_IP: &str = "cilium/state/ip/v1/default/10.1.0.9";
const LEDGER_IP: &str = "cilium/state/ip/v1/default/10.1.0.20";
const CLIENT_IP: &str = "cilium/state/ip/v1/default/10.1.0.30";
/// Outside its node's podCIDR: its own entry is the only way back to it.
const STRAY_IP: &str = "cilium/state/ip/v1/default/10.1.7.7";

/// A global service `bank/ledger` of the `tier`, its pod, and two pods that only ask.
fn bank(tier: &str) -> String {
    let mut text = format!(
        "apiVersion: v1
kind: Namespace
metadata: {{ name: bank, labels: {{ kubernetes.io/metadata.name: bank, team: b }} }}
---
apiVersion: v1
kind: Service
metadata: {{ name: ledger, namespace: bank, annotations: {{ hawser.io/global: \"true\" }}, labels: {{ tier: {tier} }} }}
spec: {{ clusterIP: 10.96.10.2, clusterIPs: [10.96.10.2], ports: [{{ port: 80, protocol: TCP }}] }}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
addressType: IPv4
metadata: {{ name: ledger-1, namespace: bank, labels: {{ kubernetes.io/service-name: ledger }} }}
endpoints: [{{ addresses: [10.1.0.20], conditions: {{ ready: true }} }}]
ports: [{{ port: 8080, protocol: TCP }}]
"
    );
    for (name, namespace, ip) in
        [("ledger", "bank", "10.1.0.20"), ("client", "shop", "10.1.0.30"), ("stray", "shop", "10.1.7.7")]
    {
        let _ = write!(
            text,
            "---
apiVersion: v1
kind: Pod
metadata: {{ name: {name}, namespace: {namespace}, labels: {{ app: {name} }} }}
spec: {{ nodeName: node-1, serviceAccountName: default }}
status: {{ phase: Running, hostIP: 172.16.1.11, podIP: {ip}, podIPs: [{{ ip: {ip} }}] }}
"
        );
    }
    text
}

/// us-east with shop and bank, and what `exports:` says; eu-west reads it.
async fn two(exports: &str) -> (Cluster, Cluster) {
    let (mut us, mut eu) = (Cluster::with_shop("us-east", 1), Cluster::with_shop("eu-west", 2));
    us.manifest("bank.yaml", &bank("web"));
    us.write_config(&format!("{}{exports}", us.config()));
    us.start(&[]).await;
    eu.start(&[]).await;
    us.connect_with(&eu).await;
    (us, eu)
}

/// Keys of services, addresses and slices, as this reader has them.
async fn told(client: &Client) -> Vec<String> {
    let all = list(client, KeyRange::prefix("cilium/state/")).await.unwrap();
    let kinds = ["/services/", "/ip/", "/endpointslices/"];
    all.into_iter().map(|(key, _)| key).filter(|key| kinds.iter().any(|kind| key.contains(kind))).collect()
}

async fn identities(client: &Client) -> String {
    let all = list(client, KeyRange::prefix("cilium/state/identities/")).await.unwrap();
    all.into_iter().map(|(_, labels)| labels).collect()
}

async fn header(client: &Client) -> pb::ResponseHeader {
    let read = pb::RangeRequest { key: "cilium/.heartbeat".into(), ..Default::default() };
    client.range(read).await.unwrap().header.unwrap()
}

#[tokio::test]
async fn by_default_a_peer_reads_global_services_what_is_behind_them_and_what_answers_need() {
    let (us, eu) = two("").await;
    let peer = us.etcd(Some(&eu.remote_identity()), None).await.unwrap();
    let own = us.etcd(Some(&us.admin_identity()), None).await.unwrap();
    assert_eq!(
        told(&peer).await,
        [
            "cilium/state/endpointslices/v1/us-east/bank/ledger-1",
            "cilium/state/endpointslices/v1/us-east/shop/cart-x7k2p",
            LEDGER_IP,
            CART_IP,
            STRAY_IP,
            LEDGER,
            CART,
        ]
    );
    let known = identities(&peer).await;
    assert!(known.contains("app=cart;") && known.contains("app=stray;"), "{known}");
    assert!(!known.contains("app=client;"), "{known}");
    assert!(identities(&own).await.contains("app=client;") && get(&own, CLIENT_IP).await.unwrap().is_some());
    for key in ["cilium/.heartbeat", "cilium/cluster-config/us-east", "hawser/state/nodes/v1/us-east/node-1"]
    {
        assert_eq!(get(&peer, key).await.unwrap(), get(&own, key).await.unwrap(), "{key}");
    }
    // A view of its own lineage, at the store's revisions.
    let (view, store) = (header(&peer).await, header(&own).await);
    assert_ne!(view.cluster_id, store.cluster_id);
    assert_eq!(view.revision, store.revision);

    // Another service comes and goes with its annotation.
    us.manifest("bank.yaml", &bank("web").replace("global: \"true\"", "global: \"false\""));
    until_gone(&peer, LEDGER_IP).await;
    assert_eq!(told(&peer).await.len(), 4);
    us.manifest("bank.yaml", &bank("web"));
    until_says(&peer, LEDGER_IP, "ledger").await;
}

#[tokio::test]
async fn each_peer_has_its_filter_and_the_operator_sees_what_is_hidden_by_it() {
    let exports = "exports:\n  default: {podSelector: {}}\n  peers:\n    eu-west: {namespaceSelector: {matchLabels: {team: a}}}\n    ap-south: {namespaces: []}\n";
    let (us, eu) = two(exports).await;
    let peer = us.etcd(Some(&eu.remote_identity()), None).await.unwrap();
    let services = ["cilium/state/endpointslices/v1/us-east/shop/cart-x7k2p", CART_IP, STRAY_IP, CART];
    assert_eq!(told(&peer).await, services);
    // The namespace's labels decide, as they change.
    let relabelled = open_shop().replace("team: a", "team: b");
    us.manifest("shop.yaml", &relabelled);
    until_gone(&peer, CART_IP).await;
    assert_eq!(told(&peer).await, [""; 0]);
    us.manifest("shop.yaml", &open_shop());
    until_says(&peer, CART, "10.1.0.9").await;

    let ask = async |peer: &str| us.admin().await.exports(ExportsRequest { peer: peer.into() }).await;
    let count = |visible, hidden| Some(ExportCount { visible, hidden });
    let all = ask("").await.unwrap().into_inner();
    let names: Vec<_> = all.peers.iter().map(|p| (p.peer.as_str(), p.connected, p.filter.as_str())).collect();
    assert_eq!(names, [("ap-south", false, "peers.ap-south"), ("eu-west", true, "peers.eu-west")]);
    assert_eq!((all.peers[0].services, all.peers[0].nodes), (count(0, 2), count(1, 0)));
    assert_ne!(all.peers[0].view, all.peers[1].view);
    let one = ask("eu-west").await.unwrap().into_inner();
    let of = &one.peers[0];
    assert_eq!(of.selects, "namespaces: with team=a; services: all; pods: of exported services");
    // Of five addresses: the cart's IPv4 one and the stray's. Identities rest a while after their last pod.
    assert_eq!((of.services, of.endpoints), (count(1, 1), count(2, 3)));
    assert!(of.identities.is_some_and(|count| count.visible == 2 && count.hidden >= 2), "{of:?}");
    let services: Vec<_> = one.services.iter().map(|s| (s.service.as_str(), s.visible)).collect();
    assert_eq!(services, [("bank/ledger", false), ("shop/cart", true)]);
    let error = ask("atlantis").await.unwrap_err();
    assert!(error.message().contains("\"atlantis\"") && error.message().contains("fix:"), "{error}");
    assert_eq!(us.status().await.peers[0].exports, "peers.eu-west");
}

/// What a follower is told next of these keys.
async fn next(follow: &mut Follow) -> (String, i64, bool) {
    loop {
        match follow.next().await.unwrap() {
            FollowEvent::Put { kv, .. } => {
                return (String::from_utf8(kv.key.to_vec()).unwrap(), kv.mod_revision, true);
            }
            FollowEvent::Delete { key, mod_revision, .. } => {
                return (String::from_utf8(key.to_vec()).unwrap(), mod_revision, false);
            }
            FollowEvent::Progress { .. } | FollowEvent::Listed { .. } | FollowEvent::Reset { .. } => {}
            other @ FollowEvent::Interrupted { .. } => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn an_object_that_leaves_the_view_is_deleted_at_the_peers_mirror_and_at_its_agents() {
    let (us, eu) = two("exports: {default: {serviceSelector: {matchLabels: {tier: web}}}}\n").await;
    let mirror = eu.etcd(Some(&eu.admin_identity()), Some("us-east")).await.unwrap();
    until_says(&mirror, LEDGER, "10.1.0.20").await;
    assert_eq!(get(&mirror, CART).await.unwrap(), None, "it has no tier");
    let agent = eu.agent_identity("node-1").await;
    let agent = eu.etcd(Some(&agent), Some("us-east")).await.unwrap();
    let mut follow =
        agent.follow(FollowConfig::new(vec![KeyRange::prefix("cilium/state/services/")])).unwrap();
    assert_eq!(next(&mut follow).await.0, LEDGER);
    let mut addresses = agent.follow(FollowConfig::new(vec![KeyRange::key(LEDGER_IP)])).unwrap();
    let (_, listed, _) = next(&mut addresses).await;

    us.manifest("bank.yaml", &bank("internal"));
    let (key, gone_at, there) = next(&mut follow).await;
    assert_eq!((key.as_str(), there), (LEDGER, false));
    assert_eq!(next(&mut addresses).await, (LEDGER_IP.to_owned(), gone_at, false), "in one revision");
    assert!(gone_at > listed);
    assert!(told(&mirror).await == [STRAY_IP] && !identities(&mirror).await.contains("ledger"));
    let own = us.etcd(Some(&us.admin_identity()), None).await.unwrap();
    assert!(get(&own, LEDGER_IP).await.unwrap().is_some(), "nothing was deleted at home");

    us.manifest("bank.yaml", &bank("web"));
    let (key, back_at, there) = next(&mut follow).await;
    assert_eq!((key.as_str(), there), (LEDGER, true));
    assert_eq!(next(&mut addresses).await, (LEDGER_IP.to_owned(), back_at, true));
    let peer = eu.status().await.peers[0].clone();
    assert_eq!((peer.relists, peer.state.as_str()), (0, "synced"), "{peer:?}");
}

#[tokio::test]
async fn another_filter_is_another_view_that_peers_list_and_compare() {
    let (mut us, eu) = two("").await;
    let mirror = eu.etcd(Some(&eu.admin_identity()), Some("us-east")).await.unwrap();
    until_says(&mirror, LEDGER, "10.1.0.20").await;
    let before = header(&mirror).await.cluster_id;
    let other = format!("{}exports: {{peers: {{eu-west: {{namespaces: [shop]}}}}}}\n", us.config());
    us.write_config(&other);
    // While the server runs.
    until_gone(&mirror, LEDGER).await;
    assert!(get(&mirror, CART).await.unwrap().is_some());
    let after = header(&mirror).await.cluster_id;
    assert_ne!(after, before);
    let peer = eu.status().await.peers[0].clone();
    assert_eq!((peer.relists, peer.state.as_str()), (1, "synced"), "{peer:?}");
    let shown =
        us.admin().await.exports(ExportsRequest { peer: "eu-west".into() }).await.unwrap().into_inner();
    assert_eq!(shown.peers[0].selects, "namespaces: in (shop); services: all; pods: of exported services");

    // The same after a restart, so nobody lists.
    assert_eq!(us.stop(), Some(0));
    us.start(&[]).await;
    us.manifest("shop.yaml", &open_shop().replace("10.1.0.9", "10.1.0.8"));
    until_says(&mirror, CART, "10.1.0.8").await;
    assert_eq!((header(&mirror).await.cluster_id, eu.status().await.peers[0].relists), (after, 1));
}

#[tokio::test]
async fn filters_that_cannot_be_read_leave_those_before_and_are_named_until_they_can() {
    let (us, eu) = two("exports: {peers: {eu-west: {namespaces: [shop]}}}\n").await;
    let mirror = eu.etcd(Some(&eu.admin_identity()), Some("us-east")).await.unwrap();
    until_says(&mirror, CART, "10.1.0.9").await;
    us.write_config(&format!("{}exports: {{peers: {{eu-west: {{namespace: [bank]}}}}}}\n", us.config()));
    let named = eventually("the mistake is named", async || {
        let errors = us.status().await.source_errors;
        errors.into_iter().find(|error| error.contains("cluster.yaml")).ok_or("none".into())
    })
    .await;
    assert!(named.contains("`namespace`") && named.contains("fix: "), "{named}");
    assert_eq!(eu.status().await.peers[0].relists, 0);
    // What is not under exports is not taken over; a peer that is not named is let alone.
    let other = us.config().replace("127.0.0.1:", "0.0.0.0:");
    us.write_config(&format!(
        "{other}exports: {{peers: {{eu-west: {{namespaces: [shop]}}, ap-south: {{}}}}}}\n"
    ));
    eventually("nothing is wrong any more", async || {
        let errors = us.status().await.source_errors;
        if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
    })
    .await;
    let peer = eu.status().await.peers[0].clone();
    assert_eq!((peer.relists, peer.reconnects, peer.state.as_str()), (0, 0, "synced"), "{peer:?}");
    assert!(us.log().contains("fix: restart this server"));
}

#[tokio::test]
async fn a_peers_watch_that_was_begun_at_one_replica_goes_on_at_another() {
    let etcd = Etcd::start();
    let mut one = Cluster::with_shop("us-east", 1);
    let (mut two, mut eu) = (one.twin(), Cluster::with_shop("eu-west", 2));
    one.manifest("bank.yaml", &bank("web"));
    for replica in [&mut one, &mut two] {
        let dir = replica.dir.path().display().to_string();
        let config = replica
            .config()
            .replace(&format!("embedded:{dir}/store"), &format!("etcd://127.0.0.1:{}", etcd.port));
        let exports = "exports: {default: {serviceSelector: {matchLabels: {tier: web}}}}";
        replica.write_config(&format!("{config}mirrors: {dir}/mirrors\n{exports}\n"));
        replica.start(&[]).await;
    }
    eu.start(&[]).await;
    one.connect_with(&eu).await;
    let peer = eu.remote_identity();
    let at_one = one.etcd(Some(&peer), None).await.unwrap();
    let at_two = eventually("the other replica knows the peer", async || {
        let client = two.etcd(Some(&peer), None).await.map_err(|error| error.to_string())?;
        get(&client, LEDGER).await?.map(|_| client).ok_or_else(|| "not there".into())
    })
    .await;
    let read = pb::RangeRequest { key: LEDGER_IP.into(), ..Default::default() };
    let reply = at_one.range(read).await.unwrap();
    let (seen, known) = (reply.header.unwrap(), vec![(LEDGER_IP.into(), reply.kvs[0].mod_revision)]);
    assert_eq!(seen.cluster_id, header(&at_two).await.cluster_id);
    one.manifest("bank.yaml", &bank("internal"));
    until_gone(&at_one, LEDGER_IP).await;
    one.manifest("bank.yaml", &bank("web"));
    until_says(&at_one, LEDGER_IP, "ledger").await;
    let mut told = Vec::new();
    for client in [&at_one, &at_two] {
        let start = Resume { cluster_id: seen.cluster_id, revision: seen.revision, known: known.clone() };
        let keys = vec![KeyRange::key(LEDGER_IP)];
        let mut follow =
            client.follow(FollowConfig { start: Some(start), ..FollowConfig::new(keys) }).unwrap();
        told.push([next(&mut follow).await, next(&mut follow).await]);
    }
    assert_eq!(told[0], told[1]);
    assert_eq!((told[0][0].2, told[0][1].2), (false, true), "gone, and back: {told:?}");
}
