//! Real packets through attached programs: for every reason of every packet program one packet that gets it, where the
//! packet comes out, and that the counter says so.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hawser_ebpf::{Attachments, Datapath, LoadConfig, TcKind};
use hawser_ebpf_abi::{
    CONFIG_KERNEL_IPSEC, Config, DesiredDatapath, Endpoint, Exported, IP_MESH_ADDRESS, IP_REMOTE, IpEntry,
    Port, PrefixKey, Reason, ServiceKey,
};
use hawser_model::Time;

use crate::device::Device;
use crate::packet::{ACK, POD_MAC, SYN, announced_mss, ethernet, frame, icmp, ipv4, tcp, udp};
use crate::world::{in_a_namespace, ip, run, sysctl};

pub(crate) const POD: &str = "10.1.0.5";
const OTHER_POD: &str = "10.1.0.6";
pub(crate) const REMOTE: &str = "10.2.0.9";
pub(crate) const NODE: &str = "240.1.0.1";
const REMOTE_NODE: &str = "240.2.0.1";

/// A node with one pod, the tunnel and the underlay.
pub(crate) struct Node {
    pub(crate) pod: Device,
    pub(crate) tunnel: Device,
    pub(crate) underlay: Device,
    pub(crate) datapath: Datapath,
    pub(crate) desired: DesiredDatapath,
    pub(crate) wanted: Attachments,
}

impl Node {
    pub(crate) fn new(config: &LoadConfig) -> Self {
        for family in ["all", "default"] {
            sysctl(&format!("net/ipv6/conf/{family}/disable_ipv6"), "1");
        }
        let (pod, tunnel, underlay) = (Device::tap("pod5"), Device::tun("hawser0"), Device::tap("eth0"));
        run("ip link set lo up");
        run("ip address add 10.1.255.254/32 dev pod5");
        run("ip route add 10.1.0.5/32 dev pod5");
        run("ip neigh add 10.1.0.5 lladdr 02:00:00:00:00:05 dev pod5");
        run("ip address add 172.16.1.1/24 dev eth0");
        run("ip address add 240.1.0.1/32 dev hawser0");
        let wanted = Attachments {
            tunnel: Some(tunnel.ifindex),
            pods: [pod.ifindex].into(),
            translated: [pod.ifindex].into(),
            underlay: [underlay.ifindex].into(),
            ..Attachments::default()
        };
        let desired = desired(&pod, &tunnel);
        let datapath = Datapath::load(config).unwrap();
        let mut node = Self { pod, tunnel, underlay, datapath, desired, wanted };
        node.sync();
        let problems = node.datapath.attach(&node.wanted);
        assert!(problems.is_empty(), "{problems:?}");
        node
    }

    pub(crate) fn sync(&mut self) {
        let report = self.datapath.maps.sync(&self.desired, Time::ZERO);
        assert!(report.problems.is_empty(), "{:?}", report.problems);
    }

    pub(crate) fn export(&mut self, address: &str, port: u16, proto: u8) {
        self.desired
            .exported
            .insert(ServiceKey::new(ip(address), Port::new(port), proto), Exported { flags: 0 });
        self.sync();
    }

    fn counters(&self) -> Vec<(Reason, u64)> {
        self.datapath.maps.counters().unwrap()
    }

    /// What was counted while `act` ran, but for what went into a map.
    pub(crate) fn reasons(&self, act: impl FnOnce()) -> Vec<Reason> {
        let before = self.counters();
        act();
        let after = self.counters();
        let grown = before.into_iter().zip(after).filter(|(before, after)| before.1 != after.1);
        grown.map(|(before, _)| before.0).filter(|reason| *reason != Reason::FlowMade).collect()
    }

    /// A packet that must die: nothing comes out anywhere.
    #[track_caller]
    fn dies(&self, from: &Device, packet: &[u8], reason: Reason) {
        assert_eq!(self.reasons(|| from.sends(packet)), [reason]);
        for device in [&self.pod, &self.tunnel, &self.underlay] {
            assert_eq!(device.has_now(), None, "{reason}");
        }
    }
}

