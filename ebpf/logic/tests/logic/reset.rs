//! Stuck connections: which packet is answered with a reset, and that its client will believe it.

use std::net::{IpAddr, Ipv6Addr};

use hawser_ebpf_abi::{
    CONFIG_CUT_OFF, HEALTH_NO_NEW, HEALTH_RESET, HEALTH_SINCE_SHIFT, IPPROTO_TCP, Port, RESET_NEVER, Reason,
    ServiceKey, TICKS_MASK,
};
use hawser_ebpf_logic::packet::{ETH_P_IPV6, TCP_ACK, TCP_RST, TCP_SYN};
use hawser_ebpf_logic::reset::is_over;
use hawser_ebpf_logic::verdict::{Action, Verdict, pod_from};
use proptest::prelude::*;

use crate::packets::{Node, addr, checksum, tcp};

const POD: &str = "10.1.0.5";
const REMOTE: &str = "10.2.0.9";
const AFTER: u32 = 8;

/// Cluster 2 went down at this tick.
fn down_since(tick: u32) -> u32 {
    HEALTH_RESET | HEALTH_NO_NEW | (tick & TICKS_MASK) << HEALTH_SINCE_SHIFT
}

fn ended() -> Verdict {
    Verdict { action: Action::Return { ifindex: 5 }, reason: Reason::PodFromReset }
}

fn data() -> Vec<u8> {
    tcp(POD, 4000, REMOTE, 80, TCP_ACK)
}

/// With a connection of the pod's to cluster 2, which then goes down, and enough time to end it.
fn stuck() -> Node {
    let mut node = Node::new();
    let _ = pod_from(node.sees(tcp(POD, 4000, REMOTE, 80, TCP_SYN)));
    node.cluster_words.insert(2, down_since(node.ticks + 10));
    node.ticks += 10 + AFTER;
    node
}

fn is_steered(node: &Node, packet: Vec<u8>) -> bool {
    pod_from(node.sees(packet)).reason == Reason::PodFromSteered
}

#[test]
fn the_clients_next_packet_to_a_lost_cluster_or_node_comes_back_as_a_reset() {
    let mut node = stuck();
    assert_eq!(pod_from(node.sees(data())), ended());
    node.node_words.insert(1, node.cluster_words.remove(&2).unwrap());
    assert_eq!(pod_from(node.sees(data())), ended());
    node.node_words.clear();
    assert!(is_steered(&node, data()), "what is up is left alone");
    node.cluster_words.insert(2, HEALTH_NO_NEW);
    assert!(is_steered(&node, data()), "and what takes nothing new, but is not to be reset");
}

#[test]
fn a_reset_waits_for_its_time_and_for_the_services_own() {
    let mut node = stuck();
    node.ticks -= 1;
    assert!(is_steered(&node, data()), "a tick too early");
    node.ticks += 1;
    let backend = ServiceKey::new(addr(REMOTE), Port::new(80), IPPROTO_TCP);
    node.reset_wishes.insert(backend, AFTER + 5);
    assert!(is_steered(&node, data()), "this service waits longer");
    node.ticks += 5;
    assert_eq!(pod_from(node.sees(data())), ended());
    node.reset_wishes.insert(backend, RESET_NEVER.into());
    for _ in 0..100 {
        node.ticks += 997;
        assert!(is_steered(&node, data()), "never, however long it lasts");
    }
}

#[test]
fn what_was_begun_in_spite_of_the_verdict_and_what_is_only_beginning_is_let_be() {
    let node = stuck();
    let syn = || tcp(POD, 4001, REMOTE, 80, TCP_SYN);
    assert!(is_steered(&node, syn()), "it may be the last resort");
    assert!(is_steered(&node, tcp(POD, 4001, REMOTE, 80, TCP_ACK)), "and it worked");
    assert_eq!(pod_from(node.sees(data())), ended(), "the old one is over all the same");
    assert_eq!(
        pod_from(node.sees(tcp(POD, 4002, REMOTE, 80, TCP_ACK))),
        ended(),
        "one whose start was not seen"
    );
    assert!(is_steered(&node, tcp(POD, 4000, REMOTE, 80, TCP_ACK | TCP_RST)), "a reset is never answered");
}

#[test]
fn a_repeated_attempt_is_as_old_as_its_first_and_a_later_one_is_new() {
    let node = stuck();
    let syn = || tcp(POD, 4000, REMOTE, 80, TCP_SYN);
    let began = || node.flows.borrow().values().next().copied().unwrap();
    assert!(is_steered(&node, syn()));
    assert_eq!(began(), node.ticks - 10 - AFTER, "the same attempt");
    assert_eq!(pod_from(node.sees(data())), ended());
    let later = Node { ticks: node.ticks + 240, ..stuck() };
    assert!(is_steered(&later, syn()));
    assert_eq!(later.flows.borrow().values().next().copied(), Some(later.ticks), "the port was used again");
}

#[test]
fn an_exported_backend_that_answers_and_a_node_that_is_cut_off_itself_reset_nothing() {
    let mut node = stuck();
    node.exported.insert(ServiceKey::new(addr(POD), Port::new(8080), IPPROTO_TCP));
    assert!(is_steered(&node, tcp(POD, 8080, REMOTE, 4000, TCP_ACK)));
    node.config.flags |= CONFIG_CUT_OFF;
    assert!(is_steered(&node, data()));
}

