//! The keyspace: what is in it, what readers see, and what is executed but not yet published.

use crate::history::{Cursor, History, PullLimits, Pulled};
use crate::kv::{Event, EventKind, LeaseId, Revision};
use crate::lease::{Deadline, LeaseStatus, Leases};
use crate::op::{OpError, RangeError, RangeQuery, RangeReply, Txn, TxnOp, TxnOpReply, TxnReply};
use crate::query;
use crate::range::KeyRange;
use crate::record::Identity;
use crate::tree::{Tree, Version};
use crate::txn::{self, Path};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What a keyspace may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The history forgets its oldest revisions beyond this, but keeps `history_events` whatever they weigh.
    pub history_bytes: usize,
    pub history_events: usize,
    /// Sum of the encoded keys and values; a put beyond it is refused.
    pub quota_bytes: usize,
    pub txn_ops: usize,
    pub leases: usize,
    /// In seconds; a shorter TTL is raised to it. etcd's with default settings is 2.
    pub min_lease_ttl: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            history_bytes: 64 << 20,
            history_events: 1000,
            quota_bytes: 2 << 30,
            txn_ops: 128,
            leases: 100_000,
            min_lease_ttl: 2,
        }
    }
}

/// One etcd keyspace.
///
/// A write is first *executed* ([`Keyspace::execute`], [`Keyspace::handle_time`]), which yields the [`crate::Record`] to make
/// durable, and becomes visible to readers and watchers only when it is *published*. Writes see each other before
/// that, so a writer can execute a batch, sync once and publish; [`Keyspace::roll_back`] undoes a batch that could not be
/// made durable.
///
/// Cost: a put is O(log keys); a watcher costs nothing until it pulls; a superseded version and its event are held until the
/// history forgets them, so memory is O(live keys and values + `Limits::history_bytes`).
pub struct Keyspace {
    pub(crate) identity: Identity,
    pub(crate) replica: bool,
    pub(crate) limits: Limits,
    pub(crate) tree: Tree,
    pub(crate) history: History,
    pub(crate) leases: Leases,
    /// Of the last executed write.
    pub(crate) newest: Revision,
    /// Of the last published write: what a read without a revision sees.
    visible: Revision,
    /// The oldest revision that can be read.
    compact: Revision,
    /// The oldest revision whose events are all still there.
    watchable: Revision,
    /// How to take back what is executed and not published, oldest first.
    pub(crate) undo: Vec<Undo>,
    /// A compaction that is executed and not published.
    pub(crate) pending_compact: Option<Revision>,
    /// Counts changes of identity, so that cursors of the keyspace before are told.
    incarnation: u64,
}

pub(crate) enum Undo {
    /// The newest event of the history.
    Event,
    Granted(LeaseId),
    Revoked {
        id: LeaseId,
        ttl: i64,
    },
}

impl Keyspace {
    /// A new, empty one that takes writes. It is at revision 1, as a new etcd.
    pub fn new(identity: Identity, limits: Limits) -> Self {
        Self {
            identity,
            replica: false,
            limits,
            tree: Tree::default(),
            history: History::default(),
            leases: Leases::default(),
            newest: 1,
            visible: 1,
            compact: 0,
            watchable: 0,
            undo: Vec::new(),
            pending_compact: None,
            incarnation: 0,
        }
    }

    /// An empty mirror: it takes [`Keyspace::load`] and [`Keyspace::apply`] and refuses writes. It is at revision 0.
    pub fn replica(identity: Identity, limits: Limits) -> Self {
        Self { replica: true, newest: 0, visible: 0, ..Self::new(identity, limits) }
    }

    pub fn identity(&self) -> Identity {
        self.identity
    }

