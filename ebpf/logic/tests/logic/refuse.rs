//! UDP messages that nobody takes: which are answered, and that their senders will believe it.

use std::net::Ipv6Addr;

use hawser_ebpf_abi::{
    HEALTH_NO_NEW, HEALTH_RESET, HEALTH_SINCE_SHIFT, IPPROTO_UDP, Port, PrefixKey, Reason, ServiceKey,
    TICKS_MASK,
};
use hawser_ebpf_logic::packet::{ETH_P_IP, ETH_P_IPV6, Parsed, parse, quoted};
use hawser_ebpf_logic::verdict::{Action, pod_from, tunnel_in};

use crate::packets::{Node, addr, checksum, ipv4, tcp_segment, udp};

const POD: &str = "10.1.0.5";
const REMOTE: &str = "10.2.0.9";

fn asks(port: u16) -> Vec<u8> {
    udp(REMOTE, 4000, POD, port)
}

/// What the packet became: an ICMP error to who sent it, in the name of who was to take it.
fn assert_quotes(node: &Node, ethertype: u16, sent: &[u8]) {
    let answer = node.packet.borrow();
    let Parsed::Ip(asked) = parse(&crate::packets::Bytes(sent.to_vec()), ethertype) else {
        panic!("an IP packet")
    };
    let Parsed::Ip(ip) = parse(&*answer, ethertype) else { panic!("an IP packet") };
    assert_eq!((ip.src, ip.dst), (asked.dst, asked.src));
    let (inner, from, to) = quoted(&*answer, &ip).unwrap();
    assert_eq!((inner.src, inner.dst, inner.proto), (asked.src, asked.dst, IPPROTO_UDP));
    let l4 = asked.l4 as usize;
    assert_eq!(
        (from.get().to_be_bytes(), to.get().to_be_bytes()),
        ([sent[l4], sent[l4 + 1]], [sent[l4 + 2], sent[l4 + 3]])
    );
}

const POD_6: &str = "fd01::5";
const REMOTE_6: &str = "fd02::9";

/// The same two in IPv6 as well; packets are.
fn node_of_ipv6() -> Node {
    let mut node = Node::new();
    let entry = *node.ipcache.values().next().unwrap();
    node.ipcache.insert(PrefixKey::host(addr(REMOTE_6)), entry);
    node.endpoints.insert(addr(POD_6), node.endpoints[&addr(POD)]);
    node.ethertype = ETH_P_IPV6;
    node
}

/// Behind an IPv6 header.
fn datagram_6(src: &str, dst: &str, datagram: &[u8]) -> Vec<u8> {
    let octets = |address: &str| address.parse::<Ipv6Addr>().unwrap().octets();
    let [high, low] = (datagram.len() as u16).to_be_bytes();
    [&[0x60, 0, 0, 0, high, low, IPPROTO_UDP, 64], &octets(src)[..], &octets(dst), datagram].concat()
}

#[test]
fn a_message_for_a_withdrawn_or_a_vanished_backend_is_answered_and_other_packets_are_dropped() {
    let mut node = Node::new();
    let refused = |node: &Node, packet: Vec<u8>| {
        let verdict = tunnel_in(node.sees(packet));
        (verdict.reason == Reason::TunnelInRefused)
            .then(|| assert_eq!(verdict.action, Action::Steer { ifindex: 77 }))
    };
    assert!(refused(&node, asks(53)).is_some(), "not exported, or no longer");
    assert_quotes(&node, ETH_P_IP, &asks(53));
    assert!(refused(&node, udp(REMOTE, 4000, "10.1.0.77", 53)).is_some(), "no such pod, or no longer");
    assert!(refused(&node, udp(REMOTE, 4000, "10.2.0.10", 53)).is_none(), "not one of ours");
    let mut with_options = asks(53);
    with_options[0] = 0x46;
    assert_eq!(tunnel_in(node.sees(with_options)).reason, Reason::TunnelInNotExported);
    node.exported.insert(ServiceKey::new(addr(POD), Port::new(53), IPPROTO_UDP));
    assert_eq!(tunnel_in(node.sees(asks(53))).reason, Reason::TunnelInExported);
}

#[test]
fn a_client_takes_the_answer_about_what_it_sent_itself() {
    let (client, server) = (Node::new(), Node::new());
    // The same addresses, seen from the other side.
    let sent = udp(POD, 4000, REMOTE, 53);
    let _ = pod_from(client.sees(sent.clone()));
    let mut there = server;
    there.ipcache = [(PrefixKey::host(addr(POD)), *there.ipcache.values().next().unwrap())].into();
    assert_eq!(tunnel_in(there.sees(sent)).reason, Reason::TunnelInRefused);
    let answer = there.packet.borrow().0.clone();
    assert_eq!(tunnel_in(client.sees(answer)).reason, Reason::TunnelInRelated);
}

#[test]
fn a_flow_to_what_is_down_is_refused_after_its_time_and_one_that_begins_then_is_not() {
    let mut node = Node::new();
    let sends = |node: &Node, port| pod_from(node.sees(udp(POD, port, REMOTE, 53)));
    assert_eq!(sends(&node, 4000).reason, Reason::PodFromSteered);
    let since = (node.ticks + 10) & TICKS_MASK;
    node.cluster_words.insert(2, HEALTH_RESET | HEALTH_NO_NEW | since << HEALTH_SINCE_SHIFT);
    node.ticks += 12;
    assert_eq!(sends(&node, 4000).reason, Reason::PodFromSteered, "too early");
    node.ticks += 10;
    let refused = sends(&node, 4000);
    assert_eq!((refused.reason, refused.action), (Reason::PodFromRefused, Action::Return { ifindex: 5 }));
    assert_quotes(&node, ETH_P_IP, &udp(POD, 4000, REMOTE, 53));
    for _ in 0..3 {
        assert_eq!(sends(&node, 4001).reason, Reason::PodFromSteered, "the last resort");
    }
}