fn desired(pod: &Device, tunnel: &Device) -> DesiredDatapath {
    let config =
        Config { tunnel_ifindex: tunnel.ifindex, tunnel_mtu: 1420, own_mesh_v4: ip(NODE), ..Config::new(1) };
    let mut desired = DesiredDatapath { config, ..DesiredDatapath::default() };
    for (address, len, flags) in [("10.2.0.0", 16, IP_REMOTE), (REMOTE_NODE, 32, IP_REMOTE | IP_MESH_ADDRESS)]
    {
        let entry = IpEntry { identity: 9, node: 1, cluster: 2, flags };
        desired.ipcache.insert(PrefixKey::new(address.parse().unwrap(), len).unwrap(), entry);
    }
    desired.endpoints.insert(ip(POD), Endpoint { ifindex: pod.ifindex, identity: 8, flags: 0 });
    desired
}

/// With tcx and with clsact: both kinds of kernel get the same programs.
pub(crate) fn on_a_node(test: impl Fn(Node) + Send + Clone + 'static) {
    for kind in [TcKind::Tcx, TcKind::Clsact] {
        let test = test.clone();
        in_a_namespace(move |config| test(Node::new(&LoadConfig { tc: kind, ..config.clone() })));
    }
}

#[test]
fn a_pods_connection_goes_into_the_tunnel_and_its_answer_comes_back_to_the_pod() {
    on_a_node(|node| {
        let syn = tcp(POD, 5000, REMOTE, 80, SYN);
        let reasons = node.reasons(|| node.pod.sends(&frame(&syn)));
        assert_eq!(reasons, [Reason::PodFromSteered, Reason::MssClamped]);
        let out = node.tunnel.receives().expect("the packet comes out of the tunnel device");
        assert_eq!(announced_mss(&out, POD, REMOTE), 1380);
        assert_eq!(
            out[..40],
            {
                let mut same = syn;
                same[36..38].copy_from_slice(&out[36..38]);
                same
            }[..40]
        );

        let answer = tcp(REMOTE, 80, POD, 5000, SYN | ACK);
        let reasons = node.reasons(|| node.tunnel.sends(&answer));
        assert_eq!(reasons, [Reason::MssClamped, Reason::TunnelInReply, Reason::PodToAdmitted]);
        let arrived = node.pod.receives().expect("the answer comes to the pod's interface");
        assert_eq!((&arrived[..6], &arrived[12..14]), (&POD_MAC[..], &[8, 0][..]), "addressed to the pod");
        assert_eq!(announced_mss(&arrived[14..], REMOTE, POD), 1380);
        assert_eq!(arrived[14 + 8], 64, "not routed: the time to live is untouched");

        let data = tcp(REMOTE, 80, POD, 5000, ACK);
        assert_eq!(node.reasons(|| node.tunnel.sends(&data)), [Reason::TunnelInReply, Reason::PodToAdmitted]);
        assert_eq!(node.pod.receives().unwrap()[14..], data, "bit for bit");
    });
}

#[test]
fn what_a_pod_may_not_send_dies_with_a_name() {
    on_a_node(|mut node| {
        let pod = |node: &Node, packet: Vec<u8>, reason| node.dies(&node.pod, &frame(&packet), reason);
        pod(&node, tcp(REMOTE, 1, OTHER_POD, 2, SYN), Reason::PodFromForgedRemote);
        pod(&node, tcp(OTHER_POD, 1, REMOTE, 2, SYN), Reason::PodFromForeignSource);
        pod(&node, may_be_cut(udp(POD, 1, REMOTE, 2, &[0; 1393])), Reason::PodFromTooBig);
        pod(&node, fragment(udp(POD, 1, REMOTE, 2, b"half")), Reason::PodFromFragment);
        pod(&node, ipv4(POD, REMOTE, 6, &[0; 12]), Reason::PodFromMalformed);
        assert_eq!(
            node.reasons(|| node.pod.sends(&frame(&udp(POD, 1, REMOTE, 2, &[0; 1392])))),
            [Reason::PodFromSteered]
        );
        assert!(node.tunnel.receives().is_some(), "just fits");
        node.desired.config.tunnel_ifindex = 0;
        node.sync();
        pod(&node, tcp(POD, 1, REMOTE, 2, SYN), Reason::PodFromNoTunnel);
    });
}

