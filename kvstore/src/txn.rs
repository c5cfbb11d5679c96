//! Transactions before they run: which are well-formed, and which branches they take. etcd decides every comparison,
//! nested ones too, on the state before the transaction.

use crate::kv::Revision;
use crate::op::{OpError, Txn, TxnOp};
use crate::query;
use crate::range::KeyRange;
use crate::tree::Tree;
use bytes::Bytes;
use std::collections::HashSet;

/// The branches that a transaction takes.
pub(crate) struct Path {
    pub(crate) succeeded: bool,
    /// Of the transactions nested in the branch taken, in order.
    pub(crate) nested: Vec<Path>,
}

impl Txn {
    /// Nothing in it can change a key, whichever branch it takes.
    pub fn is_read_only(&self) -> bool {
        self.success.iter().chain(&self.failure).all(|op| match op {
            TxnOp::Range(_) => true,
            TxnOp::Put(_) | TxnOp::DeleteRange(_) => false,
            TxnOp::Txn(txn) => txn.is_read_only(),
        })
    }

    pub(crate) fn branch(&self, succeeded: bool) -> &[TxnOp] {
        if succeeded { &self.success } else { &self.failure }
    }
}

/// O(comparisons, with the keys they cover).
pub(crate) fn path(tree: &Tree, txn: &Txn, at: Revision) -> Path {
    let succeeded = txn.compare.iter().all(|compare| query::holds(tree, compare, at));
    let nested = txn.branch(succeeded).iter().filter_map(|op| match op {
        TxnOp::Txn(inner) => Some(path(tree, inner, at)),
        _ => None,
    });
    Path { succeeded, nested: nested.collect() }
}

/// Refuses what is too large, and what would change a key twice at one revision.
pub(crate) fn check(txn: &Txn, most: usize) -> Result<(), OpError> {
    check_size(txn, most, most)?;
    changed_keys(&txn.success)?;
    changed_keys(&txn.failure)?;
    Ok(())
}

/// Each level takes its ops from what the next may have, which bounds the depth too.
fn check_size(txn: &Txn, left: usize, most: usize) -> Result<(), OpError> {
    let ops = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    if ops > left {
        return Err(OpError::TooManyOps { ops: most - left + ops, most });
    }
    for op in txn.success.iter().chain(&txn.failure) {
        if let TxnOp::Txn(inner) = op {
            check_size(inner, left - ops, most)?;
        }
    }
    Ok(())
}

#[derive(Default)]
struct Changed<'a> {
    puts: HashSet<&'a Bytes>,
    deletes: Vec<&'a KeyRange>,
}

impl<'a> Changed<'a> {
    fn put(&mut self, key: &'a Bytes) -> Result<(), OpError> {
        if self.deletes.iter().any(|range| range.contains(key)) || !self.puts.insert(key) {
            return Err(OpError::DuplicateKey);
        }
        Ok(())
    }
}

/// As etcd's `checkIntervals`: both branches of a nested transaction count, but may repeat one another.
fn changed_keys(ops: &[TxnOp]) -> Result<Changed<'_>, OpError> {
    let mut changed = Changed::default();
    for op in ops {
        if let TxnOp::DeleteRange(delete) = op {
            changed.deletes.push(&delete.keys);
        }
    }
    for op in ops {
        let TxnOp::Txn(inner) = op else { continue };
        let then = changed_keys(&inner.success)?;
        let otherwise = changed_keys(&inner.failure)?;
        for key in &then.puts {
            changed.put(key)?;
        }
        for key in otherwise.puts.difference(&then.puts) {
            changed.put(key)?;
        }
        changed.deletes.extend(then.deletes);
        changed.deletes.extend(otherwise.deletes);
    }
    for op in ops {
        if let TxnOp::Put(put) = op {
            changed.put(&put.key)?;
        }
    }
    Ok(changed)
}
