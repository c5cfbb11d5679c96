//! The node's edge: whatever routes others write, nothing of the mesh leaves or enters beside the tunnel.

use std::net::UdpSocket;
use std::time::Duration;

use hawser_ebpf::{Attachments, Hook};
use hawser_ebpf_abi::{IP_GUARDED, IpEntry, PrefixKey, Reason};

use crate::device::Device;
use crate::packet::{ACK, SYN, frame, ipv4, tcp, udp};
use crate::wire::{Node, POD, REMOTE, on_a_node};
use crate::world::run;

/// Of a cluster that is connected no longer.
const LEFT: &str = "10.3.0.9";

/// The underlay's device and others are guarded, and the pod's packets are shown as nobody's.
fn guarded(node: &mut Node, more: &[&Device]) {
    let guard = IpEntry { flags: IP_GUARDED, ..IpEntry::default() };
    for (address, len) in [("10.3.0.0", 16), ("240.0.0.0", 4)] {
        node.desired.ipcache.insert(PrefixKey::new(address.parse().unwrap(), len).unwrap(), guard);
    }
    node.sync();
    let devices = more.iter().map(|device| device.ifindex).chain([node.underlay.ifindex]);
    node.wanted = Attachments { edge: devices.collect(), translated: [].into(), ..node.wanted.clone() };
    let problems = node.datapath.attach(&node.wanted);
    assert!(problems.is_empty(), "{problems:?}");
}

fn says(to: &str) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Refused or dropped: the counters say.
    let _ = socket.send_to(b"in clear", (to, 9));
}

#[test]
fn somebody_elses_route_leads_nothing_of_the_mesh_out_in_clear() {
    on_a_node(|mut node| {
        guarded(&mut node, &[]);
        for neighbour in ["172.16.1.9", REMOTE, LEFT, "240.7.0.1"] {
            run(&format!("ip neigh add {neighbour} lladdr 02:00:00:00:00:09 dev eth0"));
        }
        for prefix in ["10.2.0.0/24", "10.3.0.0/24", "240.7.0.0/16"] {
            run(&format!("ip route add {prefix} dev eth0 src 172.16.1.1"));
        }
        for address in [REMOTE, LEFT, "240.7.0.1"] {
            assert_eq!(node.reasons(|| says(address)), [Reason::GuardOutInClear], "{address}");
            assert_eq!(node.underlay.has_now(), None, "{address}");
        }
        assert_eq!(node.reasons(|| says("172.16.1.9")), [Reason::GuardOutOther]);
        assert!(node.underlay.receives().is_some(), "what is not the mesh's leaves");
    });
}

#[test]
fn a_device_without_a_link_header_is_guarded_as_well_and_both_ways() {
    on_a_node(|mut node| {
        let vpn = Device::tun("vpn0");
        guarded(&mut node, &[&vpn]);
        run("ip route add 10.2.0.0/24 dev vpn0");
        assert_eq!(node.reasons(|| says(REMOTE)), [Reason::GuardOutInClear]);
        assert_eq!(vpn.has_now(), None);
        let forged = udp(REMOTE, 4000, POD, 8080, b"x");
        assert_eq!(node.reasons(|| vpn.sends(&forged)), [Reason::GuardInForgedRemote]);
        assert_eq!(node.pod.has_now(), None);
        let honest = udp("192.168.9.9", 4000, "192.168.9.1", 9, b"x");
        assert_eq!(node.reasons(|| vpn.sends(&honest)), [Reason::GuardInOther]);
    });
}

#[test]
fn a_device_that_has_just_appeared_is_guarded_by_itself_and_a_pods_is_not() {
    on_a_node(|mut node| {
        guarded(&mut node, &[]);
        let late = Device::tun("late0");
        run("ip route add 10.2.0.0/24 dev late0");
        node.datapath.attach_guards(late.ifindex).unwrap();
        assert_eq!(node.reasons(|| says(REMOTE)), [Reason::GuardOutInClear]);
        // What turns out to be a pod's goes from one to the other without a gap.
        node.wanted.pods.insert(late.ifindex);
        assert!(node.datapath.attach(&node.wanted).is_empty());
        node.datapath.attach_guards(late.ifindex).unwrap();
        // The kernel lets go of a link a little later.
        let gone = (0..200).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            node.reasons(|| says(REMOTE)).is_empty()
        });
        assert!(gone, "a pod's interface is no edge");
    });
}

/// A packet between local pods is decided by two octets of each address, all others by the whole: both must say the same.
#[test]
fn the_short_way_and_the_long_way_agree() {
    on_a_node(|mut node| {
        guarded(&mut node, &[]);
        let pod = |packet: Vec<u8>| node.reasons(|| node.pod.sends(&frame(&packet)));
        for elsewhere in ["10.1.0.6", "8.8.8.8", "10.3.255.255", "240.1.0.1"] {
            assert_eq!(pod(tcp(POD, 1, elsewhere, 2, ACK)), [Reason::PodFromOther], "{elsewhere}");
        }
        assert_eq!(pod(tcp(REMOTE, 1, "10.1.0.6", 2, SYN)), [Reason::PodFromForgedRemote]);
        assert_eq!(pod(udp(POD, 1, REMOTE, 2, b"x")), [Reason::PodFromSteered]);
        assert_eq!(pod(ipv4(POD, "10.1.0.6", 1, &[])), [Reason::PodFromOther], "just a header");
        assert!(node.datapath.program(Hook::GuardOut).is_some());
    });
}
