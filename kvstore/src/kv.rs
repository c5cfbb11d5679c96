//! A key with its value and revisions, encoded once: the key and value in memory are slices of the protobuf sent to readers.

use crate::encode;
use bytes::Bytes;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// etcd's count of write transactions. Signed, as on the wire; a fresh keyspace is at 1, as in etcd.
pub type Revision = i64;
/// etcd's lease id. 0 is "no lease".
pub type LeaseId = i64;

/// A key at one revision, field for field etcd's `mvccpb.KeyValue`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    pub create_revision: Revision,
    pub mod_revision: Revision,
    /// How often the key was put since it was created; 1 at creation.
    pub version: i64,
    pub lease: LeaseId,
}

impl KeyValue {
    /// Bytes on the wire, and in [`crate::Keyspace::live_bytes`]. O(1).
    pub fn encoded_len(&self) -> usize {
        encode::key_value_len(self)
    }
}

/// A [`KeyValue`] that many readers hold at once; its key and value lie in one buffer, its protobuf encoding. Cloning counts
/// a reference. 128 bytes beside that buffer.
#[derive(Clone)]
pub struct SharedKv(Arc<KeyValue>);

impl SharedKv {
    /// Encodes `kv` into one new buffer; the buffers that `kv` came in (a network frame, say) are let go.
    pub fn new(kv: &KeyValue) -> Self {
        Self::in_encoded(kv, &encode::key_value(kv))
    }

    fn in_encoded(kv: &KeyValue, encoded: &Bytes) -> Self {
        let (key, value) = encode::key_and_value_in(kv, encoded);
        Self(Arc::new(KeyValue { key, value, ..kv.clone() }))
    }

    /// The body of `mvccpb.KeyValue`, without tag and length. A copy: for readers who ask for `prev_kv`.
    pub fn encode(&self) -> Bytes {
        encode::key_value(self)
    }

    /// The same with an empty value (`keys_only`). Copies the key.
    pub fn without_value(&self) -> Self {
        Self::new(&KeyValue { value: Bytes::new(), ..KeyValue::clone(self) })
    }
}

impl From<&KeyValue> for SharedKv {
    fn from(kv: &KeyValue) -> Self {
        Self::new(kv)
    }
}

impl Deref for SharedKv {
    type Target = KeyValue;
    fn deref(&self) -> &KeyValue {
        &self.0
    }
}

impl PartialEq for SharedKv {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl fmt::Debug for SharedKv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
}

/// One change of one key, encoded once at the write, however many watch.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    kind: EventKind,
    kv: SharedKv,
    prev: Option<SharedKv>,
    encoded: Bytes,
}

impl Event {
    pub(crate) fn put(kv: &KeyValue, prev: Option<SharedKv>) -> Self {
        Self::new(EventKind::Put, kv, prev)
    }

    /// etcd's DELETE carries the key and the revision of the deletion, nothing else.
    pub(crate) fn delete(key: Bytes, revision: Revision, prev: Option<SharedKv>) -> Self {
        let kv = KeyValue { key, mod_revision: revision, ..KeyValue::default() };
        Self::new(EventKind::Delete, &kv, prev)
    }

    /// The same to a reader for whom the key was something else before. Shares the bytes.
    pub(crate) fn with_prev(&self, prev: SharedKv) -> Self {
        Self { prev: Some(prev), ..self.clone() }
    }

    fn new(kind: EventKind, kv: &KeyValue, prev: Option<SharedKv>) -> Self {
        let (encoded, kv_at) = encode::event(kind, kv);
        let kv = SharedKv::in_encoded(kv, &encoded.slice(kv_at..));
        Self { kind, kv, prev, encoded }
    }

    pub fn kind(&self) -> EventKind {
        self.kind
    }

    /// The key as it is now; for a deletion only `key` and `mod_revision` are set.
    pub fn kv(&self) -> &SharedKv {
        &self.kv
    }

    /// The key as it was before, when it was.
    pub fn prev(&self) -> Option<&SharedKv> {
        self.prev.as_ref()
    }

    pub fn revision(&self) -> Revision {
        self.kv.mod_revision
    }

    /// The body of `mvccpb.Event` without `prev_kv` (append it as field 3 for a watcher that asked), without tag and length.
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// What the history holds alive through this event, in bytes, `prev` included.
    pub(crate) fn cost(&self) -> usize {
        // The Arc'd structs, the slot in the ring and the allocator's share.
        const OVERHEAD: usize = 288;
        OVERHEAD + self.encoded.len() + self.prev.as_ref().map_or(0, |prev| prev.encoded_len())
    }
}
