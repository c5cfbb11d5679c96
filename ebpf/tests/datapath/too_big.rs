//! What is too big for the tunnel, with real sockets in a pod whose own MTU is 1500: its kernel learns the tunnel's.

use std::io::Write as _;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use hawser_ebpf_abi::Reason;

use crate::node::{MTU, POD, POD_6, REMOTE, REMOTE_6, on_a_node};

/// Level, and the options for "never cut" and for the MTU of a connected socket's path (`ip(7)`, `ipv6(7)`).
fn options(family: IpAddr) -> (i32, i32, i32) {
    match family {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_MTU),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_MTU),
    }
}

fn never_cut(socket: &UdpSocket, family: IpAddr) {
    let (level, option, _) = options(family);
    let value = libc::IP_PMTUDISC_DO;
    // SAFETY: the value is a c_int of the length given and outlives the call.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), 4) };
    assert_eq!(set, 0);
}

fn path_mtu(socket: &UdpSocket, family: IpAddr) -> i32 {
    let (level, _, option) = options(family);
    let (mut value, mut len) = (0_i32, 4);
    // SAFETY: value and length are writable, and the length is the value's.
    let got =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut len) };
    assert_eq!(got, 0);
    value
}

#[test]
fn a_udp_socket_learns_the_tunnels_mtu_and_hears_that_its_message_is_too_long() {
    on_a_node(|node| {
        for (local, remote, fits) in [(POD, REMOTE, 1392), (POD_6, REMOTE_6, 1372)] {
            let told = node.count(Reason::PodFromToldTooBig);
            let (local, remote): (IpAddr, IpAddr) = (local.parse().unwrap(), remote.parse().unwrap());
            let learnt = node.pod.does(move || {
                let socket = UdpSocket::bind((local, 0)).unwrap();
                never_cut(&socket, local);
                socket.connect((remote, 53)).unwrap();
                assert_eq!(path_mtu(&socket, local), 1500);
                socket.send(&vec![7; fits + 1]).unwrap();
                let refused = (0..200).find_map(|_| {
                    std::thread::sleep(Duration::from_millis(5));
                    socket.send(&vec![7; fits + 1]).err()
                });
                assert_eq!(refused.and_then(|error| error.raw_os_error()), Some(libc::EMSGSIZE));
                // What the error left behind is told once.
                let _ = socket.take_error();
                socket.send(&vec![7; fits]).unwrap();
                path_mtu(&socket, local)
            });
            assert_eq!(learnt, MTU as i32);
            assert!(node.count(Reason::PodFromToldTooBig) > told);
            assert_eq!(node.sent(17).len(), MTU as usize, "what fits, and nothing before it");
        }
        node.ends();
    });
}

#[test]
fn a_connection_that_was_made_for_a_larger_tunnel_goes_on_through_a_smaller_one() {
    on_a_node(|mut node| {
        // It takes segments of 1,380 octets.
        let mut stream = node.connects(&[2, 4, 0x05, 0x64]);

        node.desired.config.tunnel_mtu = 1300;
        node.sync();
        // More than a segment: the device is given them uncut, and their checksum unfinished.
        stream.write_all(&[7; 20_000]).unwrap();
        let data = node.sent(6);
        assert!(data.len() > 1000, "{}", data.len());
        assert!(node.count(Reason::PodFromToldTooBig) > 0);
        assert_eq!(node.count(Reason::PodFromTooBig), 0);
        node.ends();
    });
}
