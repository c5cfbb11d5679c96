//! Every verdict of every hook: what may pass, what may not, and by which name.

use hawser_ebpf_abi::{
    CONFIG_KERNEL_IPSEC, Config, IP_GUARDED, IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP, IpEntry, Port,
    PrefixKey, Reason, ServiceKey,
};
use hawser_ebpf_logic::guard::{guard_in, guard_out};
use hawser_ebpf_logic::packet::{TCP_ACK, TCP_SYN};
use hawser_ebpf_logic::verdict::{Action, Verdict, pod_from, pod_to, tunnel_in, tunnel_out, underlay_in};
use proptest::prelude::*;

use crate::packets::{Node, addr, icmp, ipv4, tcp, udp};

const POD: &str = "10.1.0.5";
const REMOTE: &str = "10.2.0.9";
const NODE: &str = "240.1.0.1";
const REMOTE_NODE: &str = "240.2.0.1";

fn next(reason: Reason) -> Verdict {
    Verdict { action: Action::Next, reason }
}

fn drop(reason: Reason) -> Verdict {
    Verdict { action: Action::Drop, reason }
}

fn steered() -> Verdict {
    Verdict { action: Action::Steer { ifindex: 77 }, reason: Reason::PodFromSteered }
}

fn told() -> Verdict {
    Verdict { action: Action::Return { ifindex: 5 }, reason: Reason::PodFromToldTooBig }
}

fn delivered(reason: Reason) -> Verdict {
    Verdict { action: Action::Deliver { ifindex: 5, pod: addr(POD) }, reason }
}

fn key(ip: &str, port: u16, proto: u8) -> ServiceKey {
    ServiceKey::new(addr(ip), Port::new(port), proto)
}

fn fragment(mut packet: Vec<u8>, field: u16) -> Vec<u8> {
    packet[6..8].copy_from_slice(&field.to_be_bytes());
    packet
}

#[test]
fn a_pods_packet_for_the_mesh_is_steered_and_its_flow_remembered() {
    let node = Node::new();
    assert_eq!(pod_from(node.sees(tcp(POD, 4000, REMOTE, 80, TCP_SYN))), steered());
    assert_eq!(*node.notes.borrow(), [Reason::MssClamped]);
    let flow = node.flows.borrow().keys().next().copied().unwrap();
    assert_eq!((flow.local, flow.remote, flow.proto), (addr(POD), addr(REMOTE), IPPROTO_TCP));
    assert_eq!((flow.local_port.get(), flow.remote_port.get()), (4000, 80));
    assert_eq!(pod_from(node.sees(tcp(POD, 4000, REMOTE, 80, TCP_ACK))), steered());
    assert_eq!(*node.notes.borrow(), [], "only the handshake carries a segment size");
}

#[test]
fn an_exported_endpoint_that_answers_leaves_no_flow_behind() {
    let mut node = Node::new();
    node.exported.insert(key(POD, 8080, IPPROTO_TCP));
    assert_eq!(pod_from(node.sees(tcp(POD, 8080, REMOTE, 4000, TCP_SYN | TCP_ACK))), steered());
    assert!(node.flows.borrow().is_empty());
    assert_eq!(*node.notes.borrow(), [Reason::MssClamped], "the answer's segment size is clamped as well");
}

#[test]
fn an_endpoint_that_is_closing_takes_no_new_connection_and_what_it_answers_goes_on_when_it_is_closed() {
    let mut node = Node::new();
    node.exported.insert(key(POD, 8080, IPPROTO_TCP));
    node.closing = true;
    let asks = |node: &Node, flags| tunnel_in(node.sees(tcp(REMOTE, 40_000, POD, 8080, flags))).reason;
    assert_eq!(asks(&node, TCP_SYN), Reason::TunnelInNotExported);
    assert_eq!(asks(&node, TCP_ACK), Reason::TunnelInExported);
    assert_eq!(pod_from(node.sees(tcp(POD, 8080, REMOTE, 40_000, TCP_ACK))), steered());
    node.exported.clear();
    assert_eq!(asks(&node, TCP_SYN), Reason::TunnelInNotExported);
    assert_eq!(asks(&node, TCP_ACK), Reason::TunnelInReply);
}

