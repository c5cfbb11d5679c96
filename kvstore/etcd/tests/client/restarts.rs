//! Mirrors that are kept on disk: what a restart finds of a remote that is gone, is there, or is another one.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hawser_etcd::client::{Client, FollowConfig, Resume};
use hawser_etcd::durable::{Directory, TakeError};
use hawser_etcd::mirror::{Mirror, MirrorConfig, MirrorDir, MirrorState, Refusal};
use hawser_kvstore::{KeyRange, Keyspace, Op};
use tempfile::TempDir;

use crate::harness::{Copy, TestServer, channel, eventually, memory, pace};
use crate::mirrors::{EXPORTED, admit_all, exported, fill, held, mirror_of, place};

/// The process that mirrors us-east, for one life.
struct Life {
    here: TestServer,
    mirror: Mirror,
}

impl Life {
    async fn begin(dir: &Path, origin: SocketAddr) -> Self {
        Self::of(dir, mirror_of(origin, admit_all)).await
    }

    async fn of(dir: &Path, config: MirrorConfig) -> Self {
        let here = TestServer::serving(memory("eu-west", 8)).await;
        let config = MirrorConfig { keep: Some(take(dir).await), ..config };
        let mirror = Mirror::start(config, &here.keyspaces).unwrap();
        Self { here, mirror }
    }

    /// Until everything that the origin exports is here and on disk.
    async fn keeps(&self, origin: &TestServer) {
        eventually("the mirror has everything", || held(&self.here) == exported(origin)).await;
        let newest = origin.own().keyspace().read(Keyspace::revision);
        eventually("it is on disk", || self.mirror.status().kept_revision >= Some(newest)).await;
    }

