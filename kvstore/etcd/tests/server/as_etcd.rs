//! The same requests to a real etcd and to us: the same events, prev_kv, filters, ranges and fragments come back.

use crate::harness::{RealEtcd, TestServer};
use crate::watching::Watching;
use hawser_etcd::pb;
use hawser_etcd::pb::kv_client::KvClient;
use hawser_etcd::pb::watch_create_request::FilterType;
use hawser_etcd::pb::watch_request::RequestUnion;
use tonic::transport::{Channel, Endpoint};

async fn both() -> (TestServer, RealEtcd, [Channel; 2]) {
    let (ours, theirs) =
        (TestServer::start().await, tokio::task::spawn_blocking(RealEtcd::start).await.unwrap());
    let real = Endpoint::from_shared(format!("http://{}", theirs.addr)).unwrap().connect().await.unwrap();
    let channels = [ours.channel().await, real];
    (ours, theirs, channels)
}

async fn put(channel: &Channel, key: &'static str, value: Vec<u8>) {
    let request = pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() };
    KvClient::new(channel.clone()).put(request).await.unwrap();
}

async fn delete(channel: &Channel, key: &'static str, range_end: &'static str) {
    let request =
        pb::DeleteRangeRequest { key: key.into(), range_end: range_end.into(), ..Default::default() };
    KvClient::new(channel.clone()).delete_range(request).await.unwrap();
}

/// Everything a watch is told, in the messages it comes in: read until `count` events came, then the watch is canceled and
/// what came beyond them counts, too.
async fn told(channel: &Channel, create: pb::WatchCreateRequest, count: usize) -> Vec<pb::WatchResponse> {
    let mut watching = Watching::asking(channel.clone(), create).await;
    let created = watching.next().await;
    assert!(created.created && !created.canceled, "{created:?}");
    let mut responses: Vec<pb::WatchResponse> = Vec::new();
    while responses.iter().map(|response| response.events.len()).sum::<usize>() < count {
        responses.push(watching.next().await);
    }
    let cancel = pb::WatchCancelRequest { watch_id: created.watch_id };
    watching.ask(RequestUnion::CancelRequest(cancel)).await;
    loop {
        let response = watching.next().await;
        if response.canceled {
            return responses;
        }
        responses.push(response);
    }
}

fn events(responses: &[pb::WatchResponse]) -> Vec<pb::Event> {
    responses.iter().flat_map(|response| response.events.clone()).collect()
}

fn range(key: &'static str, range_end: &'static str) -> pb::WatchCreateRequest {
    let (key, range_end) = (key.into(), range_end.into());
    pb::WatchCreateRequest { key, range_end, start_revision: 2, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_filters_and_prev_kv_are_etcds() {
    let (_ours, _theirs, [ours, theirs]) = both().await;
    for channel in [&ours, &theirs] {
        for key in ["a", "b", "b/1", "b/2", "c"] {
            put(channel, key, b"first".to_vec()).await;
        }
        put(channel, "b/1", b"second".to_vec()).await;
        delete(channel, "b", "").await;
        delete(channel, "b/", "b0").await;
        put(channel, "b/1", b"again".to_vec()).await;
    }
    let filtered =
        |filter: FilterType, request| pb::WatchCreateRequest { filters: vec![filter as i32], ..request };
    let prev = |request| pb::WatchCreateRequest { prev_kv: true, ..request };
    for (what, request, count) in [
        ("one key", range("b", ""), 2),
        ("[a, b)", range("a", "b"), 1),
        ("a prefix", range("b/", "b0"), 6),
        ("from a key", range("b/2", "\0"), 3),
        ("everything", range("\0", "\0"), 10),
        ("everything, by no key", range("", "\0"), 10),
        ("no puts", filtered(FilterType::Noput, range("\0", "\0")), 3),
        ("no deletes", filtered(FilterType::Nodelete, range("\0", "\0")), 7),
        ("prev_kv", prev(range("\0", "\0")), 10),
        ("a later start", pb::WatchCreateRequest { start_revision: 8, ..prev(range("\0", "\0")) }, 4),
    ] {
        let here = events(&told(&ours, request.clone(), count).await);
        let there = events(&told(&theirs, request, count).await);
        assert_eq!(here, there, "{what}");
        assert_eq!(here.len(), count, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_too_large_for_a_message_is_split_where_etcd_splits_it() {
    let (_ours, _theirs, [ours, theirs]) = both().await;
    for channel in [&ours, &theirs] {
        for key in ["k/1", "k/2", "k/3", "k/4", "k/5"] {
            put(channel, key, vec![b'x'; 600_000]).await;
        }
        delete(channel, "k/", "k0").await;
    }
    let create =
        pb::WatchCreateRequest { fragment: true, prev_kv: true, start_revision: 7, ..range("k/", "k0") };
    let pieces = |responses: Vec<pb::WatchResponse>| -> Vec<(usize, bool)> {
        responses.iter().map(|response| (response.events.len(), response.fragment)).collect()
    };
    let here = told(&ours, create.clone(), 5).await;
    let there = told(&theirs, create, 5).await;
    assert_eq!(events(&here), events(&there));
    let here = pieces(here);
    assert_eq!(here, pieces(there));
    assert_eq!(here, [(3, true), (2, false)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_is_compacted_is_canceled_as_by_etcd() {
    let (_ours, _theirs, [ours, theirs]) = both().await;
    let mut answers = Vec::new();
    for channel in [&ours, &theirs] {
        for value in ["1", "2", "3", "4"] {
            put(channel, "k", value.into()).await;
        }
        let compact = pb::CompactionRequest { revision: 4, physical: true };
        KvClient::new(channel.clone()).compact(compact).await.unwrap();
        let mut watching = Watching::asking(channel.clone(), range("k", "")).await;
        assert!(watching.next().await.created);
        let ended = watching.next().await;
        answers.push((ended.canceled, ended.compact_revision, ended.watch_id, ended.events.len()));
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0], (true, 4, 0, 0));
}
