//! A follower's events as states and records of a replica, entry by entry admitted or refused.

use hawser_kvstore::{Change, KeyValue, Record, Revision, SharedKv};

use super::intake::Held;
use crate::client::FollowEvent;
use crate::durable::from_wire;

/// What to do with the replica.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Filled {
    /// Its state is this one, and what it had is void. In key order.
    Load { cluster_id: u64, revision: Revision, kvs: Vec<SharedKv> },
    /// One revision, complete.
    Apply(Record),
}

/// What becomes of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Take,
    /// There is no room for it: what its key held before stays.
    Leave,
    /// It is not for the origin to say: what its key held before goes, too.
    Drop,
}

/// Where an entry comes, and how much is on its way before it: of the list that replaces everything, or of changes to
/// what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    List(Held),
    Changes(Held),
}

/// Needs events in [`crate::client::Order::Total`] with [`crate::client::Relist::Whole`].
#[derive(Debug)]
pub(crate) struct Fill {
    ranges: usize,
    cluster_id: u64,
    /// The list that is under way, as it will be held (no page that it came in stays), and how much it is so far.
    listing: Option<(Vec<SharedKv>, Held)>,
    /// The revision whose changes are arriving, and what they would add to what is held.
    group: Option<Record>,
    adds: Held,
}

impl Fill {
    pub(crate) fn new(ranges: usize) -> Self {
        Self { ranges, cluster_id: 0, listing: None, group: None, adds: Held::default() }
    }

    /// `admit` is asked about every entry.
    pub(crate) fn handle(
        &mut self,
        event: FollowEvent,
        mut admit: impl FnMut(&KeyValue, Before) -> Verdict,
    ) -> Vec<Filled> {
        let mut filled = Vec::new();
        match event {
            FollowEvent::Reset { cluster_id, .. } => {
                self.cluster_id = cluster_id;
                self.group = None;
                self.listing = Some((Vec::new(), Held::default()));
            }
            FollowEvent::Put { kv, .. } => {
                let kv = from_wire(kv);
                match &mut self.listing {
                    Some((kvs, held)) => {
                        if admit(&kv, Before::List(*held)) == Verdict::Take {
                            held.add(&kv);
                            kvs.push(SharedKv::new(&kv));
                        }
                    }
                    None => filled.extend(self.put(kv, admit)),
                }
            }
            FollowEvent::Delete { key, mod_revision, .. } => {
                filled.extend(self.change(mod_revision, Change::Delete { key }));
            }
            FollowEvent::Listed { range, revision } if range + 1 == self.ranges => {
                let (mut kvs, _) = self.listing.take().unwrap_or_default();
                kvs.sort_unstable_by(|a, b| a.key.cmp(&b.key));
                filled.push(Filled::Load { cluster_id: self.cluster_id, revision, kvs });
            }
            FollowEvent::Listed { .. } | FollowEvent::Interrupted { .. } => {}
            FollowEvent::Progress { revision } => {
                filled.extend(self.group.take().map(Filled::Apply));
                filled.push(Filled::Apply(Record { revision, changes: Vec::new() }));
            }
        }
        filled
    }

    fn put(&mut self, kv: KeyValue, mut admit: impl FnMut(&KeyValue, Before) -> Verdict) -> Option<Filled> {
        let adds = self.group.as_ref().map(|_| self.adds).unwrap_or_default();
        let verdict = admit(&kv, Before::Changes(adds));
        let revision = kv.mod_revision;
        let mut new = Held::default();
        let change = match verdict {
            Verdict::Leave => return None,
            Verdict::Drop => Change::Delete { key: kv.key },
            Verdict::Take => {
                new.add(&kv);
                Change::Put(kv)
            }
        };
        let filled = self.change(revision, change);
        self.adds.keys += new.keys;
        self.adds.bytes += new.bytes;
        filled
    }

