//! What TCP's callbacks count as, and how many clients were late.

use hawser_ebpf_abi::{Addr, NodeTraffic};
use hawser_ebpf_logic::users::{
    Event, RTO, RTT, STATE, TCP_CONNECT, event, is_ours, late_clients, mark, marked,
};
use proptest::prelude::*;

const ESTABLISHED: u32 = 1;
const SYN_SENT: u32 = 2;
const FIN_WAIT: u32 = 4;
const CLOSE: u32 = 7;

#[test]
fn a_callback_counts_as_what_it_says_about_the_path() {
    let table = [
        ((TCP_CONNECT, CLOSE, 0, 0), Some(Event::Begun)),
        ((STATE, SYN_SENT, SYN_SENT, ESTABLISHED), Some(Event::Established)),
        ((STATE, ESTABLISHED, ESTABLISHED, FIN_WAIT), None),
        ((STATE, FIN_WAIT, FIN_WAIT, CLOSE), Some(Event::Closed)),
        // Refused, given up, or timed out after it was late: nothing more.
        ((STATE, SYN_SENT, SYN_SENT, CLOSE), None),
        ((STATE, CLOSE, CLOSE, SYN_SENT), None),
        ((RTO, SYN_SENT, 0, 1_000), Some(Event::Late)),
        ((RTO, SYN_SENT, 1, 2_000), None),
        ((RTO, ESTABLISHED, 0, 200), Some(Event::Repeated)),
        ((RTO, ESTABLISHED, 2, 800), Some(Event::Stalled)),
        ((RTO, FIN_WAIT, 3, 1_600), Some(Event::Repeated)),
        ((RTT, ESTABLISHED, 0, 0), Some(Event::Spoke)),
        // BPF_SOCK_OPS_TIMEOUT_INIT
        ((1, CLOSE, 0, 0), None),
    ];
    for ((op, state, first, second), expected) in table {
        assert_eq!(event(op, state, first, second), expected, "{op} {state} {first} {second}");
        assert!(expected.is_none() || is_ours(op));
    }
}

proptest! {
    #[test]
    fn late_clients_are_those_of_the_last_two_epochs_and_never_more(
        attempts in prop::collection::vec((0_u8..6, 0_u32..3), 0..40),
        start in any::<u32>(),
    ) {
        let mut seen = NodeTraffic { marked_at: start.wrapping_sub(9), ..NodeTraffic::default() };
        let (mut epoch, mut model) = (start, Vec::new());
        for (client, later) in attempts {
            epoch = epoch.wrapping_add(later);
            let mark = mark(&Addr::from_v4_word(u32::from_be_bytes([10, 1, 0, client]).to_be()));
            let (marks, marks_before) = marked(seen.marked_at, seen.marks, seen.marks_before, epoch, mark);
            seen = NodeTraffic { marked_at: epoch, marks, marks_before, ..seen };
            model.push((epoch, mark));
            for ahead in 0..3 {
                let now = epoch.wrapping_add(ahead);
                let recent = model.iter().filter(|(at, _)| now.wrapping_sub(*at) <= 1);
                let marks = recent.fold(0_u32, |all, (_, mark)| all | mark);
                prop_assert_eq!(late_clients(&seen, now), marks.count_ones());
            }
        }
    }
}

#[test]
fn neighbours_have_marks_of_their_own() {
    let marks = (1..=8_u8).map(|n| mark(&Addr::from_v4_word(u32::from_be_bytes([10, 1, 0, n]).to_be())));
    assert!(marks.fold(0, |all, mark| all | mark).count_ones() >= 5);
}