#[test]
fn a_reset_is_short_and_its_checksums_hold_also_where_hardware_was_to_fill_them_in() {
    let node = stuck();
    for unfinished in [false, true] {
        let mut packet = tcp(POD, 4000, REMOTE, 80, TCP_ACK);
        packet.extend([7; 333]);
        let len = packet.len() as u16;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet[28..32].copy_from_slice(&0xdead_beef_u32.to_be_bytes());
        finish(&mut packet, unfinished);
        assert_eq!(pod_from(node.sees(packet)), ended());
        let reset = node.packet.borrow().0.clone();
        assert_eq!((reset.len(), &reset[2..4]), (40, &[0, 40][..]));
        assert_eq!(checksum(&reset[..20]), 0, "of the IP header");
        assert_eq!((&reset[12..16], &reset[16..20]), (&[10, 2, 0, 9][..], &[10, 1, 0, 5][..]));
        assert_eq!((&reset[20..24]), &[0, 80, 0x0f, 0xa0]);
        assert_eq!(reset[24..28], 0xdead_beef_u32.to_be_bytes(), "what the client expects next");
        assert_eq!((reset[32], reset[33]), (5 << 4, TCP_RST));
        assert!(holds(&reset, unfinished), "unfinished: {unfinished}");
    }
}

#[test]
fn ipv6_is_reset_as_well() {
    let mut node = stuck();
    let (pod, remote): (Ipv6Addr, Ipv6Addr) = ("fd01::5".parse().unwrap(), "fd02::9".parse().unwrap());
    let entry = *node.ipcache.values().next().unwrap();
    node.ipcache.insert(hawser_ebpf_abi::PrefixKey::host(IpAddr::V6(remote).into()), entry);
    let endpoint = node.endpoints[&addr(POD)];
    node.endpoints.insert(IpAddr::V6(pod).into(), endpoint);
    node.ethertype = ETH_P_IPV6;
    let segment = crate::packets::tcp_segment(4000, 80, TCP_ACK, &[1; 12]);
    let mut packet = vec![0x60, 0, 0, 0, 0, segment.len() as u8, 6, 64];
    packet.extend(pod.octets());
    packet.extend(remote.octets());
    packet.extend(segment);
    assert_eq!(pod_from(node.sees(packet)), ended());
    let reset = node.packet.borrow().0.clone();
    assert_eq!((reset.len(), &reset[4..6]), (60, &[0, 20][..]));
    assert_eq!((&reset[8..24], &reset[24..40]), (&remote.octets()[..], &pod.octets()[..]));
    let pseudo = [&reset[8..40], &[0, 0, 0, 20, 0, 0, 0, 6], &reset[40..]].concat();
    assert_eq!(checksum(&pseudo), 0);
}

/// Fills in the checksums of an IPv4 packet with TCP, the latter as far as software does with offloads or whole.
fn finish(packet: &mut [u8], unfinished: bool) {
    packet[10..12].fill(0);
    packet[36..38].fill(0);
    let of_ip = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&of_ip.to_be_bytes());
    let of_tcp = if unfinished { !checksum(&pseudo(packet)) } else { checksum(&whole(packet)) };
    packet[36..38].copy_from_slice(&of_tcp.to_be_bytes());
}

fn pseudo(packet: &[u8]) -> Vec<u8> {
    let len = (packet.len() - 20) as u16;
    [&packet[12..20], &[0, 6], &len.to_be_bytes()[..]].concat()
}

fn whole(packet: &[u8]) -> Vec<u8> {
    [pseudo(packet), packet[20..].to_vec()].concat()
}

fn holds(packet: &[u8], unfinished: bool) -> bool {
    match unfinished {
        true => packet[36..38] == (!checksum(&pseudo(packet))).to_be_bytes(),
        false => checksum(&whole(packet)) == 0,
    }
}

proptest! {
    #[test]
    fn every_segments_reset_has_the_number_its_sender_expects_and_sums_that_hold(
        ack in any::<u32>(),
        payload in prop::collection::vec(any::<u8>(), 0..200),
        unfinished in any::<bool>(),
    ) {
        let node = stuck();
        let mut packet = data();
        packet.extend(payload);
        let len = packet.len() as u16;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet[28..32].copy_from_slice(&ack.to_be_bytes());
        finish(&mut packet, unfinished);
        prop_assert_eq!(pod_from(node.sees(packet)), ended());
        let reset = node.packet.borrow().0.clone();
        prop_assert_eq!(&reset[24..28], &ack.to_be_bytes());
        prop_assert_eq!(checksum(&reset[..20]), 0);
        prop_assert!(holds(&reset, unfinished));
    }

    /// Against arithmetic without a wrap, within the time that a word can tell.
    #[test]
    fn over_is_what_began_before_the_verdict_once_its_time_has_passed(
        verdict in 0_u32..1 << 30,
        passed in 0_u32..=TICKS_MASK,
        age in 0_u32..1 << 20,
        after in 0_u32..=u32::from(RESET_NEVER),
    ) {
        let now = verdict + passed;
        let began = now.saturating_sub(age);
        let expected = passed >= after && began <= verdict;
        prop_assert_eq!(is_over(down_since(verdict), after, began, now), expected);
    }
}
