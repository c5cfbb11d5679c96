//! UDP that nobody takes: the very packets that come back, with tcx and with clsact.

use hawser_ebpf_abi::{HEALTH_NO_NEW, HEALTH_RESET, Reason};

use crate::packet::{checksum, frame, udp};
use crate::wire::{NODE, POD, REMOTE, on_a_node};

const UNREACHABLE_PORT: [u8; 2] = [3, 3];

/// An ICMP error from `from` to `to` that quotes the head of `sent`, with checksums that a host believes.
fn assert_refusal(packet: &[u8], from: [u8; 4], to: [u8; 4], sent: &[u8]) {
    assert_eq!((packet.len(), packet[9]), (56, 1));
    assert_eq!((&packet[12..16], &packet[16..20]), (&from[..], &to[..]));
    assert_eq!(packet[20..22], UNREACHABLE_PORT);
    assert_eq!((checksum(&packet[..20]), checksum(&packet[20..])), (0, 0));
    assert_eq!(packet[28..], sent[..28]);
}

#[test]
fn a_message_for_a_port_a_pod_or_a_program_of_the_node_that_is_withdrawn_is_answered_through_the_tunnel() {
    on_a_node(|mut node| {
        for (to, octets) in [(POD, [10, 1, 0, 5]), ("10.1.0.77", [10, 1, 0, 77]), (NODE, [240, 1, 0, 1])] {
            for payload in [&b"x"[..], &[7; 1_300]] {
                let asks = udp(REMOTE, 4000, to, 53, payload);
                assert_eq!(node.reasons(|| node.tunnel.sends(&asks)), [Reason::TunnelInRefused]);
                let answer = node.tunnel.receives().expect("it comes back");
                assert_refusal(&answer, octets, [10, 2, 0, 9], &asks);
            }
        }
        node.export(POD, 53, 17);
        let asks = udp(REMOTE, 4000, POD, 53, b"x");
        let reasons = node.reasons(|| node.tunnel.sends(&asks));
        assert_eq!(reasons, [Reason::TunnelInExported, Reason::PodToAdmitted]);
    });
}

#[test]
fn a_flow_to_a_cluster_that_is_down_is_refused_by_the_clients_own_node() {
    on_a_node(|mut node| {
        node.desired.config.reset_after = 0;
        node.sync();
        let asks = udp(POD, 4000, REMOTE, 53, b"anybody?");
        assert_eq!(node.reasons(|| node.pod.sends(&frame(&asks))), [Reason::PodFromSteered]);
        node.datapath.maps.set_cluster_health(2, HEALTH_RESET | HEALTH_NO_NEW).unwrap();
        let reasons = node.reasons(|| node.pod.sends(&frame(&asks)));
        assert_eq!(reasons, [Reason::PodToAdmitted, Reason::PodFromRefused]);
        let answer = node.pod.receives().expect("it comes back to the pod");
        assert_eq!((&answer[..6], &answer[12..14]), (&crate::packet::POD_MAC[..], &[8, 0][..]));
        assert_refusal(&answer[14..], [10, 2, 0, 9], [10, 1, 0, 5], &asks);
    });
}
