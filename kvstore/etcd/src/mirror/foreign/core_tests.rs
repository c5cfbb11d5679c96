//! The core against etcds in memory: whatever happens to them, the mirror ends as they do, and nobody who watches it lists.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use hawser_kvstore::{
    Cursor, EventKind, Identity, KeyRange, KeyValue, Keyspace, Limits, PullLimits, Pulled, RangeQuery,
    Revision,
};
use hawser_model::Time;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::chart::{Chart, Plan, Signs, Source};
use super::core::{Core, Output};
use crate::client::{FollowEvent, ResetReason};
use crate::mirror::fill::Verdict;
use crate::pb;

/// Two kinds in one of two layouts; `config` says which, `synced/` what of it is whole.
struct TwoKinds;

impl Chart for TwoKinds {
    fn signs(&self) -> Vec<KeyRange> {
        vec![KeyRange::key("beat"), KeyRange::key("config"), KeyRange::prefix("synced/")]
    }

    fn heartbeat(&self) -> Bytes {
        "beat".into()
    }

    fn plan(&self, signs: &Signs) -> Plan {
        let Some(config) = signs.get(&b"config"[..]) else { return Plan::Wait("no config".into()) };
        let (layout, b) = match &config[..] {
            b"state" => ("state", true),
            b"state without b" => ("state", false),
            b"cache" => ("cache", true),
            _ => return Plan::Refuse("bad config".into()),
        };
        let source = |name: &'static str| Source {
            name,
            from: format!("{layout}/{name}/").into(),
            to: format!("state/{name}/").into(),
            published: name == "a" || b,
            complete: signs.contains_key(format!("synced/{name}").as_bytes()),
            canary: (format!("synced/{name}").into(), "yes".into()),
        };
        let stated = vec![("config".into(), "state".into())];
        Plan::Follow { layout, sources: vec![source("a"), source("b")], stated }
    }
}

/// One etcd: its own revisions, its own id.
#[derive(Clone)]
struct Etcd {
    id: u64,
    revision: Revision,
    kvs: BTreeMap<String, (String, Revision)>,
    log: Vec<(Revision, String, Option<String>)>,
}

impl Etcd {
    fn new(id: u64, revision: Revision) -> Self {
        Self { id, revision, kvs: BTreeMap::new(), log: Vec::new() }
    }

    fn put(&mut self, key: &str, value: &str) {
        self.revision += 1;
        self.kvs.insert(key.to_owned(), (value.to_owned(), self.revision));
        self.log.push((self.revision, key.to_owned(), Some(value.to_owned())));
    }

    /// One transaction, as a lease's end is.
    fn delete(&mut self, keys: &[String]) {
        self.revision += 1;
        for key in keys.iter().filter(|key| self.kvs.contains_key(*key)) {
            self.log.push((self.revision, key.clone(), None));
        }
        self.kvs.retain(|key, _| !keys.contains(key));
    }

    fn under(&self, prefix: &str) -> Vec<String> {
        self.kvs.keys().filter(|key| key.starts_with(prefix)).cloned().collect()
    }
}

/// A follower as `client::follow` is one with [`crate::client::Relist::Whole`], one range after the other.
struct Follower {
    ranges: Vec<KeyRange>,
    /// Which etcd it is connected to; its place there, when it has listed it.
    etcd: Option<(u64, Revision)>,
}

impl Follower {
    /// What it says next.
    fn hear(&mut self, etcd: &Etcd) -> Vec<FollowEvent> {
        let mut events = Vec::new();
        let kv = |key: &str, value: &str, revision| pb::KeyValue {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            mod_revision: revision,
            ..Default::default()
        };
        match self.etcd {
            Some((id, at)) if id == etcd.id => {
                for (range, keys) in self.ranges.iter().enumerate() {
                    let news = etcd
                        .log
                        .iter()
                        .filter(|(revision, key, _)| *revision > at && keys.contains(key.as_bytes()));
                    events.extend(news.map(|(revision, key, value)| match value {
                        Some(value) => FollowEvent::Put { range, kv: kv(key, value, *revision) },
                        None => {
                            FollowEvent::Delete { range, key: key.clone().into(), mod_revision: *revision }
                        }
                    }));
                }
            }
            _ => {
                events.push(FollowEvent::Reset { reason: ResetReason::Start, cluster_id: etcd.id });
                for (range, keys) in self.ranges.iter().enumerate() {
                    let there = etcd.kvs.iter().filter(|(key, _)| keys.contains(key.as_bytes()));
                    events.extend(
                        there.map(|(key, (value, at))| FollowEvent::Put { range, kv: kv(key, value, *at) }),
                    );
                    events.push(FollowEvent::Listed { range, revision: etcd.revision });
                }
            }
        }
        self.etcd = Some((etcd.id, etcd.revision));
        events
    }
}