#[test]
fn what_is_not_for_the_mesh_is_left_alone() {
    let mut node = Node::new();
    for packet in [tcp(POD, 1, "10.1.0.6", 2, TCP_SYN), udp(POD, 1, "8.8.8.8", 53), vec![0x45, 0], vec![]] {
        assert_eq!(pod_from(node.sees(packet)), next(Reason::PodFromOther));
    }
    node.ethertype = 0x0806; // ARP
    assert_eq!(pod_from(node.sees(tcp(POD, 1, REMOTE, 2, TCP_SYN))), next(Reason::PodFromOther));
}

#[test]
fn a_pod_may_not_speak_with_an_address_that_is_not_its_own() {
    let node = Node::new();
    assert_eq!(
        pod_from(node.sees(tcp("10.1.0.6", 1, REMOTE, 2, TCP_SYN))),
        drop(Reason::PodFromForeignSource)
    );
    assert_eq!(
        pod_from(node.sees(tcp("10.9.9.9", 1, REMOTE, 2, TCP_SYN))),
        drop(Reason::PodFromForeignSource)
    );
    // A remote address is refused wherever the packet goes: also to the pod next door.
    for dst in [REMOTE, "10.1.0.6", "8.8.8.8"] {
        assert_eq!(pod_from(node.sees(tcp(REMOTE, 1, dst, 2, TCP_SYN))), drop(Reason::PodFromForgedRemote));
    }
}

#[test]
fn what_the_tunnel_cannot_carry_is_dropped_by_name() {
    let mut node = Node::new();
    assert_eq!(
        pod_from(node.sees(fragment(udp_of(1421), 0))),
        drop(Reason::PodFromTooBig),
        "no DF: nobody to tell"
    );
    assert_eq!(pod_from(node.sees(udp_of(1421))), told());
    assert_eq!(pod_from(node.sees(udp_of(1420))), steered());
    let error = icmp(POD, REMOTE, 3, 0, &[0; 1400]);
    assert_eq!(pod_from(node.sees(error)), drop(Reason::PodFromTooBig), "an error about an error");
    node.gso_size = 1380;
    let segments = ipv4(POD, REMOTE, IPPROTO_TCP, &[&header_of_tcp()[..], &[0; 9000]].concat());
    assert_eq!(pod_from(node.sees(segments.clone())), steered(), "the device cuts it");
    node.gso_size = 1381;
    assert_eq!(pod_from(node.sees(segments)), told());
    node.gso_size = 0;
    for field in [0x2000, 1, 0x3fff] {
        let packet = fragment(udp(POD, 1, REMOTE, 2), field);
        assert_eq!(pod_from(node.sees(packet)), drop(Reason::PodFromFragment));
    }
    assert_eq!(pod_from(node.sees(ipv4(POD, REMOTE, 6, &[0; 9]))), drop(Reason::PodFromMalformed));
    node.config = Config::default();
    assert_eq!(pod_from(node.sees(udp(POD, 1, REMOTE, 2))), drop(Reason::PodFromNoTunnel));
}

fn header_of_tcp() -> [u8; 20] {
    let mut header = [0; 20];
    header[12] = 5 << 4;
    header
}

fn udp_of(len: usize) -> Vec<u8> {
    let mut packet = udp(POD, 1, REMOTE, 2);
    packet.resize(len, 0);
    packet
}

#[test]
fn the_mesh_reaches_exported_ports_and_answers_and_nothing_else() {
    let mut node = Node::new();
    let syn = || tcp(REMOTE, 4000, POD, 8080, TCP_SYN);
    assert_eq!(tunnel_in(node.sees(syn())), drop(Reason::TunnelInNotExported));
    node.exported.insert(key(POD, 8080, IPPROTO_TCP));
    assert_eq!(tunnel_in(node.sees(syn())), delivered(Reason::TunnelInExported));
    assert_eq!(*node.notes.borrow(), [Reason::MssClamped]);
    let others = [tcp(REMOTE, 4000, POD, 8081, TCP_SYN), tcp(REMOTE, 1, POD, 2, TCP_ACK)];
    for other in others {
        assert_eq!(tunnel_in(node.sees(other)), drop(Reason::TunnelInNotExported));
    }

    assert_eq!(pod_from(node.sees(tcp(POD, 5000, REMOTE, 443, TCP_SYN))), steered());
    let answer = tcp(REMOTE, 443, POD, 5000, TCP_SYN | TCP_ACK);
    assert_eq!(tunnel_in(node.sees(answer)), delivered(Reason::TunnelInReply));
    let opened_from_there = tcp(REMOTE, 443, POD, 5000, TCP_SYN);
    assert_eq!(tunnel_in(node.sees(opened_from_there)), drop(Reason::TunnelInNotExported));
    let another_remote = tcp("10.2.0.10", 443, POD, 5000, TCP_ACK);
    assert_eq!(tunnel_in(node.sees(another_remote)), drop(Reason::TunnelInNotExported));
}