fn may_be_cut(mut packet: Vec<u8>) -> Vec<u8> {
    packet[6] &= !0x40;
    packet
}

fn fragment(mut packet: Vec<u8>) -> Vec<u8> {
    packet[6] |= 0x20;
    packet
}

#[test]
fn the_mesh_reaches_only_what_is_exported() {
    on_a_node(|mut node| {
        let syn = tcp(REMOTE, 4000, POD, 8080, SYN);
        node.dies(&node.tunnel, &syn, Reason::TunnelInNotExported);
        node.export(POD, 8080, 6);
        let reasons = node.reasons(|| node.tunnel.sends(&syn));
        assert_eq!(reasons, [Reason::MssClamped, Reason::TunnelInExported, Reason::PodToAdmitted]);
        assert!(node.pod.receives().is_some());
        node.dies(&node.tunnel, &tcp(REMOTE, 4000, POD, 8081, SYN), Reason::TunnelInNotExported);
        // The answer of the exported port goes back, and the pod's ICMP partner may complain about it.
        let answer = tcp(POD, 8080, REMOTE, 4000, ACK);
        assert_eq!(node.reasons(|| node.pod.sends(&frame(&answer))), [Reason::PodFromSteered]);
        assert!(node.tunnel.receives().is_some());
        let complaint = icmp(REMOTE_NODE, POD, 3, &answer[..28]);
        let reasons = node.reasons(|| node.tunnel.sends(&complaint));
        assert_eq!(reasons, [Reason::TunnelInRelated, Reason::PodToAdmitted]);
        assert_eq!(node.pod.receives().unwrap()[14..], complaint);
    });
}

#[test]
fn the_tunnel_passes_nothing_that_is_not_local_and_nobody_unknown() {
    on_a_node(|node| {
        let tunnel = |packet: Vec<u8>, reason| node.dies(&node.tunnel, &packet, reason);
        tunnel(tcp("8.8.8.8", 1, POD, 2, SYN), Reason::TunnelInUnknownSource);
        tunnel(tcp(REMOTE, 1, OTHER_POD, 2, SYN), Reason::TunnelInNotLocal);
        tunnel(udp(REMOTE, 1, "10.2.0.10", 2, b"x"), Reason::TunnelInNotLocal);
        tunnel(fragment(udp(REMOTE, 1, POD, 2, b"x")), Reason::TunnelInFragment);
        tunnel(ipv4(REMOTE, POD, 6, &[0; 12]), Reason::TunnelInMalformed);
        tunnel(tcp(REMOTE_NODE, 1, NODE, 22, SYN), Reason::TunnelInNodeNotExported);
    });
}

#[test]
fn the_mesh_address_answers_echo() {
    on_a_node(|node| {
        let socket = UdpSocket::bind((NODE, 51872)).unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
        let echo = udp(REMOTE_NODE, 51872, NODE, 51872, b"are you there");
        assert_eq!(node.reasons(|| node.tunnel.sends(&echo)), [Reason::TunnelInNode]);
        let mut buffer = [0; 100];
        let (len, from) = socket.recv_from(&mut buffer).expect("the stack gives it to the socket");
        assert_eq!((&buffer[..len], from.to_string().as_str()), (&b"are you there"[..], "240.2.0.1:51872"));
    });
}