/// A mirror, its followers, and somebody who watches it.
struct World {
    core: Core,
    keyspace: Keyspace,
    signs: Follower,
    groups: BTreeMap<u64, Follower>,
    now: Time,
    reconnects: usize,
    watcher: Option<(Cursor, BTreeMap<Bytes, Bytes>)>,
    events: usize,
}

impl World {
    fn new() -> Self {
        let keyspace = Keyspace::replica(Identity::new("c1", 1, 0), Limits::default());
        let core = Core::new(Box::new(TwoKinds), None, Time::ZERO);
        let signs = Follower { ranges: core.sign_ranges(), etcd: None };
        let (groups, now) = (BTreeMap::new(), Time::ZERO);
        Self { core, keyspace, signs, groups, now, reconnects: 0, watcher: None, events: 0 }
    }

    fn drain(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Begin { group, ranges } => {
                    self.groups.insert(group, Follower { ranges, etcd: None });
                }
                Output::End { group } => drop(self.groups.remove(&group)),
                Output::Reconnect => {
                    self.groups.clear();
                    self.signs.etcd = None;
                    self.reconnects += 1;
                }
                Output::Complete => {
                    Core::forget_history(&mut self.keyspace).unwrap();
                    let copy = held(&self.keyspace).into_iter().collect();
                    self.watcher = Some((self.keyspace.watch(0).unwrap(), copy));
                }
            }
        }
        self.watch();
    }

    /// What a watcher is told: every event changes what it has, and in the end it has what there is.
    fn watch(&mut self) {
        let Some((cursor, copy)) = &mut self.watcher else { return };
        match self.keyspace.pull(cursor, &KeyRange::all(), PullLimits::default()) {
            Pulled::Events { events, .. } => {
                for event in events {
                    self.events += 1;
                    let kv = event.kv();
                    let old = copy.get(&kv.key).cloned();
                    match event.kind() {
                        EventKind::Put => {
                            assert_ne!(old.as_ref(), Some(&kv.value), "an event that changes nothing");
                            copy.insert(kv.key.clone(), kv.value.clone());
                        }
                        EventKind::Delete => assert!(copy.remove(&kv.key).is_some(), "a doubled delete"),
                    }
                }
            }
            other => panic!("whoever watches had to list: {other:?}"),
        }
        let copy: Vec<_> = copy.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        assert_eq!(copy, held(&self.keyspace));
    }

    fn signs_hear(&mut self, etcd: &Etcd) {
        let events = self.signs.hear(etcd);
        self.core.handle_signs(events, &mut self.keyspace, &mut |_, _| Verdict::Take, self.now).unwrap();
        self.drain();
    }

    fn group_hears(&mut self, group: u64, etcd: &Etcd) {
        let Some(follower) = self.groups.get_mut(&group) else { return };
        let events = follower.hear(etcd);
        let gate = &mut |_: &_, _: &_| Verdict::Take;
        self.core.handle_group(group, events, &mut self.keyspace, gate, self.now).unwrap();
        self.drain();
    }

    /// Everybody has heard everything.
    fn settle(&mut self, etcd: &Etcd) {
        for _ in 0..4 {
            self.signs_hear(etcd);
            let groups: Vec<_> = self.groups.keys().copied().collect();
            groups.into_iter().for_each(|group| self.group_hears(group, etcd));
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.core.handle_time(self.now);
        self.drain();
    }

    fn kinds(&self) -> Vec<(String, String)> {
        let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        let kvs = held(&self.keyspace).into_iter().map(|(key, value)| (text(key), text(value)));
        kvs.filter(|(key, _)| key.starts_with("state/")).collect()
    }
}

fn held(keyspace: &Keyspace) -> Vec<(Bytes, Bytes)> {
    let all = keyspace.range(&RangeQuery::new(KeyRange::all())).unwrap().kvs;
    all.iter().map(|kv| (kv.key.clone(), kv.value.clone())).collect()
}

fn published(id: u64, revision: Revision, layout: &str, keys: usize) -> Etcd {
    let mut etcd = Etcd::new(id, revision);
    etcd.put("beat", &format!("{id}-0"));
    etcd.put("config", layout);
    for n in 0..keys {
        etcd.put(&format!("{layout}/a/{n}"), &n.to_string());
        etcd.put(&format!("{layout}/b/{n}"), &n.to_string());
    }
    etcd.put("synced/a", "t");
    etcd.put("synced/b", "t");
    etcd
}

