//! Which keyspace a request means, who may ask, and what else answers on the port.

use crate::harness::{TestServer, memory};
use hawser_etcd::pb;
use hawser_etcd::pb::kv_client::KvClient;
use hawser_etcd::server::{
    Access, AccessRequest, AllowAll, Authorize, Denied, KeyspaceHandle, ReadOnlyWriter, SharedKeyspace,
};
use hawser_kvstore::{Identity, KeyRange, KeyValue, Keyspace, Limits};
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Request};

fn mirror_of(cluster: &str) -> KeyspaceHandle {
    let mut replica = Keyspace::replica(Identity::adopted(0), Limits::default());
    let kv = KeyValue {
        key: "who".into(),
        value: cluster.to_owned().into(),
        create_revision: 30,
        mod_revision: 40,
        version: 3,
        lease: 9,
    };
    replica.load(Identity::adopted(4711), 50, &[kv]).unwrap();
    KeyspaceHandle::new(cluster, SharedKeyspace::new(replica), ReadOnlyWriter::new(cluster))
}

async fn server_with_mirror() -> TestServer {
    let server = TestServer::start().await;
    server.keyspaces.add(mirror_of("eu-west"));
    server
}

async fn at(server: &TestServer, authority: &str) -> KvClient<Channel> {
    KvClient::new(server.channel_to(authority).await)
}

fn who() -> pb::RangeRequest {
    pb::RangeRequest { key: "who".into(), ..Default::default() }
}

fn for_cluster<T>(message: T, cluster: &'static str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("hawser-cluster", tonic::metadata::MetadataValue::from_static(cluster));
    request
}

#[tokio::test]
async fn the_authority_chooses_the_keyspace_then_the_metadata_then_it_is_our_own() {
    let server = server_with_mirror().await;
    let mut own = at(&server, "127.0.0.1:2379").await;
    assert_eq!(own.range(who()).await.unwrap().into_inner().count, 0);
    assert_eq!(own.range(for_cluster(who(), "eu-west")).await.unwrap().into_inner().count, 1);
    for authority in ["eu-west.mesh.hawser.io:2379", "eu-west.mesh.cilium.io"] {
        let mut there = at(&server, authority).await;
        assert_eq!(there.range(who()).await.unwrap().into_inner().count, 1, "{authority}");
        // The authority is what the certificate was checked for, so it wins.
        assert_eq!(there.range(for_cluster(who(), "us-east")).await.unwrap().into_inner().count, 1);
    }
    let mut own_by_name = at(&server, "us-east.mesh.hawser.io").await;
    assert_eq!(own_by_name.range(for_cluster(who(), "eu-west")).await.unwrap().into_inner().count, 0);
}

#[tokio::test]
async fn a_mirror_answers_with_its_origins_revisions_and_cluster_id() {
    let server = server_with_mirror().await;
    let mut client = at(&server, "eu-west.mesh.hawser.io").await;
    let response = client.range(who()).await.unwrap().into_inner();
    let header = response.header.unwrap();
    assert_eq!((header.cluster_id, header.revision), (4711, 50));
    let kv = &response.kvs[0];
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version, kv.lease), (30, 40, 3, 9));
}

#[tokio::test]
async fn a_mirror_is_not_written_here() {
    let server = server_with_mirror().await;
    let mut client = KvClient::new(server.channel().await);
    let put = pb::PutRequest { key: "who".into(), value: "us".into(), ..Default::default() };
    let refused = client.put(for_cluster(put, "eu-west")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("eu-west"), "{refused}");
}

#[tokio::test]
async fn an_unknown_cluster_is_not_found_and_named() {
    let server = server_with_mirror().await;
    let by_metadata =
        KvClient::new(server.channel().await).range(for_cluster(who(), "ap-south")).await.unwrap_err();
    let by_authority = at(&server, "ap-south.mesh.hawser.io").await.range(who()).await.unwrap_err();
    for refused in [by_metadata, by_authority] {
        assert_eq!(refused.code(), Code::NotFound);
        assert!(refused.message().contains("ap-south") && refused.message().contains("us-east"), "{refused}");
    }
}

#[tokio::test]
async fn a_removed_mirror_ends_its_watches_and_is_not_found_any_more() {
    let server = server_with_mirror().await;
    let channel = server.channel().await;
    let create = pb::WatchCreateRequest { key: "who".into(), ..Default::default() };
    let create =
        pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
    let requests = tokio_stream::StreamExt::chain(tokio_stream::once(create), tokio_stream::pending());
    let mut watch = pb::watch_client::WatchClient::new(channel.clone());
    let mut events = watch.watch(for_cluster(requests, "eu-west")).await.unwrap().into_inner();
    assert!(events.message().await.unwrap().unwrap().created);
    server.keyspaces.remove("eu-west").unwrap();
    assert_eq!(events.message().await.unwrap_err().code(), Code::Unavailable);
    let gone = KvClient::new(channel).range(for_cluster(who(), "eu-west")).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
}

