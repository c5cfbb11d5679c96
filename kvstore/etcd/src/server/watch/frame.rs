//! A `WatchResponse` as gRPC frames: a few bytes per watcher in front of events that all watchers share.

use crate::pb;
use bytes::{BufMut, Bytes, BytesMut};
use hawser_kvstore::Event;
use prost::Message as _;
use prost::encoding::{encode_varint, encoded_len_varint};
use std::sync::Arc;

/// Field 11 of `WatchResponse`, length-delimited.
const EVENTS: u8 = 11 << 3 | 2;
/// Field 3 of `Event`, length-delimited.
const PREV_KV: u8 = 3 << 3 | 2;
/// Below this, copying is cheaper than the DATA frame, the TLS record and the reference counts of a chunk of its own.
const SHARE_FROM: usize = 1024;

/// One gRPC message in pieces.
pub(crate) struct Message(Vec<Bytes>);

impl Message {
    pub(crate) fn into_chunks(self) -> Vec<Bytes> {
        self.0
    }

    /// `head` without events.
    pub(crate) fn control(head: &pb::WatchResponse) -> Self {
        Self::events(head, &[], false)
    }

    /// `head`, then `events`. O(events); bytes of large events are shared, of small ones copied.
    pub(crate) fn events(head: &pb::WatchResponse, events: &[Arc<Event>], prev_kv: bool) -> Self {
        let events_len: usize = events.iter().map(|event| field_len(event_len(event, prev_kv))).sum();
        let len = head.encoded_len() + events_len;
        let mut chunks = Chunks::default();
        chunks.open.put_u8(0); // not compressed
        // gRPC has 32 bits for the length, so a message of 4 GiB cannot be said; the pull limits and the quota keep far below.
        chunks.open.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
        chunks.open.put_slice(&head.encode_to_vec());
        for event in events {
            chunks.field(EVENTS, event_len(event, prev_kv));
            chunks.put(event.encoded());
            if let Some(prev) = event.prev().filter(|_| prev_kv) {
                chunks.field(PREV_KV, prev.encoded_len());
                chunks.put(&prev.encode());
            }
        }
        Self(chunks.finish())
    }
}

impl Message {
    /// One message, or as etcd's `sendFragments` splits one that has `most` bytes or more: each piece as many events as stay
    /// below (one at least), every piece but the last marked `fragment`. O(events), one piece in memory at a time.
    pub(crate) fn fragments(
        head: &pb::WatchResponse,
        mut events: &[Arc<Event>],
        prev_kv: bool,
        most: usize,
    ) -> impl Iterator<Item = Self> {
        // The mark itself is two bytes.
        let room = most.saturating_sub(head.encoded_len() + 2);
        let mut begun = false;
        std::iter::from_fn(move || {
            if begun && events.is_empty() {
                return None;
            }
            begun = true;
            let mut bytes = 0_usize;
            let fits = |event: &&Arc<Event>| {
                bytes += field_len(event_len(event, prev_kv));
                bytes < room
            };
            let count = events.iter().take_while(fits).count().max(1).min(events.len());
            let (now, rest) = events.split_at(count);
            events = rest;
            let head = pb::WatchResponse { fragment: !rest.is_empty(), ..head.clone() };
            Some(Self::events(&head, now, prev_kv))
        })
    }
}

fn event_len(event: &Event, prev_kv: bool) -> usize {
    let prev = event.prev().filter(|_| prev_kv);
    event.encoded().len() + prev.map_or(0, |prev| field_len(prev.encoded_len()))
}

/// Of a length-delimited field with a number below 16.
fn field_len(body: usize) -> usize {
    1 + encoded_len_varint(body as u64) + body
}

#[derive(Default)]
struct Chunks {
    done: Vec<Bytes>,
    open: BytesMut,
}

impl Chunks {
    fn field(&mut self, tag: u8, len: usize) {
        self.open.put_u8(tag);
        encode_varint(len as u64, &mut self.open);
    }

    fn put(&mut self, bytes: &Bytes) {
        if bytes.len() < SHARE_FROM {
            self.open.put_slice(bytes);
        } else {
            self.done.push(self.open.split().freeze());
            self.done.push(bytes.clone());
        }
    }

