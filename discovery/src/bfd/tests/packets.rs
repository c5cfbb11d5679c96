//! Control packets as octets: the layout of §4.1 and one packet for every discard of §6.8.6.

use proptest::prelude::*;

use super::*;

#[test]
fn a_packet_has_the_octets_of_the_rfc() {
    let packet =
        ControlPacket { diagnostic: Diagnostic::DETECTION_TIME_EXPIRED, poll: true, ..says(State::Up) };
    let bytes = packet.encode();
    assert_eq!(bytes[..4], [0x21, 0xe0, 3, 24]);
    assert_eq!(bytes[4..12], [0, 0, 0, 2, 0, 0, 0, 1]);
    assert_eq!(bytes[12..], [0, 4, 0x93, 0xe0, 0, 4, 0x93, 0xe0, 0, 0, 0, 0]);
    assert_eq!(ControlPacket::parse(&bytes), Ok(packet));
}

#[test]
fn what_the_rfc_discards_is_discarded_and_named() {
    use ParseControlError as E;
    let good = says(State::Up).encode();
    let with = |changes: &[(usize, u8)]| {
        let mut bytes = good;
        for (at, value) in changes {
            bytes[*at] = *value;
        }
        ControlPacket::parse(&bytes)
    };
    assert_eq!(ControlPacket::parse(&[]), Err(E::Short { bytes: 0 }));
    assert_eq!(ControlPacket::parse(&good[..23]), Err(E::Short { bytes: 23 }));
    assert_eq!(with(&[(0, 0x40)]), Err(E::Version { version: 2 }));
    assert_eq!(with(&[(3, 23)]), Err(E::LengthTooSmall { length: 23, least: 24 }));
    assert_eq!(with(&[(1, 0xc4)]), Err(E::LengthTooSmall { length: 24, least: 26 }));
    assert_eq!(with(&[(3, 25)]), Err(E::LengthBeyondPayload { length: 25, bytes: 24 }));
    assert_eq!(with(&[(2, 0)]), Err(E::DetectMultZero));
    assert_eq!(with(&[(1, 0xc1)]), Err(E::Multipoint));
    assert_eq!(with(&[(7, 0)]), Err(E::MyDiscriminatorZero));
    assert_eq!(with(&[(11, 0)]), Err(E::YourDiscriminatorZero { state: State::Up }));
    assert_eq!(with(&[(11, 0), (1, 0x80)]), Err(E::YourDiscriminatorZero { state: State::Init }));
    for down in [0x00, 0x40] {
        assert!(with(&[(11, 0), (1, down)]).is_ok(), "a beginning");
    }
    let mut authenticated = [&good[..], &[1, 3, 0]].concat();
    (authenticated[1], authenticated[3]) = (0xc4, 27);
    assert_eq!(ControlPacket::parse(&authenticated), Err(E::Authenticated));
    let longer = [&good[..], &[0xff; 40]].concat();
    assert!(ControlPacket::parse(&longer).is_ok(), "what lies behind the stated length is not ours to judge");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn any_octets_are_a_packet_that_encodes_alike_or_are_refused(
        mut bytes in prop::collection::vec(any::<u8>(), 0..80), plausible in any::<bool>(),
    ) {
        if plausible && bytes.len() >= ControlPacket::LEN {
            bytes[0] = 0x20 | (bytes[0] & 0x1f);
            bytes[1] &= !0x05;
            bytes[3] = 24;
        }
        if let Ok(packet) = ControlPacket::parse(&bytes) {
            let encoded = packet.encode();
            prop_assert_eq!(ControlPacket::parse(&encoded), Ok(packet));
            prop_assert_eq!((&encoded[..3], &encoded[4..]), (&bytes[..3], &bytes[4..24]));
        }
    }

    #[test]
    fn whatever_is_received_no_session_panics_and_each_packet_brings_at_most_two(
        events in prop::collection::vec((prop::collection::vec(any::<u8>(), 24..25), 0_u64..3_000, 0_u8..8), 0..100),
    ) {
        let mut session = Session::new(config(1), ms(0));
        let mut now = 5_000;
        for (mut bytes, step, kind) in events {
            // Steps of time, some backwards.
            now = (now + step).saturating_sub(500);
            match kind {
                0 => session.handle_timeout(ms(now)),
                1 => session.handle_admin(Admin::Down, ms(now)),
                2 => session.handle_admin(Admin::Up, ms(now)),
                3 => session.handle_intervals(Interval::from_micros(u32::from(bytes[4]) << 20), interval(u64::from(bytes[5])), ms(now)),
                _ => {
                    bytes[0] = 0x20;
                    bytes[1] &= !0x05;
                    bytes[3] = 24;
                    bytes[8..12].copy_from_slice(&[0, 0, 0, kind & 1]);
                    if let Ok(packet) = ControlPacket::parse(&bytes) {
                        let _ = session.handle_packet(&packet, ms(now));
                    }
                }
            }
            let (sent, _) = drain(&mut session);
            prop_assert!(sent.len() <= 2, "{:?}", sent);
            for packet in sent {
                prop_assert_eq!(ControlPacket::parse(&packet.encode()).is_ok(), true, "{:?}", packet);
            }
        }
    }
}