#[test]
fn a_ping_is_answered_to_who_asked() {
    let node = Node::new();
    assert_eq!(tunnel_in(node.sees(icmp(REMOTE, POD, 8, 7, &[]))), drop(Reason::TunnelInNotExported));
    assert_eq!(tunnel_in(node.sees(icmp(REMOTE, POD, 0, 7, &[]))), drop(Reason::TunnelInNotExported));
    assert_eq!(pod_from(node.sees(icmp(POD, REMOTE, 8, 7, &[]))), steered());
    assert_eq!(tunnel_in(node.sees(icmp(REMOTE, POD, 0, 7, &[]))), delivered(Reason::TunnelInReply));
    assert_eq!(tunnel_in(node.sees(icmp(REMOTE, POD, 0, 8, &[]))), drop(Reason::TunnelInNotExported));
}

#[test]
fn an_icmp_error_comes_in_only_about_what_the_pod_sent() {
    let mut node = Node::new();
    let quoted = tcp(POD, 5000, REMOTE, 443, TCP_SYN)[..28].to_vec();
    let error = || icmp(REMOTE_NODE, POD, 3, 0, &quoted);
    assert_eq!(tunnel_in(node.sees(error())), drop(Reason::TunnelInNotExported));
    assert_eq!(pod_from(node.sees(tcp(POD, 5000, REMOTE, 443, TCP_SYN))), steered());
    assert_eq!(tunnel_in(node.sees(error())), delivered(Reason::TunnelInRelated));
    let about_another = icmp(REMOTE_NODE, "10.1.0.6", 3, 0, &quoted);
    assert_eq!(tunnel_in(node.sees(about_another)), drop(Reason::TunnelInNotExported));
    assert_eq!(
        tunnel_in(node.sees(icmp(REMOTE_NODE, POD, 3, 0, &quoted[..27]))),
        drop(Reason::TunnelInNotExported)
    );
    // The same about an answer of an exported port, which leaves no flow.
    let sent = tcp(POD, 8080, REMOTE, 4000, TCP_ACK)[..28].to_vec();
    node.exported.insert(key(POD, 8080, IPPROTO_TCP));
    assert_eq!(
        tunnel_in(node.sees(icmp(REMOTE_NODE, POD, 11, 0, &sent))),
        delivered(Reason::TunnelInRelated)
    );
}

#[test]
fn the_mesh_address_takes_echo_icmp_answers_and_exported_ports() {
    let mut node = Node::new();
    for admitted in [
        udp(REMOTE_NODE, 51872, NODE, 51872),
        icmp(REMOTE_NODE, NODE, 8, 1, &[]),
        icmp(REMOTE_NODE, NODE, 3, 1, &[]),
        icmp(REMOTE_NODE, NODE, 13, 1, &[]),
        tcp(REMOTE_NODE, 80, NODE, 5000, TCP_SYN | TCP_ACK),
    ] {
        assert_eq!(tunnel_in(node.sees(admitted)), next(Reason::TunnelInNode));
    }
    for refused in [tcp(REMOTE_NODE, 5000, NODE, 22, TCP_SYN), ipv4(REMOTE_NODE, NODE, 132, &[0; 12])] {
        assert_eq!(tunnel_in(node.sees(refused)), drop(Reason::TunnelInNodeNotExported));
    }
    let told = Verdict { action: Action::Steer { ifindex: 77 }, reason: Reason::TunnelInRefused };
    assert_eq!(tunnel_in(node.sees(udp(REMOTE_NODE, 51872, NODE, 53))), told, "its sender hears so");
    node.exported.insert(key(NODE, 22, IPPROTO_TCP));
    node.exported.insert(key(NODE, 53, IPPROTO_UDP));
    assert_eq!(tunnel_in(node.sees(tcp(REMOTE, 5000, NODE, 22, TCP_SYN))), next(Reason::TunnelInNode));
    assert_eq!(tunnel_in(node.sees(udp(REMOTE, 5000, NODE, 53))), next(Reason::TunnelInNode));
}