    pub fn is_replica(&self) -> bool {
        self.replica
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The newest published revision.
    pub fn revision(&self) -> Revision {
        self.visible
    }

    /// The oldest revision that can be read.
    pub fn compact_revision(&self) -> Revision {
        self.compact
    }

    /// Changes when a reader could see something new: a revision was published, or the identity changed.
    pub fn progress(&self) -> (u64, Revision) {
        (self.incarnation, self.visible)
    }

    /// Bytes of the newest keys and values.
    pub fn live_bytes(&self) -> usize {
        self.tree.bytes()
    }

    /// The keys that are there now. O(1).
    pub fn live_keys(&self) -> usize {
        self.tree.live()
    }

    /// Events in the history, and what they hold in memory.
    pub fn history_size(&self) -> (usize, usize) {
        (self.history.len(), self.history.bytes())
    }

    /// O(log keys + keys in the range).
    pub fn range(&self, query: &RangeQuery) -> Result<RangeReply, RangeError> {
        let at = self.readable(query.revision, self.visible)?;
        Ok(query::range(&self.tree, query, at))
    }

    /// A transaction that only reads ([`Txn::is_read_only`]), on the published state.
    pub fn read_txn(&self, txn: &Txn) -> Result<TxnReply, OpError> {
        txn::check(txn, self.limits.txn_ops)?;
        let path = txn::path(&self.tree, txn, self.visible);
        self.read_branch(txn, &path)
    }

    fn read_branch(&self, txn: &Txn, path: &Path) -> Result<TxnReply, OpError> {
        let mut nested = path.nested.iter();
        let mut responses = Vec::new();
        for op in txn.branch(path.succeeded) {
            match op {
                TxnOp::Range(query) => responses.push(TxnOpReply::Range(self.range(query)?)),
                TxnOp::Txn(inner) => {
                    if let Some(path) = nested.next() {
                        responses.push(TxnOpReply::Txn(self.read_branch(inner, path)?));
                    }
                }
                TxnOp::Put(_) | TxnOp::DeleteRange(_) => return Err(OpError::NotReadOnly),
            }
        }
        Ok(TxnReply { succeeded: path.succeeded, responses })
    }

    pub(crate) fn readable(&self, revision: Revision, newest: Revision) -> Result<Revision, RangeError> {
        match revision {
            ..=0 => Ok(newest),
            _ if revision > newest => Err(RangeError::FutureRevision { revision, newest }),
            _ if revision < self.compact => {
                Err(RangeError::Compacted { revision, compact_revision: self.compact })
            }
            _ => Ok(revision),
        }
    }

    /// A cursor from which every event at or after `start_revision` is pulled; 0 (or less) means "from now on". A start in the
    /// future waits for it. The error is the oldest revision that a watch can start from.
    pub fn watch(&self, start_revision: Revision) -> Result<Cursor, Pulled> {
        let from = if start_revision <= 0 { self.visible + 1 } else { start_revision };
        if from < self.watchable {
            return Err(Pulled::FellBehind { compact_revision: self.watchable });
        }
        Ok(Cursor { incarnation: self.incarnation, from })
    }

    /// What is new to `cursor` within `keys`. O(log events + events since the cursor), bounded by `limits`; shares the events.
    pub fn pull(&self, cursor: &mut Cursor, keys: &KeyRange, limits: PullLimits) -> Pulled {
        if cursor.incarnation != self.incarnation {
            return Pulled::Replaced;
        }
        if cursor.from < self.watchable {
            return Pulled::FellBehind { compact_revision: self.watchable };
        }
        let pulled = self.history.pull(cursor.from, keys, limits, self.visible);
        if let Pulled::Events { revision, .. } = pulled {
            cursor.from = cursor.from.max(revision + 1);
        }
        pulled
    }

    pub fn lease(&self, id: LeaseId, now: Duration) -> Option<LeaseStatus> {
        self.leases.status(id, now)
    }

    /// In id order.
    pub fn leases(&self) -> Vec<LeaseId> {
        self.leases.ids().map(|(id, _)| id).collect()
    }

    pub fn poll_deadline(&self) -> Option<Deadline> {
        self.leases.next_deadline().map(Deadline::LeaseExpiry)
    }

    /// Makes everything executed so far visible, then lets the history forget what is beyond its bounds.
    /// O(events forgotten * log keys).
    pub fn publish(&mut self) {
        self.visible = self.newest;
        self.undo.clear();
        if let Some(revision) = self.pending_compact.take() {
            self.forget_to(revision);
            self.compact = self.compact.max(revision);
            // As etcd: the revision itself stays readable and watchable.
            self.watchable = self.watchable.max(revision);
        }
        let Limits { history_bytes, history_events, .. } = self.limits;
        while self.history.bytes() > history_bytes && self.history.len() > history_events {
            let Some(oldest) = self.history.oldest_revision() else { break };
            self.forget_to(oldest + 1);
            self.compact = self.compact.max(oldest);
            self.watchable = self.watchable.max(oldest + 1);
        }
    }

    /// Undoes everything executed and not published: it was never seen by anyone.
    pub fn roll_back(&mut self, now: Duration) {
        self.pending_compact = None;
        while let Some(undo) = self.undo.pop() {
            match undo {
                Undo::Event => {
                    if let Some(event) = self.history.pop_newest() {
                        self.unset(&event);
                    }
                }
                Undo::Granted(id) => drop(self.leases.remove(id)),
                Undo::Revoked { id, ttl } => self.leases.grant(id, ttl, now),
            }
        }
        self.newest = self.visible;
    }

    fn unset(&mut self, event: &Event) {
        let kv = event.kv();
        self.tree.unset(&kv.key);
        self.leases.detach(kv.lease, &kv.key);
        if let Some(prev) = event.prev() {
            self.leases.attach(prev.lease, &prev.key);
        }
    }

    /// Puts `event` into the tree, the leases and the history. O(log keys).
    pub(crate) fn record_event(&mut self, event: impl Into<Arc<Event>>) {
        let event = event.into();
        let kv = event.kv();
        if let Some(prev) = event.prev() {
            self.leases.detach(prev.lease, &prev.key);
        }
        self.leases.attach(kv.lease, &kv.key);
        let version = match event.kind() {
            EventKind::Put => Version::Live(kv.clone()),
            EventKind::Delete => Version::Gone(kv.mod_revision),
        };
        self.tree.set(&kv.key, version);
        self.history.push(event);
        self.undo.push(Undo::Event);
    }

    pub(crate) fn watchable(&self) -> Revision {
        self.watchable
    }

    pub(crate) fn cursor_after(&self, revision: Revision) -> Cursor {
        Cursor { incarnation: self.incarnation, from: revision + 1 }
    }

    /// What is older can be neither read nor watched any more. O(events forgotten * log keys).
    pub(crate) fn forget_beyond(&mut self, readable: Revision, watchable: Revision) {
        self.forget_to(watchable);
        self.compact = self.compact.max(readable);
        self.watchable = self.watchable.max(watchable);
    }

    /// Forgets events before `revision` and the versions that they superseded.
    fn forget_to(&mut self, revision: Revision) {
        while self.history.oldest_revision().is_some_and(|oldest| oldest < revision) {
            let Some(event) = self.history.pop_oldest() else { break };
            self.tree.forget_before(&event.kv().key, event.revision());
        }
    }

    /// The state is a new one at `revision`, without a history.
    pub(crate) fn start_at(&mut self, revision: Revision, identity: Identity) {
        if identity != self.identity || revision < self.visible {
            self.incarnation += 1;
        }
        self.identity = identity;
        self.newest = revision;
        self.visible = revision;
        self.compact = revision;
        self.watchable = revision + 1;
        self.history.clear();
        self.undo.clear();
        self.pending_compact = None;
    }
}

impl fmt::Debug for Keyspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyspace")
            .field("identity", &self.identity)
            .field("replica", &self.replica)
            .field("revision", &self.visible)
            .field("compact_revision", &self.compact)
            .field("live_bytes", &self.tree.bytes())
            .field("history_events", &self.history.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ApplyError, Change, DeleteRange, KeyValue, Op, Put, Record};