#[test]
fn a_remote_address_outside_the_tunnel_reaches_no_pod() {
    on_a_node(|node| {
        // The underlay: refused at the door, whatever it is for.
        let forged = tcp(REMOTE, 4000, POD, 8080, SYN);
        node.dies(&node.underlay, &frame(&forged), Reason::UnderlayForgedRemote);
        node.dies(
            &node.underlay,
            &frame(&udp("172.16.2.1", 1, NODE, 51872, b"x")),
            Reason::UnderlayToMeshAddress,
        );
        let ordinary = udp("172.16.1.9", 1, "172.16.1.1", 2, b"x");
        assert_eq!(node.reasons(|| node.underlay.sends(&frame(&ordinary))), [Reason::UnderlayOther]);
        // A program on the host: the pod's own door holds as well.
        run("ip address add 10.2.0.9/32 dev lo");
        let liar = UdpSocket::bind((REMOTE, 0)).unwrap();
        assert_eq!(
            node.reasons(|| {
                let _ = liar.send_to(b"hello", (POD, 8080));
            }),
            [Reason::PodToOutsideTunnel]
        );
        let neighbour = UdpSocket::bind(("10.1.255.254", 0)).unwrap();
        assert_eq!(
            node.reasons(|| {
                neighbour.send_to(b"hello", (POD, 8080)).unwrap();
            }),
            [Reason::PodToOther]
        );
        let (protocol, source) =
            node.pod.receives().map(|frame| (frame[14 + 9], frame[26..30].to_vec())).unwrap();
        assert_eq!((protocol, source), (17, vec![10, 1, 255, 254]), "only the honest one arrived");
    });
}

#[test]
fn what_is_not_ours_goes_on_to_the_stack() {
    on_a_node(|node| {
        let arp = arp_request("10.1.255.254");
        assert_eq!(node.reasons(|| node.pod.sends(&arp)), [Reason::PodFromOther, Reason::PodToOther]);
        assert_eq!(node.pod.receives().unwrap()[12..14], [8, 6], "the stack answered");
    });
}

#[test]
fn while_an_agent_is_replaced_no_packet_goes_unjudged() {
    for kind in [TcKind::Tcx, TcKind::Clsact] {
        in_a_namespace(move |config| {
            let config = LoadConfig { tc: kind, ..config.clone() };
            let mut node = Node::new(&config);
            let socket = UdpSocket::bind("172.16.1.1:9").unwrap();
            socket.set_nonblocking(true).unwrap();
            let forged = frame(&udp(REMOTE, 1, "172.16.1.1", 9, b"in clear"));
            let (sent, done) = (AtomicU64::new(0), AtomicBool::new(false));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        node.underlay.sends(&forged);
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                });
                for _ in 0..3 {
                    // SIGKILL leaves what dropping leaves: the pins, or the filters.
                    node.datapath = {
                        let mut next = Datapath::load(&config).unwrap();
                        let problems = next.attach(&node.wanted);
                        assert!(problems.is_empty(), "{problems:?}");
                        next
                    };
                }
                done.store(true, Ordering::Relaxed);
            });
            let judged = node.counters()[Reason::UnderlayForgedRemote as usize].1;
            assert_eq!(
                judged,
                sent.into_inner(),
                "each one dropped and counted, by the old program or the new"
            );
            assert!(socket.recv(&mut [0; 9]).is_err(), "none reached the host");
        });
    }
}

/// Who has `target`, says the pod.
pub(crate) fn arp_request(target: &str) -> Vec<u8> {
    let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1];
    request.extend(POD_MAC);
    request.extend([10, 1, 0, 5]);
    request.extend([0; 6]);
    request.extend(target.parse::<std::net::Ipv4Addr>().unwrap().octets());
    ethernet(0x0806, &request)
}

/// As the kernel's IPsec leaves it there. This kernel has none, so every sender that is known is refused for coming by no association.
#[test]
fn what_comes_out_of_ipsec_in_the_kernel_is_read_behind_a_link_header_or_without_one() {
    on_a_node(|mut node| {
        node.desired.config.flags |= CONFIG_KERNEL_IPSEC;
        node.sync();
        let with_header = Device::tap("ipsec0");
        node.datapath.attach_tunnel(with_header.ifindex).unwrap();
        for (from, reason) in
            [(REMOTE, Reason::TunnelInOtherNode), ("203.0.113.9", Reason::TunnelInUnknownSource)]
        {
            let packet = udp(from, 53, POD, 5_353, b"x");
            node.dies(&with_header, &frame(&packet), reason);
            node.dies(&node.tunnel, &packet, reason);
        }
    });
}
