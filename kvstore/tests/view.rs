//! A view shows, at every revision and to every watch, what a filter of the whole would.
#![allow(clippy::unwrap_used, reason = "a test that unwraps reads better")]

use bytes::Bytes;
use hawser_kvstore::{
    Compare, CompareResult, CompareTarget, Cursor, DeleteRange, Event, EventKind, Filter, Identity, KeyRange,
    Keyspace, Limits, Op, PullLimits, Pulled, Put, RangeQuery, Revision, SharedKv, Txn, TxnOp, View,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

type State = BTreeMap<Bytes, Bytes>;

/// A door `d/x` is shown while its value does not begin with `-`; a room `r/n` while a door that is shown names it.
fn shown(state: &State) -> BTreeSet<Bytes> {
    let door = |key: &[u8], value: &[u8]| key.starts_with(b"d/") && !value.starts_with(b"-");
    let open: Vec<&Bytes> = state.iter().filter(|(k, v)| door(k, v)).map(|(_, v)| v).collect();
    let shows = |key: &Bytes, value: &Bytes| {
        door(key, value) || (key.starts_with(b"r/") && open.iter().any(|names| names.contains(&key[2])))
    };
    state.iter().filter(|(k, v)| shows(k, v)).map(|(k, _)| k.clone()).collect()
}

/// The same, from changes.
#[derive(Default)]
struct Doors(BTreeMap<Bytes, Bytes>);

impl Filter for Doors {
    fn reads(&self, key: &[u8]) -> bool {
        key.starts_with(b"d/") || key.starts_with(b"r/")
    }

    fn handle_change(&mut self, key: &Bytes, value: Option<&Bytes>, touched: &mut Vec<Bytes>) {
        if key.starts_with(b"d/") {
            let before = match value {
                Some(value) => self.0.insert(key.clone(), value.clone()),
                None => self.0.remove(key),
            };
            for names in before.iter().chain(value) {
                touched.extend(names.iter().map(|name| Bytes::from(vec![b'r', b'/', *name])));
            }
        }
    }

    fn shows(&self, key: &[u8]) -> bool {
        let open = |value: &&Bytes| !value.starts_with(b"-");
        match key {
            [b'd', ..] => self.0.get(key).filter(open).is_some(),
            [b'r', b'/', name] => self.0.values().filter(open).any(|names| names.contains(name)),
            _ => false,
        }
    }
}

/// A view as a server keeps it: filled whole, then kept in step.
struct Kept {
    view: View<Doors>,
    keyspace: Keyspace,
    cursor: Cursor,
}

impl Kept {
    fn of(origin: &Keyspace) -> Self {
        let (revision, kvs, cursor) = origin.from_the_start();
        let (view, shown) = View::of(Doors::default(), kvs);
        let identity = origin.identity().of_view("us-east", 1);
        let mut keyspace = Keyspace::replica(identity, origin.limits());
        keyspace.load(identity, revision, shown).unwrap();
        Self { view, keyspace, cursor }
    }

    fn catch_up(&mut self, origin: &Keyspace, limits: PullLimits) {
        loop {
            match origin.pull(&mut self.cursor, &KeyRange::all(), limits) {
                Pulled::Events { events, revision, more } => {
                    let events = self.view.handle_events(&events, &self.keyspace);
                    self.keyspace.follow(events, revision, origin.horizon());
                    if !more {
                        return;
                    }
                }
                _ => *self = Self::of(origin),
            }
        }
    }
}

fn key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec!["d/1", "d/2", "d/3", "r/a", "r/b", "r/c", "x/1"]).prop_map(Bytes::from)
}

fn value() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec!["", "-ab", "a", "ab", "bc", "-", "c"]).prop_map(Bytes::from)
}