/// May read below `open/`, write `open/mine`, nothing else.
struct Narrow;

impl Authorize for Narrow {
    fn authorize(&self, request: AccessRequest<'_>) -> Result<(), Denied> {
        let allowed = match request.access {
            Access::Read(keys) => KeyRange::prefix("open/").covers(keys),
            Access::Write(keys) => KeyRange::key("open/mine").covers(keys),
            _ => false,
        };
        let sentence = format!("role narrow may not {} {:?}", request.rpc, request.access);
        if allowed { Ok(()) } else { Err(Denied { sentence }) }
    }
}

fn txn_of(request: pb::request_op::Request) -> pb::TxnRequest {
    // In the branch that will not be taken: it is asked about all the same.
    pb::TxnRequest { failure: vec![pb::RequestOp { request: Some(request) }], ..Default::default() }
}

#[tokio::test]
async fn every_operation_of_every_request_is_authorized() {
    let server = TestServer::serving(memory("us-east", Limits::default()), Arc::new(Narrow)).await;
    let channel = server.channel().await;
    let mut kv = KvClient::new(channel.clone());
    let range = |key: &'static str, end: &'static str| pb::RangeRequest {
        key: key.into(),
        range_end: end.into(),
        ..Default::default()
    };
    let put = |key: &'static str, prev_kv| pb::PutRequest { key: key.into(), prev_kv, ..Default::default() };
    kv.range(range("open/", "open0")).await.unwrap();
    kv.put(put("open/mine", true)).await.unwrap();

    use pb::request_op::Request::{RequestPut, RequestRange, RequestTxn};
    let compare = pb::Compare { key: "secret".into(), ..Default::default() };
    let peek = pb::TxnRequest { compare: vec![compare], ..Default::default() };
    let nested = txn_of(RequestTxn(txn_of(RequestPut(put("secret", false)))));
    let lease = pb::LeaseGrantRequest { ttl: 10, id: 0 };
    let refusals = [
        kv.range(range("open/", "p")).await.err(),
        kv.range(range("a", "\0")).await.err(),
        kv.put(put("open/theirs", false)).await.err(),
        kv.delete_range(pb::DeleteRangeRequest {
            key: "open/".into(),
            range_end: "open0".into(),
            prev_kv: false,
        })
        .await
        .err(),
        kv.txn(txn_of(RequestRange(range("secret", "")))).await.err(),
        kv.txn(peek).await.err(),
        kv.txn(nested).await.err(),
        kv.compact(pb::CompactionRequest { revision: 1, physical: false }).await.err(),
        pb::lease_client::LeaseClient::new(channel.clone()).lease_grant(lease).await.err(),
        pb::maintenance_client::MaintenanceClient::new(channel).status(pb::StatusRequest {}).await.err(),
    ];
    for (at, refused) in refusals.into_iter().enumerate() {
        let refused = refused.unwrap_or_else(|| panic!("request {at} was let through"));
        assert_eq!(refused.code(), Code::PermissionDenied, "request {at}: {refused}");
        assert!(refused.message().starts_with("role narrow may not "), "{refused}");
    }
}

#[tokio::test]
async fn ranges_are_counted_per_keyspace() {
    let server = server_with_mirror().await;
    let mut client = KvClient::new(server.channel().await);
    for _ in 0..3 {
        client.range(for_cluster(who(), "eu-west")).await.unwrap();
    }
    client.range(who()).await.unwrap();
    assert_eq!(server.own().stats().ranges, 1);
    assert_eq!(server.keyspaces.get("eu-west").unwrap().stats().ranges, 3);
}

#[tokio::test]
async fn version_and_health_are_told_over_plain_http() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = TestServer::serving(memory("us-east", Limits::default()), Arc::new(AllowAll)).await;
    for (path, says) in
        [("/version", r#""etcdcluster":"3.5.0""#), ("/health", r#"{"health":"true","reason":""}"#)]
    {
        let mut stream = tokio::net::TcpStream::connect(server.addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let reading = stream.read_to_string(&mut answer);
        tokio::time::timeout(Duration::from_secs(60), reading).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(says), "{answer}");
    }
}
