//! A mirror's keys and events in, what the cache is to hold out: held against what a real KVStoreMesh wrote.

use std::collections::BTreeMap;
use std::time::Duration;

use hawser_kvstore::{Cursor, Identity, KeyValue, Keyspace, Limits, PullLimits, Pulled, RangeQuery};
use hawser_model::{ClusterId, ClusterIdWidth, ClusterName, ClusterRef};

use super::*;

fn context() -> Context {
    let width = ClusterIdWidth::Bits8;
    let name = ClusterName::parse("c1").unwrap();
    Context { cluster: ClusterRef { name, id: ClusterId::new(1, width).unwrap() }, width }
}

fn at() -> Timestamp {
    Timestamp::parse("2026-11-20T21:45:32Z").unwrap()
}

/// A mirror and a cache, with what is between them.
struct World {
    mirror: Keyspace,
    cursor: Option<Cursor>,
    cache: Keyspace,
    fill: Fill,
}

impl World {
    fn new() -> Self {
        let keyspace = || Keyspace::new(Identity::new("x", 1, 0), Limits::default());
        Self { mirror: keyspace(), cursor: None, cache: keyspace(), fill: Fill::new(context()) }
    }

    fn says(&mut self, pairs: &[(&str, Option<&str>)]) {
        for (key, value) in pairs {
            let key = (*key).to_owned();
            let op = match value {
                Some(value) => put(key, Bytes::copy_from_slice(value.as_bytes())),
                None => delete(key),
            };
            self.mirror.execute(&op, Duration::ZERO).unwrap();
        }
        self.mirror.publish();
    }

    /// The order in which keys were put.
    fn step(&mut self) -> Vec<String> {
        let all = || RangeQuery::new(KeyRange::all());
        let ops = match &mut self.cursor {
            None => {
                let (mirror, cache) = (self.mirror.range(&all()).unwrap(), self.cache.range(&all()).unwrap());
                self.cursor = self.mirror.watch(0).ok();
                self.fill.handle_list(&mirror.kvs, &cache.kvs, at())
            }
            Some(cursor) => match self.mirror.pull(cursor, &KeyRange::all(), PullLimits::default()) {
                Pulled::Events { events, .. } => self.fill.handle_events(&events, at()),
                other => panic!("{other:?}"),
            },
        };
        self.apply(ops)
    }

    fn apply(&mut self, ops: Vec<Op>) -> Vec<String> {
        let mut told = Vec::new();
        for op in ops {
            told.push(match &op {
                Op::Put(put) => format!("put {}", String::from_utf8_lossy(&put.key)),
                Op::DeleteRange(delete) => format!("delete {}", String::from_utf8_lossy(delete.keys.start())),
                other => panic!("{other:?}"),
            });
            self.cache.execute(&op, Duration::ZERO).unwrap();
        }
        self.cache.publish();
        told
    }

    fn holds(&self) -> BTreeMap<String, String> {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let kvs = self.cache.range(&RangeQuery::new(KeyRange::all())).unwrap().kvs;
        kvs.iter().map(|kv| (text(&KeyValue::clone(kv).key), text(&kv.value))).collect()
    }
}

