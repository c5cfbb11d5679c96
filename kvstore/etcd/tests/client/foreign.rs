//! Mirrors of a real etcd that is not Hawser's: two replicas that know nothing of each other, one behind the other's name.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hawser_etcd::client::{Client, FollowConfig, FollowEvent, HeldBy, Resume};
use hawser_etcd::durable::{Directory, TakeError};
use hawser_etcd::mirror::{
    Chart, ForeignConfig, Intake, Mirror, MirrorDir, MirrorState, Plan, Refusal, Signs, Source,
};
use hawser_etcd::pb;
use hawser_kvstore::{KeyRange, KeyValue, Limits};

use crate::harness::{Copy, RealEtcd, TestServer, Wire, channel, eventually, everything, memory, pace};

/// Addresses and services of one cluster, in Cilium's state layout or, when its config says so, in its cache layout.
struct Published;

impl Chart for Published {
    fn signs(&self) -> Vec<KeyRange> {
        vec![
            KeyRange::key("cilium/.heartbeat"),
            KeyRange::key("cilium/cluster-config/c1"),
            KeyRange::prefix("cilium/synced/c1/"),
        ]
    }

    fn heartbeat(&self) -> Bytes {
        "cilium/.heartbeat".into()
    }

    fn plan(&self, signs: &Signs) -> Plan {
        let layout = match signs.get(&b"cilium/cluster-config/c1"[..]).map(|value| &value[..]) {
            Some(b"state") => "state",
            Some(b"cache") => "cache",
            _ => return Plan::Wait("its config is not there".into()),
        };
        let source = |name, from: String, to: &'static str, canary: &'static str| Source {
            name,
            from: from.into(),
            to: to.into(),
            published: true,
            complete: signs.contains_key(canary.replace("state", layout).as_bytes()),
            canary: (canary.into(), "t".into()),
        };
        let ips = if layout == "state" { "default" } else { "c1" };
        let (ip, services) = ("cilium/state/ip/v1/default/", "cilium/state/services/v1/c1/");
        let sources = vec![
            source("ips", format!("cilium/{layout}/ip/v1/{ips}/"), ip, "cilium/synced/c1/cilium/state/ip/v1"),
            source(
                "services",
                services.replace("state", layout),
                services,
                "cilium/synced/c1/cilium/state/services/v1",
            ),
        ];
        Plan::Follow { layout, sources, stated: Vec::new() }
    }
}

async fn put(etcd: &RealEtcd, key: &str, value: &str) {
    let (key, value) = (key.to_owned().into(), value.to_owned().into());
    let put = pb::PutRequest { key, value, ..Default::default() };
    Client::new(channel(etcd.addr)).put(put).await.unwrap();
}

async fn delete(etcd: &RealEtcd, prefix: &str) {
    let (key, range_end) = KeyRange::prefix(prefix.to_owned()).to_wire();
    let request = pb::DeleteRangeRequest { key, range_end, ..Default::default() };
    Client::new(channel(etcd.addr)).delete_range(request).await.unwrap();
}

/// As clustermesh-apiserver begins: what lives first, what is whole last.
async fn publish(etcd: &RealEtcd, layout: &str, keys: u32, beat: &str) {
    put(etcd, "cilium/.heartbeat", beat).await;
    put(etcd, "cilium/cluster-config/c1", layout).await;
    let ips = if layout == "state" { "default" } else { "c1" };
    for n in 0..keys {
        put(etcd, &format!("cilium/{layout}/ip/v1/{ips}/10.1.0.{n}"), &format!("ip {n}")).await;
        put(etcd, &format!("cilium/{layout}/services/v1/c1/shop/s{n}"), &format!("service {n}")).await;
    }
    put(etcd, &format!("cilium/synced/c1/cilium/{layout}/ip/v1"), beat).await;
    put(etcd, &format!("cilium/synced/c1/cilium/{layout}/services/v1"), beat).await;
}

fn config(wire: &Wire, keep: Option<MirrorDir>) -> ForeignConfig {
    let addr = wire.addr;
    let malformed = |key: &[u8], value: &[u8]| match value {
        b"malformed" => Err(Refusal { reason: "malformed", detail: key.escape_ascii().to_string() }),
        _ => Ok(()),
    };
    ForeignConfig {
        cluster: "c1".into(),
        connect: Box::new(move || Client::new(channel(addr))),
        chart: Box::new(Published),
        admit: Arc::new(malformed),
        limits: Limits::default(),
        intake: Intake::default(),
        pace: pace(),
        keep,
    }
}

fn kinds(server: &TestServer) -> Vec<(Bytes, Bytes)> {
    let all = server.keyspaces.get("c1").map(|handle| everything(handle.keyspace())).unwrap_or_default();
    let kinds = all.into_iter().filter(|kv: &KeyValue| kv.key.starts_with(b"cilium/state/"));
    kinds.map(|kv| (kv.key, kv.value)).collect()
}

fn value(server: &TestServer, key: &str) -> Option<Bytes> {
    kinds(server).into_iter().find(|(held, _)| held == key).map(|(_, value)| value)
}

