//! The own keyspace in Debian's real etcd: its revisions, our lineage, and a recovery without help.

use std::time::Duration;

use hawser_etcd::client::Client;
use hawser_etcd::pb;
use hawser_etcd::store::{LINEAGE_KEY, OwnStore, open_store};
use hawser_kvstore::{
    Compare, CompareResult, CompareTarget, DeleteRange, KeyRange, Keyspace, Op, OpError, Put, ReplyBody, Txn,
    TxnOp,
};

use crate::harness::{Copy, RealEtcd, TestServer, channel, etcdctl, eventually, everything};

async fn put(store: &OwnStore, key: &str, value: &str) -> Result<i64, hawser_etcd::server::WriteError> {
    let put = Put::new(key.to_owned(), value.to_owned());
    store.writer().write(Op::Put(put)).await.map(|reply| reply.revision)
}

fn value(store: &OwnStore, key: &str) -> Option<String> {
    let kv = everything(store.handle.keyspace()).into_iter().find(|kv| kv.key == key)?;
    Some(String::from_utf8_lossy(&kv.value).into_owned())
}

#[tokio::test]
async fn etcdctl_sees_the_same_keys_and_revisions_in_etcd_and_in_hawser() {
    let etcd = RealEtcd::start().await;
    etcdctl(etcd.addr, "put cilium/state/before 1").await;
    let store = open_store(&etcd.uri(), None, "us-east").await.unwrap();
    let ours = TestServer::serving(store.handle.clone()).await;
    etcdctl(ours.addr, "put cilium/state/through-us 1").await;
    etcdctl(etcd.addr, "put cilium/state/beside-us 1").await;
    etcdctl(etcd.addr, "put not-ours 1").await;
    etcdctl(ours.addr, "put cilium/state/through-us 2").await;
    etcdctl(ours.addr, "del cilium/state/before").await;
    let keys = |addr| async move {
        let json = etcdctl(addr, "get --prefix cilium/ -w json").await;
        json.split_once("\"kvs\"").unwrap().1.to_owned()
    };
    assert_eq!(keys(ours.addr).await, keys(etcd.addr).await);
    assert_eq!(value(&store, "not-ours"), None);
    let (theirs, us) = (Client::new(channel(etcd.addr)), ours.client());
    let id = async |client: &Client| {
        client
            .range(pb::RangeRequest { key: "a".into(), ..Default::default() })
            .await
            .unwrap()
            .header
            .unwrap()
            .cluster_id
    };
    assert_ne!(id(&theirs).await, id(&us).await, "the cluster id is the lineage's, not etcd's");
    assert_eq!(value(&store, LINEAGE_KEY).unwrap(), format!("{:016x}", store.lineage));
}

#[tokio::test]
async fn every_write_is_answered_as_etcd_answers_it_and_is_read_back_at_once() {
    let etcd = RealEtcd::start().await;
    let store = open_store(&etcd.uri(), None, "us-east").await.unwrap();
    for n in 0..50 {
        put(&store, "cilium/state/a", &n.to_string()).await.unwrap();
        assert_eq!(value(&store, "cilium/state/a").unwrap(), n.to_string(), "read your writes");
    }
    let compare = Compare {
        keys: KeyRange::key("cilium/state/a"),
        result: CompareResult::Equal,
        target: CompareTarget::Value("49".into()),
    };
    let txn = Txn {
        compare: vec![compare],
        success: vec![
            TxnOp::Put(Put { prev_kv: true, ..Put::new("cilium/state/a", "50") }),
            TxnOp::DeleteRange(DeleteRange::new(KeyRange::prefix("cilium/none"))),
        ],
        failure: vec![],
    };
    let reply = store.writer().write(Op::Txn(txn.clone())).await.unwrap();
    let ReplyBody::Txn(body) = reply.body else { panic!("{reply:?}") };
    assert!(body.succeeded && body.responses.len() == 2);
    assert_eq!(value(&store, "cilium/state/a").unwrap(), "50");
    let again = store.writer().write(Op::Txn(txn)).await.unwrap();
    assert!(matches!(again.body, ReplyBody::Txn(body) if !body.succeeded));

    store.writer().write(Op::LeaseGrant { id: 77, ttl: 60 }).await.unwrap();
    let leased = Put { lease: 77, ..Put::new("cilium/state/leased", "v") };
    store.writer().write(Op::Put(leased)).await.unwrap();
    store.writer().write(Op::LeaseKeepAlive { id: 77 }).await.unwrap();
    assert!(value(&store, "cilium/state/leased").is_some());
    store.writer().write(Op::LeaseRevoke { id: 77 }).await.unwrap();
    assert_eq!(value(&store, "cilium/state/leased"), None);
    let gone = store.writer().write(Op::LeaseKeepAlive { id: 77 }).await.unwrap_err();
    assert!(
        matches!(gone, hawser_etcd::server::WriteError::Refused(OpError::LeaseNotFound { id: 77 })),
        "{gone}"
    );

    let elsewhere = put(&store, "registry/pods", "v").await.unwrap_err().to_string();
    assert!(elsewhere.contains("under cilium/ and hawser/ only"), "{elsewhere}");
    let revision = store.handle.keyspace().read(Keyspace::revision);
    store.writer().write(Op::Compact { revision }).await.unwrap();
    assert_eq!(store.handle.keyspace().read(Keyspace::compact_revision), revision);
}