#[test]
fn udp_is_answered_to_a_program_of_the_node_that_asked_and_to_no_other() {
    let mut node = Node::new();
    node.ifindex = 77;
    let answer = || udp(REMOTE, 53, NODE, 40_000);
    assert_eq!(tunnel_in(node.sees(answer())).reason, Reason::TunnelInRefused, "nobody asked");
    assert_eq!(tunnel_out(node.sees(udp(NODE, 40_000, REMOTE, 53))), next(Reason::TunnelOutNode));
    assert_eq!(tunnel_in(node.sees(answer())), next(Reason::TunnelInNode));
    for other in
        [udp(REMOTE, 54, NODE, 40_000), udp(REMOTE, 53, NODE, 40_001), udp(REMOTE_NODE, 53, NODE, 40_000)]
    {
        assert_eq!(tunnel_in(node.sees(other)).reason, Reason::TunnelInRefused);
    }
    // Nothing is remembered of what is not in the node's name, of probes, nor of what answers as an exported port.
    node.flows.borrow_mut().clear();
    node.exported.insert(key(NODE, 53, IPPROTO_UDP));
    for other in [
        udp("172.16.1.1", 40_000, REMOTE, 53),
        udp(NODE, 40_000, "8.8.8.8", 53),
        udp(NODE, 51_872, REMOTE_NODE, 7784),
        fragment(udp(NODE, 40_000, REMOTE, 53), 0x2000),
        vec![0x45; 19],
    ] {
        assert_eq!(tunnel_out(node.sees(other)), next(Reason::TunnelOutOther));
    }
    assert_eq!(tunnel_out(node.sees(udp(NODE, 53, REMOTE, 40_000))), next(Reason::TunnelOutNode));
    assert!(node.flows.borrow().is_empty());
}

#[test]
fn under_ipsec_a_source_counts_only_by_the_association_of_its_own_node() {
    let mut node = Node::new();
    let probe = || udp(REMOTE_NODE, 51872, NODE, 51872);
    assert_eq!(tunnel_in(node.sees(probe())), next(Reason::TunnelInNode), "WireGuard has seen to it");
    node.config.flags = CONFIG_KERNEL_IPSEC;
    for (association, verdict) in [
        (0, drop(Reason::TunnelInOtherNode)),
        (2, drop(Reason::TunnelInOtherNode)),
        (1, next(Reason::TunnelInNode)),
    ] {
        node.association = association;
        assert_eq!(tunnel_in(node.sees(probe())), verdict, "slot {association}");
    }
    // An address that is behind no node that is known comes by none.
    node.ipcache.values_mut().for_each(|entry| entry.node = 0);
    node.association = 0;
    assert_eq!(tunnel_in(node.sees(probe())), drop(Reason::TunnelInOtherNode));
}

#[test]
fn the_tunnel_lets_nothing_through_that_is_not_for_this_node() {
    let mut node = Node::new();
    assert_eq!(tunnel_in(node.sees(tcp("8.8.8.8", 1, POD, 2, TCP_SYN))), drop(Reason::TunnelInUnknownSource));
    assert_eq!(
        tunnel_in(node.sees(tcp("10.1.0.6", 1, POD, 2, TCP_SYN))),
        drop(Reason::TunnelInUnknownSource)
    );
    for dst in ["10.1.0.200", "8.8.8.8", REMOTE, REMOTE_NODE] {
        assert_eq!(tunnel_in(node.sees(tcp(REMOTE, 1, dst, 2, TCP_SYN))), drop(Reason::TunnelInNotLocal));
    }
    let piece = fragment(udp(REMOTE, 1, POD, 2), 0x2000);
    assert_eq!(tunnel_in(node.sees(piece)), drop(Reason::TunnelInFragment));
    for broken in
        [vec![], vec![0x45; 19], vec![0x44; 40], vec![0x65; 40], ipv4(REMOTE, POD, IPPROTO_ICMP, &[8])]
    {
        assert_eq!(tunnel_in(node.sees(broken)), drop(Reason::TunnelInMalformed));
    }
    node.ethertype = 0x0806;
    assert_eq!(tunnel_in(node.sees(vec![0; 40])), drop(Reason::TunnelInMalformed));
}

