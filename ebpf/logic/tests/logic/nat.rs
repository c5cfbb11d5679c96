//! Left-out pods' packets, there and back, against a naive model of who talks to whom.

use std::collections::{BTreeMap, BTreeSet};

use hawser_ebpf_abi::{
    CONFIG_LEFT_OUT, ENDPOINT_TRANSLATED, IPPROTO_TCP, IPPROTO_UDP, NAT_BACK, NAT_THERE, Port, Reason,
    ServiceKey,
};
use hawser_ebpf_logic::choice::Choice;
use hawser_ebpf_logic::packet::{TCP_ACK, TCP_SYN};
use hawser_ebpf_logic::verdict::{Action, pod_from, pod_to};
use proptest::prelude::*;

use crate::packets::{Node, addr, icmp, tcp, udp};

const POD: &str = "10.1.0.5";
const OTHER_POD: &str = "10.1.0.6";
const SERVICES: [&str; 2] = ["172.20.0.1", "172.20.0.2"];
/// Of the own cluster, and two of another one.
const BACKENDS: [&str; 3] = ["10.1.0.6", "10.2.0.8", "10.2.0.9"];

/// A node whose pod 10.1.0.5 is left out.
fn node() -> Node {
    let mut node = Node::new();
    node.config.flags |= CONFIG_LEFT_OUT;
    node.endpoints.get_mut(&addr(POD)).unwrap().flags = ENDPOINT_TRANSLATED;
    for service in SERVICES {
        choose(&mut node, service, Some(BACKENDS[2]));
    }
    node
}

/// From now on this is chosen for a service.
fn choose(node: &mut Node, service: &str, backend: Option<&str>) {
    let choice = match backend {
        Some(backend) => Choice::Backend {
            addr: addr(backend),
            port: Port::new(8080),
            cluster: 2,
            reason: Reason::ConnectChosen,
        },
        None => Choice::Untouched(Reason::ConnectOwnStale),
    };
    for proto in [IPPROTO_TCP, IPPROTO_UDP] {
        node.choices.insert(ServiceKey::new(addr(service), Port::new(80), proto), choice);
    }
}

fn forget(node: &Node, way: u8) {
    node.nat.borrow_mut().retain(|key, _| key.way != way);
}

/// Source and destination, of the packet that a node looked at last.
fn ends(packet: &[u8]) -> [String; 2] {
    let at = |from: usize, port: usize| {
        let [a, b, c, d] = packet[from..from + 4].try_into().unwrap();
        format!("{a}.{b}.{c}.{d}:{}", u16::from_be_bytes([packet[port], packet[port + 1]]))
    };
    [at(12, 20), at(16, 22)]
}

fn sends(node: &Node, packet: Vec<u8>) -> (Reason, String) {
    let reason = pod_from(node.sees(packet)).reason;
    let [from, to] = ends(&node.packet.borrow().0);
    assert!(from.starts_with(POD), "{from}");
    (reason, to)
}

fn hears(node: &Node, packet: Vec<u8>) -> String {
    node.sees(packet);
    assert_eq!(pod_to(node).action, Action::Next);
    let [from, to] = ends(&node.packet.borrow().0);
    assert!(to.starts_with(POD), "{to}");
    from
}

#[test]
fn only_a_left_out_pods_own_interface_translates() {
    let mut node = node();
    let syn = || tcp(POD, 4000, SERVICES[0], 80, TCP_SYN);
    assert_eq!(sends(&node, syn()), (Reason::PodFromSteered, "10.2.0.9:8080".into()));
    node.ifindex = 6;
    assert_eq!(sends(&node, syn()), (Reason::PodFromOther, "172.20.0.1:80".into()), "a forged source");
    let (packet, before) = (tcp(OTHER_POD, 4000, SERVICES[0], 80, TCP_SYN), node.nat.borrow().clone());
    assert_eq!(pod_from(node.sees(packet.clone())).reason, Reason::PodFromOther);
    assert_eq!(node.packet.borrow().0, packet);
    node.ifindex = 5;
    node.config.flags = 0;
    assert_eq!(sends(&node, syn()).0, Reason::PodFromOther);
    assert_eq!(*node.nat.borrow(), before);
}

