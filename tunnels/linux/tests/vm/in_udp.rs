//! IPsec in the kernel with a peer whose agent carries itself, so in UDP: both understand each other, and a NAT before the peer is
//! followed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use hawser_model::{BootId, Epoch, EspEnd, PublicKey};
use hawser_tunnels::{Desired, Device, Keyring, Peer};
use hawser_tunnels_linux::{Driver, IpsecConfig, IpsecDriver, UserIpsecDriver};

use crate::flow::{a_while, nothing_is_lost_while};
use crate::ipsec::{Node, SECRET, allowed, config, protocols};
use crate::node::{endpoint, mesh_v4, mesh_v6, name, reconcile};
use crate::world::{Capture, Netns, World, echo_by_tcp, eventually};

fn peer(n: u8, public_key: PublicKey, esp: EspEnd, boot_id: &BootId, at: [u8; 4]) -> Peer {
    Peer {
        name: name(n),
        public_key,
        endpoint: endpoint(at),
        allowed: allowed(n),
        keepalive: None,
        more_ports: Vec::new(),
        boot_id: Some(boot_id.clone()),
        esp: Some(esp),
        via: None,
        slot: n.into(),
    }
}

/// Rewrites the ports of what `b` sends, and lets nothing in that was not asked for.
fn nat_before_b(world: &World) {
    for command in [
        "iptables -t nat -A POSTROUTING -o eth1 -p udp -s 172.31.2.2 -j MASQUERADE --to-ports 20000-30000 --random",
        "iptables -A FORWARD -i eth1 -o eth2 -p udp -m conntrack --ctstate NEW -j DROP",
    ] {
        world.router.run(command);
    }
}

fn the_nat_forgets_after(world: &World, seconds: u32) {
    for kind in ["udp_timeout", "udp_timeout_stream"] {
        world.router.run(&format!("sysctl -qw net.netfilter.nf_conntrack_{kind}={seconds}"));
    }
}

/// What the kernel's end is to have is written into it; gives what the other end is to have.
fn introduced(one: &mut Node<'_>, user: &UserIpsecDriver, config: &IpsecConfig) -> Desired {
    let device =
        Device { name: config.device.clone(), public_key: user.public_key(), ..one.desired.device.clone() };
    let mut desired = Desired { device, addresses: [mesh_v4(2), mesh_v6(2)].into(), ..one.desired.clone() };
    one.desired.routes.extend(allowed(2));
    desired.routes.extend(allowed(1));
    one.desired.peers = vec![peer(2, user.public_key(), user.end(), &config.boot_id, [172, 31, 2, 2])];
    let end = one.driver.end().unwrap();
    desired.peers = vec![peer(1, one.driver.public_key(), end, &one.config.boot_id, [172, 31, 1, 2])];
    desired
}

#[test]
fn a_peer_behind_a_nat_is_followed_from_port_to_port_by_the_kernel() {
    let world = World::new();
    nat_before_b(&world);
    let mut one = Node::start(&world.a, 1, SECRET);
    let config = config(2, SECRET, PathBuf::new());
    let user = world.b.inside(|| UserIpsecDriver::start(config.clone(), false)).unwrap();
    let desired = introduced(&mut one, &user, &config);
    one.reconcile();
    world.b.inside(|| reconcile(&user, &desired));
    assert!(!world.a.pings(mesh_v4(2)), "nothing gets in");

    let at = |driver: &IpsecDriver| {
        world.a.inside(|| driver.stats()).unwrap().peers[&user.public_key()].endpoint.unwrap()
    };
    eventually("it is followed to where it is heard from", || world.b.pings(mesh_v4(1)));
    let first = at(&one.driver);
    assert_eq!(first.ip(), IpAddr::from([172, 31, 1, 1]), "the NAT's address");
    assert!((20000..=30000).contains(&first.port()), "{first}");
    assert_eq!(one.reconcile(), [], "and left there, though another address is stated");
    echo_by_tcp(&world.a, &world.b, mesh_v4(2), 1 << 18);

    // The NAT forgets it, and gives it another port.
    the_nat_forgets_after(&world, 1);
    eventually("it has another port", || {
        std::thread::sleep(Duration::from_secs(2));
        world.b.pings(mesh_v4(1));
        at(&one.driver) != first
    });
    the_nat_forgets_after(&world, 120);
    eventually("it is followed again", || world.b.pings(mesh_v4(1)));
    assert!(world.a.pings(mesh_v4(2)) && world.b.pings(mesh_v6(1)));
    let states = world.a.run("ip xfrm state");
    assert!(!states.contains(&format!("port {}", first.port())), "in both directions: {states}");

    // It was heard from where nobody states, so the core wants it there, and a sign of life now and then.
    one.desired.peers[0].endpoint = at(&one.driver);
    one.desired.peers[0].keepalive = Some(25);
    assert_eq!(one.reconcile().len(), 2);
    assert_eq!(one.reconcile(), []);
    let wire = Capture::on(&world.router);
    one.netns.inside(|| one.driver.tend(&one.config.keyring)).unwrap();
    let is_keepalive = |f: &Vec<u8>| f.len() > 42 && f[23] == 17 && f[38..40] == [0, 9] && f[42] == 0xff;
    eventually("the octet of RFC 3948", || wire.frames.lock().unwrap().iter().any(is_keepalive));

    // The next run finds it where it was.
    let again = one.restart();
    assert_eq!(at(&again), one.desired.peers[0].endpoint);
    let ops = world.a.inside(|| reconcile(&again, &one.desired));
    assert_eq!(ops.len(), 1, "the keepalive alone: {ops:?}");
    assert!(world.a.pings(mesh_v4(2)));
}