    fn keyspace(limits: Limits) -> Keyspace {
        Keyspace::new(Identity::new("us-east", 1, 0), limits)
    }

    fn write(keyspace: &mut Keyspace, op: &Op) {
        keyspace.execute(op, Duration::ZERO).unwrap();
        keyspace.publish();
    }

    #[test]
    fn what_the_history_forgets_the_tree_forgets() {
        let limits = Limits { history_bytes: 0, history_events: 10, ..Limits::default() };
        let mut keyspace = keyspace(limits);
        write(&mut keyspace, &Op::Put(Put::new("stays", "v")));
        for n in 0..10_000 {
            write(&mut keyspace, &Op::Put(Put::new(format!("comes and goes {n}"), "v")));
            write(&mut keyspace, &Op::DeleteRange(DeleteRange::new(KeyRange::prefix("comes"))));
            write(&mut keyspace, &Op::Put(Put::new("changes", "v")));
        }
        let (keys, versions) = keyspace.tree.held();
        assert!(keys <= 2 + 10 && versions <= 2 + 20, "{keys} keys with {versions} versions are held");
        assert_eq!(keyspace.history_size().0, 10);
        assert_eq!(keyspace.range(&RangeQuery::new(KeyRange::all())).unwrap().count, 2);
    }

    #[test]
    fn nothing_is_seen_before_it_is_published() {
        let mut keyspace = keyspace(Limits::default());
        let mut cursor = keyspace.watch(0).unwrap();
        keyspace.execute(&Op::Put(Put::new("k", "v")), Duration::ZERO).unwrap();
        assert_eq!(keyspace.range(&RangeQuery::new(KeyRange::all())).unwrap().count, 0);
        assert!(keyspace.range(&RangeQuery::new(KeyRange::all()).at(2)).is_err());
        let nothing = Pulled::Events { events: Vec::new(), revision: 1, more: false };
        assert_eq!(keyspace.pull(&mut cursor, &KeyRange::all(), PullLimits::default()), nothing);
        keyspace.publish();
        let Pulled::Events { events, revision: 2, .. } =
            keyspace.pull(&mut cursor, &KeyRange::all(), PullLimits::default())
        else {
            panic!("the event is published")
        };
        assert_eq!(events.len(), 1);
    }