#[test]
fn a_remote_address_counts_only_behind_the_tunnels_mark() {
    let mut node = Node::new();
    let packet = || tcp(REMOTE, 4000, POD, 8080, TCP_SYN);
    assert_eq!(pod_to(node.sees(tcp("10.1.0.6", 1, POD, 2, TCP_SYN))), next(Reason::PodToOther));
    assert_eq!(pod_to(node.sees(packet())), drop(Reason::PodToOutsideTunnel));
    node.mark = 0xab49_00cd; // the other bits are somebody else's
    assert_eq!(pod_to(node.sees(packet())), next(Reason::PodToAdmitted));
    node.mark = 0x0048_0000;
    assert_eq!(pod_to(node.sees(packet())), drop(Reason::PodToOutsideTunnel));
    node.config.mark = 0;
    node.mark = 0;
    assert_eq!(pod_to(node.sees(packet())), drop(Reason::PodToOutsideTunnel), "no mark is no proof");
}

#[test]
fn the_underlay_may_not_claim_anything_of_the_mesh() {
    let node = Node::new();
    assert_eq!(
        underlay_in(node.sees(udp("172.16.2.1", 51871, "172.16.1.1", 51871))),
        next(Reason::UnderlayOther)
    );
    for forged in [REMOTE, REMOTE_NODE] {
        assert_eq!(
            underlay_in(node.sees(tcp(forged, 1, POD, 8080, TCP_SYN))),
            drop(Reason::UnderlayForgedRemote)
        );
    }
    let to_us = udp("172.16.2.1", 1, NODE, 51872);
    assert_eq!(underlay_in(node.sees(to_us)), drop(Reason::UnderlayToMeshAddress));
}

#[test]
fn at_the_edge_nothing_of_the_mesh_leaves_or_enters_and_broadcasts_do() {
    let mut node = Node::new();
    let guard = IpEntry { flags: IP_GUARDED, ..IpEntry::default() };
    for (range, len) in [("240.0.0.0", 4), ("10.3.0.0", 16)] {
        node.ipcache.insert(PrefixKey::new(range.parse().unwrap(), len).unwrap(), guard);
    }
    for inside in [REMOTE, REMOTE_NODE, "240.9.9.9", "10.3.0.1"] {
        let leaves = udp("172.16.1.1", 1, inside, 2);
        assert_eq!(guard_out(node.sees(leaves)), drop(Reason::GuardOutInClear), "{inside}");
    }
    for outside in ["172.16.2.1", "10.1.0.9", "255.255.255.255", "224.0.0.1"] {
        let leaves = udp("172.16.1.1", 1, outside, 2);
        assert_eq!(guard_out(node.sees(leaves)), next(Reason::GuardOutOther), "{outside}");
    }
    for remote in [REMOTE, REMOTE_NODE] {
        assert_eq!(guard_in(node.sees(udp(remote, 1, POD, 2))), drop(Reason::GuardInForgedRemote));
    }
    // What was another cluster's until lately may be somebody's again.
    assert_eq!(guard_in(node.sees(udp("10.3.0.1", 1, POD, 2))), next(Reason::GuardInOther));
    node.ethertype = 0x0806;
    assert_eq!(guard_out(node.sees(vec![0; 28])), next(Reason::GuardOutOther));
}

#[test]
fn an_ipv4_address_in_ipv6_clothes_is_malformed() {
    let mut node = Node::new();
    node.ethertype = 0x86dd;
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, 59, 64];
    packet.extend(addr(REMOTE).octets());
    packet.extend(addr("fd00::1").octets());
    assert_eq!(tunnel_in(node.sees(packet)), drop(Reason::TunnelInMalformed));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    /// Nothing panics, and whatever reaches a pod or the node came from a remote address.
    #[test]
    fn any_bytes_get_a_verdict(mut bytes in prop::collection::vec(any::<u8>(), 0..120), likely: bool, v6: bool) {
        if likely && bytes.len() >= 20 {
            bytes[0] = 0x45;
            bytes[12..16].copy_from_slice(&[10, 2, 0, 9]);
            bytes[16..20].copy_from_slice(&[10, 1, 0, 5]);
        }
        let mut node = Node::new();
        node.exported.insert(key(POD, 80, IPPROTO_TCP));
        node.ethertype = if v6 { 0x86dd } else { 0x0800 };
        let from_remote = !v6 && bytes.len() >= 20 && bytes[12..14] == [10, 2];
        let verdict = tunnel_in(node.sees(bytes.clone()));
        prop_assert!(verdict.action == Action::Drop || from_remote);
        let _ = (pod_from(node.sees(bytes.clone())), pod_to(node.sees(bytes.clone())), underlay_in(node.sees(bytes)));
    }
}
