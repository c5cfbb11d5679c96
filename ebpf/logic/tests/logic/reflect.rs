//! The reflector: which packets are probes for this node, and what it answers.

use hawser_ebpf_abi::{CONFIG_STOPPED, IP_MESH_ADDRESS, Reason};
use hawser_ebpf_logic::reflect::{Control, reflection};
use hawser_ebpf_logic::verdict::{Action, Verdict, tunnel_in};
use proptest::prelude::*;

use crate::packets::{Node, addr, ipv4};

const NODE: &str = "240.1.0.1";
const REMOTE_NODE: &str = "240.2.0.1";

fn node() -> Node {
    let mut node = Node::new();
    for entry in node.ipcache.values_mut() {
        entry.flags |= IP_MESH_ADDRESS;
    }
    node
}

/// 24 octets as an initiator sends them: up, demand, multiplier 3, discriminators 7 and 240.1.0.1.
fn control() -> Vec<u8> {
    let mut control = vec![0x20, 0xc2, 3, 24, 0, 0, 0, 7, 240, 1, 0, 1];
    control.extend([0, 15, 0x42, 0x40, 0, 0, 0, 0, 0, 0, 0, 9]);
    control
}

fn probe(sport: u16, control: &[u8]) -> Vec<u8> {
    let len = (8 + control.len()) as u16;
    let datagram =
        [&sport.to_be_bytes()[..], &7784_u16.to_be_bytes(), &len.to_be_bytes(), &[0, 0], control].concat();
    let mut packet = ipv4(REMOTE_NODE, NODE, 17, &datagram);
    packet[8] = 255;
    packet
}

const REFUSED: Verdict = Verdict { action: Action::Drop, reason: Reason::TunnelInProbeRefused };
const REFLECTED: Verdict =
    Verdict { action: Action::Steer { ifindex: 77 }, reason: Reason::TunnelInReflected };

#[test]
fn a_probe_is_answered_into_the_tunnel_it_came_from() {
    let node = node();
    assert_eq!(tunnel_in(node.sees(probe(51_872, &control()))), REFLECTED);
    let (ip, udp, asked, answer) = node.turned.borrow()[0];
    assert_eq!((ip.src, udp.src.get(), udp.dst.get()), (addr(REMOTE_NODE), 51_872, 7784));
    assert_eq!(answer.version_diagnostic, 0x20);
    assert_eq!(answer.state_flags, 0xc8, "up, independent of the control plane, no demand");
    assert_eq!((answer.detect_mult, answer.length), (3, 24));
    assert_eq!(answer.my_discriminator.to_ne_bytes(), [240, 1, 0, 1]);
    assert_eq!(answer.your_discriminator.to_ne_bytes(), [0, 0, 0, 7]);
    assert_eq!(answer.desired_min_tx, asked.desired_min_tx);
    assert_eq!((u32::from_be(answer.required_min_rx), answer.required_min_echo_rx), (10_000, 0));
}

#[test]
fn a_node_whose_agent_was_stopped_on_purpose_answers_admin_down() {
    let mut node = node();
    node.config.flags |= CONFIG_STOPPED;
    assert_eq!(tunnel_in(node.sees(probe(51_872, &control()))), REFLECTED);
    let (.., answer) = node.turned.borrow()[0];
    assert_eq!((answer.version_diagnostic, answer.state_flags), (0x27, 0x08), "diagnostic 7, state 0");
}

#[test]
fn a_poll_is_answered_with_a_final() {
    let node = node();
    let mut polling = control();
    polling[1] |= 0x20;
    assert_eq!(tunnel_in(node.sees(probe(51_872, &polling))), REFLECTED);
    assert_eq!(node.turned.borrow()[0].3.state_flags, 0xd8);
}

#[test]
fn what_is_no_probe_for_this_node_dies() {
    let node = node();
    let with = |at: usize, value: u8| {
        let mut changed = control();
        changed[at] = value;
        probe(51_872, &changed)
    };
    let mut routed = probe(51_872, &control());
    routed[8] = 254;
    for (what, packet) in [
        ("from a reflector", probe(7784, &control())),
        ("an answer: no demand bit", with(1, 0xc0)),
        ("authenticated", with(1, 0xc6)),
        ("multipoint", with(1, 0xc3)),
        ("version 2", with(0, 0x40)),
        ("another length", with(3, 26)),
        ("no multiplier", with(2, 0)),
        ("no discriminator", with(7, 0)),
        ("another node's discriminator", with(11, 2)),
        ("routed on the way", routed),
        ("cut short", probe(51_872, &control()[..23])),
    ] {
        assert_eq!(tunnel_in(node.sees(packet)), REFUSED, "{what}");
    }
    let stranger = Node::new();
    assert_eq!(tunnel_in(stranger.sees(probe(51_872, &control()))), REFUSED, "a pod's address asks");
    let mut silent = self::node();
    silent.config.own_mesh_v4 = addr("::");
    let refused = Verdict { action: Action::Drop, reason: Reason::TunnelInNotLocal };
    assert_eq!(tunnel_in(silent.sees(probe(51_872, &control()))), refused, "before the agent has spoken");
}

proptest! {
    #[test]
    fn no_answer_is_a_probe_and_each_is_as_long_as_its_question(
        head in any::<[u8; 4]>(), words in any::<[u32; 5]>(), stopped in any::<bool>(),
    ) {
        let asked = Control {
            version_diagnostic: head[0],
            state_flags: head[1],
            detect_mult: head[2],
            length: head[3],
            my_discriminator: words[0],
            your_discriminator: words[1],
            desired_min_tx: words[2],
            required_min_rx: words[3],
            required_min_echo_rx: words[4],
        };
        let answer = reflection(&asked, stopped);
        prop_assert_eq!(answer.state_flags & 0x02, 0, "no demand bit: nobody answers an answer");
        prop_assert_eq!(answer.length, asked.length);
        let back = (answer.my_discriminator, answer.your_discriminator);
        prop_assert_eq!(back, (asked.your_discriminator, asked.my_discriminator));
    }
}
