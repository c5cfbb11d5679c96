//! A liveness probe out of the tunnel is answered by the kernel program alone: no socket, no agent.

use hawser_ebpf::{LoadConfig, TcKind};
use hawser_ebpf_abi::Reason;

use crate::packet::{checksum, transport_checksum, udp};
use crate::wire::Node;
use crate::world::in_a_namespace;

const NODE: &str = "240.1.0.1";
const REMOTE_NODE: &str = "240.2.0.1";

/// As an initiator sends it; with a UDP checksum when asked for.
fn probe(summed: bool) -> Vec<u8> {
    let control = [0x20, 0xc2, 3, 24, 0, 0, 0, 7, 240, 1, 0, 1, 0, 15, 0x42, 0x40, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut packet = udp(REMOTE_NODE, 51_872, NODE, 7784, &control);
    packet[8] = 255;
    packet[10..12].fill(0);
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    if summed {
        let sum = transport_checksum(REMOTE_NODE, NODE, 17, &packet[20..]);
        packet[26..28].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

#[test]
fn a_probe_comes_back_out_of_the_tunnel_device_with_checksums_that_hold() {
    for kind in [TcKind::Tcx, TcKind::Clsact] {
        in_a_namespace(move |config| {
            let node = Node::new(&LoadConfig { tc: kind, ..config.clone() });
            for summed in [true, false] {
                let asked = probe(summed);
                assert_eq!(node.reasons(|| node.tunnel.sends(&asked)), [Reason::TunnelInReflected]);
                let answer = node.tunnel.receives().expect("the answer leaves through the tunnel device");
                assert_eq!(answer.len(), asked.len(), "it does not amplify");
                assert_eq!((&answer[12..16], &answer[16..20]), (&[240, 1, 0, 1][..], &[240, 2, 0, 1][..]));
                assert_eq!((answer[8], checksum(&answer[..20])), (255, 0));
                assert_eq!(answer[20..24], [&7784_u16.to_be_bytes()[..], &51_872_u16.to_be_bytes()].concat());
                let sum = if summed { transport_checksum(NODE, REMOTE_NODE, 17, &answer[20..]) } else { 0 };
                assert_eq!((sum, answer[26..28] == [0, 0]), (0, !summed));
                assert_eq!(answer[28..40], [0x20, 0xc8, 3, 24, 240, 1, 0, 1, 0, 0, 0, 7]);
                assert_eq!(answer[40..], [0, 15, 0x42, 0x40, 0, 0, 0x27, 0x10, 0, 0, 0, 0]);
            }
            let mut routed = probe(false);
            routed[8] = 254;
            assert_eq!(node.reasons(|| node.tunnel.sends(&routed)), [Reason::TunnelInProbeRefused]);
            assert_eq!(node.tunnel.has_now(), None);
        });
    }
}
