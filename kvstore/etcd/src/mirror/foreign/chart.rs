//! What a foreign etcd holds, and as what it is kept here: said by who knows its schema, as a function of a few keys.

use std::collections::BTreeMap;

use bytes::Bytes;
use hawser_kvstore::KeyRange;

/// The keys that say how the rest is to be read, as they are upstream now.
pub type Signs = BTreeMap<Bytes, Bytes>;

/// Knows the schema. Reads no clock and does no IO.
pub trait Chart: Send + 'static {
    /// Where the signs are. Disjoint, and few keys.
    fn signs(&self) -> Vec<KeyRange>;
    /// One of the signs: its writer changes it again and again for as long as it lives.
    fn heartbeat(&self) -> Bytes;
    fn plan(&self, signs: &Signs) -> Plan;
}

/// What is to be done about an etcd with these signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// They do not say it yet. What is followed is followed on.
    Wait(String),
    /// It must not be followed. What is held stays and is served.
    Refuse(String),
    Follow {
        /// For people: which of its layouts it has.
        layout: &'static str,
        /// Every kind there can be.
        sources: Vec<Source>,
        /// Keys of this mirror's own.
        stated: Vec<(Bytes, Bytes)>,
    },
}

/// One kind of entries: a prefix there, and the prefix here that takes its place. Values stay as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// For people, and steady: it names the source from one plan to the next.
    pub name: &'static str,
    pub from: Bytes,
    pub to: Bytes,
    /// Its cluster has this kind at all.
    pub published: bool,
    /// Its publisher says that all of it is written.
    pub complete: bool,
    /// Stated here when its first list is here, or at once for a kind that there is not: nobody waits for it.
    pub canary: (Bytes, Bytes),
}

impl Source {
    /// The key here of a key there.
    pub(super) fn here(&self, there: &[u8]) -> Option<Bytes> {
        let rest = there.strip_prefix(&self.from[..])?;
        Some([&self.to[..], rest].concat().into())
    }
}
