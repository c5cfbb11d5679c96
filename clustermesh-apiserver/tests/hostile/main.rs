//! A hostile peer: a real etcd-API server behind real TLS that says what it likes, mirrored and followed as the binaries do.
//!
//! What has to hold whatever it says: a node's view of that cluster is exactly the admissible part of it, nobody else's
//! changes, what is held stays bounded, every refusal is counted, and when the peer turns honest the view converges.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that unwraps reads better")]

mod entries;
mod lies;
mod world;

use std::collections::BTreeMap;

use hawser_etcd::mirror::{Intake, KEY_LIMIT, VALUE_LIMIT};
use hawser_kvstore::Keyspace;
use hawser_model::PeerKind;
use proptest::collection::vec;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use entries::{Effect, Say, endpoint, say};
use lies::Lie;
use world::{VALUE_BYTES, World, on_cilium};

/// What a node should hold after `says`: the honest entries, each as it was said last.
fn apply(held: &mut BTreeMap<Vec<u8>, Vec<u8>>, say: &Say) {
    match say.effect {
        Effect::Held => drop(held.insert(say.key.clone(), say.value.clone().unwrap())),
        Effect::Gone => drop(held.remove(&say.key)),
        Effect::AsBefore => {}
    }
}

/// Cases are the same in every run; `HOSTILE_CASES` has more of them tried.
fn runner(cases: u32) -> TestRunner {
    let cases = std::env::var("HOSTILE_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(cases);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 64, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

#[test]
fn whatever_a_peer_says_among_honest_entries_a_node_holds_those_and_nothing_else() {
    let more = ["foreign_cluster", "mesh_address", "unknown_kind"];
    says_what_it_likes(PeerKind::Hawser, 128, &[&REASONS[..], &more].concat());
}

/// Fewer: two heartbeats a second are listened to.
#[test]
fn whatever_a_peer_on_cilium_says_among_honest_entries_a_node_holds_those_and_nothing_else() {
    says_what_it_likes(on_cilium(), 32, &REASONS);
}

const REASONS: [&str; 7] = [
    "address_range",
    "identity_range",
    "identity_labels",
    "malformed",
    "node_address",
    "pod_cidr",
    VALUE_LIMIT,
];

fn says_what_it_likes(kind: PeerKind, cases: u32, reasons: &[&str]) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = std::cell::RefCell::new(runtime.block_on(World::new("entries", kind)));
    let result = runner(cases).run(&vec(say(), 1..80), |says| {
        let mut world = world.borrow_mut();
        runtime.block_on(async {
            world.clear().await;
            let before = world.refused();
            let mut held = BTreeMap::new();
            let says: Vec<_> = says.into_iter().filter(|say| world.is_read(say)).collect();
            for say in &says {
                world.say(say).await;
                apply(&mut held, say);
            }
            world.until_held("after what was said", &held).await;
            let hostile = says.iter().filter(|say| say.is_counted()).count() as u64;
            // What is refused may come behind what is held: kinds of entries have watches of their own.
            world.until("every lie is counted", |world| world.refused() - before >= hostile).await;
            let refused = world.refused() - before;
            if refused != hostile {
                let why = world.mirror.status();
                return Err(TestCaseError::fail(format!("{hostile} lies, {refused} counted: {why:?}")));
            }
            world.nobody_else_changed();
            Ok(())
        })
    });
    result.unwrap();
    let status = world.borrow().mirror.status();
    for reason in reasons {
        assert!(status.refused.contains_key(reason), "{reason} was not among {:?}", status.refused);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_peer_lies_about_its_history_it_harms_itself_alone_and_converges_when_it_turns_honest() {
    lies(PeerKind::Hawser).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_peer_on_cilium_lies_about_its_history_it_harms_itself_alone_too() {
    lies(on_cilium()).await;
}

/// One world per lie, side by side.
async fn lies(kind: PeerKind) {
    let one = |lie: Lie| {
        let kind = kind.clone();
        tokio::spawn(async move {
            let mut world = World::new(&format!("{lie:?}"), kind).await;
            let mut held = BTreeMap::new();
            for n in 1..20 {
                let say = endpoint(n, 1);
                world.say(&say).await;
                apply(&mut held, &say);
            }
            world.until_held("before the lie", &held).await;
            world.origin.lies.tell(lie);
            for n in 10..60 {
                let say = endpoint(n, 2);
                world.say(&say).await;
                apply(&mut held, &say);
                world.pump();
            }
            world.until_told(lie).await;
            world.nobody_else_changed();
            world.only_its_own();
            world.is_bounded();
            world.origin.lies.tell(Lie::None);
            // What a watch was never sent, nobody can know of: it counts when it is said again.
            for n in (10..60).filter(|_| lie == Lie::Silent) {
                world.say(&endpoint(n, 2)).await;
            }
            let last = endpoint(60, 3);
            world.say(&last).await;
            apply(&mut held, &last);
            world.until_held("after the lie", &held).await;
            world.nobody_else_changed();
            world.is_bounded();
        })
    };
    let worlds: Vec<_> = Lie::ALL.iter().map(|lie| (*lie, one(*lie))).collect();
    for (lie, world) in worlds {
        world.await.unwrap_or_else(|error| panic!("{lie:?}: {error}"));
    }
}

#[tokio::test]
async fn a_flood_of_keys_and_bytes_stops_at_the_limits_and_what_was_said_before_stays() {
    let mut world =
        World::with("flood", Intake { keys: 500, bytes: 1 << 20, ..World::intake() }, PeerKind::Hawser).await;
    let mut held = BTreeMap::new();
    for n in 1..20 {
        let say = endpoint(n, 1);
        world.say(&say).await;
        apply(&mut held, &say);
    }
    world.until_held("before the flood", &held).await;
    let large = vec![b' '; VALUE_BYTES];
    for n in 0..3_000_u32 {
        // Admissible by what they say, and too many.
        let say = entries::endpoint_at(&format!("10.2.{}.{}", 10 + n / 250, n % 250), 1, 7);
        let mut value = say.value.clone().unwrap();
        if n % 10 == 0 {
            value.extend_from_slice(&large[value.len()..]);
        }
        world.raw(&say.key, &value).await;
    }
    world.until("the limit is met", |world| world.mirror.status().refused.contains_key(KEY_LIMIT)).await;
    let status = world.mirror.status();
    assert!(status.keys <= 500 && status.bytes <= 1 << 20, "{status:?}");
    let crowded = status.crowded.unwrap();
    assert!(crowded.contains("eu-west") && crowded.contains("fix: "), "{crowded}");
    world.pump();
    let view = world.held_endpoints();
    assert!((1..20).all(|n| view.contains(&format!("10.2.1.{n}"))), "{view:?}");
    world.nobody_else_changed();
    world.is_bounded();
    world.delete("cilium/state/ip/v1/default/10.2.").await;
    world.until_held("after the flood", &BTreeMap::new()).await;
    let last = endpoint(1, 2);
    world.say(&last).await;
    apply(&mut held, &last);
    world
        .until_held("and it goes on", &BTreeMap::from([(last.key.clone(), last.value.clone().unwrap())]))
        .await;
    assert!(world.keyspace().read(Keyspace::live_keys) < 20);
}
