//! The embedded store as its writers and readers see it, on a disk that lies and on the real one.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use hawser_kvstore::{DeleteRange, KeyRange, Op, Put, RangeQuery, ReplyBody};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Handle;

use super::fault::{Fault, FaultDisk};
use super::{Embedded, EmbeddedConfig, EmbeddedError};
use crate::server::{WriteError, Writer};

/// Snapshots come often, so that crashes meet them.
const CONFIG: EmbeddedConfig = EmbeddedConfig {
    limits: hawser_kvstore::Limits {
        history_bytes: 1 << 20,
        history_events: 1000,
        quota_bytes: 1 << 30,
        txn_ops: 128,
        leases: 1000,
        min_lease_ttl: 2,
    },
    snapshot_after: 2000,
};

fn open(disk: &FaultDisk) -> Embedded {
    Embedded::open_on(Arc::new(disk.clone()), "us-east", CONFIG, &Handle::current()).unwrap()
}

fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Op {
    Op::Put(Put::new(key, value))
}

fn contents(store: &Embedded) -> BTreeMap<Bytes, Bytes> {
    let all = store.keyspace.read(|keyspace| keyspace.range(&RangeQuery::new(KeyRange::all()))).unwrap();
    all.kvs.iter().map(|kv| (kv.key.clone(), kv.value.clone())).collect()
}

fn revision(store: &Embedded) -> i64 {
    store.keyspace.read(hawser_kvstore::Keyspace::revision)
}

/// Eight writers, each counting upwards in keys of its own, until one of its writes fails. Gives, per writer, the
/// last acknowledged number and whether one more was tried.
async fn count_until_the_end(store: &Embedded, most: u64) -> Vec<(u64, bool)> {
    let writers = (0..8).map(|id| {
        let writer = store.writer.clone();
        tokio::spawn(async move {
            for n in 1..=most {
                if writer.write(put(format!("counter/{id}"), n.to_string())).await.is_err() {
                    return (n - 1, true);
                }
            }
            (most, false)
        })
    });
    let mut counted = Vec::new();
    for writer in writers.collect::<Vec<_>>() {
        counted.push(writer.await.unwrap());
    }
    counted
}

#[tokio::test]
async fn whatever_moment_the_machine_stops_no_acknowledged_write_and_nothing_that_was_read_is_lost() {
    for seed in 0..150 {
        let disk = FaultDisk::new(seed);
        let store = open(&disk);
        let crash = StdRng::seed_from_u64(seed).random_range(1..60);
        disk.fault(disk.operations() + crash, Fault::Crash);
        let counted = count_until_the_end(&store, 30).await;
        let visible = revision(&store);

        let recovered = open(&disk.after_crash(seed));
        assert!(revision(&recovered) >= visible, "seed {seed}: a revision that readers saw is gone");
        let found = contents(&recovered);
        for (id, (acknowledged, tried)) in counted.into_iter().enumerate() {
            let key = Bytes::from(format!("counter/{id}"));
            let has = found.get(&key).map_or(0, |value| String::from_utf8_lossy(value).parse().unwrap());
            assert!(
                has == acknowledged || (tried && has == acknowledged + 1),
                "seed {seed}, {id}: {has}, {acknowledged}"
            );
        }
        assert_eq!(recovered.lineage, store.lineage);
    }
}

#[tokio::test]
async fn a_write_that_could_not_be_made_durable_was_never_visible() {
    let disk = FaultDisk::new(1);
    let store = open(&disk);
    store.writer.write(put("a", "1")).await.unwrap();
    let mut progress = store.keyspace.subscribe();
    progress.mark_unchanged();

    disk.fault(disk.operations() + 1, Fault::NoSpace);
    let error = store.writer.write(put("a", "2")).await.unwrap_err();
    assert!(
        matches!(&error, WriteError::Unavailable(why) if why.to_string().contains("free disk space")),
        "{error}"
    );
    assert_eq!((revision(&store), contents(&store)["a".as_bytes()].clone()), (2, Bytes::from("1")));
    assert!(!progress.has_changed().unwrap(), "no watcher was woken");

    let reply = store.writer.write(put("a", "3")).await.unwrap();
    assert_eq!(reply.revision, 3, "the next write works, and takes the revision that was not used");
    assert_eq!(contents(&open(&disk.after_crash(1)))["a".as_bytes()], Bytes::from("3"));
}

