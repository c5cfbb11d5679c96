//! What a replica that starts knows of before its start, and when it may call itself complete. Against Debian's etcd 3.4.23.

use std::time::Duration;

use hawser_etcd::client::{Client, FollowConfig, FollowEvent, Pace, Resume};
use hawser_etcd::pb;
use hawser_etcd::store::{OwnStore, open_store};
use hawser_kvstore::{KeyRange, Keyspace, Op, Pulled, Put, Revision};

use crate::harness::{RealEtcd, TestServer, channel, everything, pace};

async fn open(etcd: &RealEtcd) -> OwnStore {
    open_store(&etcd.uri(), None, "us-east").await.unwrap()
}

async fn put(store: &OwnStore, key: String) -> Revision {
    store.writer().write(Op::Put(Put::new(key, "v"))).await.unwrap().revision
}

/// `revisions` transactions of 100 keys each, past our store.
async fn fill(etcd: &RealEtcd, revisions: usize) {
    let client = Client::new(channel(etcd.addr));
    for revision in 0..revisions {
        let put = |n: usize| pb::RequestOp {
            request: Some(pb::request_op::Request::RequestPut(pb::PutRequest {
                key: format!("cilium/state/{n}").into(),
                value: vec![b'v'; 500 + revision].into(),
                ..Default::default()
            })),
        };
        let txn = pb::TxnRequest { success: (0..100).map(put).collect(), ..Default::default() };
        client.txn(txn).await.unwrap();
    }
}

#[tokio::test]
async fn a_watch_from_before_a_replica_started_goes_on_at_it_without_a_list() {
    let etcd = RealEtcd::start().await;
    let first = open(&etcd).await;
    let seen = put(&first, "cilium/state/seen".into()).await;
    let mut due = Vec::new();
    for n in 0..200 {
        due.push((format!("cilium/state/{}", n % 7), put(&first, format!("cilium/state/{}", n % 7)).await));
    }
    let second = open(&etcd).await;
    let cluster_id = first.handle.keyspace().read(Keyspace::identity).cluster_id;
    let ours = TestServer::serving(second.handle.clone()).await;
    let start = Some(Resume { cluster_id, revision: seen, known: Vec::new() });
    let ranges = vec![KeyRange::prefix("cilium/")];
    let mut follow =
        ours.client().follow(FollowConfig { start, pace: pace(), ..FollowConfig::new(ranges) }).unwrap();
    let mut had = Vec::new();
    while had.len() < due.len() {
        match follow.next().await.unwrap() {
            FollowEvent::Put { kv, .. } => {
                had.push((String::from_utf8_lossy(&kv.key).into_owned(), kv.mod_revision));
            }
            FollowEvent::Progress { .. } => {}
            other => panic!("it was to resume: {other:?}"),
        }
    }
    assert_eq!(had, due, "every event once, in order, at its revision");
}

#[tokio::test]
async fn a_replica_has_the_history_that_etcd_has_and_no_more() {
    let etcd = RealEtcd::start().await;
    let first = open(&etcd).await;
    let mut revisions = Vec::new();
    for n in 0..20 {
        revisions.push(put(&first, format!("cilium/state/{n}")).await);
    }
    first.writer().write(Op::Compact { revision: revisions[9] }).await.unwrap();
    let second = open(&etcd).await;
    second.handle.keyspace().read(|keyspace| {
        assert_eq!(keyspace.compact_revision(), revisions[9]);
        assert!(keyspace.watch(revisions[9] + 1).is_ok());
        assert!(matches!(keyspace.watch(revisions[5]), Err(Pulled::FellBehind { .. })));
    });
    assert_eq!(
        everything(second.handle.keyspace()).iter().filter(|kv| kv.key.starts_with(b"cilium/")).count(),
        20
    );
}

#[tokio::test]
async fn a_progress_answer_of_an_etcd_before_3_4_25_is_never_taken_for_everything_delivered() {
    let etcd = RealEtcd::start().await;
    // What was before the lineage is nobody's history.
    drop(open(&etcd).await);
    fill(&etcd, 200).await;
    let client = Client::new(channel(etcd.addr));
    let reply = client.range(pb::RangeRequest { key: "a".into(), ..Default::default() }).await.unwrap();
    let header = reply.header.unwrap();

    // Answers to requests come at once, and the watch is still catching up: etcd#15220.
    let eager = Pace { ask_after: Duration::from_millis(1), ..pace() };
    let start = || Some(Resume { cluster_id: header.cluster_id, revision: 1, known: Vec::new() });
    let ranges = || vec![KeyRange::prefix("cilium/")];
    for _ in 0..5 {
        let config = FollowConfig { start: start(), pace: eager.clone(), ..FollowConfig::new(ranges()) };
        let mut follow = client.follow(config).unwrap();
        let (mut given, mut changes) = (1, 0);
        while changes < 200 * 100 {
            match follow.next().await.unwrap() {
                FollowEvent::Put { kv, .. } => {
                    changes += 1;
                    given = given.max(kv.mod_revision);
                }
                FollowEvent::Progress { revision } => {
                    assert!(revision <= given, "{revision} is called complete, and {given} was given");
                }
                other => panic!("it was to resume: {other:?}"),
            }
        }
    }

    // A replica calls itself open when its own write has come through its own watch.
    for _ in 0..5 {
        let store = open(&etcd).await;
        let keyspace = store.handle.keyspace();
        assert!(keyspace.read(Keyspace::revision) > header.revision);
        let newest = everything(keyspace).into_iter().filter(|kv| kv.key.starts_with(b"cilium/"));
        assert!(newest.map(|kv| kv.value.len()).eq([500 + 199; 100]), "nothing of the past is left");
        let history = keyspace.read(|keyspace| keyspace.watch(header.revision - 50));
        assert!(history.is_ok(), "and what came before is there to resume in");
    }
}