#[test]
fn an_answer_is_short_and_its_checksums_hold_also_where_hardware_was_to_fill_in_the_messages_own() {
    let node = Node::new();
    for (unfinished, len) in [(false, 4), (true, 4), (false, 1_000), (true, 1_000)] {
        let mut packet = asks(53);
        packet.truncate(28);
        packet.extend(vec![9; len]);
        let total = packet.len() as u16;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[24..26].copy_from_slice(&(total - 20).to_be_bytes());
        let pseudo = [&packet[12..20], &[0, 17], &(total - 20).to_be_bytes()[..]].concat();
        let sum = if unfinished { !checksum(&pseudo) } else { 0xbeef };
        packet[26..28].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(tunnel_in(node.sees(packet)).reason, Reason::TunnelInRefused);
        let mut answer = node.packet.borrow().0.clone();
        assert_eq!(
            (answer.len(), &answer[2..4], answer[9], &answer[20..22]),
            (56, &[0, 56][..], 1, &[3, 3][..])
        );
        assert_eq!(checksum(&answer[..20]), 0, "of the IP header");
        if unfinished {
            let filled_in = checksum(&answer[48..56]);
            answer[54..56].copy_from_slice(&filled_in.to_be_bytes());
        }
        assert_eq!(checksum(&answer[20..]), 0, "of ICMP; unfinished: {unfinished}");
    }
}

#[test]
fn ipv6_is_answered_as_well() {
    let node = node_of_ipv6();
    let packet = datagram_6(REMOTE_6, POD_6, &asks(53)[20..]);
    assert_eq!(tunnel_in(node.sees(packet.clone())).reason, Reason::TunnelInRefused);
    assert_quotes(&node, ETH_P_IPV6, &packet);
    let answer = node.packet.borrow().0.clone();
    assert_eq!(
        (answer.len(), &answer[4..6], answer[6], &answer[40..42]),
        (96, &[0, 56][..], 58, &[1, 4][..])
    );
    let pseudo = [&answer[8..40], &[0, 0, 0, 56, 0, 0, 0, 58], &answer[40..]].concat();
    assert_eq!(checksum(&pseudo), 0);
}

/// With a payload that makes it so long, and a transport checksum that holds, or that hardware is still to fill in.
fn of_length(len: usize, proto: u8, unfinished: bool) -> Vec<u8> {
    let mut datagram = match proto {
        6 => tcp_segment(4000, 80, 0x10, &[]),
        17 => [0x0f, 0xa0, 0, 80, 0, 0, 0, 0].to_vec(),
        _ => [8, 0, 0, 0, 0, 7, 0, 1].to_vec(),
    };
    datagram.resize(len - 20, 9);
    let mut packet = ipv4(POD, REMOTE, proto, &datagram);
    let at = if proto == 6 { 36 } else { 26 };
    if proto == 17 {
        packet[24..26].copy_from_slice(&((len - 20) as u16).to_be_bytes());
    }
    let pseudo = [&packet[12..20], &[0, proto], &((len - 20) as u16).to_be_bytes()[..]].concat();
    let sum = if unfinished { !checksum(&pseudo) } else { 0xbeef };
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[test]
fn a_packet_that_is_too_big_comes_back_with_the_tunnels_mtu_from_this_nodes_mesh_address() {
    let node = Node::new();
    for (proto, quoted) in [(6, 20), (17, 8), (1, 8)] {
        for unfinished in [false, true].into_iter().take(if proto == 1 { 1 } else { 2 }) {
            let sent = of_length(1421, proto, unfinished);
            assert_eq!(pod_from(node.sees(sent.clone())).reason, Reason::PodFromToldTooBig);
            let mut answer = node.packet.borrow().0.clone();
            assert_eq!((answer.len(), usize::from(answer[3])), (48 + quoted, 48 + quoted));
            assert_eq!((answer[9], &answer[20..22], &answer[24..28]), (1, &[3, 4][..], &[0, 0, 5, 140][..]));
            assert_eq!((&answer[12..16], &answer[16..20]), (&[240, 1, 0, 1][..], &sent[12..16]));
            assert_eq!(answer[28..], sent[..20 + quoted]);
            assert_eq!(checksum(&answer[..20]), 0, "of the IP header");
            if unfinished {
                let at = if proto == 6 { 64 } else { 54 };
                let filled_in = checksum(&answer[48..]);
                answer[at..at + 2].copy_from_slice(&filled_in.to_be_bytes());
            }
            assert_eq!(checksum(&answer[20..]), 0, "of ICMP; protocol {proto}, unfinished: {unfinished}");
        }
    }
}

#[test]
fn in_ipv6_too() {
    let node = node_of_ipv6();
    let packet = datagram_6(POD_6, REMOTE_6, &of_length(1401, 17, false)[20..]);
    assert_eq!(pod_from(node.sees(packet.clone())).reason, Reason::PodFromToldTooBig);
    let answer = node.packet.borrow().0.clone();
    let own: Ipv6Addr = "fd68:6177:7365:1::1".parse().unwrap();
    assert_eq!((&answer[8..24], &answer[24..40]), (&own.octets()[..], &packet[8..24]));
    assert_eq!((answer.len(), &answer[40..42], &answer[44..48]), (96, &[2, 0][..], &[0, 0, 5, 140][..]));
    assert_eq!(answer[48..], packet[..48]);
    let pseudo = [&answer[8..40], &[0, 0, 0, 56, 0, 0, 0, 58], &answer[40..]].concat();
    assert_eq!(checksum(&pseudo), 0);
}
