//! A mirror's snapshot on a disk that lies: an older one or a newer one, never a broken one, and never a mirror that stops.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use hawser_kvstore::{Identity, KeyRange, KeyValue, Keyspace, Limits, Op, Put, Snapshot};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Endpoint;

use super::keep::MirrorDir;
use super::{Intake, Mirror, MirrorConfig, MirrorState};
use crate::client::{Client, Pace};
use crate::durable::codec::KeptMirror;
use crate::durable::fault::{Fault, FaultDisk};
use crate::server::{AllowAll, EtcdServer, KeyspaceHandle, Keyspaces, MemoryWriter, SharedKeyspace};

const QUOTA: usize = 1 << 20;

fn dir(disk: &FaultDisk) -> MirrorDir {
    MirrorDir::on(Arc::new(disk.clone()), Duration::from_millis(1))
}

/// The state at `revision`: as many keys, over a few sectors.
fn kept(revision: i64) -> KeptMirror {
    let kv = |n| KeyValue {
        key: format!("cilium/state/{n:03}").into(),
        value: vec![n as u8; 100].into(),
        create_revision: n,
        mod_revision: n,
        version: 1,
        lease: 0,
    };
    KeptMirror {
        cluster: "us-east".into(),
        ranges: vec![KeyRange::prefix("cilium/state/"), KeyRange::key("cilium/.heartbeat")],
        heard: SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(1_800_000_000)),
        partial: true,
        state: Snapshot {
            identity: Identity::adopted(7),
            revision,
            kvs: (1..=revision).map(kv).collect(),
            leases: Vec::new(),
        },
    }
}

fn write(disk: &FaultDisk, revision: i64) -> bool {
    dir(disk).write(kept(revision), &AtomicBool::new(false)).is_ok()
}

fn found(disk: &FaultDisk) -> Option<KeptMirror> {
    dir(disk).load("us-east", QUOTA).unwrap()
}

#[test]
fn whatever_moment_the_machine_stops_the_snapshot_before_or_the_new_one_is_there_whole() {
    assert!(found(&FaultDisk::new(0)).is_none());
    for seed in 0..100 {
        for at in 1..8 {
            let disk = FaultDisk::new(seed);
            assert!(write(&disk, 10));
            disk.fault(disk.operations() + at, Fault::Crash);
            let written = write(&disk, 20);
            let disk = disk.after_crash(seed);
            let found = found(&disk).unwrap();
            assert!(found == kept(20) || (!written && found == kept(10)), "seed {seed}, operation {at}");
            dir(&disk).retain(&["us-east"]);
            assert_eq!(disk_names(&disk), ["us-east.snapshot"], "seed {seed}, operation {at}");
        }
    }
}

