//! Somebody else's program on the pod's interface: it sees what is not ours, and cannot hold up what is.

use hawser_ebpf::{LoadConfig, TcKind};
use hawser_ebpf_abi::Reason;

use crate::packet::{SYN, frame, tcp};
use crate::wire::{Node, POD, REMOTE, arp_request};
use crate::world::{in_a_namespace, run};

fn behind(kind: TcKind) {
    in_a_namespace(move |config| {
        let node = Node::new(&LoadConfig { tc: kind, ..config.clone() });
        if kind == TcKind::Tcx {
            run("tc qdisc add dev pod5 clsact");
        }
        // A classic program of one instruction: "return 2", TC_ACT_SHOT. Priority 2 is behind our clsact filter's 1.
        let drop_all = [
            "tc",
            "filter",
            "add",
            "dev",
            "pod5",
            "ingress",
            "prio",
            "2",
            "bpf",
            "da",
            "bytecode",
            "1,6 0 0 2,",
        ];
        let added = std::process::Command::new(drop_all[0]).args(&drop_all[1..]).output().unwrap();
        assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));

        let reasons = node.reasons(|| node.pod.sends(&arp_request("10.1.255.254")));
        assert_eq!(reasons, [Reason::PodFromOther], "the other program dropped it, so nothing was answered");
        assert_eq!(node.pod.has_now(), None);

        node.pod.sends(&frame(&tcp(POD, 5000, REMOTE, 80, SYN)));
        assert!(node.tunnel.receives().is_some(), "what is ours was gone before");
    });
}

#[test]
fn a_dropping_clsact_program_behind_our_tcx_program_sees_what_is_not_ours() {
    behind(TcKind::Tcx);
}

#[test]
fn a_dropping_clsact_program_behind_our_clsact_filter_sees_what_is_not_ours() {
    behind(TcKind::Clsact);
}
