//! A client that follows ranges through cuts, silence, compaction and another store in its server's place.

use std::time::Duration;

use hawser_etcd::client::{Client, FollowConfig, FollowEvent, FollowState};
use hawser_etcd::pb;
use hawser_etcd::store::open_store;
use hawser_kvstore::{KeyRange, Op};

use crate::harness::{Copy, RealEtcd, TestServer, Wire, channel, eventually, memory, pace};

const STATE: &[&str] = &["cilium/state/"];

#[tokio::test]
async fn ten_thousand_keys_are_listed_in_pages_and_then_followed() {
    let server = TestServer::serving(memory("us-east", 1)).await;
    for n in 0..10_000 {
        server.put(&format!("cilium/state/ip/v1/default/10.1.{}.{}", n / 250, n % 250), "x").await;
    }
    let mut copy = Copy::of(&server.client(), STATE);
    copy.until_equal(server.own().keyspace(), STATE).await;
    server.put("cilium/state/ip/v1/default/10.1.0.0", "y").await;
    server.delete("cilium/state/ip/v1/default/10.1.1.").await;
    server.put("elsewhere", "z").await;
    copy.until_equal(server.own().keyspace(), STATE).await;
    assert_eq!(copy.resets, ["Start"]);
}

#[tokio::test]
async fn a_cut_is_survived_without_a_list_by_servers_of_both_kinds() {
    let etcd = RealEtcd::start().await;
    let ours = TestServer::serving(memory("us-east", 1)).await;
    for addr in [etcd.addr, ours.addr] {
        let direct = Client::new(channel(addr));
        let put = async |key: &str| {
            let put = pb::PutRequest { key: key.to_owned().into(), value: "v".into(), ..Default::default() };
            direct.put(put).await.unwrap();
        };
        put("cilium/state/a").await;
        let wire = Wire::to(addr).await;
        let mut copy = Copy::of(&Client::new(channel(wire.addr)), STATE);
        let status = copy.follow.status();
        eventually("following", || status.borrow().state == FollowState::Following).await;
        wire.cut();
        eventually("interrupted", || status.borrow().state == FollowState::Connecting).await;
        put("cilium/state/b").await;
        direct
            .delete_range(pb::DeleteRangeRequest { key: "cilium/state/a".into(), ..Default::default() })
            .await
            .unwrap();
        wire.connect(addr);
        loop {
            let event = copy.follow.next().await.unwrap();
            let last = matches!(&event, FollowEvent::Delete { key, .. } if key == "cilium/state/a");
            copy.take(event);
            if last {
                break;
            }
        }
        assert_eq!(copy.kvs.keys().collect::<Vec<_>>(), ["cilium/state/b"]);
        assert_eq!(copy.resets, ["Start"]);
        assert_eq!(status.borrow().relists, 0);
    }
}

#[tokio::test]
async fn a_wire_that_swallows_everything_is_noticed_and_a_quiet_server_is_not_mistaken_for_one() {
    let server = TestServer::serving(memory("us-east", 1)).await;
    let wire = Wire::to(server.addr).await;
    let mut copy = Copy::of(&Client::new(channel(wire.addr)), STATE);
    let status = copy.follow.status();
    eventually("following", || status.borrow().state == FollowState::Following).await;
    let heard = status.borrow().heard_at;
    eventually("it is heard again though nothing happens", || status.borrow().heard_at > heard).await;
    assert_eq!(status.borrow().reconnects, 0);

    wire.freeze();
    eventually("given up", || status.borrow().reconnects > 0).await;
    server.put("cilium/state/a", "v").await;
    wire.connect(server.addr);
    copy.until_equal(server.own().keyspace(), STATE).await;
    assert_eq!(copy.resets, ["Start"]);
}

#[tokio::test]
async fn what_was_compacted_while_we_were_cut_off_is_made_up_for_by_differences() {
    let server = TestServer::serving(memory("us-east", 1)).await;
    for key in ["same", "changed", "gone"] {
        server.put(&format!("cilium/state/{key}"), "1").await;
    }
    let wire = Wire::to(server.addr).await;
    let mut copy = Copy::of(&Client::new(channel(wire.addr)), STATE);
    copy.until_equal(server.own().keyspace(), STATE).await;
    let status = copy.follow.status();
    eventually("following", || status.borrow().state == FollowState::Following).await;
    wire.cut();
    server.delete("cilium/state/gone").await;
    server.put("cilium/state/new", "1").await;
    let revision = server.put("cilium/state/changed", "2").await;
    server.own().writer().write(Op::Compact { revision }).await.unwrap();
    wire.connect(server.addr);
    let mut told = Vec::new();
    while copy.resets.len() < 2 || !matches!(told.last(), Some(FollowEvent::Listed { .. })) {
        let event = copy.follow.next().await.unwrap();
        copy.take(event.clone());
        if !matches!(event, FollowEvent::Progress { .. } | FollowEvent::Interrupted { .. }) {
            told.push(event);
        }
    }
    copy.until_equal(server.own().keyspace(), STATE).await;
    assert_eq!(copy.resets, ["Start", "Compacted"]);
    let changes = told.iter().filter(|e| matches!(e, FollowEvent::Put { .. } | FollowEvent::Delete { .. }));
    assert_eq!(changes.count(), 3, "what is the same is not told again: {told:?}");
}