fn dump(of: &'static str) -> Vec<(&'static str, &'static str)> {
    let lines: Vec<_> = of.lines().collect();
    let pair =
        |pair: &[&'static str]| Some((pair[0].strip_prefix("KEY   ")?, pair[1].strip_prefix("VALUE ")?));
    lines.windows(2).filter_map(pair).collect()
}

const FIXTURE: &str = include_str!("../../../model/wire/testdata/cilium-keyspace.txt");

#[test]
fn the_cache_holds_byte_for_byte_what_kvstoremesh_made_of_the_same_cluster() {
    let (c1, rest) = FIXTURE.split_once("##### c2 etcd").unwrap();
    let (c2, _) = rest.split_once("##### kvstoremesh API").unwrap();
    let mut world = World::new();
    let pairs: Vec<_> = dump(c1).into_iter().map(|(key, value)| (key, Some(value))).collect();
    world.says(&pairs);
    let told = world.step();
    assert_eq!(told[0], "put cilium/cluster-config/c1");
    let first_canary = told.iter().position(|told| told.contains("cilium/synced/")).unwrap();
    assert!(told[first_canary..].iter().all(|told| told.contains("cilium/synced/")), "{told:?}");
    let mut expected: BTreeMap<String, String> =
        dump(c2).into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    // This Cilium knew no slices; a reader that does would wait for them.
    expected.insert("cilium/synced/c1/cilium/cache/endpointslices/v1".into(), at().to_string());
    let held = world.holds();
    assert_eq!(held.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (key, value) in expected {
        assert!(held[&key] == value || key.contains("cilium/synced/"), "{key}: {}", held[&key]);
    }
    assert!(world.step().is_empty(), "nothing happened since");
}

const CONFIG: &str = r#"{"id":1,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255}}"#;

#[test]
fn changes_go_through_one_by_one_and_a_new_list_tells_the_differences_alone() {
    let mut world = World::new();
    let node = ("cilium/state/nodes/v1/c1/n1", Some("one"));
    world.says(&[("cilium/cluster-config/c1", Some(CONFIG)), node]);
    assert_eq!(world.step(), ["put cilium/cluster-config/c1", "put cilium/cache/nodes/v1/c1/n1"]);
    // A canary of the cluster; with the first, those of what it never publishes.
    world.says(&[("cilium/state/ip/v1/default/10.1.0.9", Some("x"))]);
    world.says(&[("cilium/synced/c1/cilium/state/nodes/v1", Some("t"))]);
    let told = world.step();
    assert_eq!(
        told[..2],
        ["put cilium/cache/ip/v1/c1/10.1.0.9", "put cilium/synced/c1/cilium/cache/nodes/v1"]
    );
    assert_eq!(told.len(), 4, "{told:?}");
    world.says(&[("cilium/state/ip/v1/default/10.1.0.9", None), ("hawser/state/nodes/v1/c1/n1", Some("x"))]);
    assert_eq!(world.step(), ["delete cilium/cache/ip/v1/c1/10.1.0.9"]);

    // Another mirror of it, which missed what was between.
    world.says(&[("cilium/state/nodes/v1/c1/n1", None), ("cilium/state/nodes/v1/c1/n2", Some("two"))]);
    (world.cursor, world.fill) = (None, Fill::new(context()));
    assert_eq!(world.step(), ["put cilium/cache/nodes/v1/c1/n2", "delete cilium/cache/nodes/v1/c1/n1"]);
}

#[test]
fn a_cluster_that_writes_no_canaries_has_all_of_them_here() {
    let mut world = World::new();
    world.says(&[("cilium/cluster-config/c1", Some(r#"{"id":1}"#))]);
    assert_eq!(world.step().len(), 1 + RESOURCES.len());
    let config = &world.holds()["cilium/cluster-config/c1"];
    assert!(config.contains(r#""syncedCanaries":true,"cached":true"#), "{config}");
}

#[test]
fn a_cluster_that_goes_has_no_config_at_once_and_no_data_later() {
    let mut world = World::new();
    world.says(&[
        ("cilium/cluster-config/c1", Some(CONFIG)),
        ("cilium/state/nodes/v1/c1/n1", Some("one")),
        ("cilium/synced/c1/cilium/state/nodes/v1", Some("t")),
    ]);
    world.step();
    let other = put("cilium/cache/nodes/v1/c10/n1", Bytes::from_static(b"another's"));
    world.apply(vec![other]);
    let gone = world.fill.handle_gone();
    assert_eq!(world.apply(vec![gone]), ["delete cilium/cluster-config/c1"]);
    assert!(world.holds().contains_key("cilium/cache/nodes/v1/c1/n1"));
    let drain = world.fill.drain();
    world.apply(drain);
    assert_eq!(world.holds().into_keys().collect::<Vec<_>>(), ["cilium/cache/nodes/v1/c10/n1"]);
}