const MINUTE: Duration = Duration::from_secs(60);

/// Everything a dead publisher's lease holds.
fn lease_ends(etcd: &mut Etcd) {
    let keys: Vec<_> = etcd.kvs.keys().cloned().collect();
    etcd.delete(&keys);
}

#[test]
fn another_replica_and_another_layout_of_the_same_state_are_no_event() {
    let mut world = World::new();
    world.settle(&published(1, 100, "state", 40));
    let revision = world.keyspace.revision();
    let copy = world.kinds();
    assert_eq!(copy.len(), 80);
    world.pass(MINUTE);
    world.settle(&published(2, 7, "state", 40));
    world.settle(&published(3, 70_000, "cache", 40));
    assert_eq!(world.kinds(), copy);
    assert_eq!(world.keyspace.revision(), revision + 2, "two heartbeats");
    assert_eq!(world.core.standing(world.now).changes, 2);
}

#[test]
fn a_replica_that_is_not_filled_yet_takes_nothing_away() {
    let mut world = World::new();
    world.settle(&published(1, 100, "state", 40));
    let mut young = Etcd::new(2, 1);
    young.put("beat", "2-0");
    young.put("config", "state");
    young.put("state/a/0", "new");
    world.settle(&young);
    let standing = world.core.standing(world.now);
    assert_eq!((world.kinds().len(), standing.waits_for), (80, vec!["a", "b"]));
    young.put("synced/a", "t");
    world.settle(&young);
    assert_eq!(world.kinds().len(), 80, "so many at once wait for a sign of life");
    assert_eq!(world.core.standing(world.now).held_back, 39);
    young.put("beat", "2-1");
    world.settle(&young);
    assert_eq!(world.kinds().len(), 41);
    assert_eq!(world.kinds()[0], ("state/a/0".to_owned(), "new".to_owned()));
}

#[test]
fn a_cluster_that_dies_does_not_erase_itself_and_one_that_comes_back_is_believed() {
    let mut world = World::new();
    let mut etcd = published(1, 100, "state", 40);
    world.settle(&etcd);
    world.pass(3 * MINUTE);
    assert!(!world.core.standing(world.now).lives && world.reconnects == 1);
    etcd.delete(&["state/a/1".to_owned()]);
    world.settle(&etcd);
    assert_eq!(world.kinds().len(), 80, "nobody vouches for one deletion");
    lease_ends(&mut etcd);
    world.settle(&etcd);
    assert_eq!((world.kinds().len(), world.core.standing(world.now).held_back), (80, 80));

    etcd.put("beat", "1-1");
    etcd.put("config", "state");
    etcd.put("state/a/1", "back");
    world.settle(&etcd);
    etcd.put("beat", "1-2");
    world.settle(&etcd);
    assert_eq!(world.kinds().len(), 80, "it lives, and has not said that this is all");
    etcd.put("synced/a", "t");
    etcd.put("synced/b", "t");
    world.settle(&etcd);
    assert_eq!(world.kinds().len(), 80);
    etcd.put("beat", "1-3");
    world.settle(&etcd);
    assert_eq!(world.kinds(), [("state/a/1".to_owned(), "back".to_owned())]);
}

#[test]
fn a_few_deletions_are_followed_at_once_and_more_than_half_after_the_next_heartbeat() {
    let mut world = World::new();
    let mut etcd = published(1, 100, "state", 40);
    world.settle(&etcd);
    etcd.delete(&etcd.under("state/a/1"));
    world.settle(&etcd);
    assert_eq!(world.kinds().len(), 69);
    etcd.delete(&etcd.under("state/a/2"));
    world.settle(&etcd);
    assert_eq!(world.kinds().len(), 69, "with the first ones more than half of the kind");
    etcd.put("state/a/2", "again");
    etcd.put("beat", "1-1");
    world.settle(&etcd);
    assert_eq!(world.kinds().len(), 59, "and what came back meanwhile stays");
}

#[test]
fn a_heartbeat_that_stops_has_the_etcd_dialled_again_every_two_minutes() {
    let mut world = World::new();
    let mut etcd = published(1, 100, "state", 4);
    for n in 0..5 {
        etcd.put("beat", &format!("1-{n}b"));
        world.settle(&etcd);
        world.pass(MINUTE);
    }
    assert_eq!(world.reconnects, 0);
    for n in 1..4 {
        world.pass(2 * MINUTE);
        world.settle(&etcd);
        assert_eq!(world.reconnects, n);
        assert!(!world.core.standing(world.now).lives, "the same heartbeat again proves nothing");
    }
    assert_eq!(world.kinds().len(), 8);
}

