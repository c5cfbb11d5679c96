//! Replies whose entries are counted before any is decoded: an empty one is two bytes on the wire, and a hundred times
//! that in memory, so a bound on a message's bytes alone bounds nothing.

use std::marker::PhantomData;

use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use crate::pb;
use bytes::Buf as _;

/// Entries of one reply: a page is asked for by the thousand, and events come in pieces of two megabytes.
const MOST: usize = 1 << 18;

/// A reply with the number of its field that repeats.
pub(crate) trait Repeats: Message + Default + 'static {
    const FIELD: u32;
}

impl Repeats for pb::RangeResponse {
    const FIELD: u32 = 2;
}

impl Repeats for pb::WatchResponse {
    const FIELD: u32 = 11;
}

/// As tonic's own, with the count.
#[derive(Debug)]
pub(crate) struct Bounded<Q, A>(PhantomData<(Q, A)>);

impl<Q, A> Default for Bounded<Q, A> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<Q: Message + 'static, A: Repeats> Codec for Bounded<Q, A> {
    type Encode = Q;
    type Decode = A;
    type Encoder = ProstEncoder<Q>;
    type Decoder = BoundedDecoder<A>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<Q, A>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(ProstDecoder::default())
    }
}

#[derive(Debug)]
pub(crate) struct BoundedDecoder<A>(ProstDecoder<A>);

impl<A: Repeats> Decoder for BoundedDecoder<A> {
    type Item = A;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<A>, Status> {
        // A message lies in one piece. What is cut off or no protobuf is for the decoder to say.
        let entries = count(buf.chunk(), A::FIELD);
        if entries > MOST {
            return Err(Status::internal(format!(
                "the server's reply has {entries} entries, and {MOST} are the most that are asked for"
            )));
        }
        self.0.decode(buf)
    }
}

/// How often `field` is there. O(fields), none is looked into.
fn count(mut message: &[u8], field: u32) -> usize {
    let mut found = 0;
    while let Ok((tag, wire_type)) = decode_key(&mut message) {
        let skip = match wire_type {
            WireType::Varint => decode_varint(&mut message).map(|_| 0),
            WireType::LengthDelimited => decode_varint(&mut message),
            WireType::SixtyFourBit => Ok(8),
            WireType::ThirtyTwoBit => Ok(4),
            WireType::StartGroup | WireType::EndGroup => break,
        };
        found += usize::from(tag == field);
        match skip.ok().and_then(|skip| message.get(usize::try_from(skip).ok()?..)) {
            Some(rest) => message = rest,
            None => break,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_counted_without_being_decoded() {
        let page = pb::RangeResponse {
            header: Some(pb::ResponseHeader { cluster_id: 7, ..Default::default() }),
            kvs: vec![pb::KeyValue { key: "a".into(), value: "b".into(), ..Default::default() }; 300],
            more: true,
            count: 9,
        };
        assert_eq!(count(&page.encode_to_vec(), pb::RangeResponse::FIELD), 300);
        let events = pb::WatchResponse { events: vec![pb::Event::default(); 70_000], ..Default::default() };
        let bytes = events.encode_to_vec();
        assert_eq!((bytes.len(), count(&bytes, pb::WatchResponse::FIELD)), (140_000, 70_000));
    }

    #[test]
    fn what_is_no_message_is_counted_as_far_as_it_goes() {
        let events = pb::WatchResponse { events: vec![pb::Event::default(); 10], ..Default::default() };
        let whole = events.encode_to_vec();
        for cut in 0..whole.len() {
            assert!(count(&whole[..cut], pb::WatchResponse::FIELD) <= 10);
        }
        for bytes in [&[0x5a, 0xff, 0xff, 0xff, 0xff, 0x0f][..], &[0x5b], &[0x00], &[0xff; 20]] {
            assert!(count(bytes, pb::WatchResponse::FIELD) <= 1);
        }
    }
}
