//! Probes as bytes.

use proptest::prelude::*;

use super::node;
use crate::{ParseProbeError, Probe, ProbeKind};

fn request() -> Probe {
    Probe {
        kind: ProbeKind::Request,
        sender: node(1, 2),
        addressee: node(511, 65_535),
        hears_you: true,
        nonce: 0x0102_0304_0506_0708,
    }
}

#[test]
fn a_probe_has_these_bytes() {
    let bytes = request().encode();
    assert_eq!(&bytes[..8], b"HwEc\x01\x01\x01\x00");
    assert_eq!(bytes[8..16], [0, 1, 0, 2, 0x01, 0xff, 0xff, 0xff]);
    assert_eq!(bytes[16..], [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn a_reply_swaps_the_ends_and_is_no_longer_than_the_request() {
    let reply = request().reply(false);
    assert_eq!((reply.sender, reply.addressee), (node(511, 65_535), node(1, 2)));
    assert_eq!(reply.nonce, request().nonce);
    assert_eq!(reply.encode().len(), request().encode().len());
}

#[test]
fn what_is_not_a_probe_is_named() {
    let good = request().encode();
    let with = |at: usize, byte: u8| {
        let mut bytes = good;
        bytes[at] = byte;
        Probe::parse(&bytes)
    };
    assert_eq!(Probe::parse(&[]), Err(ParseProbeError::Length { bytes: 0 }));
    assert_eq!(Probe::parse(&[0; 65_507]), Err(ParseProbeError::Length { bytes: 65_507 }));
    assert_eq!(with(0, b'x'), Err(ParseProbeError::Magic));
    assert_eq!(with(4, 2), Err(ParseProbeError::Version { version: 2 }));
    assert_eq!(with(5, 3), Err(ParseProbeError::Kind { kind: 3 }));
    assert_eq!(with(9, 0), Err(ParseProbeError::Node), "cluster 0");
    assert_eq!(with(8, 2), Err(ParseProbeError::Node), "cluster 513");
    assert!(with(6, 0xff).is_ok(), "a later version's flag");
}

proptest! {
    #[test]
    fn any_bytes_parse_to_a_probe_that_encodes_alike_or_are_refused(
        mut bytes in prop::collection::vec(any::<u8>(), 0..64), ours in any::<bool>(),
    ) {
        if ours {
            bytes.resize(Probe::LEN, 0);
            bytes[..5].copy_from_slice(b"HwEc\x01");
            bytes[5] %= 3;
        }
        if let Ok(probe) = Probe::parse(&bytes) {
            prop_assert_eq!(Probe::parse(&probe.encode()), Ok(probe));
        }
    }
}
