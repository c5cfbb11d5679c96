//! Fuzz targets as plain functions: any bytes, no panic, and what decodes survives a round trip.

use hawser_model::{ClusterId, ClusterIdWidth, ClusterName, ClusterRef};

use crate::{Context, Key, decode};

/// A key that parses prints as it was.
pub fn fuzz_key(bytes: &[u8]) {
    if let Ok(key) = Key::parse(bytes) {
        assert_eq!(key.to_string().as_bytes(), bytes, "a key has one spelling");
    }
    if let Ok((cluster, key)) = Key::parse_cached(bytes) {
        assert_eq!(cluster.is_none(), matches!(key, Key::Other(_)), "only others have no cluster");
    }
}

/// `key NUL value`, in the keyspace of cluster `c1` with id 1: a value that decodes gives its key again, and encodes into
/// something that decodes to the same.
pub fn fuzz_value(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |b| *b == 0);
    let (Some(key), Some(value)) = (parts.next(), parts.next()) else { return };
    if let Ok(key) = Key::parse(key) {
        round_trip(&key, value);
    }
}

/// An EndpointSlice before compression, so that mutations reach the protobuf.
pub fn fuzz_slice(plain: &[u8]) {
    let Ok(value) = zstd::bulk::compress(plain, 1) else { return };
    if let Ok(key) = Key::parse(b"cilium/state/endpointslices/v1/c1/shop/web-1") {
        round_trip(&key, &value);
    }
}

fn round_trip(key: &Key, value: &[u8]) {
    let width = ClusterIdWidth::Bits8;
    let (Ok(name), Ok(id)) = (ClusterName::parse("c1"), ClusterId::new(1, width)) else { return };
    let cx = Context { cluster: ClusterRef { name, id }, width };
    let Ok(entry) = decode(key, value, &cx) else { return };
    assert_eq!(entry.key(&cx.cluster), *key, "a value knows its key");
    let again = decode(key, &entry.encode(), &cx);
    assert_eq!(again.as_ref(), Ok(&entry), "what we write is what we read");
}
