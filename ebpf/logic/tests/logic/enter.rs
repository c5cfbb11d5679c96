//! Traffic from outside, there and back, against a naive model of who talks to whom.

use std::collections::{BTreeMap, BTreeSet};

use hawser_ebpf_abi::{
    CONFIG_UPLINKS, ENTER_BACK, ENTER_THERE, HEALTH_NO_NEW, HEALTH_RESET, HEALTH_SINCE_SHIFT, IPPROTO_TCP,
    IPPROTO_UDP, Port, Reason, ServiceKey, TICKS_MASK,
};
use hawser_ebpf_logic::choice::Choice;
use hawser_ebpf_logic::enter::{FIRST_PORT, PORTS, tunnel_back, uplink_in, uplink_out};
use hawser_ebpf_logic::packet::{TCP_ACK, TCP_RST, TCP_SYN};
use hawser_ebpf_logic::verdict::{Action, tunnel_in};
use proptest::prelude::*;

use crate::packets::{Node, addr, icmp, tcp, udp};

const CLIENT: &str = "198.51.100.9";
const NODE: &str = "172.16.1.11";
const NODE_PORT: u16 = 30_080;
const MESH: &str = "240.1.0.1";
const SERVICES: [&str; 2] = ["172.20.0.1", "172.20.0.2"];
/// A pod of this node, one of another node of the own cluster, and two of another cluster.
const BACKENDS: [&str; 4] = ["10.1.0.6", "10.1.9.9", "10.2.0.8", "10.2.0.9"];
const TCP_FIN: u8 = 1;
/// A minute and more.
const LONG: u32 = 300;