#[tokio::test]
async fn etcd_is_killed_and_started_again_and_no_acknowledged_write_is_lost() {
    let mut etcd = RealEtcd::start().await;
    let store = std::sync::Arc::new(open_store(&etcd.uri(), None, "us-east").await.unwrap());
    let ours = TestServer::serving(store.handle.clone()).await;
    let mut reader = Copy::of(&ours.client(), &["cilium/"]);
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let writing = tokio::spawn({
        let store = store.clone();
        async move {
            let (mut acknowledged, mut failed) = (Vec::new(), 0);
            for n in 0.. {
                let key = format!("cilium/state/{n}");
                match put(&store, &key, "v").await {
                    Ok(_) => acknowledged.push(key),
                    Err(_) => {
                        failed += 1;
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
                if stopped.has_changed().unwrap() {
                    break;
                }
            }
            stopped.mark_unchanged();
            (acknowledged, failed)
        }
    });
    let count = || everything(store.handle.keyspace()).len();
    for _ in 0..2 {
        let before = count();
        eventually("writes go through", || count() > before + 20).await;
        etcd.kill();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(count() > before, "reads go on from memory");
        etcd.start_again().await;
    }
    let before = count();
    eventually("writes go through again by themselves", || count() > before + 20).await;
    stop.send_replace(true);
    let (acknowledged, failed) = writing.await.unwrap();
    assert!(failed > 0, "while etcd was down writes were refused, not swallowed");
    let in_etcd = etcdctl(etcd.addr, "get --prefix cilium/ --keys-only").await;
    let in_etcd: std::collections::HashSet<&str> = in_etcd.lines().collect();
    for key in &acknowledged {
        assert!(value(&store, key).is_some() && in_etcd.contains(key.as_str()), "{key} was acknowledged");
    }
    reader.until_equal(store.handle.keyspace(), &["cilium/"]).await;
    assert_eq!(reader.resets, ["Start"], "readers noticed nothing");
}

#[tokio::test]
async fn an_api_server_that_starts_again_is_the_same_lineage_and_its_readers_do_not_list_again() {
    let etcd = RealEtcd::start().await;
    let first = open_store(&etcd.uri(), None, "us-east").await.unwrap();
    put(&first, "cilium/state/a", "1").await.unwrap();
    let second = open_store(&etcd.uri(), None, "us-east").await.unwrap();
    assert_eq!(first.lineage, second.lineage);
    let identity = |store: &OwnStore| store.handle.keyspace().read(Keyspace::identity);
    assert_eq!(identity(&first), identity(&second), "replicas are one cluster to their readers");
    put(&second, "cilium/state/b", "1").await.unwrap();
    eventually("one replica's write is seen at the other", || value(&first, "cilium/state/b").is_some())
        .await;
}

#[tokio::test]
async fn a_wiped_etcd_is_another_lineage_and_nobody_keeps_a_stale_key() {
    let mut etcd = RealEtcd::start().await;
    let store = open_store(&etcd.uri(), None, "us-east").await.unwrap();
    for n in 0..30 {
        put(&store, &format!("cilium/state/old/{n}"), "v").await.unwrap();
    }
    let ours = TestServer::serving(store.handle.clone()).await;
    let mut readers: Vec<Copy> = (0..10).map(|_| Copy::of(&ours.client(), &["cilium/"])).collect();
    for reader in &mut readers {
        reader.until_equal(store.handle.keyspace(), &["cilium/"]).await;
    }
    let before = store.handle.keyspace().read(Keyspace::identity);
    etcd.wipe();
    etcd.start_again().await;
    eventually("another lineage", || store.handle.keyspace().read(Keyspace::identity) != before).await;
    put(&store, "cilium/state/new", "v").await.unwrap();
    for reader in &mut readers {
        reader.until_equal(store.handle.keyspace(), &["cilium/"]).await;
        assert_eq!(reader.kvs.len(), 1);
    }
}

#[tokio::test]
async fn a_deleted_lineage_is_written_again() {
    let etcd = RealEtcd::start().await;
    let store = open_store(&etcd.uri(), None, "us-east").await.unwrap();
    etcdctl(etcd.addr, "del --prefix hawser/").await;
    eventually("it is back", || value(&store, LINEAGE_KEY) == Some(format!("{:016x}", store.lineage))).await;
}

#[tokio::test]
async fn an_address_that_is_none_is_refused_with_a_fix() {
    let said = open_store("etcd://nowhere", None, "us-east").await.unwrap_err().to_string();
    assert!(said.contains("fix: write embedded:DIR or etcd://HOST:PORT"), "{said}");
}