    #[test]
    fn leases_expire_in_the_order_of_their_deadlines() {
        let at = Duration::from_secs;
        let mut keyspace = keyspace(Limits::default());
        for (id, ttl) in [(1, 10), (2, 5), (3, 7)] {
            keyspace.execute(&Op::LeaseGrant { id, ttl }, at(0)).unwrap();
            let put = Put { lease: id, ..Put::new(format!("k{id}"), "v") };
            keyspace.execute(&Op::Put(put), at(0)).unwrap();
        }
        keyspace.execute(&Op::LeaseKeepAlive { id: 2 }, at(4)).unwrap();
        assert_eq!(keyspace.poll_deadline(), Some(Deadline::LeaseExpiry(at(7))));
        assert_eq!(keyspace.handle_time(at(6)), []);
        let expired = keyspace.handle_time(at(9));
        keyspace.publish();
        assert_eq!(expired.iter().map(|executed| executed.reply.revision).collect::<Vec<_>>(), [5, 6]);
        assert_eq!(keyspace.leases(), [1]);
        let left = keyspace.range(&RangeQuery::new(KeyRange::all())).unwrap().kvs;
        assert_eq!(left.iter().map(|kv| &kv.key[..]).collect::<Vec<_>>(), [b"k1"]);
    }

    #[test]
    fn a_mirror_keeps_holes_and_events_that_share_a_revision() {
        let mut mirror = Keyspace::replica(Identity::adopted(9), Limits::default());
        let kv = |key: &'static str, revision| KeyValue {
            key: key.into(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            ..KeyValue::default()
        };
        mirror.load(Identity::adopted(9), 100, &[kv("a", 40)]).unwrap();
        let both = [Change::Put(kv("b", 107)), Change::Delete { key: "a".into() }];
        mirror.apply(&Record { revision: 107, changes: both.to_vec() }, Duration::ZERO).unwrap();
        mirror.apply(&Record { revision: 120, changes: Vec::new() }, Duration::ZERO).unwrap();
        assert_eq!(mirror.revision(), 120);
        let at = |revision| mirror.range(&RangeQuery::new(KeyRange::all()).at(revision)).unwrap().kvs;
        assert_eq!((&at(106)[0].key[..], &at(107)[0].key[..]), (&b"a"[..], &b"b"[..]));
        let mut cursor = mirror.watch(101).unwrap();
        let Pulled::Events { events, .. } = mirror.pull(&mut cursor, &KeyRange::all(), PullLimits::default())
        else {
            panic!("nothing after 100 is forgotten")
        };
        assert_eq!(events.iter().map(|event| event.revision()).collect::<Vec<_>>(), [107, 107]);

        let late = Record { revision: 120, changes: vec![Change::Put(kv("c", 120))] };
        assert_eq!(
            mirror.apply(&late, Duration::ZERO),
            Err(ApplyError::NotNewer { revision: 120, newest: 120 })
        );
        let wrong = Record { revision: 130, changes: vec![Change::Put(kv("c", 129))] };
        assert!(matches!(mirror.apply(&wrong, Duration::ZERO), Err(ApplyError::WrongModRevision { .. })));
    }

    #[test]
    fn the_identity_names_cluster_lineage_and_view() {
        let ids = [("a", 1, 0), ("b", 1, 0), ("a", 2, 0), ("a", 1, 1)]
            .map(|(cluster, lineage, view)| Identity::new(cluster, lineage, view).cluster_id);
        for (at, id) in ids.iter().enumerate() {
            assert!(!ids[..at].contains(id));
        }
        assert_eq!(Identity::new("a", 1, 0), Identity::new("a", 1, 0));
    }
}
