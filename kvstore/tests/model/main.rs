//! The keyspace against a naive one that keeps every state it ever had: same answers, whatever is done in whatever order.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test; clippy exempts only test functions, not their helpers"
)]

mod naive;
mod ops;

use hawser_kvstore::{
    Cursor, Event, EventKind, Identity, KeyRange, KeyValue, Keyspace, Limits, Op, OpError, PullLimits,
    Pulled, RangeQuery, Record, Revision,
};
use naive::{Naive, NaiveEvent};
use ops::{Step, steps};
use proptest::prelude::*;
use std::time::Duration;

const NOW: Duration = Duration::from_secs(1000);

fn identity() -> Identity {
    Identity::new("us-east", 7, 0)
}

/// A history of a few kilobytes, so that random runs reach its bounds.
fn small() -> Limits {
    Limits { history_bytes: 8 << 10, history_events: 5, ..Limits::default() }
}

fn seen(event: &Event) -> NaiveEvent {
    NaiveEvent {
        deleted: event.kind() == EventKind::Delete,
        kv: KeyValue::clone(event.kv()),
        prev: event.prev().map(|prev| KeyValue::clone(prev)),
    }
}

/// A watcher of the test: what it should get, and what it got.
struct Watcher {
    cursor: Cursor,
    keys: KeyRange,
    from: Revision,
    got: Vec<NaiveEvent>,
    told: Revision,
}

impl Watcher {
    fn pull(&mut self, keyspace: &Keyspace, limits: PullLimits) -> bool {
        match keyspace.pull(&mut self.cursor, &self.keys, limits) {
            Pulled::Events { events, revision, more } => {
                assert!(revision >= self.told && revision <= keyspace.revision());
                assert!(more || revision == keyspace.revision());
                self.told = revision;
                self.got.extend(events.iter().map(|event| seen(event)));
                true
            }
            Pulled::FellBehind { compact_revision } => {
                assert!(self.told < compact_revision, "what was lost was not told before");
                assert!(
                    keyspace.watch(compact_revision).is_ok(),
                    "where it says one can start, one can start"
                );
                false
            }
            Pulled::Replaced => panic!("the identity never changed"),
        }
    }

    /// No event lost, none doubled, none moved, up to what it was told.
    fn check(&self, naive: &Naive) {
        let all = naive.events.iter().filter(|event| {
            let revision = event.kv.mod_revision;
            revision >= self.from && revision <= self.told && self.keys.contains(&event.kv.key)
        });
        assert_eq!(self.got, all.cloned().collect::<Vec<_>>());
    }
}

fn check_range(keyspace: &Keyspace, naive: &Naive, query: &RangeQuery) {
    let ours = keyspace.range(query);
    if query.revision > keyspace.revision()
        || query.revision > 0 && query.revision < keyspace.compact_revision()
    {
        assert!(ours.is_err());
        return;
    }
    let ours = ours.unwrap();
    let at = if query.revision <= 0 { keyspace.revision() } else { query.revision };
    let theirs = naive.range(query, at);
    assert_eq!(ours.kvs.iter().map(|kv| KeyValue::clone(kv)).collect::<Vec<_>>(), theirs.kvs);
    assert_eq!((ours.count, ours.more), (theirs.count, theirs.more));
}

