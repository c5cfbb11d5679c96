//! How a node gets in, and what its word does.

use crate::cluster::{Cluster, csr, get, until_says};
use hawser_api::agent::{RenewRequest, ReportRequest, WireGuardEnd};
use tonic::Code;

fn report(node: &str) -> ReportRequest {
    let wireguard = WireGuardEnd {
        epoch: 1,
        public_key: vec![7; 32],
        port: 51871,
        mtu: 1420,
        esp: None,
        more_ports: Vec::new(),
    };
    let boot_id = "6c1f0c1e-1111-4222-8333-444455556666".into();
    ReportRequest { node: node.into(), boot_id, wireguard: Some(wireguard), trusted_cas: Vec::new() }
}

#[tokio::test]
async fn a_token_lets_its_node_in_once() {
    let mut us = Cluster::with_shop("us-east", 1);
    us.start(&[]).await;
    let file = us.token("node-1").await;
    assert_eq!(file.servers[0].to_string(), format!("https://127.0.0.1:{}", us.port));
    let token = file.token.reveal();
    let other = us.join("node-2", &token).await.err().unwrap();
    assert_eq!(other.code(), Code::Unauthenticated);
    assert!(other.message().contains("bound to node node-1"), "{other}");
    // A request that cannot be signed does not cost the token.
    let mut nobody = us.agent(None).await;
    let unsigned = hawser_api::agent::JoinRequest {
        node: "node-1".into(),
        token: token.clone(),
        csr: vec![1, 2, 3],
        ..Default::default()
    };
    assert_eq!(nobody.join(unsigned).await.unwrap_err().code(), Code::InvalidArgument);
    us.join("node-1", &token).await.ok().unwrap();
    let again = us.join("node-1", &token).await.err().unwrap();
    assert_eq!(again.code(), Code::Unauthenticated);
    assert!(again.message().contains("used already"), "{again}");
    // It is stored hashed.
    let own = us.etcd(Some(&us.admin_identity()), None).await.unwrap();
    let fresh = us.token("node-1").await.token;
    let stored = get(&own, &format!("hawser/private/tokens/v1/{}", fresh.id())).await.unwrap().unwrap();
    assert!(!stored.contains(fresh.reveal().rsplit('.').next().unwrap()), "{stored}");
}

#[tokio::test]
async fn a_token_that_was_changed_or_is_another_clusters_lets_nobody_in() {
    let (mut us, mut eu) = (Cluster::with_shop("us-east", 1), Cluster::with_shop("eu-west", 2));
    us.start(&[]).await;
    eu.start(&[]).await;
    let token = us.token("node-1").await.token.reveal();
    let foreign = eu.join("node-1", &token).await.err().unwrap();
    assert_eq!(foreign.code(), Code::Unauthenticated);
    assert!(foreign.message().contains("is unknown here"), "{foreign}");
    // The first character of the secret: a change in the last one may lie in bits that say nothing.
    let at = token.rfind('.').unwrap() + 1;
    let other = if token[at..].starts_with('A') { "B" } else { "A" };
    let changed = format!("{}{other}{}", &token[..at], &token[at + 1..]);
    let refused = us.join("node-1", &changed).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("is unknown here"), "it says no more: {refused}");
    for cut in [&token[..token.len() - 1], &token[..at], "hwt2.x.y", ""] {
        let refused = us.join("node-1", cut).await.err().unwrap();
        assert_eq!(refused.code(), Code::InvalidArgument, "{cut}: {refused}");
    }
    us.join("node-1", &token).await.ok().unwrap();
}

#[tokio::test]
async fn a_report_appears_in_both_forms_of_the_node_and_survives_a_restart() {
    let mut us = Cluster::with_shop("us-east", 1);
    us.start(&[]).await;
    let agent = us.agent_identity("node-1").await;
    let reply = us.agent(Some(&agent)).await.report(report("node-1")).await.unwrap().into_inner();
    assert_eq!((reply.index, reply.mesh_ipv4.as_str()), (1, "240.1.0.1"));
    assert_eq!((reply.max_connected_clusters, reply.mesh_ipv4_range.as_str()), (255, "240.0.0.0/4"));
    let own = us.etcd(Some(&agent), None).await.unwrap();
    until_says(&own, "cilium/state/nodes/v1/us-east/node-1", r#""EncryptionKey":255"#).await;
    let ours = get(&own, "hawser/state/nodes/v1/us-east/node-1").await.unwrap().unwrap();
    assert!(ours.contains(r#""port":51871"#) && ours.contains(&reply.mesh_ipv6), "{ours}");
    assert!(us.status().await.nodes[0].reported_ms_ago >= 0);
    us.kill();
    us.start(&[]).await;
    let own = us.etcd(Some(&agent), None).await.unwrap();
    assert_eq!(get(&own, "hawser/state/nodes/v1/us-east/node-1").await.unwrap().unwrap(), ours);
}

#[tokio::test]
async fn a_node_that_the_source_does_not_know_is_named() {
    let mut us = Cluster::with_shop("us-east", 1);
    us.start(&[]).await;
    let agent = us.agent_identity("node-9").await;
    let error = us.agent(Some(&agent)).await.report(report("node-9")).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("node node-9 is not in this cluster's source"), "{error}");
}

#[tokio::test]
async fn a_certificate_is_renewed_by_whoever_holds_it() {
    let mut us = Cluster::with_shop("us-east", 1);
    us.start(&[]).await;
    let agent = us.agent_identity("node-1").await;
    let key = rcgen::KeyPair::generate().unwrap();
    let reply =
        us.agent(Some(&agent)).await.renew(RenewRequest { csr: csr(&key) }).await.unwrap().into_inner();
    let leaf = hawser_pki::Leaf::from_pem(&reply.certificate).unwrap();
    assert_eq!(leaf.name, "agent-us-east-node-1");
    assert_eq!((reply.cluster.as_str(), reply.cluster_id), ("us-east", 1));
}

#[tokio::test]
async fn a_report_that_makes_no_sense_is_refused() {
    let mut us = Cluster::with_shop("us-east", 1);
    us.start(&[]).await;
    let agent = us.agent_identity("node-1").await;
    let end = |change: fn(&mut WireGuardEnd)| {
        let mut request = report("node-1");
        change(request.wireguard.as_mut().unwrap());
        request
    };
    for (request, says) in [
        (end(|w| w.public_key = vec![1; 31]), "31 bytes"),
        (end(|w| w.public_key = vec![0; 32]), "zeros"),
        (end(|w| w.port = 70_000), "70000"),
        (end(|w| w.epoch = 0), "epoch"),
        (ReportRequest { boot_id: "x".into(), ..report("node-1") }, "boot id"),
    ] {
        let error = us.agent(Some(&agent)).await.report(request).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains(says), "{error}");
    }
}