fn change() -> impl Strategy<Value = TxnOp> {
    let range = prop_oneof![
        4 => key().prop_map(KeyRange::key),
        1 => Just(KeyRange::prefix("d/")),
        1 => Just(KeyRange::prefix("r/"))
    ];
    prop_oneof![
        5 => (key(), value()).prop_map(|(key, value)| TxnOp::Put(Put::new(key, value))),
        2 => range.prop_map(|keys| TxnOp::DeleteRange(DeleteRange::new(keys))),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<TxnOp>),
    Compact(Revision),
    CatchUp(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => prop::collection::vec(change(), 1..5).prop_map(Step::Write),
        1 => (1..40_i64).prop_map(Step::Compact),
        4 => (1..5_usize).prop_map(Step::CatchUp),
    ];
    prop::collection::vec(step, 1..80)
}

fn execute(origin: &mut Keyspace, op: &Op) {
    // A transaction that names a key twice is refused, as is the compaction of what is compacted or yet to come.
    if origin.execute(op, Duration::ZERO).is_ok() {
        origin.publish();
    }
}

fn state(keyspace: &Keyspace, at: Revision) -> Option<State> {
    let reply = keyspace.range(&RangeQuery::new(KeyRange::all()).at(at)).ok()?;
    Some(reply.kvs.iter().map(|kv| (kv.key.clone(), kv.value.clone())).collect())
}

fn naive(origin: &Keyspace, at: Revision) -> State {
    let whole = state(origin, at).unwrap();
    let keys = shown(&whole);
    whole.into_iter().filter(|(key, _)| keys.contains(key)).collect()
}

fn watch_all(keyspace: &Keyspace, from: Revision) -> Vec<Arc<Event>> {
    let mut cursor = keyspace.watch(from).unwrap();
    let mut all = Vec::new();
    loop {
        match keyspace.pull(&mut cursor, &KeyRange::all(), PullLimits::default()) {
            Pulled::Events { events, more, .. } => {
                all.extend(events);
                if !more {
                    return all;
                }
            }
            lost => panic!("{lost:?}"),
        }
    }
}

/// Of a watch from `from` on: state after state is the filtered whole, and each event is what etcd would say of it.
fn check_watch(origin: &Keyspace, view: &Keyspace, from: Revision) {
    let mut seen = naive(origin, from - 1);
    let events = watch_all(view, from);
    assert!(events.windows(2).all(|pair| pair[0].revision() <= pair[1].revision()));
    let mut events = events.into_iter().peekable();
    for revision in from..=origin.revision() {
        while let Some(event) = events.next_if(|event| event.revision() == revision) {
            let (kv, before) = (event.kv(), seen.get(&event.kv().key).cloned());
            assert_eq!(event.prev().map(|prev| prev.value.clone()), before, "prev_kv of {event:?}");
            match event.kind() {
                EventKind::Put => {
                    assert_eq!(kv.create_revision == revision, before.is_none(), "created: {event:?}");
                    seen.insert(kv.key.clone(), kv.value.clone());
                }
                EventKind::Delete => {
                    assert!(before.is_some(), "deleted and never seen: {event:?}");
                    seen.remove(&kv.key);
                }
            }
        }
        assert_eq!(seen, naive(origin, revision), "after revision {revision}");
    }
    assert_eq!(events.next(), None);
}

fn check(origin: &Keyspace, view: &Keyspace) {
    assert_eq!(view.revision(), origin.revision());
    for at in origin.compact_revision().max(1)..=origin.revision() {
        if let Some(seen) = state(view, at) {
            assert_eq!(seen, naive(origin, at), "at revision {at}");
        }
        if at > origin.compact_revision().max(1) && view.watch(at).is_ok() {
            check_watch(origin, view, at);
        }
    }
}

