//! Two replicas over one etcd: one exports, both serve, and whoever is left goes on.

use hawser_api::agent::{ReportRequest, WireGuardEnd};
use hawser_etcd::client::{FollowConfig, FollowEvent, Resume};
use hawser_etcd::pb;
use hawser_kvstore::KeyRange;

use crate::cluster::{Cluster, eventually, get, open_shop, until_says};
use crate::mesh::{CART, Etcd};

const LEADER: &str = "hawser/private/leader";

/// `us-east` twice: the same CA, manifests and etcd, another port.
async fn two_replicas(etcd: &Etcd) -> (Cluster, Cluster) {
    let mut one = Cluster::with_shop("us-east", 1);
    let mut two = one.twin();
    let store = format!("etcd://127.0.0.1:{}", etcd.port);
    for replica in [&mut one, &mut two] {
        let dir = replica.dir.path().display().to_string();
        let config = replica.config().replace(&format!("embedded:{dir}/store"), &store);
        replica.write_config(&format!("{config}mirrors: {dir}/mirrors\n"));
        replica.start(&[]).await;
    }
    (one, two)
}

async fn leads(replica: &Cluster) -> bool {
    let client = replica.etcd(Some(&replica.admin_identity()), None).await.unwrap();
    let leader = get(&client, LEADER).await.unwrap().unwrap_or_default();
    leader.contains(&format!(":{})", replica.port))
}

#[tokio::test]
async fn one_replica_exports_and_another_goes_on_when_it_is_killed() {
    let etcd = Etcd::start();
    let (mut one, mut two) = two_replicas(&etcd).await;
    assert!(leads(&one).await && !leads(&two).await);
    let (admin, shop) = (one.admin_identity(), open_shop());
    let at_two = two.etcd(Some(&admin), None).await.unwrap();
    one.kill();
    one.manifest("shop.yaml", &shop.replace("10.1.0.9", "10.1.0.12"));
    until_says(&at_two, CART, "10.1.0.12").await;
    assert!(leads(&two).await);

    one.spawn(&[]);
    let at_one = eventually("the killed one serves again", async || {
        one.etcd(Some(&admin), None).await.map_err(|error| error.to_string())
    })
    .await;
    until_says(&at_one, CART, "10.1.0.12").await;
    assert!(leads(&two).await, "who comes back waits for its turn");
    assert_eq!(two.stop(), Some(0));
    one.manifest("shop.yaml", &shop.replace("10.1.0.9", "10.1.0.13"));
    until_says(&at_one, CART, "10.1.0.13").await;
    assert!(leads(&one).await, "and has it as soon as the other one resigns");
}

#[tokio::test]
async fn an_agent_may_report_at_any_replica() {
    let etcd = Etcd::start();
    let (one, two) = two_replicas(&etcd).await;
    let token = one.token("node-1").await.token.reveal();
    let identity = two.join("node-1", &token).await.unwrap();
    let end = WireGuardEnd {
        epoch: 1,
        public_key: vec![7; 32],
        port: 51871,
        mtu: 1420,
        esp: None,
        more_ports: Vec::new(),
    };
    let report = ReportRequest { node: "node-1".into(), wireguard: Some(end), ..Default::default() };
    assert!(!leads(&two).await);
    let index = two.agent(Some(&identity)).await.report(report.clone()).await.unwrap().into_inner().index;
    let again = one.agent(Some(&identity)).await.report(report).await.unwrap().into_inner().index;
    assert_eq!(index, again);
    let client = one.etcd(Some(&one.admin_identity()), None).await.unwrap();
    until_says(&client, "hawser/state/nodes/v1/us-east/node-1", "51871").await;
    assert!(one.join("node-1", &token).await.is_err(), "a token that was used at one replica is used at all");
}

#[tokio::test]
async fn every_replica_says_who_leads_and_what_agents_told_any_of_them() {
    let etcd = Etcd::start();
    let (mut one, two) = two_replicas(&etcd).await;
    let token = one.token("node-1").await.token.reveal();
    let identity = one.join("node-1", &token).await.unwrap();
    let report = ReportRequest { node: "node-1".into(), ..Default::default() };
    let index = one.agent(Some(&identity)).await.report(report).await.unwrap().into_inner().index;
    let (at_one, at_two) = eventually("both know of each other and of the agent", async || {
        let (at_one, at_two) = (one.status().await, two.status().await);
        for status in [&at_one, &at_two] {
            let replicas = &status.replica.as_ref().unwrap().replicas;
            let node = status.nodes.iter().find(|node| node.name == "node-1").ok_or("no node-1")?;
            if replicas.len() != 2 || node.reported_ms_ago < 0 {
                return Err(format!("{replicas:?} {node:?}"));
            }
            assert_eq!(node.index, index);
        }
        Ok((at_one, at_two))
    })
    .await;
    let counts = |status: &hawser_api::admin::StatusReply| {
        assert!(status.services > 0 && status.endpoints > 0);
        (status.services, status.endpoints, status.identities, status.nodes.len())
    };
    assert_eq!(counts(&at_one), counts(&at_two), "a follower says what the leader exports");
    let (leads, follows) = (at_one.replica.unwrap(), at_two.replica.unwrap());
    assert!(leads.exports && !follows.exports);
    assert!(leads.name.ends_with(&format!(":{})", one.port)) && leads.name != follows.name);
    assert_eq!((&leads.leader, &follows.leader), (&leads.name, &leads.name));
    assert!(leads.leader_ms_ago >= 0 && follows.leader_ms_ago >= 0);

    assert_eq!(one.stop(), Some(0));
    eventually("the other one leads and is alone", async || {
        let alone = two.status().await.replica.unwrap();
        match alone.exports && alone.leader == alone.name && alone.replicas.len() == 1 {
            true => Ok(()),
            false => Err(format!("{alone:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn a_watch_that_was_begun_at_one_replica_goes_on_at_another() {
    let etcd = Etcd::start();
    let (one, two) = two_replicas(&etcd).await;
    let admin = one.admin_identity();
    let (at_one, at_two) =
        (one.etcd(Some(&admin), None).await.unwrap(), two.etcd(Some(&admin), None).await.unwrap());
    let header = |reply: pb::RangeResponse| reply.header.unwrap();
    let read = || pb::RangeRequest { key: CART.into(), ..Default::default() };
    let seen = header(at_one.range(read()).await.unwrap());
    assert_eq!(seen.cluster_id, header(at_two.range(read()).await.unwrap()).cluster_id);

    one.manifest("shop.yaml", &open_shop().replace("10.1.0.9", "10.1.0.14"));
    until_says(&at_one, CART, "10.1.0.14").await;
    let start = Resume { cluster_id: seen.cluster_id, revision: seen.revision, known: Vec::new() };
    let config = FollowConfig { start: Some(start), ..FollowConfig::new(vec![KeyRange::key(CART)]) };
    let mut follow = at_two.follow(config).unwrap();
    loop {
        match follow.next().await.unwrap() {
            FollowEvent::Put { kv, .. } => {
                assert!(kv.mod_revision > seen.revision);
                break assert!(String::from_utf8_lossy(&kv.value).contains("10.1.0.14"));
            }
            FollowEvent::Progress { .. } => {}
            other => panic!("it was to resume: {other:?}"),
        }
    }
}
