//! Records and states as bytes on disk: protobuf, so that a later version can add fields.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hawser_kvstore::{Change, Identity, KeyRange, KeyValue, LeaseId, Record, Revision, Snapshot};
use prost::Message;

use crate::pb;

#[derive(Clone, PartialEq, Message)]
struct StoredRecord {
    #[prost(int64, tag = "1")]
    revision: Revision,
    #[prost(message, repeated, tag = "2")]
    changes: Vec<StoredChange>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredChange {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(message, tag = "1")]
    Put(pb::KeyValue),
    #[prost(bytes = "bytes", tag = "2")]
    Delete(Bytes),
    #[prost(message, tag = "3")]
    LeaseGrant(StoredLease),
    #[prost(int64, tag = "4")]
    LeaseRevoke(LeaseId),
    #[prost(int64, tag = "5")]
    Compact(Revision),
}

#[derive(Clone, PartialEq, Message)]
struct StoredLease {
    #[prost(int64, tag = "1")]
    id: LeaseId,
    #[prost(int64, tag = "2")]
    ttl: i64,
}

#[derive(Clone, PartialEq, Message)]
struct StoredState {
    #[prost(int64, tag = "1")]
    revision: Revision,
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<pb::KeyValue>,
    #[prost(message, repeated, tag = "3")]
    leases: Vec<StoredLease>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredMirror {
    #[prost(string, tag = "1")]
    cluster: String,
    #[prost(message, repeated, tag = "2")]
    ranges: Vec<StoredRange>,
    /// Milliseconds since 1970; 0 is "not known".
    #[prost(int64, tag = "3")]
    heard: i64,
    #[prost(bool, tag = "4")]
    partial: bool,
    #[prost(message, optional, tag = "5")]
    state: Option<StoredState>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredRange {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    end: Bytes,
}

/// A mirror as it lies on disk.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KeptMirror {
    pub(crate) cluster: String,
    /// What was followed.
    pub(crate) ranges: Vec<KeyRange>,
    /// When the origin last said anything.
    pub(crate) heard: Option<SystemTime>,
    /// Entries were refused: another admission might take them, so following cannot just go on.
    pub(crate) partial: bool,
    pub(crate) state: Snapshot,
}

/// Bytes of the right checksum that say nothing this version understands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("it is not what this version writes: {0}")]
    Protobuf(#[from] prost::DecodeError),
    #[error("it holds a change of a kind that this version does not know")]
    UnknownChange,
}

/// One copy of the record's keys and values.
pub(crate) fn encode_record(record: &Record) -> Bytes {
    let changes = record.changes.iter().map(|change| StoredChange {
        kind: Some(match change {
            Change::Put(kv) => Kind::Put(to_wire(kv.clone())),
            Change::Delete { key } => Kind::Delete(key.clone()),
            &Change::LeaseGrant { id, ttl } => Kind::LeaseGrant(StoredLease { id, ttl }),
            &Change::LeaseRevoke { id } => Kind::LeaseRevoke(id),
            &Change::Compact { revision } => Kind::Compact(revision),
        }),
    });
    StoredRecord { revision: record.revision, changes: changes.collect() }.encode_to_vec().into()
}

pub(crate) fn decode_record(bytes: Bytes) -> Result<Record, CodecError> {
    let stored = StoredRecord::decode(bytes)?;
    let changes = stored.changes.into_iter().map(|change| {
        Ok(match change.kind.ok_or(CodecError::UnknownChange)? {
            Kind::Put(kv) => Change::Put(from_wire(kv)),
            Kind::Delete(key) => Change::Delete { key },
            Kind::LeaseGrant(StoredLease { id, ttl }) => Change::LeaseGrant { id, ttl },
            Kind::LeaseRevoke(id) => Change::LeaseRevoke { id },
            Kind::Compact(revision) => Change::Compact { revision },
        })
    });
    Ok(Record { revision: stored.revision, changes: changes.collect::<Result<_, CodecError>>()? })
}

/// O(keys): one copy of the whole state.
pub(crate) fn encode_state(state: Snapshot) -> Bytes {
    stored_state(state).encode_to_vec().into()
}

pub(crate) fn decode_state(bytes: Bytes, identity: Identity) -> Result<Snapshot, CodecError> {
    Ok(snapshot(StoredState::decode(bytes)?, identity))
}

/// O(keys): one copy of the whole state.
pub(crate) fn encode_mirror(mirror: KeptMirror) -> Bytes {
    let range = |range: &KeyRange| {
        let (key, end) = range.to_wire();
        StoredRange { key, end }
    };
    let since_1970 =
        |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    let stored = StoredMirror {
        ranges: mirror.ranges.iter().map(range).collect(),
        cluster: mirror.cluster,
        heard: mirror.heard.map_or(0, |at| i64::try_from(since_1970(at)).unwrap_or(0)),
        partial: mirror.partial,
        state: Some(stored_state(mirror.state)),
    };
    stored.encode_to_vec().into()
}

/// Shares `bytes`.
pub(crate) fn decode_mirror(bytes: Bytes, identity: Identity) -> Result<KeptMirror, CodecError> {
    let stored = StoredMirror::decode(bytes)?;
    let heard = u64::try_from(stored.heard).ok().filter(|ms| *ms > 0).map(Duration::from_millis);
    Ok(KeptMirror {
        cluster: stored.cluster,
        ranges: stored.ranges.into_iter().map(|range| KeyRange::from_wire(range.key, range.end)).collect(),
        heard: heard.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since)),
        partial: stored.partial,
        state: snapshot(stored.state.unwrap_or_default(), identity),
    })
}