    fn finish(mut self) -> Vec<Bytes> {
        if !self.open.is_empty() {
            self.done.push(self.open.freeze());
        }
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawser_kvstore::{Identity, KeyRange, Keyspace, Limits, Op, PullLimits, Pulled, Put};
    use std::time::Duration;

    fn events_of(ops: &[Op]) -> Vec<Arc<Event>> {
        let mut keyspace = Keyspace::new(Identity::new("us-east", 1, 0), Limits::default());
        for op in ops {
            keyspace.execute(op, Duration::ZERO).unwrap();
        }
        keyspace.publish();
        let mut cursor = keyspace.watch(1).unwrap();
        match keyspace.pull(&mut cursor, &KeyRange::all(), PullLimits::default()) {
            Pulled::Events { events, .. } => events,
            other => panic!("{other:?}"),
        }
    }

    fn decoded(message: Message) -> pb::WatchResponse {
        let bytes: Vec<u8> = message.into_chunks().concat();
        let len = u32::from_be_bytes(bytes[1..5].try_into().unwrap());
        assert_eq!(bytes[0], 0);
        assert_eq!(len as usize, bytes.len() - 5);
        pb::WatchResponse::decode(&bytes[5..]).unwrap()
    }

    #[test]
    fn prost_reads_what_is_written_by_hand() {
        let events = events_of(&[
            Op::LeaseGrant { id: 77, ttl: 10 },
            Op::Put(Put { lease: 77, ..Put::new("small", "one") }),
            Op::Put(Put::new("large", vec![b'x'; 5000])),
            Op::Put(Put::new("small", "")),
            Op::DeleteRange(hawser_kvstore::DeleteRange::new(KeyRange::key("large"))),
        ]);
        let head = pb::WatchResponse { watch_id: 3, ..pb::WatchResponse::default() };
        let kv = |key: &'static str, value: &[u8], create, modified, version, lease| pb::KeyValue {
            key: key.into(),
            value: Bytes::copy_from_slice(value),
            create_revision: create,
            mod_revision: modified,
            version,
            lease,
        };
        let put = |kv, prev_kv| pb::Event { r#type: 0, kv: Some(kv), prev_kv };
        let large = [b'x'; 5000];
        let expected = vec![
            put(kv("small", b"one", 2, 2, 1, 77), None),
            put(kv("large", &large, 3, 3, 1, 0), None),
            put(kv("small", b"", 2, 4, 2, 0), Some(kv("small", b"one", 2, 2, 1, 77))),
            pb::Event {
                r#type: 1,
                kv: Some(kv("large", b"", 0, 5, 0, 0)),
                prev_kv: Some(kv("large", &large, 3, 3, 1, 0)),
            },
        ];
        assert_eq!(decoded(Message::events(&head, &events, true)).events, expected);
        let without: Vec<_> =
            expected.into_iter().map(|event| pb::Event { prev_kv: None, ..event }).collect();
        assert_eq!(decoded(Message::events(&head, &events, false)).events, without);
        assert_eq!(decoded(Message::control(&head)), head);
    }

    #[test]
    fn a_response_above_the_size_is_split_and_every_piece_but_the_last_says_so() {
        let put = |n: usize| Op::Put(Put::new(format!("{n}"), vec![b'x'; 600]));
        let events = events_of(&[put(0), put(1), put(2), put(3), put(4)]);
        let head = pb::WatchResponse { watch_id: 3, ..pb::WatchResponse::default() };
        let split = |most| -> Vec<(usize, bool)> {
            let pieces = Message::fragments(&head, &events, false, most).map(decoded);
            pieces.map(|piece| (piece.events.len(), piece.fragment)).collect()
        };
        assert_eq!(split(usize::MAX), [(5, false)]);
        assert_eq!(split(1500), [(2, true), (2, true), (1, false)]);
        // One event is never torn.
        assert_eq!(split(100), [(1, true), (1, true), (1, true), (1, true), (1, false)]);
    }

    #[test]
    fn a_large_event_is_shared_not_copied() {
        let events = events_of(&[Op::Put(Put::new("large", vec![b'x'; 5000]))]);
        let message = Message::events(&pb::WatchResponse::default(), &events, false);
        let shared = message.into_chunks().iter().any(|chunk| chunk.as_ptr() == events[0].encoded().as_ptr());
        assert!(shared);
    }
}
