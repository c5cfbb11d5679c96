//! A keyspace that keeps a whole copy of itself for every revision.

use bytes::Bytes;
use hawser_kvstore::{
    Compare, CompareResult, CompareTarget, DeleteRange, KeyRange, KeyValue, Keyspace, LeaseId, Op, OpError,
    Put, RangeError, RangeQuery, Reply, ReplyBody, Revision, SharedKv, SortBy, Txn, TxnOp, TxnOpReply,
    TxnReply,
};
use hawser_kvstore::{DeleteRangeReply, PutReply, RangeReply};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NaiveEvent {
    pub(crate) deleted: bool,
    pub(crate) kv: KeyValue,
    pub(crate) prev: Option<KeyValue>,
}

pub(crate) struct NaiveRange {
    pub(crate) kvs: Vec<KeyValue>,
    pub(crate) count: usize,
    pub(crate) more: bool,
}

type State = BTreeMap<Bytes, KeyValue>;

#[derive(Clone)]
pub(crate) struct Naive {
    /// `states[r]` is the state at revision r; 0 and 1 are empty.
    states: Vec<State>,
    leases: BTreeMap<LeaseId, i64>,
    compacted: Revision,
    pub(crate) events: Vec<NaiveEvent>,
    published: Option<Box<Naive>>,
}

impl Default for Naive {
    fn default() -> Self {
        let states = vec![State::new(), State::new()];
        Self { states, leases: BTreeMap::new(), compacted: 0, events: Vec::new(), published: None }
    }
}

impl Naive {
    pub(crate) fn revision(&self) -> Revision {
        self.published.as_deref().map_or_else(|| self.newest(), Self::newest)
    }

    pub(crate) fn staged(&self) -> bool {
        self.published.is_some()
    }

    pub(crate) fn publish(&mut self) {
        self.published = None;
    }

    pub(crate) fn roll_back(&mut self) {
        if let Some(published) = self.published.take() {
            *self = *published;
        }
    }

    fn newest(&self) -> Revision {
        self.states.len() as Revision - 1
    }

    fn state(&self) -> &State {
        self.states.last().unwrap()
    }

    pub(crate) fn range(&self, query: &RangeQuery, at: Revision) -> NaiveRange {
        range_of(&self.states[usize::try_from(at).unwrap()], query)
    }

    pub(crate) fn execute(&mut self, op: &Op, subject: &Keyspace) -> Result<Reply, OpError> {
        let before = self.clone();
        let mut draft =
            Draft { state: self.state().clone(), revision: self.newest() + 1, events: Vec::new() };
        let body = self.body(op, &mut draft, subject.compact_revision())?;
        if !draft.events.is_empty() {
            self.states.push(draft.state);
            self.events.extend(draft.events);
        }
        if self.published.is_none() {
            self.published = Some(Box::new(before));
        }
        Ok(Reply { revision: self.newest(), body })
    }

    fn body(&mut self, op: &Op, draft: &mut Draft, forgotten: Revision) -> Result<ReplyBody, OpError> {
        Ok(match op {
            Op::Put(put) => {
                self.check_put(put, &draft.state)?;
                ReplyBody::Put(draft.put(put))
            }
            Op::DeleteRange(delete) => ReplyBody::DeleteRange(draft.delete(delete)),
            Op::Txn(txn) => {
                check_duplicates(&txn.success)?;
                check_duplicates(&txn.failure)?;
                let before = draft.state.clone();
                self.check_txn(txn, &before, forgotten)?;
                ReplyBody::Txn(self.do_txn(txn, &before, draft))
            }
            &Op::LeaseGrant { id, ttl } => {
                if self.leases.contains_key(&id) {
                    return Err(OpError::LeaseExists { id });
                }
                let ttl = ttl.max(2);
                self.leases.insert(id, ttl);
                ReplyBody::LeaseGranted { id, ttl }
            }
            &Op::LeaseRevoke { id } => {
                self.leases.remove(&id).ok_or(OpError::LeaseNotFound { id })?;
                draft.delete_where(|kv| kv.lease == id);
                ReplyBody::LeaseRevoked
            }
            &Op::LeaseKeepAlive { id } => {
                let ttl = *self.leases.get(&id).ok_or(OpError::LeaseNotFound { id })?;
                ReplyBody::LeaseKeptAlive { id, ttl }
            }
            &Op::Compact { revision } => {
                let compact_revision = self.compacted.max(forgotten);
                if revision <= compact_revision {
                    return Err(RangeError::Compacted { revision, compact_revision }.into());
                }
                if revision > self.newest() {
                    return Err(RangeError::FutureRevision { revision, newest: self.newest() }.into());
                }
                self.compacted = revision;
                ReplyBody::Compacted
            }
        })
    }

