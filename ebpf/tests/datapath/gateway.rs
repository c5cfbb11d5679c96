//! A gateway's kernel program: what comes out of the tunnel for others goes back into it as it came, and to nobody else.

use hawser_ebpf_abi::{CONFIG_GATEWAY, IP_CARRIED, IP_REMOTE, IpEntry, PrefixKey, Reason};

use crate::packet::{ACK, SYN, announced_mss, tcp, udp};
use crate::wire::{Node, POD, REMOTE, on_a_node};

const BEHIND: &str = "10.1.7.5";
const OTHER_CLUSTER: &str = "10.3.0.9";

/// For clusters 2 and 3, and the node of 10.1.7.0/24.
fn carry(node: &mut Node) {
    node.desired.config.flags |= CONFIG_GATEWAY;
    for (ip, len, cluster, flags) in [
        ("10.1.7.0", 24, 1, IP_CARRIED),
        ("10.2.0.0", 16, 2, IP_REMOTE | IP_CARRIED),
        ("10.3.0.0", 16, 3, IP_REMOTE | IP_CARRIED),
    ] {
        let entry = IpEntry { identity: 9, node: 0, cluster, flags };
        node.desired.ipcache.insert(PrefixKey::new(ip.parse().unwrap(), len).unwrap(), entry);
    }
    node.sync();
}

#[test]
fn a_gateway_sends_on_between_its_nodes_and_another_clusters_and_nothing_else() {
    on_a_node(|mut node| {
        let there = udp(REMOTE, 4000, BEHIND, 53, b"ask");
        let segment = tcp(REMOTE, 4000, BEHIND, 80, ACK);
        assert_eq!(
            node.reasons(|| node.tunnel.sends(&segment)),
            [Reason::TunnelInNotLocal],
            "no gateway yet"
        );
        assert_eq!(node.tunnel.has_now(), None);

        carry(&mut node);
        for packet in [
            there.clone(),
            udp(BEHIND, 53, REMOTE, 4000, b"answer"),
            segment,
            udp(OTHER_CLUSTER, 1, BEHIND, 2, b""),
        ] {
            assert_eq!(node.reasons(|| node.tunnel.sends(&packet)), [Reason::TunnelInCarried]);
            assert_eq!(node.tunnel.receives().expect("it goes back into the tunnel"), packet, "bit for bit");
        }
        let syn = tcp(REMOTE, 4000, BEHIND, 80, SYN);
        assert_eq!(node.reasons(|| node.tunnel.sends(&syn)), [Reason::MssClamped, Reason::TunnelInCarried]);
        assert_eq!(announced_mss(&node.tunnel.receives().unwrap(), REMOTE, BEHIND), 1380);

        // Between two other clusters, between two nodes of ours, to this node's pod from one of ours, and from nobody.
        for (from, to, reason) in [
            (REMOTE, OTHER_CLUSTER, Reason::TunnelInNotLocal),
            (BEHIND, "10.1.7.6", Reason::TunnelInUnknownSource),
            (BEHIND, POD, Reason::TunnelInUnknownSource),
            ("10.1.8.1", REMOTE, Reason::TunnelInUnknownSource),
        ] {
            assert_eq!(
                node.reasons(|| node.tunnel.sends(&udp(from, 1, to, 2, b""))),
                [reason],
                "{from} to {to}"
            );
            assert_eq!(node.tunnel.has_now(), None);
            assert_eq!(node.pod.has_now(), None);
        }
    });
}