    /// Adds to the revision that is arriving; one before it is complete.
    fn change(&mut self, revision: Revision, change: Change) -> Option<Filled> {
        if let Some(group) = self.group.as_mut().filter(|group| group.revision == revision) {
            group.changes.push(change);
            return None;
        }
        self.adds = Held::default();
        self.group.replace(Record { revision, changes: vec![change] }).map(Filled::Apply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::ResetReason;
    use crate::pb;

    fn put(key: &'static str, mod_revision: i64) -> FollowEvent {
        let kv = pb::KeyValue { key: key.into(), value: "v".into(), mod_revision, ..Default::default() };
        FollowEvent::Put { range: 0, kv }
    }

    fn summary(filled: &[Filled]) -> Vec<String> {
        let change = |change: &Change| match change {
            Change::Put(kv) => format!("+{}", String::from_utf8_lossy(&kv.key)),
            Change::Delete { key } => format!("-{}", String::from_utf8_lossy(key)),
            other => format!("{other:?}"),
        };
        let one = |filled: &Filled| match filled {
            Filled::Load { revision, kvs, .. } => format!("load@{revision} {}", kvs.len()),
            Filled::Apply(record) => {
                format!(
                    "@{} {}",
                    record.revision,
                    record.changes.iter().map(change).collect::<Vec<_>>().join("")
                )
            }
        };
        filled.iter().map(one).collect()
    }

    #[test]
    fn a_list_is_loaded_whole_and_then_each_revision_is_one_record() {
        let mut fill = Fill::new(2);
        let mut told = Vec::new();
        for event in [
            FollowEvent::Reset { reason: ResetReason::Start, cluster_id: 7 },
            put("b", 3),
            FollowEvent::Listed { range: 0, revision: 9 },
            put("a", 4),
            FollowEvent::Listed { range: 1, revision: 9 },
            put("a", 10),
            put("b", 10),
            FollowEvent::Delete { range: 0, key: "b".into(), mod_revision: 11 },
            FollowEvent::Progress { revision: 12 },
        ] {
            told.extend(summary(&fill.handle(event, |_, _| Verdict::Take)));
        }
        assert_eq!(told, ["load@9 2", "@10 +a+b", "@11 -b", "@12 "]);
    }

    #[test]
    fn a_refused_entry_is_absent_and_takes_the_one_before_it_along() {
        let mut fill = Fill::new(1);
        fill.handle(FollowEvent::Reset { reason: ResetReason::Start, cluster_id: 7 }, |_, _| Verdict::Take);
        fill.handle(put("bad", 3), |_, _| Verdict::Drop);
        let listed = fill.handle(FollowEvent::Listed { range: 0, revision: 9 }, |_, _| Verdict::Take);
        assert_eq!(summary(&listed), ["load@9 0"]);
        fill.handle(put("good", 10), |_, _| Verdict::Take);
        fill.handle(put("good", 11), |_, _| Verdict::Drop);
        let told = fill.handle(FollowEvent::Progress { revision: 11 }, |_, _| Verdict::Take);
        assert_eq!(summary(&told), ["@11 -good", "@11 "]);
    }

    #[test]
    fn an_entry_for_which_there_is_no_room_leaves_what_its_key_held() {
        let mut fill = Fill::new(1);
        fill.handle(put("a", 10), |_, _| Verdict::Take);
        fill.handle(put("a", 11), |_, _| Verdict::Leave);
        fill.handle(put("b", 12), |_, before| {
            assert_eq!(before, Before::Changes(Held { keys: 1, bytes: 8 }), "what arrives counts already");
            Verdict::Take
        });
        let told = fill.handle(FollowEvent::Progress { revision: 12 }, |_, _| Verdict::Take);
        assert_eq!(summary(&told), ["@12 +b", "@12 "]);
    }

    #[test]
    fn a_list_that_begins_again_forgets_the_half_before() {
        let mut fill = Fill::new(1);
        let reset = || FollowEvent::Reset { reason: ResetReason::Start, cluster_id: 7 };
        fill.handle(reset(), |_, _| Verdict::Take);
        fill.handle(put("a", 3), |_, _| Verdict::Take);
        fill.handle(reset(), |_, _| Verdict::Take);
        fill.handle(put("b", 3), |_, _| Verdict::Take);
        let listed = fill.handle(FollowEvent::Listed { range: 0, revision: 9 }, |_, _| Verdict::Take);
        assert_eq!(summary(&listed), ["load@9 1"]);
    }
}