const READ: &[&str] = &["cilium/state/", "cilium/synced/c1/"];

#[tokio::test]
async fn a_replica_that_dies_is_followed_by_another_and_whoever_watches_hears_of_the_difference_alone() {
    let (mut first, second) = (RealEtcd::start().await, RealEtcd::start().await);
    publish(&first, "state", 30, "1").await;
    publish(&second, "state", 30, "2").await;
    delete(&second, "cilium/state/ip/v1/default/10.1.0.29").await;
    put(&second, "cilium/state/ip/v1/default/10.1.0.7", "moved").await;
    let wire = Wire::to(first.addr).await;
    let here = TestServer::serving(memory("us-east", 8)).await;
    let mirror = Mirror::start_foreign(config(&wire, None), &here.keyspaces);
    eventually("it is synced", || mirror.status().state == MirrorState::Synced).await;
    assert_eq!(kinds(&here).len(), 60);
    let mirrored = here.keyspaces.get("c1").unwrap();
    let mut agent = Copy::of(&Client::for_cluster(channel(here.addr), "c1").unwrap(), READ);
    agent.until_equal(mirrored.keyspace(), READ).await;
    let before = agent.kvs.clone();

    first.kill();
    eventually("cut off", || mirror.status().state == MirrorState::CutOff).await;
    assert_eq!(kinds(&here).len(), 60, "what is known is served meanwhile");
    wire.connect(second.addr);
    eventually("the other one is read", || {
        mirror.status().state == MirrorState::Synced
            && mirror.status().foreign.is_some_and(|foreign| foreign.replica_changes == 1)
    })
    .await;
    agent.until_equal(mirrored.keyspace(), READ).await;
    assert_eq!(agent.resets.len(), 1, "only its own first list: {:?}", agent.resets);
    let moved = agent.kvs.iter().filter(|(key, value)| before.get(*key) != Some(*value)).count();
    assert_eq!((moved, before.len() - agent.kvs.len()), (1, 1));
    assert_eq!(value(&here, "cilium/state/ip/v1/default/10.1.0.7").unwrap(), "moved");

    // And goes on there, key by key in order.
    for n in 0..200 {
        put(&second, "cilium/state/services/v1/c1/shop/s1", &n.to_string()).await;
    }
    let (mut last, mut seen) = (-1, 0);
    while last < 199 {
        if let Some(FollowEvent::Put { kv, .. }) = agent.follow.next().await {
            let value: i64 = String::from_utf8_lossy(&kv.value).parse().unwrap();
            assert!(value > last, "{value} after {last}");
            (last, seen) = (value, seen + 1);
        }
    }
    assert!(seen <= 200, "an event came twice");
}

#[tokio::test]
async fn the_cache_layout_is_the_same_mirror_and_malformed_entries_are_passed_over_and_counted() {
    let (state, cache) = (RealEtcd::start().await, RealEtcd::start().await);
    publish(&state, "state", 10, "1").await;
    publish(&cache, "cache", 10, "2").await;
    // Another cluster's, in the same etcd; c10 is not c1.
    put(&cache, "cilium/cache/ip/v1/c10/10.10.0.1", "ip").await;
    let wire = Wire::to(cache.addr).await;
    let here = TestServer::serving(memory("us-east", 8)).await;
    let mirror = Mirror::start_foreign(config(&wire, None), &here.keyspaces);
    eventually("it is synced", || mirror.status().state == MirrorState::Synced).await;
    let copy = kinds(&here);
    assert_eq!((copy.len(), mirror.status().foreign.unwrap().layout), (20, Some("cache")));
    wire.connect(state.addr);
    eventually("the other layout is read", || {
        mirror.status().state == MirrorState::Synced
            && mirror.status().foreign.unwrap().layout == Some("state")
    })
    .await;
    assert_eq!(kinds(&here), copy);
    put(&state, "cilium/state/ip/v1/default/10.1.0.99", "malformed").await;
    put(&state, "cilium/state/ip/v1/default/10.1.0.98", "good").await;
    eventually("the next one is there", || value(&here, "cilium/state/ip/v1/default/10.1.0.98").is_some())
        .await;
    assert_eq!(kinds(&here).len(), 21);
    assert_eq!(mirror.status().refused["malformed"], 1);
}

#[tokio::test]
async fn a_cluster_that_changes_its_layout_again_and_again_has_one_burst_for_all_its_lists() {
    let etcd = RealEtcd::start().await;
    publish(&etcd, "cache", 30, "1").await;
    publish(&etcd, "state", 30, "2").await;
    let wire = Wire::to(etcd.addr).await;
    let here = TestServer::serving(memory("us-east", 8)).await;
    let intake = Intake { keys: 100, events_per_second: 30, ..Intake::default() };
    let mirror = Mirror::start_foreign(ForeignConfig { intake, ..config(&wire, None) }, &here.keyspaces);
    eventually("it is synced", || mirror.status().state == MirrorState::Synced).await;
    assert_eq!(mirror.status().held, None, "a list that fits is not slowed");
    for layout in ["cache", "state", "cache", "state"] {
        put(&etcd, "cilium/cluster-config/c1", layout).await;
        let read = |layout| mirror.status().foreign.is_some_and(|foreign| foreign.layout == Some(layout));
        eventually("the other layout is read", || {
            read(layout) && mirror.status().state == MirrorState::Synced
        })
        .await;
    }
    eventually("it is held", || mirror.status().held.is_some_and(|(_, by)| by == HeldBy::Events)).await;
    assert!(!mirror.status().held_for.is_zero());
    assert_eq!((kinds(&here).len(), mirror.status().refused.len()), (60, 0));
}

