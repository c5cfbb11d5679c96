//! Mirrors: the origin's revisions kept, resumed without a list, and another lineage passed on to who watches here.

use std::sync::Arc;
use std::time::Duration;

use hawser_etcd::client::{Client, FollowConfig, FollowEvent, Relist, Resume};
use hawser_etcd::mirror::{Admit, BYTE_LIMIT, Intake, Mirror, MirrorConfig, MirrorState, Refusal};
use hawser_etcd::server::SharedKeyspace;
use hawser_kvstore::{KeyRange, KeyValue, Keyspace, Limits};

use crate::harness::{Copy, TestServer, Wire, channel, eventually, everything, memory, pace};

/// What a remote cluster may read (contracts.md), for us-east.
pub(crate) const EXPORTED: &[&str] = &["cilium/state/", "cilium/synced/us-east/", "hawser/state/"];

pub(crate) fn admit_all(_key: &[u8], _value: &[u8]) -> Result<(), Refusal> {
    Ok(())
}

pub(crate) fn mirror_of(addr: std::net::SocketAddr, admit: impl Admit) -> MirrorConfig {
    MirrorConfig {
        cluster: "us-east".into(),
        client: Client::for_cluster(channel(addr), "us-east").unwrap(),
        ranges: EXPORTED.iter().map(|prefix| KeyRange::prefix(*prefix)).collect(),
        admit: Arc::new(admit),
        limits: Limits::default(),
        intake: Intake::default(),
        afresh: false,
        pace: pace(),
        keep: None,
    }
}

pub(crate) fn exported(server: &TestServer) -> Vec<KeyValue> {
    let all = everything(server.own().keyspace());
    all.into_iter().filter(|kv| EXPORTED.iter().any(|prefix| kv.key.starts_with(prefix.as_bytes()))).collect()
}

pub(crate) fn held(server: &TestServer) -> Vec<KeyValue> {
    server.keyspaces.get("us-east").map(|handle| everything(handle.keyspace())).unwrap_or_default()
}

pub(crate) fn place(keyspace: &SharedKeyspace) -> (u64, i64) {
    keyspace.read(|keyspace| (keyspace.identity().cluster_id, keyspace.revision()))
}

pub(crate) async fn fill(server: &TestServer, keys: std::ops::Range<u32>) {
    for n in keys {
        server.put(&format!("cilium/state/ip/v1/default/10.1.0.{n}"), "ip").await;
        server.put(&format!("hawser/state/nodes/v1/us-east/n{n}"), "node").await;
        server.put(&format!("hawser/private/{n}"), "secret").await;
    }
}

#[tokio::test]
async fn after_a_cut_of_two_seconds_the_mirror_resumes_and_the_origins_range_counter_has_not_moved() {
    let origin = TestServer::serving(memory("us-east", 7)).await;
    let here = TestServer::serving(memory("eu-west", 8)).await;
    fill(&origin, 0..100).await;
    let wire = Wire::to(origin.addr).await;
    let mirror = Mirror::start(mirror_of(wire.addr, admit_all), &here.keyspaces).unwrap();
    eventually("the mirror has everything", || held(&here) == exported(&origin)).await;
    eventually("synced", || mirror.status().state == MirrorState::Synced).await;
    let mirrored = here.keyspaces.get("us-east").unwrap();
    eventually("as far as the origin", || place(mirrored.keyspace()) == place(origin.own().keyspace())).await;
    let ranges = origin.own().stats().ranges;

    wire.cut();
    fill(&origin, 50..150).await;
    origin.delete("cilium/state/ip/v1/default/10.1.0.7").await;
    eventually("cut off", || mirror.status().state == MirrorState::CutOff).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(mirror.status().keys, 200, "what is known is served meanwhile");
    wire.connect(origin.addr);
    eventually("the mirror has everything again", || held(&here) == exported(&origin)).await;
    eventually("as far as the origin", || place(mirrored.keyspace()) == place(origin.own().keyspace())).await;

    let status = mirror.status();
    assert_eq!(origin.own().stats().ranges, ranges);
    assert_eq!((status.state, status.relists), (MirrorState::Synced, 0));
    assert!(status.reconnects > 0 && status.heard_at.is_some());
    assert!(held(&here).iter().all(|kv| !kv.key.starts_with(b"hawser/private/")));
}