#[test]
fn a_full_or_failing_disk_keeps_the_snapshot_before_and_no_half_of_the_new_one() {
    for fault in [Fault::NoSpace, Fault::Io] {
        for at in 1..=4 {
            let disk = FaultDisk::new(at);
            assert!(write(&disk, 10));
            disk.fault(disk.operations() + at, fault);
            assert!(!write(&disk, 20));
            assert_eq!(found(&disk), Some(kept(10)));
            assert_eq!(disk_names(&disk), ["us-east.snapshot"]);
            assert!(write(&disk, 30), "the next one works");
            assert_eq!(found(&disk.after_crash(at)), Some(kept(30)));
        }
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let disk = FaultDisk::new(1);
    assert!(write(&disk, 3));
    let bits = dir_len(&disk) * 8;
    for bit in (0..bits).step_by(7) {
        disk.flip("us-east.snapshot", bit);
        assert!(dir(&disk).load("us-east", QUOTA).is_err(), "bit {bit}");
        disk.flip("us-east.snapshot", bit);
    }
    assert_eq!(found(&disk), Some(kept(3)));
}

#[test]
fn a_snapshot_larger_than_the_mirror_may_be_is_not_even_read() {
    let disk = FaultDisk::new(1);
    let mut large = kept(1);
    large.state.kvs[0].value = vec![0; 2 << 20].into();
    dir(&disk).write(large, &AtomicBool::new(false)).unwrap();
    let said = dir(&disk).load("us-east", 1000).unwrap_err().to_string();
    assert!(said.contains("at most 1051576"), "{said}");
}

#[test]
fn after_it_is_forgotten_a_late_write_brings_nothing_back() {
    let disk = FaultDisk::new(1);
    let ended = AtomicBool::new(false);
    dir(&disk).write(kept(3), &ended).unwrap();
    dir(&disk).forget("us-east", &ended);
    dir(&disk).write(kept(4), &ended).unwrap();
    assert!(found(&disk).is_none());
}

fn disk_names(disk: &FaultDisk) -> Vec<String> {
    use crate::durable::Disk;
    disk.list().unwrap()
}

fn dir_len(disk: &FaultDisk) -> usize {
    use crate::durable::Disk;
    disk.len("us-east.snapshot").unwrap() as usize
}

fn memory(cluster: &str) -> KeyspaceHandle {
    let keyspace = SharedKeyspace::new(Keyspace::new(Identity::new(cluster, 7, 0), Limits::default()));
    KeyspaceHandle::new(cluster, keyspace.clone(), MemoryWriter::spawn(keyspace))
}

/// Waits until the mirror's status is so.
async fn until(mirror: &mut Mirror, what: &str, mut is_so: impl FnMut(&Mirror) -> bool) {
    let patience = tokio::time::Instant::now() + Duration::from_secs(60);
    while !is_so(mirror) {
        let changed = tokio::time::timeout_at(patience, mirror.changed()).await;
        changed.unwrap_or_else(|_| panic!("never came true: {what}: {:?}", mirror.status()));
    }
}

#[tokio::test]
async fn with_a_full_disk_a_mirror_follows_and_serves_says_what_is_wrong_and_is_kept_again_when_there_is_room()
 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let origin = memory("us-east");
    let server = EtcdServer::new(Keyspaces::new(origin.clone()), Arc::new(AllowAll), vec![url.clone()]);
    let serving = tonic::transport::Server::builder()
        .add_routes(server.routes())
        .serve_with_incoming(TcpListenerStream::new(listener));
    let serving = tokio::spawn(serving);
    let put = async |n: i32| {
        let put = Put::new(format!("cilium/state/{n}"), "v");
        origin.writer().write(Op::Put(put)).await.unwrap().revision
    };

    let disk = FaultDisk::new(1);
    for at in 1..10_000 {
        disk.fault(at, Fault::NoSpace);
    }
    let config = MirrorConfig {
        cluster: "us-east".into(),
        client: Client::new(Endpoint::from_shared(url).unwrap().connect_lazy()),
        ranges: vec![KeyRange::prefix("cilium/state/")],
        admit: Arc::new(|_: &[u8], _: &[u8]| Ok(())),
        limits: Limits::default(),
        intake: Intake::default(),
        afresh: false,
        pace: Pace::default(),
        keep: Some(dir(&disk)),
    };
    put(1).await;
    let here = Keyspaces::new(memory("eu-west"));
    let mut mirror = Mirror::start(config, &here).unwrap();
    until(&mut mirror, "the full disk is told", |mirror| mirror.status().keep_trouble.is_some()).await;
    let trouble = mirror.status().keep_trouble.unwrap();
    assert!(trouble.contains("(fault disk)") && trouble.contains("fix: free disk space"), "{trouble}");
    let newest = put(2).await;
    let served = here.get("us-east").unwrap();
    let mut progress = served.keyspace().subscribe();
    progress.wait_for(|(_, revision)| *revision >= newest).await.unwrap();
    assert_eq!((mirror.state(), mirror.status().kept_revision), (MirrorState::Synced, None));

    let disk = disk.after_restart();
    until(&mut mirror, "it is kept", |mirror| mirror.status().kept_revision == Some(newest)).await;
    assert_eq!(mirror.status().keep_trouble, None);
    assert_eq!(found(&disk).unwrap().state.kvs.len(), 2);
    serving.abort();
}
