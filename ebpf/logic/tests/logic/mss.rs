//! The MSS clamp keeps checksums right and touches nothing else.

use hawser_ebpf_logic::mss::{clamp, limit};
use hawser_ebpf_logic::packet::TCP_SYN;
use proptest::prelude::*;

use crate::packets::{Bytes, addr, apply, checksum, tcp_segment};

fn clamped(options: &[u8], limit: u32) -> Option<Vec<u8>> {
    let mut segment = tcp_segment(1, 2, TCP_SYN, options);
    let header_len = u32::from(segment[12] >> 4) * 4;
    let clamp = clamp(&Bytes(segment.clone()), 0, header_len, limit)?;
    apply(&mut segment, 0, &clamp);
    assert_eq!(checksum(&segment), 0, "the checksum over the rewritten segment");
    Some(segment)
}

#[test]
fn a_large_segment_size_is_lowered_and_a_small_one_is_left() {
    assert_eq!(clamped(&[2, 4, 0x05, 0xb4], 1380).unwrap()[22..24], 1380_u16.to_be_bytes());
    assert_eq!(clamped(&[2, 4, 0x05, 0x64], 1380), None);
    assert_eq!(clamped(&[2, 4, 0x05, 0x65], 1380).unwrap()[22..24], [0x05, 0x64]);
}

#[test]
fn the_option_is_found_behind_others_at_even_and_odd_places() {
    for before in [&[1][..], &[1, 1], &[4, 2], &[4, 2, 1], &[3, 3, 7], &[8, 10, 0, 0, 0, 1, 0, 0, 0, 0]] {
        let options = [before, &[2, 4, 0xff, 0xff]].concat();
        let found = clamped(&options, 1000).unwrap();
        let at = 20 + before.len() + 2;
        assert_eq!(found[at..at + 2], 1000_u16.to_be_bytes(), "{before:?}");
    }
}

#[test]
fn a_segment_without_the_option_or_with_broken_ones_is_left() {
    for options in
        [&[][..], &[0, 2, 4, 5], &[3, 3, 7, 0], &[3, 0, 2, 4], &[3, 1, 2, 4], &[2, 3, 9, 9], &[9, 255, 0, 0]]
    {
        assert_eq!(clamped(options, 1000), None, "{options:?}");
    }
}

#[test]
fn the_limit_leaves_room_for_the_headers_of_the_family() {
    assert_eq!(limit(1420, &addr("10.0.0.1")), 1380);
    assert_eq!(limit(1420, &addr("fd00::1")), 1360);
    assert_eq!(limit(0, &addr("10.0.0.1")), 216, "never absurdly small");
}

proptest! {
    #[test]
    fn whatever_the_options_nothing_but_the_value_and_the_checksum_changes(options: Vec<u8>, limit in 216..9000u32) {
        let options = &options[..options.len().min(40)];
        let before = tcp_segment(1, 2, TCP_SYN, options);
        if let Some(after) = clamped(options, limit) {
            let changed: Vec<usize> = (0..before.len()).filter(|at| before[*at] != after[*at]).collect();
            let value: Vec<usize> = changed.into_iter().filter(|at| !(16..18).contains(at)).collect();
            prop_assert!(value.len() <= 2 && value.iter().all(|at| *at >= 22), "{value:?}");
        }
    }
}