    fn end(self) {}
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

async fn origin_with(keys: std::ops::Range<u32>) -> (TestServer, TempDir) {
    let origin = TestServer::serving(memory("us-east", 7)).await;
    fill(&origin, keys).await;
    (origin, TempDir::new().unwrap())
}

/// Nobody listens there.
fn nowhere() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn after_a_restart_with_the_remote_gone_its_last_known_state_is_served_with_its_age() {
    let (origin, dir) = origin_with(0..50).await;
    origin.delete("cilium/state/ip/v1/default/10.1.0.7").await;
    let life = Life::begin(dir.path(), origin.addr).await;
    life.keeps(&origin).await;
    let (known, at) = (exported(&origin), place(origin.own().keyspace()));
    life.end();
    drop(origin);

    let life = Life::begin(dir.path(), nowhere()).await;
    assert_eq!(held(&life.here), known, "every key with its revisions, before anything is reached");
    let agent = Client::for_cluster(channel(life.here.addr), "us-east").unwrap();
    let mut copy = Copy::of(&agent, EXPORTED);
    copy.until_equal(life.here.keyspaces.get("us-east").unwrap().keyspace(), EXPORTED).await;
    let status = life.mirror.status();
    assert_eq!((copy.follow.status().borrow().cluster_id, status.revision), (Some(at.0), at.1));
    assert_eq!((status.state, status.heard_at), (MirrorState::Restored, None));
    let heard = status.heard_before.unwrap();
    let (now, hour) = (Instant::now(), Duration::from_secs(3600));
    assert_eq!(status.heard_ago(now, heard + hour), Some(hour));
    assert_eq!(status.heard_ago(now, heard - hour), Some(Duration::ZERO), "a clock that was set back");
    eventually("why is told", || life.mirror.status().last_trouble.is_some()).await;
    assert_eq!(life.mirror.state(), MirrorState::Restored);
}

#[tokio::test]
async fn after_a_restart_with_the_remote_there_mirror_and_agents_resume_and_nobody_lists() {
    let (origin, dir) = origin_with(0..50).await;
    let life = Life::begin(dir.path(), origin.addr).await;
    life.keeps(&origin).await;
    let agent = Client::for_cluster(channel(life.here.addr), "us-east").unwrap();
    let mut copy = Copy::of(&agent, EXPORTED);
    copy.until_equal(origin.own().keyspace(), EXPORTED).await;
    let mirrored = life.here.keyspaces.get("us-east").unwrap();
    eventually("as far as the origin", || place(mirrored.keyspace()) == place(origin.own().keyspace())).await;
    eventually("so is the agent", || copy.follow.status().borrow().revision == place(mirrored.keyspace()).1)
        .await;
    let (cluster_id, revision) = place(mirrored.keyspace());
    let known = copy.kvs.iter().map(|(key, (_, revision))| (key.clone(), *revision)).collect();
    drop(mirrored);
    life.end();

    let ranges = origin.own().stats().ranges;
    origin.delete("cilium/state/ip/v1/default/10.1.0.1").await;
    fill(&origin, 40..60).await;
    let life = Life::begin(dir.path(), origin.addr).await;
    let agent = Client::for_cluster(channel(life.here.addr), "us-east").unwrap();
    let config = FollowConfig {
        start: Some(Resume { cluster_id, revision, known }),
        pace: pace(),
        ..FollowConfig::new(EXPORTED.iter().map(|prefix| KeyRange::prefix(*prefix)).collect())
    };
    let mut resumed = Copy { kvs: copy.kvs, ..Copy::following(&agent, config) };
    resumed.until_equal(origin.own().keyspace(), EXPORTED).await;
    life.keeps(&origin).await;
    assert_eq!(resumed.resets, [""; 0], "the agent listed nothing");
    assert_eq!((origin.own().stats().ranges, life.mirror.status().relists), (ranges, 0));
    eventually("synced", || life.mirror.state() == MirrorState::Synced).await;
    assert!(life.mirror.status().heard_at.is_some());
}

#[tokio::test]
async fn a_snapshot_that_is_damaged_cut_short_or_anothers_is_passed_over_and_the_origin_listed() {
    let (origin, dir) = origin_with(0..50).await;
    let file = dir.path().join("us-east.snapshot");
    let life = Life::begin(dir.path(), origin.addr).await;
    life.keeps(&origin).await;
    life.end();
    let good = fs::read(&file).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    // Whole, but of another cluster.
    let (other, other_dir) = origin_with(0..5).await;
    let life = Life::of(
        other_dir.path(),
        MirrorConfig { cluster: "ap-south".into(), ..mirror_of(other.addr, admit_all) },
    );
    let life = life.await;
    eventually("it is on disk", || life.mirror.status().kept_revision.is_some()).await;
    life.end();
    let anothers = fs::read(other_dir.path().join("ap-south.snapshot")).unwrap();
    for bad in [flipped, good[..good.len() / 2].to_vec(), Vec::new(), b"not one of ours".repeat(9), anothers]
    {
        fs::write(&file, bad).unwrap();
        let life = Life::begin(dir.path(), nowhere()).await;
        assert!(life.here.keyspaces.get("us-east").is_none(), "nothing is made up");
        assert_eq!(life.mirror.state(), MirrorState::Connecting);
        life.end();
        let life = Life::begin(dir.path(), origin.addr).await;
        life.keeps(&origin).await;
        life.end();
    }
}

#[tokio::test]
async fn when_the_remote_is_another_lineage_after_the_restart_everyone_relists_and_diffs() {
    let (old, dir) = origin_with(0..50).await;
    let life = Life::begin(dir.path(), old.addr).await;
    life.keeps(&old).await;
    let known = exported(&old);
    life.end();
    drop(old);

    let new = TestServer::serving(memory("us-east", 9)).await;
    new.put("cilium/state/new", "v").await;
    let wire = crate::harness::Wire::to(new.addr).await;
    wire.cut();
    let life = Life::begin(dir.path(), wire.addr).await;
    assert_eq!(held(&life.here), known);
    let agent = Client::for_cluster(channel(life.here.addr), "us-east").unwrap();
    let mut copy = Copy::of(&agent, EXPORTED);
    copy.until_equal(life.here.keyspaces.get("us-east").unwrap().keyspace(), EXPORTED).await;
    wire.connect(new.addr);
    copy.until_equal(new.own().keyspace(), EXPORTED).await;
    assert!(copy.resets.last().unwrap().starts_with("LineageChanged"), "{:?}", copy.resets);
    life.keeps(&new).await;
    let status = life.mirror.status();
    assert_eq!((status.relists, status.cluster_id), (1, Some(place(new.own().keyspace()).0)));
    life.end();
    let life = Life::begin(dir.path(), nowhere()).await;
    assert_eq!(held(&life.here), exported(&new), "the new one is what is kept");
}

#[tokio::test]
async fn a_mirror_that_settles_has_its_last_change_on_disk_too() {
    let (origin, dir) = origin_with(0..5).await;
    let hourly = MirrorDir::on(Arc::new(Directory::take(dir.path()).unwrap()), Duration::from_secs(3600));
    let here = TestServer::serving(memory("eu-west", 8)).await;
    let config = MirrorConfig { keep: Some(hourly), ..mirror_of(origin.addr, admit_all) };
    let mirror = Mirror::start(config, &here.keyspaces).unwrap();
    eventually("the first list is on disk", || mirror.status().kept_revision.is_some()).await;
    fill(&origin, 5..9).await;
    let life = Life { here, mirror };
    eventually("the mirror has everything", || held(&life.here) == exported(&origin)).await;
    life.mirror.settle().await;
    life.end();
    let life = Life::begin(dir.path(), nowhere()).await;
    assert_eq!(held(&life.here), exported(&origin));
}

#[tokio::test]
async fn when_the_remote_has_forgotten_what_was_missed_it_is_listed() {
    let (origin, dir) = origin_with(0..50).await;
    let life = Life::begin(dir.path(), origin.addr).await;
    life.keeps(&origin).await;
    life.end();
    fill(&origin, 40..60).await;
    origin.delete("cilium/state/ip/v1/default/10.1.0.3").await;
    let revision = origin.own().keyspace().read(Keyspace::revision);
    origin.own().writer().write(Op::Compact { revision }).await.unwrap();
    let life = Life::begin(dir.path(), origin.addr).await;
    life.keeps(&origin).await;
    assert_eq!(life.mirror.status().relists, 1);
}

#[tokio::test]
async fn what_is_restored_is_admitted_anew_and_what_was_refused_is_asked_for_again() {
    let (origin, dir) = origin_with(0..5).await;
    origin.put("cilium/state/odd", "odd").await;
    let without = |what: &'static [u8]| {
        move |_: &[u8], value: &[u8]| match value == what {
            true => Err(Refusal { reason: "unwanted", detail: String::new() }),
            false => Ok(()),
        }
    };
    let keys = |life: &Life| held(&life.here).len();
    let life = Life::begin(dir.path(), origin.addr).await;
    life.keeps(&origin).await;
    life.end();
    let life = Life::of(dir.path(), mirror_of(nowhere(), without(b"odd"))).await;
    assert_eq!((keys(&life), life.mirror.status().refused["unwanted"]), (10, 1));
    life.end();
    // Now it is refused by the origin's list, so the snapshot is without it.
    fs::remove_file(dir.path().join("us-east.snapshot")).unwrap();
    let life = Life::of(dir.path(), mirror_of(origin.addr, without(b"odd"))).await;
    eventually("it is on disk", || life.mirror.status().kept_revision.is_some()).await;
    assert_eq!(keys(&life), 10);
    life.end();
    let life = Life::begin(dir.path(), origin.addr).await;
    eventually("the mirror has everything", || held(&life.here) == exported(&origin)).await;
}

#[tokio::test]
async fn a_mirror_that_is_forgotten_leaves_no_file_and_strangers_files_go_at_the_start() {
    let (origin, dir) = origin_with(0..5).await;
    let life = Life::begin(dir.path(), origin.addr).await;
    life.keeps(&origin).await;
    let names = || {
        let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["LOCK", "us-east.snapshot"]);
    for name in ["ap-south.snapshot", "us-east.snapshot.tmp", "notes"] {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    let Life { here, mirror } = life;
    mirror.forget();
    drop(here);
    let kept = take(dir.path()).await;
    fs::write(dir.path().join("us-east.snapshot"), "x").unwrap();
    kept.retain(&["us-east"]);
    assert_eq!(names(), ["LOCK", "notes", "us-east.snapshot"], "only what is ours");
}
