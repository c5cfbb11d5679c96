//! One pair of nodes over several ports: every flow arrives whole and in order, whatever the ports can do.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use crate::node::{Node, PORT, endpoint, mesh_v4};
use crate::survival::Process;
use crate::world::{Capture, World, eventually, unique};

const MORE: [u16; 2] = [51880, 51881];

const FLOWS: usize = 24;
/// On the way at a time, of one flow.
const WINDOW: u32 = 8;

/// Two nodes that know of each other's ports.
fn spread<'a>(world: &'a World, ports: [&[u16]; 2]) -> (Node<'a>, Node<'a>) {
    let start =
        |netns, n, ports: &[u16]| Node::start_with(netns, n, |config| config.more_ports = ports.into());
    let (mut one, mut two) = (start(&world.a, 1, ports[0]), start(&world.b, 2, ports[1]));
    one.add_peer(2, two.driver.public_key(), endpoint([172, 31, 2, 2]), &[]);
    two.add_peer(1, one.driver.public_key(), endpoint([172, 31, 1, 2]), &[]);
    one.desired.peers[0].more_ports = ports[1].into();
    two.desired.peers[0].more_ports = ports[0].into();
    for node in [&one, &two] {
        node.reconcile();
        assert_eq!(node.reconcile(), []);
    }
    assert!(world.a.pings(mesh_v4(2)));
    (one, two)
}

/// Numbered datagrams there and back in many flows at once.
struct Flows(Vec<[UdpSocket; 2]>);

impl Flows {
    fn between(world: &World) -> Self {
        let bound = |netns: &crate::world::Netns, at| {
            let socket = netns.inside(|| UdpSocket::bind(SocketAddr::new(at, 0)).unwrap());
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            socket
        };
        let flow = |_| {
            let (here, there) = (bound(&world.a, mesh_v4(1)), bound(&world.b, mesh_v4(2)));
            here.connect(there.local_addr().unwrap()).unwrap();
            there.connect(here.local_addr().unwrap()).unwrap();
            [here, there]
        };
        Self((0..FLOWS).map(flow).collect())
    }

    /// All arrive, each flow's in the order that they were sent in, on both ways.
    fn carry(&self, count: u32) {
        std::thread::scope(|scope| {
            for [here, there] in &self.0 {
                scope.spawn(move || {
                    for number in 0..count {
                        assert_eq!(received(there), number, "there");
                        there.send(&number.to_le_bytes()).unwrap();
                    }
                });
                scope.spawn(move || {
                    let (mut sent, mut back) = (0, 0);
                    while back < count {
                        // The kernel has a flow on the queue that its answers were written to: from the second on.
                        let window = if back == 0 { 1 } else { WINDOW };
                        while sent < count && sent < back + window {
                            here.send(&sent.to_le_bytes()).unwrap();
                            sent += 1;
                        }
                        assert_eq!(received(here), back, "and back");
                        back += 1;
                    }
                });
            }
        });
    }
}

fn received(socket: &UdpSocket) -> u32 {
    let mut number = [0; 4];
    assert_eq!(socket.recv(&mut number).expect("every datagram arrives"), 4);
    u32::from_le_bytes(number)
}

fn sessions(of: &Node<'_>, with: &Node<'_>) -> Option<u32> {
    of.stats().peers[&with.driver.public_key()].sessions
}

#[test]
fn flows_spread_over_the_ports_that_both_ends_have_and_each_stays_in_order() {
    let world = World::new();
    let (one, two) = spread(&world, [&MORE, &MORE]);
    assert_eq!(one.driver.more_ports(), MORE);
    let flows = Flows::between(&world);
    // What is the first of a flow goes by the first port, before there are sessions at the others.
    flows.carry(1);
    eventually("a session in each lane", || sessions(&one, &two) == Some(3));
    flows.carry(1);
    let capture = Capture::on(&world.router);
    flows.carry(400);
    eventually("all ports are in use", || {
        [PORT, 51880, 51881].iter().all(|port| capture.ipv4_ports().contains(port))
    });
    let ports = capture.ipv4_ports();
    assert!(ports.iter().all(|port| *port == PORT || MORE.contains(port)), "nothing else crosses");
    // To whoever asks with `wg` it is one peer with one sum.
    let device = one.device();
    assert_eq!(world.a.run(&format!("wg show {device} peers")).lines().count(), 1);
    let text = world.a.run(&format!("wg show {device} transfer"));
    let sent: u64 = text.split_whitespace().nth(2).unwrap().parse().unwrap();
    assert!(sent >= (FLOWS * 402 * 64) as u64, "{sent} bytes");
    assert_eq!((one.reconcile(), two.reconcile()), (vec![], vec![]));
}

#[test]
fn an_end_with_one_port_is_met_there_and_one_that_changes_its_mind_is_followed() {
    let world = World::new();
    let (mut one, mut two) = spread(&world, [&MORE, &[]]);
    let flows = Flows::between(&world);
    let capture = Capture::on(&world.router);
    flows.carry(50);
    assert!(capture.ipv4_ports().iter().all(|port| *port == PORT));
    assert_eq!(sessions(&one, &two), Some(1));
    drop(capture);
    // It says that it has a port, which it has not: nothing is lost by asking there.
    one.desired.peers[0].more_ports = vec![51880];
    assert_eq!(one.reconcile().len(), 1);
    assert_eq!(one.reconcile(), []);
    flows.carry(50);
    assert_eq!(sessions(&one, &two), Some(1));
    two.desired.peers[0].more_ports = MORE.into();
    two.reconcile();
    flows.carry(50);
    assert_eq!(two.dropped("send-failed"), 0, "what it has not it does not use");
}

#[test]
fn a_firewall_that_lets_the_first_port_through_alone_costs_no_flow() {
    let world = World::new();
    world.router.run("iptables -I FORWARD -p udp --dport 51880 -j DROP");
    let (one, two) = spread(&world, [&[51880], &[51880]]);
    let flows = Flows::between(&world);
    flows.carry(100);
    assert_eq!(sessions(&one, &two), Some(1));
}

#[test]
fn a_planned_restart_hands_every_lane_over() {
    let world = World::new();
    let ports = "51880 51881";
    let mut two = Node::start_with(&world.b, 2, |config| config.more_ports = MORE.into());
    let (device, dir) = (unique(), tempfile::tempdir().unwrap());
    let key = two.driver.public_key();
    let start = |take_over| Process::run_with(&world.a, &device, dir.path(), key, take_over, ports);
    let first = start(false);
    two.add_peer(1, first.key, endpoint([172, 31, 1, 2]), &[]);
    two.desired.peers[0].more_ports = MORE.into();
    two.reconcile();
    assert!(world.a.pings(mesh_v4(2)));
    let flows = Flows::between(&world);
    flows.carry(1);
    let state = || two.stats().peers[&first.key].clone();
    eventually("a session in each lane", || state().sessions == Some(3));
    flows.carry(1);
    let before = state().last_handshake;
    std::thread::scope(|scope| {
        let carried = scope.spawn(|| flows.carry(1500));
        let successor = start(true);
        carried.join().unwrap();
        flows.carry(100);
        assert_eq!((state().last_handshake, state().sessions), (before, Some(3)), "they go on");
        successor.kill();
    });
    drop(first);
}