#[test]
fn what_is_to_no_service_or_in_pieces_is_left_alone() {
    let node = node();
    let mut piece = udp(POD, 4000, SERVICES[0], 80);
    piece[6] |= 0x20;
    let packets = [
        tcp(POD, 4000, "10.1.0.6", 8080, TCP_SYN),
        tcp(POD, 4000, SERVICES[0], 81, TCP_SYN),
        icmp(POD, SERVICES[0], 8, 7, b""),
        piece,
    ];
    for packet in packets {
        assert_eq!(pod_from(node.sees(packet.clone())).reason, Reason::PodFromOther);
        assert_eq!(node.packet.borrow().0, packet);
    }
    assert!(node.nat.borrow().is_empty());
}

#[test]
fn the_pod_itself_and_a_choice_that_is_left_to_others_are_not_translated() {
    let mut node = node();
    choose(&mut node, SERVICES[0], Some(POD));
    let syn = || tcp(POD, 4000, SERVICES[0], 80, TCP_SYN);
    assert_eq!(sends(&node, syn()), (Reason::PodFromOther, "172.20.0.1:80".into()));
    assert_eq!(*node.notes.borrow(), [Reason::NatHairpin]);
    choose(&mut node, SERVICES[0], None);
    assert_eq!(sends(&node, syn()).0, Reason::PodFromOther);
    assert_eq!(*node.notes.borrow(), [Reason::ConnectOwnStale]);
    // What was begun elsewhere stays there when the choice is another one again.
    choose(&mut node, SERVICES[0], Some(BACKENDS[0]));
    let (reason, to) = sends(&node, tcp(POD, 4000, SERVICES[0], 80, TCP_ACK));
    assert_eq!((reason, to.as_str()), (Reason::PodFromNatUnknown, "172.20.0.1:80"));
}

#[test]
fn an_error_about_the_pods_packet_is_shown_as_one_about_the_service() {
    let node = node();
    sends(&node, udp(POD, 4000, SERVICES[0], 80));
    let sent = node.packet.borrow().0.clone();
    node.sees(icmp(BACKENDS[2], POD, 3, 0, &sent[..28]));
    let mut node = node;
    node.mark = node.config.mark;
    assert_eq!(pod_to(&node).reason, Reason::PodToAdmitted);
    let shown = node.packet.borrow().0.clone();
    assert_eq!(shown[12..16], [172, 20, 0, 1], "who says it");
    assert_eq!(ends(&shown[28..]), ["10.1.0.5:4000", "172.20.0.1:80"], "about what");
}

#[test]
fn what_the_pod_says_about_an_answer_is_said_to_the_backend_about_its_own() {
    let node = node();
    for sent in [tcp(POD, 4000, SERVICES[0], 80, TCP_SYN), udp(POD, 4000, SERVICES[0], 80)] {
        let is_tcp = sent[9] == IPPROTO_TCP;
        sends(&node, sent);
        let shown = match is_tcp {
            true => tcp(SERVICES[0], 80, POD, 4000, TCP_SYN | TCP_ACK),
            false => udp(SERVICES[0], 80, POD, 4000),
        };
        let verdict = pod_from(node.sees(icmp(POD, SERVICES[0], 3, 0, &shown[..28])));
        assert_eq!(verdict.reason, Reason::PodFromSteered);
        let said = node.packet.borrow().0.clone();
        assert_eq!(said[16..20], [10, 2, 0, 9], "to whom");
        assert_eq!(ends(&said[28..]), ["10.2.0.9:8080", "10.1.0.5:4000"], "about what");
    }
    // About somebody else's, or to somebody else: it stays as it is.
    let about = udp(SERVICES[0], 80, OTHER_POD, 4000);
    let error = icmp(POD, SERVICES[0], 3, 0, &about[..28]);
    assert_eq!(pod_from(node.sees(error.clone())).reason, Reason::PodFromOther);
    assert_eq!(node.packet.borrow().0, error);
}