proptest! {
    #[test]
    fn a_view_is_the_filtered_whole_at_every_revision_and_to_every_watch(
        steps in steps(),
        history_events in prop_oneof![Just(1000_usize), 1..20_usize],
    ) {
        let limits = Limits { history_bytes: 0, history_events, ..Limits::default() };
        let mut origin = Keyspace::new(Identity::new("us-east", 7, 0), limits);
        let mut kept = Kept::of(&origin);
        for step in steps {
            match step {
                Step::Write(success) => {
                    execute(&mut origin, &Op::Txn(Txn { compare: vec![], success, failure: vec![] }));
                }
                Step::Compact(revision) => execute(&mut origin, &Op::Compact { revision }),
                Step::CatchUp(events) => {
                    let limits = PullLimits { events, ..PullLimits::default() };
                    kept.catch_up(&origin, limits);
                }
            }
        }
        kept.catch_up(&origin, PullLimits::default());
        check(&origin, &kept.keyspace);
        // Another replica's, which began later: whoever resumes there is told the same.
        let mut late = Kept::of(&origin);
        late.catch_up(&origin, PullLimits::default());
        check(&origin, &late.keyspace);
        let from = origin.compact_revision().max(1) + 1;
        if kept.keyspace.watch(from).is_ok() {
            let told = |view: &Keyspace| -> Vec<(EventKind, SharedKv)> {
                watch_all(view, from).iter().map(|event| (event.kind(), event.kv().clone())).collect()
            };
            prop_assert_eq!(told(&kept.keyspace), told(&late.keyspace));
        }
    }
}

fn put(origin: &mut Keyspace, key: &str, value: &str) {
    execute(origin, &Op::Put(Put::new(key.to_owned(), value.to_owned())));
}

#[test]
fn what_is_shown_all_along_is_the_origins_own_bytes() {
    let mut origin = Keyspace::new(Identity::new("us-east", 7, 0), Limits::default());
    let mut kept = Kept::of(&origin);
    put(&mut origin, "d/1", "a");
    put(&mut origin, "r/a", "first");
    put(&mut origin, "r/a", "second");
    put(&mut origin, "r/b", "nobody sees it");
    kept.catch_up(&origin, PullLimits::default());
    let (origins, views) = (watch_all(&origin, 2), watch_all(&kept.keyspace, 2));
    assert_eq!((origins.len(), views.len()), (4, 3));
    assert!(origins.iter().zip(&views).all(|(a, b)| Arc::ptr_eq(a, b)));
    assert_eq!(kept.keyspace.revision(), 5, "the revision is the origin's, seen or not");
    // Shown late: created where it came in, and the origin's from its next change on.
    put(&mut origin, "d/1", "b");
    put(&mut origin, "r/b", "seen");
    kept.catch_up(&origin, PullLimits::default());
    let told: Vec<_> = watch_all(&kept.keyspace, 6).iter().map(|e| (e.kind(), e.kv().clone())).collect();
    let told: Vec<_> =
        told.iter().map(|(kind, kv)| (*kind, &kv.key[..], kv.create_revision, kv.mod_revision)).collect();
    assert_eq!(
        told,
        [
            (EventKind::Put, &b"r/b"[..], 6, 6),
            (EventKind::Put, &b"d/1"[..], 2, 6),
            (EventKind::Delete, &b"r/a"[..], 0, 6),
            (EventKind::Put, &b"r/b"[..], 5, 7),
        ]
    );
}

#[test]
fn a_compare_in_a_view_sees_what_its_reader_sees() {
    let mut origin = Keyspace::new(Identity::new("us-east", 7, 0), Limits::default());
    put(&mut origin, "r/a", "hidden");
    let mut kept = Kept::of(&origin);
    kept.catch_up(&origin, PullLimits::default());
    let absent = Compare {
        keys: KeyRange::key("r/a"),
        result: CompareResult::Equal,
        target: CompareTarget::CreateRevision(0),
    };
    let txn = Txn { compare: vec![absent], success: vec![], failure: vec![] };
    assert!(kept.keyspace.read_txn(&txn).unwrap().succeeded);
    assert!(!origin.read_txn(&txn).unwrap().succeeded);
}