fn same_state(a: &Keyspace, b: &Keyspace) {
    assert_eq!(a.snapshot(), b.snapshot());
    assert_eq!(a.live_bytes(), b.live_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn answers_are_the_naive_ones(steps in steps()) {
        let mut keyspace = Keyspace::new(identity(), small());
        let mut naive = Naive::default();
        let mut watchers: Vec<Watcher> = Vec::new();
        for step in steps {
            match step {
                Step::Execute(op) => {
                    let ours = keyspace.execute(&op, NOW).map(|executed| executed.reply);
                    prop_assert_eq!(ours, naive.execute(&op, &keyspace));
                }
                Step::Publish => {
                    keyspace.publish();
                    naive.publish();
                }
                Step::RollBack => {
                    keyspace.roll_back(NOW);
                    naive.roll_back();
                }
                Step::Range(query) => check_range(&keyspace, &naive, &query),
                Step::Watch { keys, start } => {
                    if let Ok(cursor) = keyspace.watch(start) {
                        let from = if start > 0 { start } else { keyspace.revision() + 1 };
                        watchers.push(Watcher { cursor, keys, from, got: Vec::new(), told: from - 1 });
                        let watcher = watchers.last_mut().unwrap();
                        watcher.told = watcher.told.min(keyspace.revision());
                    } else {
                        prop_assert!(start <= keyspace.compact_revision());
                    }
                }
                Step::Pull(limits) => watchers.retain_mut(|watcher| watcher.pull(&keyspace, limits)),
            }
            prop_assert_eq!(keyspace.revision(), naive.revision());
            let (events, bytes) = keyspace.history_size();
            prop_assert!(naive.staged() || bytes <= small().history_bytes || events <= small().history_events);
        }
        for mut watcher in watchers {
            let all = PullLimits { events: usize::MAX, bytes: usize::MAX, scanned: usize::MAX };
            watcher.pull(&keyspace, all);
            watcher.check(&naive);
        }
        let all = RangeQuery::new(KeyRange::all());
        for revision in 0..=keyspace.revision() + 1 {
            check_range(&keyspace, &naive, &all.clone().at(revision));
        }
    }

    #[test]
    fn records_replay_to_the_same_state_from_nothing_from_a_snapshot_and_in_a_mirror(steps in steps(), cut in 0..200_usize) {
        let mut origin = Keyspace::new(identity(), small());
        let mut records: Vec<Record> = Vec::new();
        let mut snapshot = None;
        for step in steps {
            let Step::Execute(op) = step else { continue };
            if let Ok(executed) = origin.execute(&op, NOW) {
                records.extend(executed.record);
            }
            origin.publish();
            if records.len() >= cut && snapshot.is_none() {
                snapshot = Some((origin.snapshot(), records.len()));
            }
        }
        let mut replayed = Keyspace::new(identity(), small());
        for record in &records {
            replayed.apply(record, NOW).unwrap();
        }
        same_state(&replayed, &origin);

        let (snapshot, done) = snapshot.unwrap_or_else(|| (origin.snapshot(), records.len()));
        let mut restored = Keyspace::restore(&snapshot, small(), NOW).unwrap();
        let mut mirror = Keyspace::replica(Identity::adopted(1), small());
        mirror.load(identity(), snapshot.revision, &snapshot.kvs).unwrap();
        for record in &records[done..] {
            restored.apply(record, NOW).unwrap();
            mirror.apply(record, NOW).unwrap();
        }
        same_state(&restored, &origin);
        prop_assert_eq!(mirror.snapshot().kvs, origin.snapshot().kvs);
        prop_assert_eq!(mirror.revision(), origin.revision());
        // Which keys a lease holds came along too.
        for id in 1..4 {
            let revoke = Op::LeaseRevoke { id };
            let theirs = origin.execute(&revoke, NOW);
            prop_assert_eq!(&replayed.execute(&revoke, NOW), &theirs);
            prop_assert_eq!(&restored.execute(&revoke, NOW), &theirs);
        }
        same_state(&restored, &origin);
        same_state(&replayed, &origin);
        let refused = mirror.execute(&Op::Compact { revision: 1 }, NOW);
        prop_assert_eq!(refused, Err(OpError::Replica));
    }

    #[test]
    fn pages_of_a_pinned_revision_are_one_listing_while_writes_go_on(
        before in prop::collection::vec(ops::op(), 1..60),
        between in prop::collection::vec(ops::op(), 1..60),
        page in 1..5_usize,
    ) {
        let mut keyspace = Keyspace::new(identity(), Limits::default());
        let write = |keyspace: &mut Keyspace, op: &Op| {
            if !matches!(op, Op::Compact { .. }) {
                drop(keyspace.execute(op, NOW));
                keyspace.publish();
            }
        };
        for op in &before {
            write(&mut keyspace, op);
        }
        let revision = keyspace.revision();
        let whole = keyspace.range(&RangeQuery::new(KeyRange::all())).unwrap();
        let mut between = between.iter();
        let (mut start, mut pages) = (KeyRange::all(), Vec::new());
        loop {
            let answer = keyspace.range(&RangeQuery::new(start).at(revision).limit(page)).unwrap();
            pages.extend(answer.kvs.iter().cloned());
            if !answer.more {
                break;
            }
            let mut next = answer.kvs.last().unwrap().key.to_vec();
            next.push(0);
            start = KeyRange::from_key(next);
            if let Some(op) = between.next() {
                write(&mut keyspace, op);
            }
        }
        prop_assert_eq!(pages, whole.kvs);
    }
}