#[test]
fn the_kernel_and_an_agent_that_carries_itself_understand_each_other() {
    let world = World::new();
    let wire = Capture::on(&world.router);
    let mut one = Node::start(&world.a, 1, SECRET);
    let config = config(2, SECRET, PathBuf::new());
    let mut user = world.b.inside(|| UserIpsecDriver::start(config.clone(), false)).unwrap();
    let mut desired = introduced(&mut one, &user, &config);
    one.reconcile();
    assert_eq!(one.reconcile(), []);
    world.b.inside(|| reconcile(&user, &desired));
    assert_eq!(world.b.inside(|| reconcile(&user, &desired)), []);

    assert!(world.a.pings(mesh_v4(2)), "{}", world.a.run("ip -s xfrm state"));
    assert!(world.b.pings(mesh_v6(1)));
    echo_by_tcp(&world.a, &world.b, mesh_v4(2), 1 << 20);
    echo_by_tcp(&world.b, &world.a, mesh_v6(1), 1 << 18);
    assert_eq!(protocols(&wire, [172, 31, 1, 2], [172, 31, 2, 2]), BTreeSet::from([17]), "ESP in UDP alone");
    assert!(world.a.run("ip xfrm state").contains("encap type espinudp sport 51871 dport 51871"));

    // Either end's successor begins before the predecessor ends, and new keys come.
    nothing_is_lost_while(&world, || {
        a_while();
        let again = one.restart();
        assert_eq!(world.a.inside(|| reconcile(&again, &one.desired)), []);
        one.driver = again;
        a_while();
        user = world.b.inside(|| UserIpsecDriver::start(config.clone(), true)).unwrap();
        world.b.inside(|| reconcile(&user, &desired));
        let next = Keyring::parse(&format!("{SECRET}\n{}", SECRET.replace("1 00", "2 ff"))).unwrap();
        one.desired.peers[0].esp = Some(user.tend(&next).unwrap());
        desired.peers[0].esp = Some(world.a.inside(|| one.driver.tend(&next)).unwrap());
        a_while();
        one.reconcile();
        a_while();
        world.b.inside(|| reconcile(&user, &desired));
        a_while();
    });
    let sends =
        |driver: &dyn Driver, netns: &Netns| netns.inside(|| driver.stats()).unwrap().keys.unwrap().sends;
    let second = [(Epoch::new(2).unwrap(), 1)].into();
    assert_eq!(
        (sends(&one.driver, &world.a), sends(&user, &world.b)),
        (second, [(Epoch::new(2).unwrap(), 1)].into())
    );

    // Over IPv6 as well.
    one.desired.peers[0].endpoint = endpoint("fd31:2::2".parse::<IpAddr>().unwrap());
    desired.peers[0].endpoint = endpoint("fd31:1::2".parse::<IpAddr>().unwrap());
    one.reconcile();
    world.b.inside(|| reconcile(&user, &desired));
    assert!(world.a.pings(mesh_v4(2)) && world.b.pings(mesh_v6(1)));
}