#[tokio::test]
async fn after_a_failed_sync_reads_go_on_and_writes_are_refused_until_a_restart() {
    let disk = FaultDisk::new(1);
    let store = open(&disk);
    store.writer.write(put("a", "1")).await.unwrap();
    disk.fault(disk.operations() + 2, Fault::Io);
    for _ in 0..3 {
        let error = store.writer.write(put("a", "2")).await.unwrap_err();
        assert!(error.to_string().contains("restart this process"), "{error}");
    }
    assert_eq!(contents(&store)["a".as_bytes()], Bytes::from("1"));
    let again = open(&disk.after_restart());
    again.writer.write(put("b", "1")).await.unwrap();
    assert!(contents(&again).contains_key("a".as_bytes()));
}

#[tokio::test]
async fn many_writers_share_a_sync() {
    let disk = FaultDisk::new(1);
    let store = open(&disk);
    let before = disk.operations();
    let writes = (0..500).map(|n| store.writer.write(put(format!("k{n}"), "v")));
    assert!(futures::future::join_all(writes).await.iter().all(Result::is_ok));
    let operations = disk.operations() - before;
    assert!(operations < 100, "500 writes took {operations} disk operations");
}

#[tokio::test]
async fn a_restart_on_the_real_disk_has_every_key_lease_and_revision_and_the_same_lineage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let (lineage, at) = {
        let store = Embedded::open(&path, "us-east", CONFIG, &Handle::current()).unwrap();
        let granted = store.writer.write(Op::LeaseGrant { id: 7, ttl: 600 }).await.unwrap();
        assert!(matches!(granted.body, ReplyBody::LeaseGranted { id: 7, .. }));
        for n in 0..200 {
            store.writer.write(Op::Put(Put { lease: 7, ..Put::new(format!("k{n:03}"), "v") })).await.unwrap();
        }
        store.writer.write(Op::DeleteRange(DeleteRange::new(KeyRange::prefix("k1")))).await.unwrap();
        (store.lineage, revision(&store))
    };
    let store = loop {
        // The lock goes when the first store's task has seen that its last handle is gone.
        match Embedded::open(&path, "us-east", CONFIG, &Handle::current()) {
            Ok(store) => break store,
            Err(EmbeddedError::Take(super::TakeError::InUse { .. })) => tokio::task::yield_now().await,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!((store.lineage, revision(&store)), (lineage, at));
    assert_eq!(contents(&store).len(), 100);
    store.writer.write(Op::LeaseRevoke { id: 7 }).await.unwrap();
    assert!(contents(&store).is_empty(), "the lease still knows its keys");
}

#[tokio::test]
async fn a_wiped_store_is_another_lineage() {
    let dir = tempfile::tempdir().unwrap();
    let open =
        |name: &str| Embedded::open(&dir.path().join(name), "us-east", CONFIG, &Handle::current()).unwrap();
    let identity = |store: &Embedded| store.keyspace.read(hawser_kvstore::Keyspace::identity);
    let (first, second) = (open("a"), open("b"));
    assert_ne!(first.lineage, second.lineage);
    assert_ne!(identity(&first).cluster_id, identity(&second).cluster_id);
}

#[tokio::test]
async fn a_store_in_use_is_refused_with_the_pid_of_who_uses_it() {
    let dir = tempfile::tempdir().unwrap();
    let _store = Embedded::open(dir.path(), "us-east", CONFIG, &Handle::current()).unwrap();
    let said = Embedded::open(dir.path(), "us-east", CONFIG, &Handle::current()).unwrap_err().to_string();
    assert!(said.contains(&format!("is in use by pid {}", std::process::id())), "{said}");
}

#[tokio::test]
async fn an_expired_lease_takes_its_keys_along_and_that_is_durable_too() {
    let disk = FaultDisk::new(1);
    let store = open(&disk);
    store.writer.write(Op::LeaseGrant { id: 7, ttl: 2 }).await.unwrap();
    store.writer.write(Op::Put(Put { lease: 7, ..Put::new("a", "1") })).await.unwrap();
    let mut progress = store.keyspace.subscribe();
    progress.mark_unchanged();
    progress.changed().await.unwrap();
    assert!(contents(&store).is_empty());
    assert!(contents(&open(&disk.after_crash(0))).is_empty());
}
