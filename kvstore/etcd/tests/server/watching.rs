//! What one watch stream promises, seen through a tonic client.

use crate::harness::{TestServer, memory};
use hawser_etcd::pb;
use hawser_etcd::pb::watch_client::WatchClient;
use hawser_etcd::pb::watch_create_request::FilterType;
use hawser_etcd::pb::watch_request::RequestUnion;
use hawser_etcd::server::{
    Access, AccessRequest, AllowAll, Authorize, Denied, KeyspaceHandle, ReadOnlyWriter, SharedKeyspace,
};
use hawser_kvstore::{DeleteRange, Identity, KeyRange, KeyValue, Keyspace, Limits, Op, Put};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

pub(crate) struct Watching {
    requests: mpsc::Sender<pb::WatchRequest>,
    pub(crate) responses: Streaming<pb::WatchResponse>,
}

impl Watching {
    pub(crate) async fn open(server: &TestServer) -> Self {
        let (requests, receiver) = mpsc::channel(16);
        let mut client = WatchClient::new(server.channel().await);
        let responses = client.watch(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Self { requests, responses }
    }

    /// With its first watch asked for: etcd answers a stream, headers and all, no earlier.
    pub(crate) async fn asking(channel: tonic::transport::Channel, create: pb::WatchCreateRequest) -> Self {
        let (requests, receiver) = mpsc::channel(16);
        let first = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        requests.send(first).await.unwrap();
        let mut client = WatchClient::new(channel);
        let responses = client.watch(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Self { requests, responses }
    }

    pub(crate) async fn ask(&self, request: RequestUnion) {
        self.requests.send(pb::WatchRequest { request_union: Some(request) }).await.unwrap();
    }

    pub(crate) async fn create(&mut self, request: pb::WatchCreateRequest) -> pb::WatchResponse {
        self.ask(RequestUnion::CreateRequest(request)).await;
        self.next().await
    }

    pub(crate) async fn next(&mut self) -> pb::WatchResponse {
        self.responses.message().await.unwrap().expect("the stream goes on")
    }
}

pub(crate) fn from(key: &'static str, start_revision: i64) -> pb::WatchCreateRequest {
    let (key, range_end) = KeyRange::prefix(key).to_wire();
    pb::WatchCreateRequest { key, range_end, start_revision, ..Default::default() }
}

pub(crate) async fn put(handle: &KeyspaceHandle, key: &'static str, value: &str) {
    handle.writer().write(Op::Put(Put::new(key, value.to_owned()))).await.unwrap();
}

pub(crate) fn keys(response: &pb::WatchResponse) -> Vec<&[u8]> {
    response.events.iter().map(|event| &event.kv.as_ref().unwrap().key[..]).collect()
}

#[tokio::test]
async fn watches_of_one_stream_are_independent_and_each_is_told_its_own() {
    let server = TestServer::start().await;
    let mut watching = Watching::open(&server).await;
    let first = watching.create(from("a", 0)).await;
    assert!(first.created && first.watch_id == 0);
    let chosen = watching.create(pb::WatchCreateRequest { watch_id: 77, ..from("b", 0) }).await;
    assert!(chosen.created && chosen.watch_id == 77);
    assert_eq!(watching.create(from("c", 0)).await.watch_id, 1);
    put(server.own(), "b", "1").await;
    let event = watching.next().await;
    assert_eq!((event.watch_id, keys(&event)), (77, vec![&b"b"[..]]));

    let again = watching.create(pb::WatchCreateRequest { watch_id: 77, ..from("b", 0) }).await;
    assert!(again.created && again.canceled && again.watch_id == -1, "{again:?}");
    assert_eq!(again.cancel_reason, "mvcc: duplicate watch ID provided on the WatchStream");

    watching.ask(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 77 })).await;
    let canceled = watching.next().await;
    assert!(canceled.canceled && canceled.watch_id == 77 && canceled.compact_revision == 0);
    put(server.own(), "b", "2").await;
    put(server.own(), "c", "3").await;
    assert_eq!(watching.next().await.watch_id, 1);
    assert_eq!(server.own().stats().open_watches, 2);
}

