//! An underlay of jumbo frames is used as soon as it is known to carry them, and no longer than that.

use std::net::UdpSocket;

use hawser_tunnels_linux::Choice;
use nix::sys::socket::{getsockopt, sockopt};

use crate::node::{Node, endpoint, mesh_v4};
use crate::world::{World, echo_by_tcp, eventually, run, send_udp};

const JUMBO: u16 = 8920;
const BASE: u16 = 1420;

fn widen(world: &World, mtu: u32) {
    for (node, n) in [(&world.a, 1), (&world.b, 2)] {
        run(&format!("ip -n {} link set eth0 mtu {mtu}", node.name));
        run(&format!("ip -n {} link set eth{n} mtu {mtu}", world.router.name));
    }
}

fn carries(node: &Node<'_>) -> u16 {
    node.stats().peers.values().next().unwrap().mtu.unwrap()
}

#[test]
fn jumbo_frames_are_used_where_probes_arrive_and_a_path_that_shrinks_is_no_black_hole() {
    let world = World::new();
    widen(&world, 9000);
    let (mut one, mut two) =
        (Node::start_as(Choice::Userspace, &world.a, 1), Node::start_as(Choice::Userspace, &world.b, 2));
    one.add_peer(2, two.driver.public_key(), endpoint([172, 31, 2, 2]), &[]);
    two.add_peer(1, one.driver.public_key(), endpoint([172, 31, 1, 2]), &[]);
    for node in [&mut one, &mut two] {
        node.desired.device.mtu = JUMBO;
        node.reconcile();
    }
    assert_eq!(carries(&one), BASE, "nothing is known yet");
    let talk = || echo_by_tcp(&world.a, &world.b, mesh_v4(2), 2 << 20);
    talk();
    eventually("both ends know that the path is wide", || carries(&one) == JUMBO && carries(&two) == JUMBO);
    talk();
    assert_eq!(one.dropped("too-big") + two.dropped("too-big"), 0);

    // Nobody says so: what is too large for the router is dropped on its way in.
    run(&format!("ip -n {} link set eth2 mtu 1500", world.router.name));
    talk();
    eventually("both ends are back at the base", || {
        let _ = send_udp(&world.a, "240.2.0.1:9", b"used");
        let _ = send_udp(&world.b, "240.1.0.1:9", b"used");
        carries(&one) == BASE && carries(&two) == BASE
    });
    talk();

    // What cannot be cut is answered: the device takes it, the path does not.
    world.a.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect("240.2.0.1:9").unwrap();
        eventually("the sender knows the path's MTU", || {
            // Refused once it is known.
            let _ = socket.send(&[7; 5000]);
            getsockopt(&socket, sockopt::IpMtu).unwrap() == i32::from(BASE)
        });
    });
    assert!(one.dropped("too-big") > 0);
}