#[tokio::test]
async fn a_watch_begun_at_the_mirror_resumes_at_the_origin_and_the_other_way_round() {
    let origin = TestServer::serving(memory("us-east", 7)).await;
    let here = TestServer::serving(memory("eu-west", 8)).await;
    fill(&origin, 0..20).await;
    let _mirror = Mirror::start(mirror_of(origin.addr, admit_all), &here.keyspaces).unwrap();
    eventually("the mirror has everything", || held(&here) == exported(&origin)).await;
    let at_origin = origin.client();
    let at_mirror = Client::for_cluster(channel(here.addr), "us-east").unwrap();
    for (first, second) in [(&at_mirror, &at_origin), (&at_origin, &at_mirror)] {
        let mut copy = Copy::of(first, EXPORTED);
        copy.until_equal(origin.own().keyspace(), EXPORTED).await;
        let status = copy.follow.status().borrow().clone();
        let resume = Resume {
            cluster_id: status.cluster_id.unwrap(),
            revision: status.revision,
            known: copy.kvs.iter().map(|(key, (_, revision))| (key.clone(), *revision)).collect(),
        };
        origin.delete("cilium/state/ip/v1/default/10.1.0.1").await;
        fill(&origin, 15..25).await;
        let config = FollowConfig {
            start: Some(resume),
            pace: pace(),
            ..FollowConfig::new(EXPORTED.iter().map(|prefix| KeyRange::prefix(*prefix)).collect())
        };
        let kvs = std::mem::take(&mut copy.kvs);
        let mut resumed = Copy { kvs, ..Copy::following(second, config) };
        resumed.until_equal(origin.own().keyspace(), EXPORTED).await;
        assert!(resumed.resets.is_empty(), "nothing was listed: {:?}", resumed.resets);
    }
}

#[tokio::test]
async fn a_revision_that_touches_two_prefixes_is_never_seen_half_at_the_mirror() {
    use hawser_kvstore::{Op, Put, Txn, TxnOp};
    let origin = TestServer::serving(memory("us-east", 7)).await;
    let here = TestServer::serving(memory("eu-west", 8)).await;
    let _mirror = Mirror::start(mirror_of(origin.addr, admit_all), &here.keyspaces).unwrap();
    eventually("registered", || here.keyspaces.get("us-east").is_some()).await;
    let mirrored = here.keyspaces.get("us-east").unwrap();
    let mut progress = mirrored.keyspace().subscribe();
    let writing = tokio::spawn({
        let origin = origin.own().clone();
        async move {
            for n in 0..300 {
                let put = |key: &'static str| TxnOp::Put(Put::new(key, n.to_string()));
                let success = vec![put("cilium/state/a"), put("hawser/state/b")];
                origin.writer().write(Op::Txn(Txn { success, ..Txn::default() })).await.unwrap();
            }
        }
    });
    loop {
        let kvs = everything(mirrored.keyspace());
        assert!(kvs.is_empty() || (kvs.len() == 2 && kvs[0].value == kvs[1].value), "{kvs:?}");
        if kvs.first().is_some_and(|kv| kv.value == "299") {
            break;
        }
        progress.changed().await.unwrap();
    }
    writing.await.unwrap();
    assert_eq!(place(mirrored.keyspace()), place(origin.own().keyspace()));
}

#[tokio::test]
async fn when_the_origin_is_another_lineage_the_mirror_is_too_and_who_watches_it_relists_and_diffs() {
    let old = TestServer::serving(memory("us-east", 7)).await;
    let here = TestServer::serving(memory("eu-west", 8)).await;
    fill(&old, 0..50).await;
    let wire = Wire::to(old.addr).await;
    let mirror = Mirror::start(mirror_of(wire.addr, admit_all), &here.keyspaces).unwrap();
    let agent = Client::for_cluster(channel(here.addr), "us-east").unwrap();
    let mut agents: Vec<Copy> = (0..5).map(|_| Copy::of(&agent, EXPORTED)).collect();
    for agent in &mut agents {
        agent.until_equal(old.own().keyspace(), EXPORTED).await;
    }
    let new = TestServer::serving(memory("us-east", 9)).await;
    new.put("cilium/state/new", "v").await;
    wire.connect(new.addr);
    for agent in &mut agents {
        agent.until_equal(new.own().keyspace(), EXPORTED).await;
        assert!(
            agent.resets.iter().skip(1).all(|reset| reset.starts_with("LineageChanged")),
            "{:?}",
            agent.resets
        );
    }
    let mirrored = here.keyspaces.get("us-east").unwrap();
    assert_eq!(place(mirrored.keyspace()).0, place(new.own().keyspace()).0);
    assert_eq!(mirror.status().cluster_id, Some(place(new.own().keyspace()).0));
}