#[tokio::test]
async fn filters_keep_puts_or_deletes_away() {
    let server = TestServer::start().await;
    let mut watching = Watching::open(&server).await;
    for filter in [FilterType::Noput, FilterType::Nodelete] {
        let mut request = from("k", 0);
        request.set_filters_of(filter);
        watching.create(request).await;
    }
    put(server.own(), "k", "v").await;
    let event = watching.next().await;
    assert_eq!((event.watch_id, event.events[0].r#type()), (1, pb::mvccpb::event::EventType::Put));
    server.own().writer().write(Op::DeleteRange(DeleteRange::new(KeyRange::key("k")))).await.unwrap();
    let event = watching.next().await;
    assert_eq!((event.watch_id, event.events[0].r#type()), (0, pb::mvccpb::event::EventType::Delete));
}

trait SetFilters {
    fn set_filters_of(&mut self, filter: FilterType);
}

impl SetFilters for pb::WatchCreateRequest {
    fn set_filters_of(&mut self, filter: FilterType) {
        self.filters = vec![filter as i32];
    }
}

#[tokio::test]
async fn progress_is_told_after_everything_before_it() {
    let server = TestServer::start().await;
    let mut watching = Watching::open(&server).await;
    watching.create(from("k", 0)).await;
    for value in ["1", "2", "3"] {
        put(server.own(), "k", value).await;
        put(server.own(), "elsewhere", value).await;
    }
    watching.ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
    let mut seen = 0;
    let progress = loop {
        let response = watching.next().await;
        if response.events.is_empty() {
            break response;
        }
        seen += response.events.len();
    };
    assert_eq!((seen, progress.watch_id, progress.header.unwrap().revision), (3, -1, 7));
}

#[tokio::test]
async fn a_watch_from_the_future_waits_for_it() {
    let server = TestServer::start().await;
    let mut watching = Watching::open(&server).await;
    watching.create(from("k", 4)).await;
    for value in ["at 2", "at 3", "at 4"] {
        put(server.own(), "k", value).await;
    }
    let response = watching.next().await;
    assert_eq!(response.events[0].kv.as_ref().unwrap().value, "at 4");
}

#[tokio::test]
async fn all_events_of_a_revision_arrive_in_one_message() {
    let server = TestServer::start().await;
    let mut watching = Watching::open(&server).await;
    watching.create(from("many/", 0)).await;
    let ops = (0..100).map(|n| hawser_kvstore::TxnOp::Put(Put::new(format!("many/{n:03}"), vec![0; 20_000])));
    let txn = hawser_kvstore::Txn { success: ops.collect(), ..Default::default() };
    server.own().writer().write(Op::Txn(txn)).await.unwrap();
    assert_eq!(watching.next().await.events.len(), 100);
}

struct OnlyOpen;

impl Authorize for OnlyOpen {
    fn authorize(&self, request: AccessRequest<'_>) -> Result<(), Denied> {
        match request.access {
            Access::Read(keys) if KeyRange::prefix("open/").covers(keys) => Ok(()),
            _ => Err(Denied { sentence: "role test may only read open/".to_owned() }),
        }
    }
}

#[tokio::test]
async fn each_watch_is_authorized_and_a_refusal_spares_the_others() {
    let server = TestServer::serving(memory("us-east", Limits::default()), Arc::new(OnlyOpen)).await;
    let mut watching = Watching::open(&server).await;
    assert!(!watching.create(from("open/", 0)).await.canceled);
    let refused = watching.create(from("", 0)).await;
    assert!(refused.created && refused.canceled && refused.watch_id == -1);
    assert_eq!(refused.cancel_reason, "etcdserver: permission denied: role test may only read open/");
    put(server.own(), "open/k", "v").await;
    assert_eq!(keys(&watching.next().await), [b"open/k"]);
}

#[tokio::test]
async fn a_start_that_is_forgotten_gets_the_revision_from_which_to_start() {
    let limits = Limits { history_bytes: 0, history_events: 10, ..Limits::default() };
    let server = TestServer::serving(memory("us-east", limits), Arc::new(AllowAll)).await;
    for _ in 0..100 {
        put(server.own(), "k", "v").await;
    }
    let mut watching = Watching::open(&server).await;
    assert!(watching.create(from("k", 5)).await.created);
    let ended = watching.next().await;
    assert!(ended.canceled && ended.events.is_empty());
    let created = watching.create(from("k", ended.compact_revision)).await;
    assert!(created.created && !created.canceled);
    let events = watching.next().await.events;
    assert_eq!(events.first().unwrap().kv.as_ref().unwrap().mod_revision, ended.compact_revision);
    assert_eq!(events.len(), 10);
}

#[tokio::test]
async fn another_lineage_ends_every_watch_instead_of_letting_it_wait() {
    let mut replica = Keyspace::replica(Identity::adopted(1), Limits::default());
    replica.load(Identity::adopted(1), 5000, [] as [&KeyValue; 0]).unwrap();
    let shared = SharedKeyspace::new(replica);
    let handle = KeyspaceHandle::new("eu-west", shared.clone(), ReadOnlyWriter::new("eu-west"));
    let server = TestServer::serving(handle, Arc::new(AllowAll)).await;
    let mut watching = Watching::open(&server).await;
    watching.create(from("k", 5001)).await;
    shared.update(|keyspace| keyspace.load(Identity::adopted(2), 7, [] as [&KeyValue; 0])).unwrap();
    let ended = watching.next().await;
    assert!(ended.canceled && ended.compact_revision == 8, "{ended:?}");
    assert_eq!(ended.header.unwrap().cluster_id, 2);
}