    fn check_put(&self, put: &Put, state: &State) -> Result<(), OpError> {
        if put.ignore_value && !put.value.is_empty() {
            return Err(OpError::ValueProvided);
        }
        if put.ignore_lease && put.lease != 0 {
            return Err(OpError::LeaseProvided);
        }
        if (put.ignore_value || put.ignore_lease) && !state.contains_key(&put.key) {
            return Err(OpError::KeyNotFound);
        }
        if put.lease != 0 && !self.leases.contains_key(&put.lease) {
            return Err(OpError::LeaseNotFound { id: put.lease });
        }
        Ok(())
    }

    fn check_txn(&self, txn: &Txn, before: &State, forgotten: Revision) -> Result<(), OpError> {
        for op in branch(txn, before) {
            match op {
                TxnOp::Put(put) => self.check_put(put, before)?,
                TxnOp::Range(query) => {
                    let (revision, newest) = (query.revision, self.newest());
                    if revision > newest {
                        return Err(RangeError::FutureRevision { revision, newest }.into());
                    }
                    if revision > 0 && revision < forgotten {
                        return Err(RangeError::Compacted { revision, compact_revision: forgotten }.into());
                    }
                }
                TxnOp::DeleteRange(_) => {}
                TxnOp::Txn(inner) => self.check_txn(inner, before, forgotten)?,
            }
        }
        Ok(())
    }

    fn do_txn(&self, txn: &Txn, before: &State, draft: &mut Draft) -> TxnReply {
        let mut responses = Vec::new();
        for op in branch(txn, before) {
            responses.push(match op {
                TxnOp::Put(put) => TxnOpReply::Put(draft.put(put)),
                TxnOp::DeleteRange(delete) => TxnOpReply::DeleteRange(draft.delete(delete)),
                TxnOp::Range(query) => {
                    let past = usize::try_from(query.revision).ok().filter(|&at| at > 0);
                    let NaiveRange { kvs, count, more } =
                        range_of(past.map_or(&draft.state, |at| &self.states[at]), query);
                    TxnOpReply::Range(RangeReply {
                        kvs: kvs.iter().map(SharedKv::new).collect(),
                        more,
                        count,
                    })
                }
                TxnOp::Txn(inner) => TxnOpReply::Txn(self.do_txn(inner, before, draft)),
            });
        }
        TxnReply { succeeded: holds_all(txn, before), responses }
    }
}

fn holds_all(txn: &Txn, state: &State) -> bool {
    txn.compare.iter().all(|compare| holds(compare, state))
}

fn branch<'a>(txn: &'a Txn, state: &State) -> &'a [TxnOp] {
    if holds_all(txn, state) { &txn.success } else { &txn.failure }
}

fn holds(compare: &Compare, state: &State) -> bool {
    let mut kvs: Vec<KeyValue> =
        state.values().filter(|kv| compare.keys.contains(&kv.key)).cloned().collect();
    if kvs.is_empty() {
        if matches!(compare.target, CompareTarget::Value(_)) {
            return false;
        }
        kvs.push(KeyValue::default());
    }
    kvs.iter().all(|kv| {
        let order = match &compare.target {
            CompareTarget::Version(version) => kv.version.cmp(version),
            CompareTarget::CreateRevision(revision) => kv.create_revision.cmp(revision),
            CompareTarget::ModRevision(revision) => kv.mod_revision.cmp(revision),
            CompareTarget::Value(value) => kv.value.cmp(value),
            CompareTarget::Lease(lease) => kv.lease.cmp(lease),
        };
        match compare.result {
            CompareResult::Equal => order == Ordering::Equal,
            CompareResult::NotEqual => order != Ordering::Equal,
            CompareResult::Greater => order == Ordering::Greater,
            CompareResult::Less => order == Ordering::Less,
        }
    })
}

/// The state that an operation is making, and its events in the order of its making.
struct Draft {
    state: State,
    revision: Revision,
    events: Vec<NaiveEvent>,
}

