//! At a gateway: what is sent on, and that nothing else is.

use hawser_ebpf_abi::{IP_CARRIED, IP_REMOTE, IpEntry, PrefixKey, Reason};
use hawser_ebpf_logic::gateway::carried;
use hawser_ebpf_logic::verdict::Action;
use proptest::prelude::*;

use crate::packets::{Node, icmp, tcp, udp};

/// Own nodes' pods 10.1.7.0/24 and 10.1.8.0/24, of clusters 2 and 3 10.2.0.0/16 and 10.3.0.0/16; cluster 4 is no such pair, and this
/// node's own pods are its own.
fn gateway() -> Node {
    let mut node = Node::new();
    for (ip, len, cluster, flags) in [
        ("10.1.7.0", 24, 1, IP_CARRIED),
        ("10.1.8.0", 24, 1, IP_CARRIED),
        ("240.1.0.7", 32, 1, IP_CARRIED),
        ("10.2.0.0", 16, 2, IP_REMOTE | IP_CARRIED),
        ("10.3.0.0", 16, 3, IP_REMOTE | IP_CARRIED),
        ("10.4.0.0", 16, 4, IP_REMOTE),
    ] {
        let entry = IpEntry { identity: 0, node: 0, cluster, flags };
        node.ipcache.insert(PrefixKey::new(ip.parse().unwrap(), len).unwrap(), entry);
    }
    node
}

const ENDS: [(&str, Option<bool>); 8] = [
    ("10.1.7.5", Some(false)),
    ("10.1.8.5", Some(false)),
    ("240.1.0.7", Some(false)),
    ("10.2.0.9", Some(true)),
    ("10.3.0.9", Some(true)),
    ("10.4.0.9", None),
    ("10.1.0.5", None),
    ("8.8.8.8", None),
];

proptest! {
    #[test]
    fn only_between_a_node_of_ours_and_one_of_another_cluster(from in 0..ENDS.len(), to in 0..ENDS.len(), port in 1u16..) {
        let ((src, of), (dst, at)) = (ENDS[from], ENDS[to]);
        let node = gateway();
        let sent_on = of.is_some() && at.is_some() && of != at;
        for packet in [udp(src, port, dst, 53), tcp(src, port, dst, 80, 16), icmp(src, dst, 8, port, &[])] {
            let verdict = carried(node.sees(packet.clone()));
            let steered = verdict.is_some_and(|verdict| verdict.action == Action::Steer { ifindex: 77 });
            prop_assert_eq!((verdict.is_some(), steered), (sent_on, sent_on), "{} to {}", src, dst);
            prop_assert_eq!(&node.packet.borrow().0, &packet, "as it came, its TTL too");
        }
    }
}

#[test]
fn what_this_gateways_tunnel_does_not_carry_whole_is_said_in_the_name_of_whom_it_was_for() {
    let mut node = gateway();
    node.config.tunnel_mtu = 1300;
    let mut large = udp("10.2.0.9", 4000, "10.1.7.5", 53);
    large.resize(1400, 0);
    large[2..4].copy_from_slice(&1400_u16.to_be_bytes());
    let verdict = carried(node.sees(large)).unwrap();
    assert_eq!(verdict.action, Action::Steer { ifindex: 77 });
    assert_eq!(verdict.reason, Reason::TunnelInCarriedTooBig);
    let answer = node.packet.borrow().0.clone();
    assert_eq!((&answer[12..16], &answer[16..20]), (&[10, 1, 7, 5][..], &[10, 2, 0, 9][..]));
    assert_eq!((answer[20], answer[21], &answer[26..28]), (3, 4, &1300_u16.to_be_bytes()[..]));

    // A connection learns it before.
    let syn = tcp("10.2.0.9", 4000, "10.1.7.5", 80, 2);
    assert_eq!(carried(node.sees(syn)).unwrap().reason, Reason::TunnelInCarried);
    assert_eq!(node.notes.borrow()[..], [Reason::MssClamped]);
}

#[test]
fn a_fragment_is_not_sent_on() {
    let mut fragment = udp("10.2.0.9", 4000, "10.1.7.5", 53);
    fragment[6..8].copy_from_slice(&0x2001_u16.to_be_bytes());
    let verdict = carried(gateway().sees(fragment)).unwrap();
    assert_eq!((verdict.action, verdict.reason), (Action::Drop, Reason::TunnelInFragment));
}