#[test]
fn a_kind_that_is_published_no_more_goes_with_the_next_heartbeat() {
    let mut world = World::new();
    let mut etcd = published(1, 100, "state", 4);
    world.settle(&etcd);
    etcd.put("config", "state without b");
    world.settle(&etcd);
    assert_eq!(world.kinds().len(), 8);
    etcd.put("beat", "1-1");
    world.settle(&etcd);
    assert!(world.kinds().iter().all(|(key, _)| key.starts_with("state/a/")));

    // Also when an earlier life has it on disk.
    let mut later = World::new();
    let old = KeyValue { key: "state/b/1".into(), mod_revision: 5, ..KeyValue::default() };
    later.keyspace.load(Identity::new("c1", 2, 0), 5, &[old]).unwrap();
    later.settle(&etcd);
    etcd.put("beat", "1-2");
    later.settle(&etcd);
    assert_eq!(later.kinds().len(), 4);
}

#[test]
fn a_config_that_may_not_be_followed_stops_the_following_and_keeps_what_there_is() {
    let mut world = World::new();
    let mut etcd = published(1, 100, "state", 4);
    world.settle(&etcd);
    etcd.put("config", "nonsense");
    world.settle(&etcd);
    etcd.put("state/a/new", "1");
    world.settle(&etcd);
    let standing = world.core.standing(world.now);
    assert_eq!((world.kinds().len(), standing.refused.as_deref()), (8, Some("bad config")));
    etcd.put("config", "state");
    world.settle(&etcd);
    assert_eq!(world.kinds().len(), 9);
}

/// Replicas are written one after the other, so that one may be behind; followers hear when they hear.
#[test]
fn after_any_history_of_faults_the_mirror_is_what_its_cluster_is() {
    for seed in 0..400 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::new();
        let mut etcds = [published(1, 10, "state", 6), published(2, 500, "state", 6)];
        let mut connected = 0;
        for step in 0..rng.random_range(20..120) {
            let key = format!("state/{}/{}", ["a", "b"][rng.random_range(0..2)], rng.random_range(0..24));
            let value = step.to_string();
            match rng.random_range(0..24) {
                0..8 => etcds.iter_mut().for_each(|etcd| etcd.put(&key, &value)),
                8..11 => etcds.iter_mut().for_each(|etcd| etcd.delete(std::slice::from_ref(&key))),
                11 => etcds[rng.random_range(0..2)].put(&key, &value),
                12 => connected = 1 - connected,
                // Compacted: listed again where it is.
                13 => world.signs.etcd = None,
                14 => world.groups.values_mut().for_each(|follower| follower.etcd = None),
                15 => lease_ends(&mut etcds[rng.random_range(0..2)]),
                16 => {
                    let id = rng.random();
                    etcds[rng.random_range(0..2)] = Etcd::new(id, 1);
                }
                17 => etcds.iter_mut().for_each(|etcd| etcd.put("beat", &value)),
                18 => {
                    let etcd = &mut etcds[rng.random_range(0..2)];
                    ["config", "synced/a", "synced/b"].iter().for_each(|sign| etcd.put(sign, "state"));
                }
                19 => world.pass(Duration::from_secs(rng.random_range(0..200))),
                20 => etcds.iter_mut().for_each(|etcd| etcd.put("config", "nonsense")),
                _ => {}
            }
            if rng.random() {
                world.signs_hear(&etcds[connected]);
            }
            let groups: Vec<_> = world.groups.keys().copied().filter(|_| rng.random()).collect();
            groups.into_iter().for_each(|group| world.group_hears(group, &etcds[connected]));
        }
        let etcd = &mut etcds[connected];
        for sign in ["config", "synced/a", "synced/b"] {
            etcd.put(sign, "state");
        }
        for beat in 0..3 {
            world.pass(MINUTE);
            etcd.put("beat", &format!("end-{beat}"));
            world.settle(etcd);
        }
        let there = etcd.under("state/").into_iter().map(|key| (key.clone(), etcd.kvs[&key].0.clone()));
        assert_eq!(world.kinds(), there.collect::<Vec<_>>(), "seed {seed}");
        assert_eq!(world.core.standing(world.now).held_back, 0, "seed {seed}");
        assert!(world.watcher.is_some() && world.core.standing(world.now).follows, "seed {seed}");
    }
}