impl Draft {
    fn put(&mut self, put: &Put) -> PutReply {
        let prev = self.state.get(&put.key).cloned();
        let old = prev.clone().unwrap_or_default();
        let kv = KeyValue {
            key: put.key.clone(),
            value: if put.ignore_value { old.value } else { put.value.clone() },
            create_revision: if prev.is_some() { old.create_revision } else { self.revision },
            mod_revision: self.revision,
            version: old.version + 1,
            lease: if put.ignore_lease { old.lease } else { put.lease },
        };
        self.state.insert(put.key.clone(), kv.clone());
        self.events.push(NaiveEvent { deleted: false, kv, prev: prev.clone() });
        PutReply { prev_kv: prev.filter(|_| put.prev_kv).map(|kv| SharedKv::new(&kv)) }
    }

    fn delete(&mut self, delete: &DeleteRange) -> DeleteRangeReply {
        let doomed = self.delete_where(|kv| delete.keys.contains(&kv.key));
        let prev_kvs = if delete.prev_kv { doomed.iter().map(SharedKv::new).collect() } else { Vec::new() };
        DeleteRangeReply { deleted: doomed.len(), prev_kvs }
    }

    fn delete_where(&mut self, dies: impl Fn(&KeyValue) -> bool) -> Vec<KeyValue> {
        let doomed: Vec<KeyValue> = self.state.values().filter(|kv| dies(kv)).cloned().collect();
        for kv in &doomed {
            self.state.remove(&kv.key);
            let gone = KeyValue { key: kv.key.clone(), mod_revision: self.revision, ..KeyValue::default() };
            self.events.push(NaiveEvent { deleted: true, kv: gone, prev: Some(kv.clone()) });
        }
        doomed
    }
}

/// As etcd: no key is put twice in one branch, nor put and deleted; a nested transaction counts with both its branches,
/// which may repeat each other.
fn check_duplicates(ops: &[TxnOp]) -> Result<(BTreeSet<Bytes>, Vec<KeyRange>), OpError> {
    let (mut puts, mut deletes) = (BTreeSet::new(), Vec::new());
    for op in ops {
        if let TxnOp::DeleteRange(delete) = op {
            deletes.push(delete.keys.clone());
        }
    }
    let mut lists: Vec<BTreeSet<Bytes>> = Vec::new();
    for op in ops {
        if let TxnOp::Txn(inner) = op {
            let (mut keys, then_deletes) = check_duplicates(&inner.success)?;
            let (else_keys, else_deletes) = check_duplicates(&inner.failure)?;
            keys.extend(else_keys);
            if keys.iter().any(|key| deletes.iter().any(|range| range.contains(key))) {
                return Err(OpError::DuplicateKey);
            }
            deletes.extend(then_deletes);
            deletes.extend(else_deletes);
            lists.push(keys);
        }
    }
    for op in ops {
        if let TxnOp::Put(put) = op {
            if deletes.iter().any(|range| range.contains(&put.key)) {
                return Err(OpError::DuplicateKey);
            }
            lists.push(BTreeSet::from([put.key.clone()]));
        }
    }
    for key in lists.into_iter().flatten() {
        if !puts.insert(key) {
            return Err(OpError::DuplicateKey);
        }
    }
    Ok((puts, deletes))
}

fn range_of(state: &State, query: &RangeQuery) -> NaiveRange {
    let all: Vec<&KeyValue> = state.values().filter(|kv| query.keys.contains(&kv.key)).collect();
    let count = all.len();
    if query.count_only {
        return NaiveRange { kvs: Vec::new(), count, more: false };
    }
    let mut kvs: Vec<KeyValue> = all
        .into_iter()
        .filter(|kv| query.min_mod_revision == 0 || kv.mod_revision >= query.min_mod_revision)
        .filter(|kv| query.max_mod_revision == 0 || kv.mod_revision <= query.max_mod_revision)
        .filter(|kv| query.min_create_revision == 0 || kv.create_revision >= query.min_create_revision)
        .filter(|kv| query.max_create_revision == 0 || kv.create_revision <= query.max_create_revision)
        .cloned()
        .collect();
    match query.sort.by {
        SortBy::Key => {}
        SortBy::Version => kvs.sort_by_key(|kv| kv.version),
        SortBy::CreateRevision => kvs.sort_by_key(|kv| kv.create_revision),
        SortBy::ModRevision => kvs.sort_by_key(|kv| kv.mod_revision),
        SortBy::Value => kvs.sort_by_key(|kv| kv.value.clone()),
    }
    if query.sort.descending {
        kvs.reverse();
    }
    let more = query.limit > 0 && kvs.len() > query.limit;
    if more {
        kvs.truncate(query.limit);
    }
    if query.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    NaiveRange { kvs, count, more }
}
