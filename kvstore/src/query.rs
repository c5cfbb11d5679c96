//! Reading: etcd's Range and Compare over the tree at one revision.

use crate::kv::{KeyValue, Revision, SharedKv};
use crate::op::{Compare, CompareResult, CompareTarget, RangeQuery, RangeReply, Sort, SortBy};
use crate::tree::Tree;
use std::cmp::Ordering;

/// O(log keys + keys in the range): the count is of the whole range, as in etcd. Values are shared, not copied.
pub(crate) fn range(tree: &Tree, query: &RangeQuery, at: Revision) -> RangeReply {
    let found = tree.range(&query.keys, at);
    if query.count_only {
        return RangeReply { count: found.count(), ..RangeReply::default() };
    }
    // In key order without a filter the first `limit` are the answer; else everything is looked at first.
    let take_all = query.limit == 0 || query.sort != Sort::default() || has_bounds(query);
    let keep = if take_all { usize::MAX } else { query.limit };
    let (mut kvs, mut count) = (Vec::new(), 0);
    for kv in found {
        count += 1;
        if kvs.len() < keep && within_bounds(query, kv) {
            kvs.push(kv.clone());
        }
    }
    let mut more = !take_all && count > keep;
    sort(&mut kvs, query.sort);
    if query.limit > 0 && kvs.len() > query.limit {
        kvs.truncate(query.limit);
        more = true;
    }
    if query.keys_only {
        kvs = kvs.iter().map(SharedKv::without_value).collect();
    }
    RangeReply { kvs, more, count }
}

fn has_bounds(query: &RangeQuery) -> bool {
    [query.min_mod_revision, query.max_mod_revision, query.min_create_revision, query.max_create_revision]
        .iter()
        .any(|&bound| bound != 0)
}

fn within_bounds(query: &RangeQuery, kv: &KeyValue) -> bool {
    let within = |value, min, max| (min == 0 || value >= min) && (max == 0 || value <= max);
    within(kv.mod_revision, query.min_mod_revision, query.max_mod_revision)
        && within(kv.create_revision, query.min_create_revision, query.max_create_revision)
}

fn sort(kvs: &mut [SharedKv], sort: Sort) {
    match sort.by {
        SortBy::Key => {}
        SortBy::Version => kvs.sort_by_key(|kv| kv.version),
        SortBy::CreateRevision => kvs.sort_by_key(|kv| kv.create_revision),
        SortBy::ModRevision => kvs.sort_by_key(|kv| kv.mod_revision),
        SortBy::Value => kvs.sort_by(|a, b| a.value.cmp(&b.value)),
    }
    if sort.descending {
        kvs.reverse();
    }
}

/// O(keys compared), stopping at the first that does not hold.
pub(crate) fn holds(tree: &Tree, compare: &Compare, at: Revision) -> bool {
    let mut keys = tree.range(&compare.keys, at).peekable();
    if keys.peek().is_none() {
        // A missing key has no value, which is not the same as an empty one.
        return !matches!(compare.target, CompareTarget::Value(_))
            && holds_for(compare, &KeyValue::default());
    }
    keys.all(|kv| holds_for(compare, kv))
}

fn holds_for(compare: &Compare, kv: &KeyValue) -> bool {
    let order = match &compare.target {
        CompareTarget::Version(version) => kv.version.cmp(version),
        CompareTarget::CreateRevision(revision) => kv.create_revision.cmp(revision),
        CompareTarget::ModRevision(revision) => kv.mod_revision.cmp(revision),
        CompareTarget::Value(value) => kv.value.cmp(value),
        CompareTarget::Lease(lease) => kv.lease.cmp(lease),
    };
    match compare.result {
        CompareResult::Equal => order == Ordering::Equal,
        CompareResult::Greater => order == Ordering::Greater,
        CompareResult::Less => order == Ordering::Less,
        CompareResult::NotEqual => order != Ordering::Equal,
    }
}
