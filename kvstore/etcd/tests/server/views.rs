//! A reader of a view over the wire: it is an etcd that holds no more than he may see.

use crate::harness::{TestServer, memory};
use crate::watching::{Watching, from, keys, put};
use bytes::Bytes;
use hawser_etcd::pb;
use hawser_etcd::pb::kv_client::KvClient;
use hawser_etcd::pb::watch_request::RequestUnion;
use hawser_etcd::server::{AccessRequest, Authorize, Denied, KeyspaceHandle, ServedView};
use hawser_kvstore::{Filter, Identity, KeyRange, Limits, view_id};
use std::collections::BTreeSet;
use std::sync::Arc;

/// `room/x` is shown while there is a `door/x`, and no door is.
#[derive(Default)]
struct Rooms(BTreeSet<Bytes>);

impl Filter for Rooms {
    fn reads(&self, key: &[u8]) -> bool {
        key.starts_with(b"room/") || key.starts_with(b"door/")
    }

    fn handle_change(&mut self, key: &Bytes, value: Option<&Bytes>, touched: &mut Vec<Bytes>) {
        if let Some(name) = key.strip_prefix(b"door/") {
            let room = Bytes::from([b"room/", name].concat());
            if value.is_some() {
                self.0.insert(room.clone())
            } else {
                self.0.remove(&room)
            };
            touched.push(room);
        }
    }

    fn shows(&self, key: &[u8]) -> bool {
        self.0.contains(key)
    }
}

struct Through(ServedView);

impl Authorize for Through {
    fn authorize(&self, _request: AccessRequest<'_>) -> Result<(), Denied> {
        Ok(())
    }

    fn view(&self, _caller: &http::Extensions, _keyspace: &KeyspaceHandle) -> Option<ServedView> {
        Some(self.0.clone())
    }
}

async fn served() -> TestServer {
    let own = memory("us-east", Limits::default());
    put(&own, "door/a", "").await;
    put(&own, "room/a", "1").await;
    put(&own, "room/b", "2").await;
    put(&own, "room/c", "3").await;
    put(&own, "door/c", "").await;
    let view = ServedView::start(&own, view_id("rooms"), Rooms::default);
    TestServer::serving(own, Arc::new(Through(view))).await
}

async fn list(server: &TestServer, request: pb::RangeRequest) -> pb::RangeResponse {
    let (key, range_end) = KeyRange::all().to_wire();
    let request = pb::RangeRequest { key, range_end, ..request };
    KvClient::new(server.channel().await).range(request).await.unwrap().into_inner()
}

/// Until the view has come as far as the store.
async fn caught_up(server: &TestServer) -> pb::RangeResponse {
    let revision = server.own().keyspace().read(hawser_kvstore::Keyspace::revision);
    loop {
        let reply = list(server, pb::RangeRequest::default()).await;
        if reply.header.as_ref().unwrap().revision == revision {
            return reply;
        }
        tokio::task::yield_now().await;
    }
}

fn names(reply: &pb::RangeResponse) -> Vec<&[u8]> {
    reply.kvs.iter().map(|kv| &kv.key[..]).collect()
}

#[tokio::test]
async fn ranges_count_and_page_only_what_is_shown_at_the_stores_revisions() {
    let server = served().await;
    let reply = list(&server, pb::RangeRequest::default()).await;
    let header = reply.header.unwrap();
    assert_eq!((names(&reply), reply.count, reply.more), (vec![&b"room/a"[..], b"room/c"], 2, false));
    assert_eq!(header.revision, 6, "served no earlier than it is whole");
    let identity = server.own().keyspace().read(hawser_kvstore::Keyspace::identity);
    assert_eq!(header.cluster_id, Identity::new("us-east", 1, view_id("rooms")).cluster_id);
    assert_ne!(header.cluster_id, identity.cluster_id);
    let page = list(&server, pb::RangeRequest { limit: 1, ..Default::default() }).await;
    assert_eq!((names(&page), page.count, page.more), (vec![&b"room/a"[..]], 2, true));
    let before = list(&server, pb::RangeRequest { revision: 5, ..Default::default() }).await;
    assert_eq!(names(&before), [b"room/a"], "the door to room/c came at revision 6");
    // Nothing of this is shown, and the revision moves all the same.
    put(server.own(), "room/b", "4").await;
    put(server.own(), "elsewhere", "5").await;
    let reply = caught_up(&server).await;
    assert_eq!((reply.header.unwrap().revision, reply.count), (8, 2));
}

#[tokio::test]
async fn a_watch_from_the_past_is_told_what_came_into_the_view_and_what_left_it() {
    let server = served().await;
    let delete = hawser_kvstore::Op::DeleteRange(hawser_kvstore::DeleteRange::new(KeyRange::key("door/a")));
    server.own().writer().write(delete).await.unwrap();
    caught_up(&server).await;
    let mut watching = Watching::open(&server).await;
    let created = watching.create(pb::WatchCreateRequest { prev_kv: true, ..from("room/", 2) }).await;
    assert!(created.created);
    let told = watching.next().await;
    assert_eq!(keys(&told), [&b"room/a"[..], b"room/c", b"room/a"]);
    let [first, second, third] = &told.events[..] else { panic!("{told:?}") };
    let revisions = |event: &pb::Event| {
        let kv = event.kv.as_ref().unwrap();
        (event.r#type(), kv.create_revision, kv.mod_revision)
    };
    use pb::mvccpb::event::EventType::{Delete, Put};
    assert_eq!(revisions(first), (Put, 3, 3));
    assert_eq!(revisions(second), (Put, 6, 6), "created where it came into the view");
    assert_eq!(revisions(third), (Delete, 0, 7));
    assert_eq!(third.prev_kv.as_ref().map(|prev| &prev.value[..]), Some(&b"1"[..]));
    put(server.own(), "room/b", "hidden").await;
    caught_up(&server).await;
    watching.ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
    let progress = watching.next().await;
    assert!(progress.events.is_empty());
    assert_eq!(progress.header.unwrap().revision, 8);
}
