//! Programs of the node itself, with real sockets: what answers them, and what they hear when the other end is down.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use hawser_ebpf_abi::{CONFIG_KERNEL_IPSEC, HEALTH_NO_NEW, HEALTH_RESET, Reason};

use crate::node::{Node, REMOTE, on_a_node};
use crate::packet::{ACK, SYN, ipv4, transport_checksum};
use crate::world::run;

const NODE: &str = "240.1.0.1";
/// Where a socket is bound, and whom it asks.
const WAYS: [(&str, &str); 2] = [("0.0.0.0:0", "10.2.0.9:53"), ("[::]:0", "[fd02::9]:53")];
const DOWN: u32 = HEALTH_NO_NEW | HEALTH_RESET;

/// As the agent sets it up: the mesh is reached in the node's mesh addresses.
fn in_the_mesh(_: &Node) {
    run("ip link set lo up");
    run("ip address add 240.1.0.1/32 dev hawser0");
    run("ip address add fd68:6177:7365:1::1/128 dev hawser0 nodad");
    run("ip route add 10.2.0.0/16 dev hawser0 src 240.1.0.1");
    run("ip route add fd02::/16 dev hawser0 src fd68:6177:7365:1::1");
}

fn asks(any: &str, remote: &str, connected: bool) -> UdpSocket {
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    if connected {
        socket.connect(remote).unwrap();
        socket.send(b"who?").unwrap();
    } else {
        socket.send_to(b"who?", remote).unwrap();
    }
    socket
}

/// The same message the other way: what changes places adds up to the same checksums.
fn echo(asked: &[u8]) -> Vec<u8> {
    let (addresses, len, udp) = if asked[0] >> 4 == 4 { (12, 4, 20) } else { (8, 16, 40) };
    let mut answer = asked.to_vec();
    for (at, len) in [(addresses, len), (udp, 2)] {
        answer[at..at + len].copy_from_slice(&asked[at + len..at + 2 * len]);
        answer[at + len..at + 2 * len].copy_from_slice(&asked[at..at + len]);
    }
    answer
}

#[test]
fn a_program_of_the_node_is_answered_by_udp_connected_or_not_over_both_families() {
    on_a_node(|node| {
        in_the_mesh(&node);
        for (any, remote) in WAYS {
            for connected in [false, true] {
                let socket = asks(any, remote, connected);
                let answer = echo(&node.sent(17));
                let refused = node.count(Reason::TunnelInRefused);
                let mut stranger = answer.clone();
                // Its port is the answer's no more, nor is the sum, which nobody looks at so early.
                stranger[if answer[0] >> 4 == 4 { 21 } else { 41 }] ^= 1;
                node.tunnel.sends(&stranger);
                assert_eq!(node.count(Reason::TunnelInRefused), refused + 1, "whom nobody asked");
                node.tunnel.sends(&answer);
                let mut heard = [0; 16];
                let (len, from) = socket.recv_from(&mut heard).expect("the answer comes");
                assert_eq!((&heard[..len], from.to_string().as_str()), (&b"who?"[..], remote));
            }
        }
        node.ends();
    });
}

#[test]
fn a_connected_socket_of_the_node_hears_that_the_other_cluster_is_down() {
    on_a_node(|mut node| {
        in_the_mesh(&node);
        let mut said = 0;
        for (any, remote) in WAYS {
            node.datapath.maps.set_cluster_health(2, 256).unwrap();
            let socket = asks(any, remote, true);
            node.sent(17);
            node.datapath.maps.set_cluster_health(2, DOWN).unwrap();
            // The error may be lost as any packet may: a CPU has one backlog for all namespaces, and other tests run beside.
            socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let heard = (0..5).find_map(|_| {
                // One that comes late is told to who sends next, whose message then does not leave.
                let heard = socket.send(b"still there?").and_then(|_| {
                    said += 1;
                    socket.recv(&mut [0; 16])
                });
                let heard = heard.expect_err("nobody answers").kind();
                (heard != ErrorKind::WouldBlock).then_some(heard)
            });
            assert_eq!(heard, Some(ErrorKind::ConnectionRefused), "{remote}");
        }
        assert_eq!(node.count(Reason::TunnelOutRefused), said, "each message is refused");
        assert_eq!(node.tunnel.has_now(), None, "nothing of it leaves");
        node.ends();
    });
}

/// A connection of the node to the server at the tunnel's other end.
fn connects(node: &Node) -> TcpStream {
    let connecting = std::thread::spawn(|| TcpStream::connect((REMOTE, 80)).unwrap());
    let syn = node.sent(6);
    assert_eq!(syn[33], SYN);
    let ack = u32::from_be_bytes(syn[24..28].try_into().unwrap()) + 1;
    let mut segment = [&80_u16.to_be_bytes()[..], &syn[20..22], &[1, 2, 3, 4], &ack.to_be_bytes()].concat();
    segment.extend([5 << 4, SYN | ACK, 0xff, 0xff, 0, 0, 0, 0]);
    let sum = transport_checksum(REMOTE, NODE, 6, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    node.tunnel.sends(&ipv4(REMOTE, NODE, 6, &segment));
    assert_eq!(node.sent(6)[33], ACK, "established");
    connecting.join().unwrap()
}

#[test]
fn a_connection_of_the_node_to_a_cluster_that_is_down_ends_with_a_reset_at_its_next_packet() {
    on_a_node(|mut node| {
        in_the_mesh(&node);
        let mut stream = connects(&node);
        node.datapath.maps.set_cluster_health(2, DOWN).unwrap();
        // More than a segment: the device is given them uncut, and their checksum unfinished.
        stream.write_all(&[7; 20_000]).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let heard = stream.read(&mut [0; 16]).map_err(|error| error.kind());
        assert_eq!(heard, Err(ErrorKind::ConnectionReset));
        assert!(node.count(Reason::TunnelOutReset) > 0);
        assert_eq!(node.tunnel.has_now(), None, "nothing of it leaves");
        node.ends();
    });
}

#[test]
fn with_ipsec_in_the_kernel_a_connection_of_the_node_is_left_to_the_sweep() {
    on_a_node(|mut node| {
        in_the_mesh(&node);
        let mut stream = connects(&node);
        node.desired.config.flags |= CONFIG_KERNEL_IPSEC;
        node.sync();
        node.datapath.maps.set_cluster_health(2, DOWN).unwrap();
        stream.write_all(b"still there?").unwrap();
        assert!(node.sent(6).len() > 40, "it leaves");
        assert_eq!(node.count(Reason::TunnelOutReset), 0);
        node.ends();
    });
}