#[tokio::test]
async fn a_store_is_wiped_while_ten_clients_resume_and_none_hangs_and_none_keeps_a_stale_key() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(&format!("embedded:{}", dir.path().join("first").display()), None, "us-east")
        .await
        .unwrap();
    let old = TestServer::serving(store.handle.clone()).await;
    for n in 0..500 {
        old.put(&format!("cilium/state/old/{n}"), "v").await;
        old.put("cilium/state/both", &n.to_string()).await;
    }
    let wire = Wire::to(old.addr).await;
    let mut copies: Vec<Copy> = (0..10).map(|_| Copy::of(&Client::new(channel(wire.addr)), STATE)).collect();
    for copy in &mut copies {
        copy.until_equal(old.own().keyspace(), STATE).await;
    }
    wire.cut();

    let wiped = open_store(&format!("embedded:{}", dir.path().join("second").display()), None, "us-east")
        .await
        .unwrap();
    assert_ne!(wiped.lineage, store.lineage);
    let new = TestServer::serving(wiped.handle.clone()).await;
    new.put("cilium/state/both", "new").await;
    new.put("cilium/state/new", "v").await;
    wire.connect(new.addr);
    for copy in &mut copies {
        copy.until_equal(new.own().keyspace(), STATE).await;
        assert!(copy.resets[1].starts_with("LineageChanged"), "{:?}", copy.resets);
    }
    new.put("cilium/state/later", "v").await;
    for copy in &mut copies {
        copy.until_equal(new.own().keyspace(), STATE).await;
        assert_eq!(copy.resets.len(), 2, "once was enough");
    }
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_its_server_back_and_loses_nothing() {
    let server = TestServer::serving(memory("us-east", 1)).await;
    let config =
        FollowConfig { buffer: 4, pace: pace(), ..FollowConfig::new(vec![KeyRange::prefix(STATE[0])]) };
    let mut copy = Copy::following(&server.client(), config);
    let status = copy.follow.status();
    eventually("following", || status.borrow().state == FollowState::Following).await;
    for n in 0..2000 {
        server.put(&format!("cilium/state/{}", n % 100), &n.to_string()).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    copy.until_equal(server.own().keyspace(), STATE).await;
    assert_eq!(copy.resets, ["Start"]);
}

#[tokio::test]
async fn the_plain_calls_work_at_servers_of_both_kinds() {
    let etcd = RealEtcd::start().await;
    let ours = TestServer::serving(memory("us-east", 1)).await;
    for addr in [etcd.addr, ours.addr] {
        let client = Client::new(channel(addr));
        let lease = client.lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 0 }).await.unwrap();
        let put =
            pb::PutRequest { key: "a".into(), value: "1".into(), lease: lease.id, ..Default::default() };
        client.put(put).await.unwrap();
        assert_eq!(client.lease_keep_alive(lease.id).await.unwrap().ttl, 60);
        let range = client.range(pb::RangeRequest { key: "a".into(), ..Default::default() }).await.unwrap();
        assert_eq!((range.kvs[0].value.clone(), range.kvs[0].lease), ("1".into(), lease.id));
        client.lease_revoke(pb::LeaseRevokeRequest { id: lease.id }).await.unwrap();
        assert_eq!(client.lease_keep_alive(lease.id).await.unwrap().ttl, 0, "the lease is gone");
        let txn = client.txn(pb::TxnRequest::default()).await.unwrap();
        assert!(txn.succeeded);
        assert!(!client.status(pb::StatusRequest {}).await.unwrap().version.is_empty());
    }
}

#[tokio::test]
async fn a_hawser_server_says_unasked_how_far_all_ranges_of_a_stream_have_come() {
    let server = TestServer::serving(memory("us-east", 1)).await;
    let creates = ["a/", "b/"].into_iter().zip(1..).map(|(prefix, watch_id)| {
        let (key, range_end) = KeyRange::prefix(prefix).to_wire();
        let create = pb::WatchCreateRequest { key, range_end, watch_id, ..Default::default() };
        pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) }
    });
    let requests = futures::StreamExt::chain(futures::stream::iter(creates), futures::stream::pending());
    let mut request = tonic::Request::new(requests);
    request.metadata_mut().insert("hawser-progress", "rounds".parse().unwrap());
    let mut watch = pb::watch_client::WatchClient::new(channel(server.addr));
    let mut messages = watch.watch(request).await.unwrap().into_inner();
    for _ in 0..2 {
        assert!(messages.message().await.unwrap().unwrap().created);
    }
    let revision = server.put("b/1", "v").await;
    let events = messages.message().await.unwrap().unwrap();
    assert_eq!((events.watch_id, events.events.len()), (2, 1));
    let progress = messages.message().await.unwrap().unwrap();
    assert_eq!((progress.watch_id, progress.header.unwrap().revision), (-1, revision));
}
