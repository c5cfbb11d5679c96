//! The protobuf form of `mvccpb.KeyValue` and `mvccpb.Event`, written by hand so that a write encodes once, into one buffer.
//!
//! Field numbers are etcd's public API (`api/mvccpb/kv.proto`); hawser-etcd's tests decode this with prost.

use crate::kv::{EventKind, KeyValue};
use bytes::{BufMut, Bytes, BytesMut};

const KEY: u8 = 1;
const CREATE_REVISION: u8 = 2;
const MOD_REVISION: u8 = 3;
const VERSION: u8 = 4;
const VALUE: u8 = 5;
const LEASE: u8 = 6;

const EVENT_TYPE: u8 = 1;
const EVENT_KV: u8 = 2;

const VARINT: u8 = 0;
const LENGTH_DELIMITED: u8 = 2;

/// O(key + value).
pub(crate) fn key_value(kv: &KeyValue) -> Bytes {
    let mut out = BytesMut::with_capacity(key_value_len(kv));
    put_key_value(&mut out, kv);
    out.freeze()
}

/// The event's body, and where in it the body of its `KeyValue` begins (it ends where the event ends).
pub(crate) fn event(kind: EventKind, kv: &KeyValue) -> (Bytes, usize) {
    let kv_len = key_value_len(kv);
    let mut out = BytesMut::with_capacity(2 + 1 + varint_len(kv_len as u64) + kv_len);
    put_int(&mut out, EVENT_TYPE, matches!(kind, EventKind::Delete).into());
    put_tag(&mut out, EVENT_KV, LENGTH_DELIMITED);
    put_varint(&mut out, kv_len as u64);
    let kv_at = out.len();
    put_key_value(&mut out, kv);
    (out.freeze(), kv_at)
}

/// The key and value as slices of `encoded`, which is `kv` as [`key_value`] writes it.
pub(crate) fn key_and_value_in(kv: &KeyValue, encoded: &Bytes) -> (Bytes, Bytes) {
    let key_at = if kv.key.is_empty() { 0 } else { 1 + varint_len(kv.key.len() as u64) };
    let lease = int_len(kv.lease);
    let value_end = encoded.len() - lease;
    (encoded.slice(key_at..key_at + kv.key.len()), encoded.slice(value_end - kv.value.len()..value_end))
}

fn put_key_value(out: &mut BytesMut, kv: &KeyValue) {
    put_bytes(out, KEY, &kv.key);
    put_int(out, CREATE_REVISION, kv.create_revision);
    put_int(out, MOD_REVISION, kv.mod_revision);
    put_int(out, VERSION, kv.version);
    put_bytes(out, VALUE, &kv.value);
    put_int(out, LEASE, kv.lease);
}

pub(crate) fn key_value_len(kv: &KeyValue) -> usize {
    bytes_len(&kv.key)
        + int_len(kv.create_revision)
        + int_len(kv.mod_revision)
        + int_len(kv.version)
        + bytes_len(&kv.value)
        + int_len(kv.lease)
}

/// proto3 leaves out a field that has its default.
fn bytes_len(field: &Bytes) -> usize {
    if field.is_empty() { 0 } else { 1 + varint_len(field.len() as u64) + field.len() }
}

fn int_len(field: i64) -> usize {
    if field == 0 { 0 } else { 1 + varint_len(field.cast_unsigned()) }
}

fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn put_bytes(out: &mut BytesMut, field: u8, bytes: &Bytes) {
    if !bytes.is_empty() {
        put_tag(out, field, LENGTH_DELIMITED);
        put_varint(out, bytes.len() as u64);
        out.put_slice(bytes);
    }
}

fn put_int(out: &mut BytesMut, field: u8, value: i64) {
    if value != 0 {
        put_tag(out, field, VARINT);
        put_varint(out, value.cast_unsigned());
    }
}

fn put_tag(out: &mut BytesMut, field: u8, wire_type: u8) {
    out.put_u8(field << 3 | wire_type);
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::SharedKv;

    #[test]
    fn key_and_value_are_found_again_in_every_shape_of_encoding() {
        for (key, value, lease) in
            [("", "", 0), ("k", "", 0), ("k", "", 7), ("", "v", 7), ("key", "value", -1)]
        {
            let kv = KeyValue {
                key: key.into(),
                value: value.into(),
                create_revision: 3,
                mod_revision: 300,
                version: 2,
                lease,
            };
            assert_eq!(*SharedKv::new(&kv), kv);
        }
        let long =
            KeyValue { key: vec![b'k'; 200].into(), value: vec![b'v'; 70_000].into(), ..KeyValue::default() };
        assert_eq!(*SharedKv::new(&long), long);
    }

    #[test]
    fn the_length_of_a_varint_is_what_is_written() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX] {
            let mut out = BytesMut::new();
            put_varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value), "{value}");
        }
    }
}
