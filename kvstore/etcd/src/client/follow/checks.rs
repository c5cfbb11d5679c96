//! What is refused: a configuration that cannot be followed, and what no etcd would send. And keys next to keys.

use bytes::Bytes;
use hawser_kvstore::{KeyRange, Revision};

use super::{FollowConfig, FollowConfigError, Order};
use crate::pb;

pub(super) fn config(config: &FollowConfig) -> Result<(), FollowConfigError> {
    let ranges = &config.ranges;
    if ranges.is_empty() {
        return Err(FollowConfigError::NoRanges);
    }
    for (i, first) in ranges.iter().enumerate() {
        if let Some(second) =
            ranges[i + 1..].iter().find(|r| r.contains(first.start()) || first.contains(r.start()))
        {
            return Err(FollowConfigError::Overlap { first: first.clone(), second: second.clone() });
        }
    }
    if config.order == Order::Total && ranges.len() > 1 && !config.trust_progress {
        return Err(FollowConfigError::Untrusted { ranges: ranges.len() });
    }
    Ok(())
}

/// Counted one by one, no etcd gets there: who says so wants us to add to the last number that there is.
const MOST: Revision = 1 << 62;

/// A revision that can be.
pub(super) fn revision(revision: Revision) -> Result<(), &'static str> {
    match (0..=MOST).contains(&revision) {
        true => Ok(()),
        false => Err("names a revision that cannot be"),
    }
}

/// A page of the list of `range` at revision `at`, from `from` on. The error says what is wrong with it.
pub(super) fn page(
    range: &KeyRange,
    from: &Bytes,
    at: Revision,
    kvs: &[pb::KeyValue],
    more: bool,
) -> Result<(), &'static str> {
    revision(at)?;
    if kvs.iter().any(|kv| !(0..=at).contains(&kv.mod_revision)) {
        return Err("holds a key that is newer than the list");
    }
    if more && kvs.is_empty() {
        return Err("promises more and gives nothing");
    }
    if !kvs.iter().all(|kv| range.contains(&kv.key) && kv.key >= *from) {
        return Err("holds a key that was not asked for");
    }
    if !kvs.is_sorted_by(|a, b| a.key < b.key) {
        return Err("is not in key order");
    }
    Ok(())
}

/// The least key greater than `key`.
pub(super) fn after(key: &Bytes) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

/// etcd has no empty key; `\0` is the first there can be.
pub(super) fn first_key(key: &Bytes) -> Bytes {
    if key.is_empty() { Bytes::from_static(&[0]) } else { key.clone() }
}
