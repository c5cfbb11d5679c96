//! A damaged store, repaired: what can be read is kept, what is lost is named, and it is another store from then on.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use hawser_kvstore::{KeyRange, Keyspace, Op, Put, RangeQuery};

use super::fault::{Fault, FaultDisk};
use super::{Disk, Embedded, EmbeddedConfig, EmbeddedError, OpenError, RepairError, salvage};
use crate::server::Writer;

const LOG: &str = "log-00000000000000000001";
const SNAPSHOT: &str = "snapshot-00000000000000000000";

fn open(disk: &FaultDisk) -> Result<Embedded, EmbeddedError> {
    let runtime = tokio::runtime::Handle::current();
    Embedded::open_on(Arc::new(disk.clone()), "us-east", EmbeddedConfig::default(), &runtime)
}

fn contents(store: &Embedded) -> BTreeMap<Bytes, Bytes> {
    let all = store.keyspace.read(|keyspace| keyspace.range(&RangeQuery::new(KeyRange::all()))).unwrap();
    all.kvs.iter().map(|kv| (kv.key.clone(), kv.value.clone())).collect()
}

/// Ten keys at revisions 2 to 11, a frame each, and where the frames begin.
async fn ten_keys(disk: &FaultDisk) -> Vec<usize> {
    let store = open(disk).unwrap();
    let mut begin = Vec::new();
    for n in 0..10 {
        begin.push(disk.len(LOG).unwrap() as usize);
        store.writer.write(Op::Put(Put::new(format!("k{n}"), "v"))).await.unwrap();
    }
    begin
}

fn lineage_of(disk: &FaultDisk) -> u64 {
    open(disk).unwrap().lineage
}

#[tokio::test]
async fn damage_in_the_middle_loses_the_damaged_revision_alone_and_names_it() {
    let disk = FaultDisk::new(1);
    let begin = ten_keys(&disk).await;
    let before = lineage_of(&disk);
    disk.flip(LOG, (begin[4] + 25) * 8);
    let refused = open(&disk).unwrap_err().to_string();
    assert!(refused.contains("`clustermesh-apiserver repair --store (fault disk)`"), "{refused}");
    let damaged = disk.read(LOG).unwrap();

    let found = salvage(&disk).unwrap();
    assert_eq!((found.keys, found.revision), (9, 11));
    assert_eq!(found.damage.len(), 1);
    let said = found.damage[0].to_string();
    let (from, to) = (begin[4], begin[5]);
    assert_eq!(said, format!("{LOG} is unreadable from byte {from} to byte {to}; lost is revision 6"));
    assert_eq!(disk.read(LOG).unwrap(), damaged, "looking changes nothing");

    let kept = found.repair(&disk, 77).unwrap();
    let store = open(&disk).unwrap();
    let keys: Vec<Bytes> = contents(&store).into_keys().collect();
    assert_eq!(keys, ["k0", "k1", "k2", "k3", "k5", "k6", "k7", "k8", "k9"]);
    assert_eq!((store.lineage, store.keyspace.read(Keyspace::revision)), (77, 11));
    assert_ne!(before, 77);
    let copy = kept.iter().find(|name| name.ends_with(LOG)).unwrap();
    assert_eq!(disk.read(copy).unwrap(), damaged, "the damaged file is kept as it was");
    store.writer.write(Op::Put(Put::new("k4", "again"))).await.unwrap();
    drop(store);
    assert_eq!(contents(&open(&disk).unwrap()).len(), 10);
}

#[tokio::test]
async fn two_holes_are_two_losses() {
    let disk = FaultDisk::new(1);
    let begin = ten_keys(&disk).await;
    disk.flip(LOG, (begin[2] + 25) * 8);
    disk.flip(LOG, (begin[3] + 25) * 8);
    disk.flip(LOG, (begin[7] + 1) * 8);
    let found = salvage(&disk).unwrap();
    let lost: Vec<_> = found.damage.iter().map(|damage| damage.revisions).collect();
    assert_eq!(lost, [Some((4, 5)), Some((9, 9))]);
    assert_eq!(found.keys, 7);
}

#[tokio::test]
async fn a_damaged_snapshot_leaves_what_its_logs_have() {
    let disk = FaultDisk::new(1);
    ten_keys(&disk).await;
    disk.flip(SNAPSHOT, 8 * 8);
    assert!(matches!(open(&disk), Err(EmbeddedError::Open(OpenError::Damaged { .. }))));
    let found = salvage(&disk).unwrap();
    assert_eq!(found.keys, 10);
    assert!(found.damage[0].to_string().contains("which revisions were in it is not known"));
    found.repair(&disk, 77).unwrap();
    assert_eq!(contents(&open(&disk).unwrap()).len(), 10);
}

#[tokio::test]
async fn a_good_store_and_a_torn_one_have_nothing_to_repair() {
    let disk = FaultDisk::new(1);
    ten_keys(&disk).await;
    assert_eq!(salvage(&disk).unwrap().damage, []);
    let len = disk.len(LOG).unwrap();
    disk.open(LOG).unwrap().write_at(len, &[0x48; 77]).unwrap();
    assert_eq!(salvage(&disk).unwrap().damage, []);
}

#[tokio::test]
async fn a_directory_without_a_store_and_one_with_nothing_readable_are_refused() {
    let disk = FaultDisk::new(1);
    assert!(matches!(salvage(&disk), Err(RepairError::NoStore { .. })));
    disk.create(LOG).unwrap().write_at(0, b"nothing that we wrote").unwrap();
    assert!(matches!(salvage(&disk), Err(RepairError::Nothing { .. })));
}

#[tokio::test]
async fn a_crash_at_any_point_of_a_repair_leaves_the_damaged_store_or_the_repaired_one() {
    let damaged = || async {
        let disk = FaultDisk::new(1);
        let begin = ten_keys(&disk).await;
        disk.flip(LOG, (begin[4] + 25) * 8);
        disk
    };
    let whole = damaged().await;
    let before = whole.operations();
    salvage(&whole).unwrap().repair(&whole, 77).unwrap();
    let steps = whole.operations() - before;
    for step in 1..=steps {
        for seed in 0..3 {
            let disk = damaged().await;
            disk.fault(disk.operations() + step, Fault::Crash);
            assert!(salvage(&disk).unwrap().repair(&disk, 77).is_err() || step == steps);
            let after = disk.after_crash(seed);
            match open(&after) {
                Ok(store) => assert_eq!((store.lineage, contents(&store).len()), (77, 9), "{step} {seed}"),
                Err(_) => {
                    let again = salvage(&after).unwrap();
                    assert_eq!((again.keys, again.damage.len()), (9, 1), "{step} {seed}");
                }
            }
        }
    }
}