#[test]
fn a_sender_is_the_same_every_time_and_no_two_are_alike() {
    let node = node();
    let asked = |port, service: &str| {
        sends(&node, tcp(POD, port, service, 80, TCP_SYN));
        node.asked.get().unwrap()
    };
    let first = asked(4000, SERVICES[0]);
    assert_eq!(asked(4000, SERVICES[0]), first);
    let (port, service) = (asked(4001, SERVICES[0]), asked(4000, SERVICES[1]));
    assert!(port.seed != first.seed && service.seed != first.seed);
    assert_eq!((port.pod, service.socket), (first.pod, first.socket));
    assert!(port.socket != first.socket && first.pod >> 63 == 1 && first.socket >> 63 == 1);
}

/// What may happen, in any order.
#[derive(Clone, Debug)]
enum Step {
    Begin { port: u16, service: usize },
    Say { port: u16, service: usize },
    Answer { port: u16, service: usize },
    Choose { service: usize, backend: usize },
    Forget { way: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    // Of one port a service each: who reuses a port for another service of the same backend takes it over.
    let flow = || (0..2_usize, 0..3_u16).prop_map(|(service, n)| (service, 4000 + 10 * service as u16 + n));
    prop_oneof![
        3 => flow().prop_map(|(service, port)| Step::Begin { port, service }),
        4 => flow().prop_map(|(service, port)| Step::Say { port, service }),
        4 => flow().prop_map(|(service, port)| Step::Answer { port, service }),
        2 => (0..2_usize, 0..3_usize).prop_map(|(service, backend)| Step::Choose { service, backend }),
        1 => prop_oneof![Just(NAT_THERE), Just(NAT_BACK)].prop_map(|way| Step::Forget { way }),
    ]
}

proptest! {
    /// The model remembers everything. What the node does may differ from it only where the node has forgotten: then a packet
    /// stays as it was, or goes where an earlier connection of the same ports went.
    #[test]
    fn a_connection_stays_with_its_backend_while_it_is_not_forgotten(steps in prop::collection::vec(step(), 1..60)) {
        let mut node = node();
        let mut backends = BTreeMap::<u16, usize>::new();
        let mut ever = BTreeSet::new();
        let mut chosen = [2, 2];
        // Since when nothing was forgotten: flows that were used since are known whole.
        let mut whole = BTreeMap::<u16, bool>::new();
        for step in steps {
            match step {
                Step::Choose { service, backend } => {
                    chosen[service] = backend;
                    choose(&mut node, SERVICES[service], Some(BACKENDS[backend]));
                }
                Step::Forget { way } => {
                    forget(&node, way);
                    whole.values_mut().for_each(|whole| *whole = false);
                }
                Step::Begin { port, service } => {
                    let (_, to) = sends(&node, tcp(POD, port, SERVICES[service], 80, TCP_SYN));
                    prop_assert_eq!(&to, &format!("{}:8080", BACKENDS[chosen[service]]));
                    backends.insert(port, chosen[service]);
                    ever.insert((port, to));
                    whole.insert(port, true);
                }
                Step::Say { port, service } => {
                    let untouched = format!("{}:80", SERVICES[service]);
                    let (reason, to) = sends(&node, tcp(POD, port, SERVICES[service], 80, TCP_ACK));
                    match backends.get(&port) {
                        None => prop_assert_eq!((reason, to), (Reason::PodFromNatUnknown, untouched)),
                        Some(backend) => {
                            let right = to == format!("{}:8080", BACKENDS[*backend]);
                            let kept = to == untouched || ever.contains(&(port, to.clone()));
                            prop_assert!(right || !whole[&port] && kept, "{} {}", to, reason);
                        }
                    }
                }
                Step::Answer { port, service } => {
                    let Some(backend) = backends.get(&port) else { continue };
                    node.mark = node.config.mark;
                    let from = hears(&node, tcp(BACKENDS[*backend], 8080, POD, port, TCP_ACK));
                    node.mark = 0;
                    let right = from == format!("{}:80", SERVICES[service]);
                    let kept = from == format!("{}:8080", BACKENDS[*backend]);
                    prop_assert!(right || !whole[&port] && kept, "{}", from);
                }
            }
        }
    }
}