fn stored_state(state: Snapshot) -> StoredState {
    StoredState {
        revision: state.revision,
        kvs: state.kvs.into_iter().map(to_wire).collect(),
        leases: state.leases.into_iter().map(|(id, ttl)| StoredLease { id, ttl }).collect(),
    }
}

fn snapshot(stored: StoredState, identity: Identity) -> Snapshot {
    Snapshot {
        identity,
        revision: stored.revision,
        kvs: stored.kvs.into_iter().map(from_wire).collect(),
        leases: stored.leases.into_iter().map(|lease| (lease.id, lease.ttl)).collect(),
    }
}

/// Shares the bytes.
fn to_wire(kv: KeyValue) -> pb::KeyValue {
    let KeyValue { key, value, create_revision, mod_revision, version, lease } = kv;
    pb::KeyValue { key, create_revision, mod_revision, version, value, lease }
}

/// Shares the bytes.
pub(crate) fn from_wire(kv: pb::KeyValue) -> KeyValue {
    let pb::KeyValue { key, create_revision, mod_revision, version, value, lease } = kv;
    KeyValue { key, value, create_revision, mod_revision, version, lease }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv() -> KeyValue {
        KeyValue {
            key: "k".into(),
            value: "v".into(),
            create_revision: 2,
            mod_revision: 9,
            version: 3,
            lease: 7,
        }
    }

    #[test]
    fn records_and_states_come_back_as_they_were() {
        let record = Record {
            revision: 9,
            changes: vec![
                Change::Put(kv()),
                Change::Delete { key: "gone".into() },
                Change::LeaseGrant { id: 7, ttl: 60 },
                Change::LeaseRevoke { id: -8 },
                Change::Compact { revision: 4 },
            ],
        };
        assert_eq!(decode_record(encode_record(&record)).unwrap(), record);
        let identity = Identity::new("us-east", 1, 0);
        let state = Snapshot { identity, revision: 9, kvs: vec![kv()], leases: vec![(7, 60)] };
        assert_eq!(decode_state(encode_state(state.clone()), identity).unwrap(), state);
    }

    #[test]
    fn a_change_of_a_later_version_is_refused_not_skipped() {
        let unknown = StoredRecord { revision: 9, changes: vec![StoredChange { kind: None }] };
        let bytes = Bytes::from(unknown.encode_to_vec());
        assert_eq!(decode_record(bytes), Err(CodecError::UnknownChange));
    }
}
