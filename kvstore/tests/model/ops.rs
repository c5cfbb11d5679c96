//! Random steps over few keys and few leases, so that they meet.

use bytes::Bytes;
use hawser_kvstore::{
    Compare, CompareResult, CompareTarget, DeleteRange, KeyRange, Op, PullLimits, Put, RangeQuery, Revision,
    Sort, SortBy, Txn, TxnOp,
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Execute(Op),
    Publish,
    RollBack,
    Range(RangeQuery),
    Watch { keys: KeyRange, start: Revision },
    Pull(PullLimits),
}

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => op().prop_map(Step::Execute),
        6 => Just(Step::Publish),
        1 => Just(Step::RollBack),
        3 => query().prop_map(Step::Range),
        2 => (keys(), 0..40_i64).prop_map(|(keys, start)| Step::Watch { keys, start }),
        2 => (1..20_usize, 1..2000_usize, 1..20_usize)
            .prop_map(|(events, bytes, scanned)| Step::Pull(PullLimits { events, bytes, scanned })),
    ];
    prop::collection::vec(step, 1..200)
}

fn key() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        Just("a"),
        Just("a/1"),
        Just("a/2"),
        Just("a/3"),
        Just("b"),
        Just("b/1"),
        Just("c"),
        Just("\u{7f}z")
    ]
    .prop_map(Bytes::from)
}

fn keys() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        key().prop_map(KeyRange::key),
        key().prop_map(KeyRange::prefix),
        key().prop_map(KeyRange::from_key),
        (key(), key()).prop_map(|(a, b)| KeyRange::between(a, b)),
        Just(KeyRange::all()),
    ]
}

fn value() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn put() -> impl Strategy<Value = Put> {
    let lease = prop_oneof![3 => Just(0), 2 => 1..4_i64];
    (key(), value(), lease, any::<bool>(), 0..12_u8).prop_map(|(key, value, lease, prev_kv, ignore)| {
        let (ignore_value, ignore_lease) = (ignore == 0 || ignore == 1, ignore == 2 || ignore == 1);
        let value = if ignore_value { Bytes::new() } else { value };
        let lease = if ignore_lease { 0 } else { lease };
        Put { key, value, lease, prev_kv, ignore_value, ignore_lease }
    })
}

fn delete() -> impl Strategy<Value = DeleteRange> {
    (keys(), any::<bool>()).prop_map(|(keys, prev_kv)| DeleteRange { keys, prev_kv })
}

fn query() -> impl Strategy<Value = RangeQuery> {
    let by = prop_oneof![
        4 => Just(SortBy::Key),
        1 => Just(SortBy::Version),
        1 => Just(SortBy::CreateRevision),
        1 => Just(SortBy::ModRevision),
        1 => Just(SortBy::Value),
    ];
    let bound = || prop_oneof![6 => Just(0), 1 => 0..30_i64];
    let revision = prop_oneof![2 => Just(0), 1 => 0..60_i64];
    let flags = (by, any::<bool>(), any::<bool>(), 0..6_u8);
    (keys(), 0..4_usize, revision, flags, (bound(), bound(), bound(), bound())).prop_map(
        |(keys, limit, revision, (by, descending, keys_only, count_only), bounds)| RangeQuery {
            keys,
            limit,
            revision,
            sort: Sort { by, descending },
            keys_only,
            count_only: count_only == 0,
            min_mod_revision: bounds.0,
            max_mod_revision: bounds.1,
            min_create_revision: bounds.2,
            max_create_revision: bounds.3,
        },
    )
}

fn compare() -> impl Strategy<Value = Compare> {
    let result = prop_oneof![
        Just(CompareResult::Equal),
        Just(CompareResult::NotEqual),
        Just(CompareResult::Greater),
        Just(CompareResult::Less)
    ];
    let target = prop_oneof![
        (0..4_i64).prop_map(CompareTarget::Version),
        (0..30_i64).prop_map(CompareTarget::CreateRevision),
        (0..30_i64).prop_map(CompareTarget::ModRevision),
        value().prop_map(CompareTarget::Value),
        (0..4_i64).prop_map(CompareTarget::Lease),
    ];
    (keys(), result, target).prop_map(|(keys, result, target)| Compare { keys, result, target })
}

fn txn() -> impl Strategy<Value = Txn> {
    let leaf = prop_oneof![
        3 => put().prop_map(TxnOp::Put),
        1 => delete().prop_map(TxnOp::DeleteRange),
        2 => query().prop_map(TxnOp::Range),
    ];
    let op = leaf.prop_recursive(2, 8, 3, |inner| txn_of(inner.boxed()).prop_map(TxnOp::Txn));
    txn_of(op.boxed())
}

fn txn_of(op: BoxedStrategy<TxnOp>) -> impl Strategy<Value = Txn> {
    let ops = || prop::collection::vec(op.clone(), 0..4);
    (prop::collection::vec(compare(), 0..3), ops(), ops()).prop_map(|(compare, success, failure)| Txn {
        compare,
        success,
        failure,
    })
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => put().prop_map(Op::Put),
        3 => delete().prop_map(Op::DeleteRange),
        4 => txn().prop_map(Op::Txn),
        2 => (1..4_i64, 0..100_i64).prop_map(|(id, ttl)| Op::LeaseGrant { id, ttl }),
        1 => (1..4_i64).prop_map(|id| Op::LeaseRevoke { id }),
        1 => (1..4_i64).prop_map(|id| Op::LeaseKeepAlive { id }),
        1 => (0..40_i64).prop_map(|revision| Op::Compact { revision }),
    ]
}
