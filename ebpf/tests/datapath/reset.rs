//! Stuck connections, with a real socket in a pod of its own: what it hears when the other cluster is gone.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;

use hawser_ebpf_abi::{
    CONFIG_CUT_OFF, HEALTH_NO_NEW, HEALTH_RESET, Port, RESET_NEVER, Reason, ResetWish, ServiceKey,
};
use nix::sys::socket::sockopt;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, connect, getsockopt, setsockopt, socket};

use crate::node::{Node, REMOTE, on_a_node};
use crate::sockets::{SERVICE, THERE, World, as_family, in_cgroup};
use crate::world::{in_a_namespace, ip};

const DOWN: u32 = HEALTH_NO_NEW | HEALTH_RESET;
const RST: u8 = 4;

fn speaks(stream: &mut TcpStream) {
    // More than a segment: the device is given them uncut, and their checksum unfinished.
    stream.write_all(&[7; 20_000]).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
}

fn hears(stream: &mut TcpStream) -> Result<usize, ErrorKind> {
    stream.read(&mut [0; 10]).map_err(|error| error.kind())
}

/// What the pod says is a reset at once: nothing of it leaves.
fn ends_with_a_reset(node: Node, mut stream: TcpStream) {
    speaks(&mut stream);
    assert_eq!(hears(&mut stream), Err(ErrorKind::ConnectionReset));
    assert!(node.count(Reason::PodFromReset) > 0);
    assert_eq!(node.tunnel.has_now(), None);
    node.ends();
}

/// What the pod says leaves as it always did.
fn goes_on(node: Node, mut stream: TcpStream) {
    speaks(&mut stream);
    let data = node.sent(6);
    assert!(data.len() > 500, "{}", data.len());
    assert_eq!(node.count(Reason::PodFromReset), 0);
    // A peer that is there ends the wait.
    let word = |at: usize| data[at..at + 4].try_into().unwrap();
    node.answers(&data, word(28), word(24), RST, &[]);
    assert_eq!(hears(&mut stream), Err(ErrorKind::ConnectionReset));
    node.ends();
}

#[test]
fn a_pods_connection_to_a_cluster_that_is_down_ends_with_a_reset_at_its_next_packet() {
    on_a_node(|mut node| {
        let stream = node.connects(&[]);
        node.datapath.maps.set_cluster_health(2, DOWN).unwrap();
        ends_with_a_reset(node, stream);
    });
}

#[test]
fn a_pods_connection_to_a_node_that_is_down_ends_as_well() {
    on_a_node(|mut node| {
        let stream = node.connects(&[]);
        node.datapath.maps.set_node_health(1, DOWN).unwrap();
        ends_with_a_reset(node, stream);
    });
}

#[test]
fn what_is_to_be_left_alone_goes_on_into_the_tunnel() {
    let lone: [fn(&mut Node); 4] = [
        |node| node.datapath.maps.set_cluster_health(2, HEALTH_NO_NEW).unwrap(),
        |node| node.datapath.maps.set_cluster_health(3, DOWN).unwrap(),
        |node| {
            node.desired.config.flags |= CONFIG_CUT_OFF;
            node.datapath.maps.set_cluster_health(2, DOWN).unwrap();
        },
        |node| {
            let backend = ServiceKey::new(ip(REMOTE), Port::new(80), 6);
            node.desired.reset_wishes.insert(backend, ResetWish { ticks: RESET_NEVER.into() });
            node.datapath.maps.set_cluster_health(2, DOWN).unwrap();
        },
    ];
    for happens in lone {
        in_a_namespace(move |config| {
            let mut node = Node::new(config);
            let stream = node.connects(&[]);
            happens(&mut node);
            node.sync();
            goes_on(node, stream);
        });
    }
}

#[test]
fn a_connection_to_another_cluster_keeps_itself_alive_unless_its_program_chose_otherwise() {
    in_a_namespace(|config| {
        let mut world = World::new(config);
        let asks = |world: &World, own: bool| {
            let to = as_family(SERVICE.parse().unwrap(), AddressFamily::Inet);
            in_cgroup(&world.cgroup, move |report| {
                let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None)?;
                if own {
                    setsockopt(&socket, sockopt::KeepAlive, &true)?;
                    setsockopt(&socket, sockopt::TcpKeepIdle, &77)?;
                }
                connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &to)?;
                let idle = getsockopt(&socket, sockopt::TcpKeepIdle)?;
                let said: &[u8] = match (getsockopt(&socket, sockopt::KeepAlive)?, idle) {
                    (true, 10) => b"ours",
                    (true, 77) => b"its own",
                    (false, _) => b"none",
                    _ => b"something else",
                };
                nix::unistd::write(report, said).map(drop)
            })
        };
        // Everybody goes to the other cluster.
        world.datapath.maps.set_cluster_health(1, HEALTH_NO_NEW).unwrap();
        assert_eq!((asks(&world, false).as_str(), asks(&world, true).as_str()), ("ours", "its own"));
        assert_eq!(world.count(Reason::KeepAliveSet), 1);
        let there: std::net::SocketAddr = THERE.parse().unwrap();
        let backend = ServiceKey::new(there.ip().into(), Port::new(there.port()), 6);
        world.desired.reset_wishes.insert(backend, ResetWish { ticks: RESET_NEVER.into() });
        world.sync();
        assert_eq!(asks(&world, false), "none", "what never ends need not speak");
        // And home.
        world.datapath.maps.set_cluster_health(1, 256).unwrap();
        world.datapath.maps.set_cluster_health(2, HEALTH_NO_NEW).unwrap();
        world.desired.reset_wishes.clear();
        world.sync();
        assert_eq!(asks(&world, false), "none");
    });
}