#[tokio::test]
async fn what_an_origin_may_not_say_is_absent_and_counted_by_reason() {
    let origin = TestServer::serving(memory("us-east", 7)).await;
    let here = TestServer::serving(memory("eu-west", 8)).await;
    let only_own = |key: &[u8], value: &[u8]| match value {
        b"bad" => Err(Refusal { reason: "not its own", detail: format!("{}", key.escape_ascii()) }),
        _ => Ok(()),
    };
    origin.put("cilium/state/listed", "bad").await;
    origin.put("cilium/state/good", "1").await;
    origin.put("cilium/state/turns", "1").await;
    let mirror = Mirror::start(mirror_of(origin.addr, only_own), &here.keyspaces).unwrap();
    let keys = || held(&here).into_iter().map(|kv| kv.key).collect::<Vec<_>>();
    eventually("the good ones are there", || keys() == ["cilium/state/good", "cilium/state/turns"]).await;
    origin.put("cilium/state/turns", "bad").await;
    eventually("an entry that turned bad is gone", || keys() == ["cilium/state/good"]).await;
    origin.put("cilium/state/turns", "2").await;
    eventually("and comes back", || keys() == ["cilium/state/good", "cilium/state/turns"]).await;
    let status = mirror.status();
    assert_eq!(status.refused.into_iter().collect::<Vec<_>>(), [("not its own", 2)]);
    assert_eq!(status.last_refusal.as_deref(), Some("cilium/state/turns"));
}

#[tokio::test]
async fn an_origin_cannot_make_a_mirror_hold_more_than_its_quota() {
    let origin = TestServer::serving(memory("us-east", 7)).await;
    let here = TestServer::serving(memory("eu-west", 8)).await;
    fill(&origin, 0..100).await;
    let intake = Intake { bytes: 2000, ..Intake::default() };
    let config = MirrorConfig { intake, ..mirror_of(origin.addr, admit_all) };
    let mirror = Mirror::start(config, &here.keyspaces).unwrap();
    eventually("listed", || mirror.status().state == MirrorState::Synced).await;
    fill(&origin, 100..200).await;
    let mirrored = here.keyspaces.get("us-east").unwrap();
    eventually("as far as the origin", || place(mirrored.keyspace()) == place(origin.own().keyspace())).await;
    assert!(mirrored.keyspace().read(Keyspace::live_bytes) <= 2000);
    assert!(mirror.status().refused[BYTE_LIMIT] > 0);
}

#[tokio::test]
async fn stop_is_not_remove_and_a_mirror_started_again_goes_on_where_the_last_one_was() {
    let origin = TestServer::serving(memory("us-east", 7)).await;
    let here = TestServer::serving(memory("eu-west", 8)).await;
    fill(&origin, 0..10).await;
    let mirror = Mirror::start(mirror_of(origin.addr, admit_all), &here.keyspaces).unwrap();
    eventually("the mirror has everything", || held(&here) == exported(&origin)).await;
    drop(mirror);
    fill(&origin, 10..20).await;
    let ranges = origin.own().stats().ranges;
    assert_eq!(held(&here).len(), 20, "still served");
    let again = Mirror::start(mirror_of(origin.addr, admit_all), &here.keyspaces).unwrap();
    eventually("the mirror has everything", || held(&here) == exported(&origin)).await;
    assert_eq!((origin.own().stats().ranges, again.status().relists), (ranges, 0));
}

#[tokio::test]
async fn a_mirror_of_a_mirror_is_the_same_keyspace() {
    let origin = TestServer::serving(memory("us-east", 7)).await;
    let (near, far) =
        (TestServer::serving(memory("eu-west", 8)).await, TestServer::serving(memory("ap-south", 9)).await);
    fill(&origin, 0..10).await;
    let _near = Mirror::start(mirror_of(origin.addr, admit_all), &near.keyspaces).unwrap();
    let _far = Mirror::start(mirror_of(near.addr, admit_all), &far.keyspaces).unwrap();
    eventually("the far mirror has everything", || held(&far) == exported(&origin)).await;
    fill(&origin, 10..20).await;
    eventually("and goes on", || held(&far) == exported(&origin)).await;
    let config = FollowConfig {
        relist: Relist::Whole,
        pace: pace(),
        ..FollowConfig::new(vec![KeyRange::prefix("cilium/state/")])
    };
    let mut follow = Client::for_cluster(channel(far.addr), "us-east").unwrap().follow(config).unwrap();
    let Some(FollowEvent::Reset { cluster_id, .. }) = follow.next().await else { panic!("no list") };
    assert_eq!(cluster_id, place(origin.own().keyspace()).0);
}