/// So often that nobody could follow each time.
#[tokio::test]
async fn a_cluster_that_never_stays_with_what_it_says_of_itself_is_looked_at_at_a_pace_and_ends_as_it_ends() {
    let etcd = RealEtcd::start().await;
    publish(&etcd, "cache", 30, "1").await;
    publish(&etcd, "state", 30, "2").await;
    let wire = Wire::to(etcd.addr).await;
    let here = TestServer::serving(memory("us-east", 8)).await;
    let mirror = Mirror::start_foreign(config(&wire, None), &here.keyspaces);
    eventually("it is synced", || mirror.status().state == MirrorState::Synced).await;
    for n in 0..1000 {
        put(&etcd, "cilium/cluster-config/c1", if n % 2 == 0 { "cache" } else { "neither" }).await;
        put(&etcd, "cilium/.heartbeat", &n.to_string()).await;
    }
    put(&etcd, "cilium/cluster-config/c1", "cache").await;
    put(&etcd, "cilium/cache/ip/v1/c1/10.1.0.99", "last").await;
    eventually("its last word counts", || value(&here, "cilium/state/ip/v1/default/10.1.0.99").is_some())
        .await;
    let status = mirror.status();
    assert_eq!((kinds(&here).len(), status.refused.len()), (61, 0), "{status:?}");
}

/// The lock goes when the last one's tasks have ended.
async fn take(dir: &Path) -> MirrorDir {
    loop {
        match Directory::take(dir) {
            Ok(directory) => return MirrorDir::on(Arc::new(directory), Duration::from_millis(1)),
            Err(TakeError::InUse { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(other) => panic!("{other}"),
        }
    }
}

/// What an agent keeps.
type Kvs = BTreeMap<Bytes, (Bytes, i64)>;

/// An agent's place in the mirror.
fn place(agent: &Copy) -> Resume {
    let status = agent.follow.status().borrow().clone();
    Resume {
        cluster_id: status.cluster_id.unwrap(),
        revision: status.revision,
        known: agent.kvs.iter().map(|(key, (_, revision))| (key.clone(), *revision)).collect(),
    }
}

#[tokio::test]
async fn after_a_restart_in_order_agents_resume_and_after_a_kill_they_list_once_and_miss_nothing() {
    let etcd = RealEtcd::start().await;
    publish(&etcd, "state", 20, "1").await;
    let (wire, dir) = (Wire::to(etcd.addr).await, tempfile::TempDir::new().unwrap());
    let mut last: Option<(Resume, Kvs)> = None;
    for (life, in_order) in [true, false, true].into_iter().enumerate() {
        let here = TestServer::serving(memory("us-east", 8)).await;
        let mirror = Mirror::start_foreign(config(&wire, Some(take(dir.path()).await)), &here.keyspaces);
        eventually("it is synced", || mirror.status().state == MirrorState::Synced).await;
        let mirrored = here.keyspaces.get("c1").unwrap();
        let (start, kvs) = last.take().unzip();
        let config = FollowConfig {
            start,
            trust_progress: true,
            pace: pace(),
            ..FollowConfig::new(READ.iter().map(|prefix| KeyRange::prefix(*prefix)).collect())
        };
        let mut agent = Copy::following(&Client::for_cluster(channel(here.addr), "c1").unwrap(), config);
        agent.kvs = kvs.unwrap_or_default();
        agent.until_equal(mirrored.keyspace(), READ).await;
        put(&etcd, "cilium/state/ip/v1/default/10.1.0.3", &format!("life {life}")).await;
        let has = |at: &TestServer| value(at, "cilium/state/ip/v1/default/10.1.0.3");
        eventually("it is here", || has(&here).is_some_and(|value| value == format!("life {life}"))).await;
        agent.until_equal(mirrored.keyspace(), READ).await;
        eventually("its place is known", || {
            let newest = mirrored.keyspace().read(hawser_kvstore::Keyspace::revision);
            agent.follow.status().borrow().revision == newest
        })
        .await;
        let lists = ["Start", "", "LineageChanged"][life];
        assert!(agent.resets.iter().all(|reset| reset.starts_with(lists)), "{life}: {:?}", agent.resets);
        assert_eq!(agent.resets.is_empty(), lists.is_empty(), "{life}: {:?}", agent.resets);
        if in_order {
            mirror.settle().await;
        }
        last = Some((place(&agent), std::mem::take(&mut agent.kvs)));
    }
}