fn node() -> Node {
    let mut node = Node::new();
    node.ifindex = 2;
    node.config.flags |= CONFIG_UPLINKS;
    for (n, service) in SERVICES.into_iter().enumerate() {
        choose(&mut node, service, Some(BACKENDS[3]));
        for proto in [IPPROTO_TCP, IPPROTO_UDP] {
            let entrance = ServiceKey::new(addr(NODE), Port::new(NODE_PORT + n as u16), proto);
            node.frontends.insert(entrance, ServiceKey::new(addr(service), Port::new(80), proto));
        }
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

/// Source and destination, of the packet that a node looked at last.
fn ends(packet: &[u8]) -> [String; 2] {
    let at = |from: usize, port: usize| {
        let [a, b, c, d] = packet[from..from + 4].try_into().unwrap();
        format!("{a}.{b}.{c}.{d}:{}", u16::from_be_bytes([packet[port], packet[port + 1]]))
    };
    [at(12, 20), at(16, 22)]
}

fn enters(node: &Node, packet: Vec<u8>) -> (Reason, [String; 2]) {
    let reason = uplink_in(node.sees(packet)).reason;
    (reason, ends(&node.packet.borrow().0))
}

/// The port of the mesh address that a client's packet was sent on from.
fn port_of(node: &Node, packet: Vec<u8>) -> u16 {
    let (reason, [from, _]) = enters(node, packet);
    assert_eq!(reason, Reason::UplinkInSteered);
    from.strip_prefix("240.1.0.1:").unwrap().parse().unwrap()
}

fn back(node: &Node, packet: Vec<u8>) -> (Reason, [String; 2]) {
    let verdict = tunnel_in(node.sees(packet));
    assert_eq!(verdict.reason, Reason::TunnelInNode);
    let verdict = tunnel_back(node);
    if verdict.reason == Reason::TunnelInAnswered {
        assert_eq!(verdict.action, Action::Leave { ifindex: 2 });
    }
    (verdict.reason, ends(&node.packet.borrow().0))
}

#[test]
fn a_client_outside_is_answered_by_another_cluster_in_this_nodes_name() {
    let node = node();
    for (entrance, port) in [(NODE, NODE_PORT), (SERVICES[0], 80)] {
        for is_tcp in [true, false] {
            let packet = |flags| match is_tcp {
                true => tcp(CLIENT, 4000, entrance, port, flags),
                false => udp(CLIENT, 4000, entrance, port),
            };
            let ours = port_of(&node, packet(TCP_SYN));
            assert!((FIRST_PORT..FIRST_PORT + PORTS as u16).contains(&ours));
            assert_eq!(port_of(&node, packet(TCP_SYN)), ours, "a repeated one is the same");
            let (reason, sent) = enters(&node, packet(TCP_ACK));
            assert_eq!(reason, Reason::UplinkInSteered);
            assert_eq!(sent, [format!("{MESH}:{ours}"), "10.2.0.9:8080".into()]);
            let answer = match is_tcp {
                true => tcp("10.2.0.9", 8080, MESH, ours, TCP_SYN | TCP_ACK),
                false => udp("10.2.0.9", 8080, MESH, ours),
            };
            let (reason, shown) = back(&node, answer);
            assert_eq!(reason, Reason::TunnelInAnswered);
            assert_eq!(shown, [format!("{entrance}:{port}"), format!("{CLIENT}:4000")]);
        }
    }
}

#[test]
fn a_pod_of_this_node_sees_the_client_and_its_answer_is_shown_on_the_way_out() {
    let mut node = node();
    choose(&mut node, SERVICES[0], Some(BACKENDS[0]));
    let (reason, sent) = enters(&node, tcp(CLIENT, 4000, NODE, NODE_PORT, TCP_SYN));
    assert_eq!((reason, sent), (Reason::UplinkInOwn, [format!("{CLIENT}:4000"), "10.1.0.6:8080".into()]));
    assert_eq!(node.masquerades.get(), 0);
    let verdict = uplink_out(node.sees(tcp("10.1.0.6", 8080, CLIENT, 4000, TCP_SYN | TCP_ACK)));
    assert_eq!(verdict.reason, Reason::UplinkOutShown);
    assert_eq!(ends(&node.packet.borrow().0), [format!("{NODE}:{NODE_PORT}"), format!("{CLIENT}:4000")]);
    // Of another client, or from another port: not ours.
    for (port, to) in [(8080, 4001), (8081, 4000)] {
        let packet = tcp("10.1.0.6", port, CLIENT, to, TCP_ACK);
        assert_eq!(uplink_out(node.sees(packet.clone())).reason, Reason::UplinkOutOther);
        assert_eq!(node.packet.borrow().0, packet);
    }
}

#[test]
fn the_own_clusters_backends_are_left_to_netfilters_mark_where_there_is_one() {
    let mut node = node();
    choose(&mut node, SERVICES[0], Some(BACKENDS[1]));
    let syn = || tcp(CLIENT, 4000, NODE, NODE_PORT, TCP_SYN);
    let (reason, sent) = enters(&node, syn());
    assert_eq!(reason, Reason::UplinkInLeft);
    assert_eq!(sent[1], format!("{NODE}:{NODE_PORT}"), "untouched, for kube-proxy");
    node.config.masquerade_mark = 0x4000;
    for backend in [BACKENDS[1], BACKENDS[0]] {
        choose(&mut node, SERVICES[0], Some(backend));
        node.masquerades.set(0);
        assert_eq!(
            enters(&node, syn()),
            (Reason::UplinkInOwn, [format!("{CLIENT}:4000"), format!("{backend}:8080")])
        );
        assert_eq!(node.masquerades.get(), 0x4000);
    }
}

#[test]
fn without_the_opt_in_and_without_a_service_nothing_is_touched() {
    let mut node = node();
    let mut piece = udp(CLIENT, 4000, NODE, NODE_PORT);
    piece[6] |= 0x20;
    let packets = [
        tcp(CLIENT, 4000, NODE, 22, TCP_SYN),
        tcp(CLIENT, 4000, NODE, NODE_PORT, TCP_ACK),
        // Who claims to be of the mesh, and what is for this node's own address there.
        tcp("10.2.0.9", 4000, NODE, NODE_PORT, TCP_SYN),
        tcp(CLIENT, 4000, MESH, 80, TCP_SYN),
        icmp(CLIENT, NODE, 8, 7, b""),
        piece,
    ];
    let untouched = |node: &Node, packet: Vec<u8>| {
        assert_eq!(uplink_in(node.sees(packet.clone())).reason, Reason::UplinkInOther);
        assert_eq!(uplink_out(node.sees(packet.clone())).reason, Reason::UplinkOutOther);
        assert_eq!(node.packet.borrow().0, packet);
    };
    packets.into_iter().for_each(|packet| untouched(&node, packet));
    choose(&mut node, SERVICES[0], None);
    untouched(&node, tcp(CLIENT, 4000, NODE, NODE_PORT, TCP_SYN));
    choose(&mut node, SERVICES[0], Some(BACKENDS[3]));
    node.config.flags = 0;
    untouched(&node, tcp(CLIENT, 4000, NODE, NODE_PORT, TCP_SYN));
    assert!(node.entered.borrow().is_empty());
}

#[test]
fn errors_cross_both_ways_about_what_each_side_sent() {
    let node = node();
    let ours = port_of(&node, udp(CLIENT, 4000, NODE, NODE_PORT));
    let sent = node.packet.borrow().0.clone();
    let (reason, _) = back(&node, icmp("10.2.0.9", MESH, 3, 0, &sent[..28]));
    assert_eq!(reason, Reason::TunnelInAnswered);
    let shown = node.packet.borrow().0.clone();
    assert_eq!(shown[12..20], [172, 16, 1, 11, 198, 51, 100, 9], "the service's, to the client");
    assert_eq!(ends(&shown[28..]), [format!("{CLIENT}:4000"), format!("{NODE}:{NODE_PORT}")]);

    // A router outside says that an answer was too big.
    let answer = udp(NODE, NODE_PORT, CLIENT, 4000);
    let verdict = uplink_in(node.sees(icmp("198.51.100.1", NODE, 3, 0, &answer[..28])));
    assert_eq!(verdict.reason, Reason::UplinkInSteered);
    let told = node.packet.borrow().0.clone();
    assert_eq!(told[12..20], [240, 1, 0, 1, 10, 2, 0, 9], "from us, to the backend");
    assert_eq!(ends(&told[28..]), ["10.2.0.9:8080".into(), format!("{MESH}:{ours}")]);
}

#[test]
fn what_the_tunnel_does_not_carry_goes_back_and_a_lost_cluster_ends_what_it_had() {
    let mut node = node();
    port_of(&node, tcp(CLIENT, 4000, NODE, NODE_PORT, TCP_SYN));
    let mut big = tcp(CLIENT, 4000, NODE, NODE_PORT, TCP_ACK);
    big.resize(1_600, 0);
    let verdict = uplink_in(node.sees(big));
    assert_eq!(verdict.reason, Reason::UplinkInToldTooBig);
    assert_eq!(verdict.action, Action::Return { ifindex: 2 });
    assert_eq!(node.packet.borrow().0[12..20], [172, 16, 1, 11, 198, 51, 100, 9]);

    node.ticks += LONG;
    let since = (node.ticks & TICKS_MASK) << HEALTH_SINCE_SHIFT;
    node.cluster_words.insert(2, HEALTH_NO_NEW | HEALTH_RESET | since);
    node.config.reset_after = 0;
    let verdict = uplink_in(node.sees(tcp(CLIENT, 4000, NODE, NODE_PORT, TCP_ACK)));
    assert_eq!(verdict.reason, Reason::UplinkInReset);
    assert_eq!(node.packet.borrow().0[33] & TCP_RST, TCP_RST);
}

#[test]
fn a_port_is_another_flows_once_its_own_is_silent_and_not_before() {
    let mut node = node();
    let taken = |node: &Node| -> BTreeSet<u16> {
        let entered = node.entered.borrow();
        entered.keys().filter(|key| key.way == ENTER_BACK).map(|key| key.dst_port.get()).collect()
    };
    // More flows to one backend than half of the ports: each has its own.
    let flows = 16_000_u16;
    for n in 0..flows {
        node.ticks += 1;
        port_of(&node, udp(CLIENT, 1_024 + n, NODE, NODE_PORT));
        if n % 100 == 0 {
            // Those that go on keep theirs.
            port_of(&node, udp(CLIENT, 1_024, NODE, NODE_PORT));
        }
    }
    let first = port_of(&node, udp(CLIENT, 1_024, NODE, NODE_PORT));
    let there = node.entered.borrow().keys().filter(|key| key.way == ENTER_THERE).count();
    assert_eq!(there, usize::from(flows));
    assert!(taken(&node).contains(&first));
    // A silent one that speaks again is given a port that is nobody else's.
    let again = port_of(&node, udp(CLIENT, 1_025, NODE, NODE_PORT));
    assert_ne!(again, first);
    let (_, shown) = back(&node, udp("10.2.0.9", 8080, MESH, again));
    assert_eq!(shown[1], format!("{CLIENT}:1025"));
}

#[test]
fn an_open_connection_keeps_its_port_and_a_closed_one_gives_it_up() {
    let mut node = node();
    let open = port_of(&node, tcp(CLIENT, 1, NODE, NODE_PORT, TCP_SYN));
    back(&node, tcp("10.2.0.9", 8080, MESH, open, TCP_SYN | TCP_ACK));
    let closed = port_of(&node, tcp(CLIENT, 2, NODE, NODE_PORT, TCP_SYN));
    back(&node, tcp("10.2.0.9", 8080, MESH, closed, TCP_FIN | TCP_ACK));
    enters(&node, tcp(CLIENT, 2, NODE, NODE_PORT, TCP_FIN | TCP_ACK));
    node.ticks += LONG;
    // So many others that every port is asked for.
    let mut given = BTreeSet::new();
    for n in 0..60_000_u16 {
        node.ticks += u32::from(n % 50 == 0);
        let (reason, [from, _]) = enters(&node, tcp("198.51.100.10", n, NODE, NODE_PORT, TCP_SYN));
        if reason == Reason::UplinkInSteered {
            given.insert(from);
        }
    }
    assert!(!given.contains(&format!("{MESH}:{open}")) && given.contains(&format!("{MESH}:{closed}")));
    let (reason, _) = enters(&node, tcp(CLIENT, 2, NODE, NODE_PORT, TCP_ACK));
    assert_eq!(reason, Reason::UplinkInOther, "its port is another one's now");
    assert_eq!(port_of(&node, tcp(CLIENT, 1, NODE, NODE_PORT, TCP_ACK)), open);
}

/// What may happen, in any order.
#[derive(Clone, Debug)]
enum Step {
    Begin { client: u16, service: usize },
    Say { client: u16, service: usize },
    Answer { client: u16, service: usize },
    Choose { service: usize, backend: usize },
    Forget { way: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    // Of one port a service each: who reuses a port for another service of the same backend takes it over.
    let flow = || (0..4_u16, 0..2_usize).prop_map(|(n, service)| (4000 + 10 * service as u16 + n, service));
    prop_oneof![
        3 => flow().prop_map(|(client, service)| Step::Begin { client, service }),
        4 => flow().prop_map(|(client, service)| Step::Say { client, service }),
        4 => flow().prop_map(|(client, service)| Step::Answer { client, service }),
        2 => (0..2_usize, 0..4_usize).prop_map(|(service, backend)| Step::Choose { service, backend }),
        1 => prop_oneof![Just(ENTER_THERE), Just(ENTER_BACK)].prop_map(|way| Step::Forget { way }),
    ]
}

proptest! {
    /// The model remembers everything, who is whom included. The node may differ from it only where it has forgotten: then a
    /// packet stays as it was. Nobody ever gets what was for another.
    #[test]
    fn everybody_talks_to_whom_they_began_with(steps in prop::collection::vec(step(), 1..60)) {
        let mut node = node();
        node.config.masquerade_mark = 0x4000;
        let mut chosen = [3, 3];
        // Of a flow: its backend, and what that sees.
        let mut flows = BTreeMap::<(u16, usize), (usize, String)>::new();
        let mut whole = BTreeMap::<(u16, usize), bool>::new();
        for step in steps {
            match step {
                Step::Choose { service, backend } => {
                    chosen[service] = backend;
                    choose(&mut node, SERVICES[service], Some(BACKENDS[backend]));
                }
                Step::Forget { way } => {
                    node.entered.borrow_mut().retain(|key, _| key.way != way);
                    whole.values_mut().for_each(|whole| *whole = false);
                }
                Step::Begin { client, service } => {
                    let port = NODE_PORT + service as u16;
                    let (_, [from, to]) = enters(&node, tcp(CLIENT, client, NODE, port, TCP_SYN));
                    prop_assert_eq!(&to, &format!("{}:8080", BACKENDS[chosen[service]]));
                    let ours = from.starts_with(MESH);
                    prop_assert_eq!(ours, chosen[service] >= 2);
                    let itself = format!("{CLIENT}:{client}");
                    prop_assert!(ours || from == itself);
                    let taken = flows.iter().any(|(flow, (backend, seen))| {
                        *flow != (client, service) && *backend == chosen[service] && *seen == from
                    });
                    prop_assert!(!taken || whole.values().any(|whole| !whole), "a port of its own");
                    flows.insert((client, service), (chosen[service], from));
                    whole.insert((client, service), true);
                }
                Step::Say { client, service } => {
                    let port = NODE_PORT + service as u16;
                    let packet = tcp(CLIENT, client, NODE, port, TCP_ACK);
                    let (reason, [from, to]) = enters(&node, packet);
                    let untouched = reason == Reason::UplinkInOther;
                    match flows.get(&(client, service)) {
                        None => prop_assert!(untouched, "{} {}", reason, to),
                        Some((backend, seen)) => {
                            let right = (&from, &to) == (seen, &format!("{}:8080", BACKENDS[*backend]));
                            prop_assert!(right || untouched && !whole[&(client, service)], "{} {} {}", from, to, reason);
                        }
                    }
                }
                Step::Answer { client, service } => {
                    let Some((backend, seen)) = flows.get(&(client, service)) else { continue };
                    let (to, port) = seen.split_once(':').unwrap();
                    let packet = tcp(BACKENDS[*backend], 8080, to, port.parse().unwrap(), TCP_ACK);
                    let (shown, [from, to]) = match *backend >= 2 {
                        true => {
                            let (reason, ends) = back(&node, packet);
                            (reason == Reason::TunnelInAnswered, ends)
                        }
                        false => {
                            let reason = uplink_out(node.sees(packet)).reason;
                            (reason == Reason::UplinkOutShown, ends(&node.packet.borrow().0))
                        }
                    };
                    let right = from == format!("{NODE}:{}", NODE_PORT + service as u16)
                        && to == format!("{CLIENT}:{}", client);
                    prop_assert!(shown && right || !shown && !whole[&(client, service)], "{} {}", from, to);
                }
            }
        }
    }
}
