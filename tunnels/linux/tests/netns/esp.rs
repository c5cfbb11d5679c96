//! ESP in UDP between two engines: what crosses the wire, who may speak, and whose numbers go on.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use hawser_model::BootId;
use hawser_tunnels::{Desired, DeviceName, EspKey, Keyring, Op, Peer, Sa, Wear};
use hawser_tunnels_linux::{
    AssociateError, Driver, DriverError, Engine, EngineSettings, IpsecConfig, PrivateKey, Protocol, Stats,
    UserIpsecDriver,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::flow::{a_while, keyring, nothing_is_lost_while};
use crate::node::{MARK, PORT, TABLE, config, desired, endpoint, mesh_v4, mesh_v6, name, reconcile};
use crate::raw::ipv4_udp;
use crate::world::{Capture, Netns, World, echo_by_tcp, eventually, unique};

const SECRET: &str = "1 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

pub(crate) struct EspNode<'a> {
    netns: &'a Netns,
    pub(crate) driver: UserIpsecDriver,
    desired: Desired,
    config: IpsecConfig,
}

impl<'a> EspNode<'a> {
    pub(crate) fn start(netns: &'a Netns, n: u8) -> Self {
        let device = DeviceName::parse(&unique()).unwrap();
        let config = ipsec(n, device, SECRET);
        let driver = netns.inside(|| UserIpsecDriver::start(config.clone(), false)).unwrap();
        let desired = wanted(&config, &driver, n);
        Self { netns, driver, desired, config }
    }

    pub(crate) fn meet(&mut self, other: &UserIpsecDriver, n: u8, at: SocketAddr) {
        let allowed: BTreeSet<_> = [mesh_v4(n), mesh_v6(n)].map(ipnet::IpNet::from).into();
        self.desired.routes.extend(&allowed);
        self.desired.peers.retain(|peer| peer.name != name(n));
        self.desired.peers.push(Peer {
            name: name(n),
            public_key: other.public_key(),
            endpoint: at,
            allowed,
            keepalive: None,
            boot_id: Some(boot(n)),
            esp: Some(other.end()),
            more_ports: Vec::new(),
            via: None,
            slot: u32::from(n),
        });
        self.reconcile();
    }

    fn reconcile(&self) {
        self.netns.inside(|| reconcile(&self.driver, &self.desired));
    }

    pub(crate) fn stats(&self) -> Stats {
        self.driver.stats().unwrap()
    }

    fn dropped(&self, reason: &str) -> u64 {
        self.stats().drops.iter().find(|(name, _)| *name == reason).expect("a reason that exists").1
    }
}

fn boot(n: u8) -> BootId {
    BootId::parse(&format!("6c1f0c1e-1111-4222-8333-4444555566{n:02x}")).unwrap()
}

fn ipsec(n: u8, device: DeviceName, secret: &str) -> IpsecConfig {
    IpsecConfig {
        device,
        port: PORT,
        mtu: 1420,
        mark: MARK,
        table: TABLE,
        name: name(n),
        boot_id: boot(n),
        keyring: Keyring::parse(secret).unwrap(),
        wear: Wear::DEFAULT,
        ledger: Default::default(),
    }
}

fn wanted(esp: &IpsecConfig, driver: &UserIpsecDriver, n: u8) -> Desired {
    desired(&config(esp.device.clone(), Default::default()), driver.public_key(), n)
}

pub(crate) fn connected<'a>(a: &'a Netns, b: &'a Netns) -> (EspNode<'a>, EspNode<'a>) {
    let (mut one, mut two) = (EspNode::start(a, 1), EspNode::start(b, 2));
    one.meet(&two.driver, 2, endpoint([172, 31, 2, 2]));
    two.meet(&one.driver, 1, endpoint([172, 31, 1, 2]));
    for node in [&one, &two] {
        assert_eq!(node.netns.inside(|| reconcile(&node.driver, &node.desired)), []);
    }
    (one, two)
}

#[test]
fn two_engines_carry_both_families_by_esp_in_udp_and_nothing_else_crosses() {
    let world = World::new();
    let (one, two) = connected(&world.a, &world.b);
    let capture = Capture::on(&world.router);
    assert!(world.a.pings(mesh_v4(2)), "there is nothing to shake hands about: the first packet arrives");
    assert!(world.b.pings(mesh_v6(1)));
    echo_by_tcp(&world.a, &world.b, mesh_v4(2), 8 << 20);
    echo_by_tcp(&world.b, &world.a, mesh_v6(1), 1 << 20);
    let marker = b"a marker that nobody else writes";
    let there = world.b.inside(|| UdpSocket::bind(SocketAddr::new(mesh_v4(2), 0)).unwrap());
    there.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let here = world.a.inside(|| UdpSocket::bind(SocketAddr::new(mesh_v4(1), 0)).unwrap());
    here.send_to(marker, there.local_addr().unwrap()).unwrap();
    let mut data = [0; 64];
    let (length, from) = there.recv_from(&mut data).unwrap();
    assert_eq!((&data[..length], from.ip()), (&marker[..], mesh_v4(1)));
    let ports = capture.ipv4_ports();
    assert!(!ports.is_empty() && ports.iter().all(|port| *port == PORT), "{ports:?}");
    assert!(!capture.saw(marker));
    for (node, peer) in [(&one, &two), (&two, &one)] {
        let stats = &node.stats().peers[&peer.driver.public_key()];
        assert!(stats.rx_bytes > 8 << 20 && stats.tx_bytes > 8 << 20 && stats.last_handshake.is_some());
        assert_eq!((node.dropped("bad-tag"), node.dropped("replayed"), node.dropped("malformed")), (0, 0, 0));
    }
}

#[test]
fn an_underlay_of_ipv6_serves_as_well() {
    let world = World::new();
    let (mut one, mut two) = (EspNode::start(&world.a, 1), EspNode::start(&world.b, 2));
    // ESP in UDP over IPv6 costs 85 octets.
    (one.desired.device.mtu, two.desired.device.mtu) = (1412, 1412);
    let at = |n: u8| endpoint(format!("fd31:{n}::2").parse::<IpAddr>().unwrap());
    one.meet(&two.driver, 2, at(2));
    two.meet(&one.driver, 1, at(1));
    echo_by_tcp(&world.a, &world.b, mesh_v4(2), 1 << 20);
}

/// An engine with an association of known keys, and the other end made by hand.
struct ByHand<'a> {
    engine: Engine,
    peer: hawser_model::PublicKey,
    socket: UdpSocket,
    inner: UdpSocket,
    world: &'a World,
}

fn sa(spi: u32, seed: u8) -> Sa {
    Sa { spi, key: EspKey::new(&[seed; 36]).unwrap() }
}

impl<'a> ByHand<'a> {
    fn new(world: &'a World) -> Self {
        let key = |seed: u8| {
            let dir = tempfile::tempdir().unwrap();
            PrivateKey::load_or_create(&dir.path().join(seed.to_string())).unwrap()
        };
        let device = DeviceName::parse(&unique()).unwrap();
        let settings = EngineSettings {
            device: device.clone(),
            key: key(1),
            port: PORT,
            more_ports: Vec::new(),
            mark: 0,
            mtu: 1420,
            take_over: false,
            protocol: Protocol::Esp,
        };
        let engine = world.a.inside(|| Engine::start(settings)).unwrap();
        let peer = key(2).public();
        let encoded = world.a.run(&format!("wg show {device} public-key"));
        assert_eq!(encoded.trim().len(), 44, "the ordinary tool looks at this engine, too");
        world.a.run(&format!("ip addr add 10.1.0.1/32 dev {device}"));
        world.a.run(&format!("ip link set {device} mtu 1420 up"));
        world.a.run(&format!("ip route add 10.2.0.0/16 dev {device}"));
        let set = format!(
            "wg set {device} peer {} endpoint 172.31.2.2:4500 allowed-ips 10.2.0.0/16",
            base64(&peer)
        );
        world.a.run(&set);
        let socket = world.b.inside(|| UdpSocket::bind("0.0.0.0:4500").unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let inner = world.a.inside(|| UdpSocket::bind("10.1.0.1:0").unwrap());
        inner.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self { engine, peer, socket, inner, world }
    }

    fn dropped(&self, reason: &str) -> u64 {
        self.engine.drops().iter().find(|(name, _)| *name == reason).expect("a reason that exists").1
    }

    fn send(&self, datagram: &[u8]) {
        self.socket.send_to(datagram, endpoint([172, 31, 1, 2])).unwrap();
    }

    /// A packet for the engine's own socket.
    fn packet(&self, from: [u8; 4], data: &[u8]) -> Vec<u8> {
        let port = self.inner.local_addr().unwrap().port();
        ipv4_udp(from.into(), Ipv4Addr::new(10, 1, 0, 1), port, data)
    }

    fn gets(&self, data: &[u8]) {
        let mut buffer = [0; 64];
        let (length, _) = self.inner.recv_from(&mut buffer).expect("what may pass arrives");
        assert_eq!(&buffer[..length], data);
    }

    /// The number of the next datagram that the engine sends.
    fn sends(&self) -> (u32, u64) {
        self.inner.send_to(b"out", "10.2.0.1:9").unwrap();
        let mut buffer = [0; 2048];
        let length = self.socket.recv(&mut buffer).expect("it is sent");
        assert!(length > 40 && length.is_multiple_of(4));
        let spi = u32::from_be_bytes(buffer[..4].try_into().unwrap());
        (spi, u64::from_be_bytes(buffer[8..16].try_into().unwrap()))
    }
}

fn base64(key: &hawser_model::PublicKey) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(key.as_bytes())
}

/// As RFC 4303 and 4106 have it, by other hands than the engine's.
fn sealed(sa: &Sa, number: u64, packet: &[u8]) -> Vec<u8> {
    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, sa.key.aes()).unwrap());
    let nonce = [&sa.key.salt()[..], &number.to_be_bytes()].concat().try_into().unwrap();
    let bound = [&sa.spi.to_be_bytes()[..], &number.to_be_bytes()].concat();
    let padding = (4 - (packet.len() + 2) % 4) % 4;
    let mut text = packet.to_vec();
    text.extend((1..=padding as u8).chain([padding as u8, 4]));
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(bound), &mut text).unwrap();
    [&sa.spi.to_be_bytes()[..], &(number as u32).to_be_bytes(), &number.to_be_bytes(), &text].concat()
}

#[test]
fn what_is_not_the_peers_is_dropped_and_named() {
    let world = World::new();
    let node = ByHand::new(&world);
    let inbound = sa(0x1000, 1);
    node.engine.associate(&node.peer, Some(&sa(0x2000, 2)), std::slice::from_ref(&inbound)).unwrap();
    let counted = |reason: &str, count: u64| eventually(reason, || node.dropped(reason) == count);

    node.send(&[0xff]);
    node.send(&[0; 100]);
    counted("malformed", 1);
    node.send(b"hello");
    counted("malformed", 2);
    node.send(&sealed(&sa(0x1001, 1), 1, &node.packet([10, 2, 0, 1], b"unknown")));
    counted("no-session", 1);
    node.send(&sealed(&sa(0x1000, 9), 1, &node.packet([10, 2, 0, 1], b"another key")));
    counted("bad-tag", 1);
    node.send(&sealed(&inbound, 1, &node.packet([10, 3, 0, 1], b"another's address")));
    counted("bad-source", 1);
    let good = sealed(&inbound, 2, &node.packet([10, 2, 0, 1], b"the peer's"));
    node.send(&good);
    node.gets(b"the peer's");
    node.send(&good);
    counted("replayed", 1);
    // Traffic flow confidentiality: what lies behind the packet is cut off (RFC 4303 §2.7).
    let padded = [node.packet([10, 2, 0, 1], b"short"), vec![0; 200]].concat();
    node.send(&sealed(&inbound, 3, &padded));
    node.gets(b"short");
    node.send(&sealed(&inbound, 4, &[0x45; 10]));
    counted("inner-not-ip", 1);
    assert_eq!(node.dropped("panicked"), 0);
}

/// Whoever has the keys may seal whatever they like.
#[test]
fn nothing_that_is_authentic_or_nearly_so_brings_an_engine_down() {
    let world = World::new();
    let node = ByHand::new(&world);
    let inbound = sa(0x1000, 1);
    node.engine.associate(&node.peer, Some(&sa(0x2000, 2)), std::slice::from_ref(&inbound)).unwrap();
    let mut rng = StdRng::seed_from_u64(0x4877);
    let honest = node.packet([10, 2, 0, 1], &[7; 100]);
    for number in 1..=4000 {
        let mut packet = honest.clone();
        for _ in 0..rng.random_range(0..6) {
            let at = rng.random_range(0..packet.len().min(40));
            packet[at] = rng.random();
        }
        packet.truncate(rng.random_range(0..=packet.len()));
        let mut datagram = sealed(&inbound, number, &packet);
        if rng.random_range(0..4) == 0 {
            let at = rng.random_range(0..datagram.len());
            datagram[at] ^= 1 << rng.random_range(0..8);
            datagram.truncate(rng.random_range(1..=datagram.len()));
        }
        node.send(&datagram);
    }
    node.send(&sealed(&inbound, 4001, &node.packet([10, 2, 0, 1], b"still here")));
    let mut buffer = [0; 2048];
    while let Ok((length, _)) = node.inner.recv_from(&mut buffer) {
        if &buffer[..length] == b"still here" {
            assert_eq!(node.dropped("panicked"), 0);
            return;
        }
    }
    panic!("an honest packet arrives after all that");
}

#[test]
fn keys_change_without_a_gap_and_numbers_never_begin_anew() {
    let world = World::new();
    let node = ByHand::new(&world);
    let (old_in, new_in, old_out, new_out) = (sa(0x1000, 1), sa(0x1001, 3), sa(0x2000, 2), sa(0x2001, 4));
    let set =
        |outbound: &Sa, inbound: &[Sa]| node.engine.associate(&node.peer, Some(outbound), inbound).unwrap();
    set(&old_out, std::slice::from_ref(&old_in));
    assert_eq!((node.sends(), node.sends()), ((0x2000, 1), (0x2000, 2)));

    // Both are understood while the ends change one after the other.
    set(&old_out, &[old_in.clone(), new_in.clone()]);
    node.send(&sealed(&old_in, 1, &node.packet([10, 2, 0, 1], b"old")));
    node.gets(b"old");
    node.send(&sealed(&new_in, 1, &node.packet([10, 2, 0, 1], b"new")));
    node.gets(b"new");
    assert_eq!(node.sends(), (0x2000, 3), "what stays goes on");
    set(&new_out, &[old_in.clone(), new_in.clone()]);
    assert_eq!(node.sends(), (0x2001, 1));
    set(&new_out, std::slice::from_ref(&new_in));
    node.send(&sealed(&old_in, 2, &node.packet([10, 2, 0, 1], b"too late")));
    eventually("the old one is gone", || node.dropped("no-session") == 1);

    // They come back, and nothing is sent twice under one number or taken twice.
    set(&old_out, std::slice::from_ref(&old_in));
    let (spi, number) = node.sends();
    assert!(spi == 0x2000 && number > 3, "{number}");
    node.send(&sealed(&old_in, 1, &node.packet([10, 2, 0, 1], b"old")));
    eventually("it is remembered", || node.dropped("replayed") == 1);
    node.send(&sealed(&old_in, 2, &node.packet([10, 2, 0, 1], b"in time")));
    node.gets(b"in time");

    // Also when the peer itself goes and comes back.
    let device = format!("{:?}", node.engine);
    let device = device.rsplit(' ').next().unwrap();
    let key = base64(&node.peer);
    node.world.a.run(&format!("wg set {device} peer {key} remove"));
    let refused = node.engine.associate(&node.peer, None, &[]).unwrap_err();
    assert_eq!(refused, AssociateError::UnknownPeer { peer: node.peer });
    node.world.a.run(&format!("wg set {device} peer {key} endpoint 172.31.2.2:4500 allowed-ips 10.2.0.0/16"));
    set(&old_out, std::slice::from_ref(&old_in));
    assert!(node.sends().1 > number + 1);
    node.send(&sealed(&old_in, 2, &node.packet([10, 2, 0, 1], b"in time")));
    eventually("it is remembered still", || node.dropped("replayed") == 2);
}

#[test]
fn what_cannot_be_associated_says_why() {
    let world = World::new();
    let node = ByHand::new(&world);
    let set = |inbound: &[Sa]| node.engine.associate(&node.peer, None, inbound);
    let many: Vec<Sa> = (0..5).map(|n| sa(0x1000 + n, 1)).collect();
    assert_eq!(set(&many), Err(AssociateError::TooMany { count: 5 }));
    assert_eq!(set(&[sa(255, 1)]), Err(AssociateError::Reserved { spi: 255 }));
    assert_eq!(set(&[sa(0x1000, 1), sa(0x1000, 2)]), Err(AssociateError::Taken { spi: 0x1000 }));
    assert!(node.inner.send_to(b"out", "10.2.0.1:9").is_ok());
    eventually("without an association nothing goes out", || node.dropped("no-session") == 1);

    let cilium = "3+ rfc4106(gcm(aes)) 000102030405060708090a0b0c0d0e0f10111213 128";
    let config = ipsec(1, DeviceName::parse(&unique()).unwrap(), cilium);
    let refused = world.b.inside(|| UserIpsecDriver::start(config.clone(), false)).unwrap_err();
    assert!(matches!(refused, DriverError::CiliumInUserspace), "{refused}");
    assert!(!world.b.run("ip link").contains(config.device.as_str()), "no device was made");
}

#[test]
fn a_planned_restart_goes_on_with_the_same_keys_and_one_without_it_has_others() {
    let world = World::new();
    let (mut one, mut two) = connected(&world.a, &world.b);
    assert!(world.a.pings(mesh_v4(2)));
    for _ in 0..3 {
        let successor = world.a.inside(|| UserIpsecDriver::start(one.config.clone(), true)).unwrap();
        assert_eq!(successor.public_key(), one.driver.public_key());
        assert!(one.driver.is_given());
        one.driver = successor;
        assert!(world.b.pings(mesh_v4(1)), "before anything is planned");
        // It derives what it was given itself: the secret may be another one.
        let adds = |op: &Op| matches!(op, Op::AddPeer { .. });
        assert!(one.netns.inside(|| reconcile(&one.driver, &one.desired)).iter().any(adds));
        assert_eq!(one.netns.inside(|| reconcile(&one.driver, &one.desired)), []);
        assert!(world.a.pings(mesh_v4(2)) && world.b.pings(mesh_v6(1)));
    }
    assert_eq!((one.dropped("replayed"), two.dropped("replayed")), (0, 0), "no number was used twice");

    // With another secret it goes on understanding who has not got it yet.
    let other = IpsecConfig { keyring: keyring(&[2]), ..one.config.clone() };
    one.driver = world.a.inside(|| UserIpsecDriver::start(other, true)).unwrap();
    one.reconcile();
    assert!(world.a.pings(mesh_v4(2)) && world.b.pings(mesh_v4(1)));
    assert_eq!((one.dropped("no-session"), two.dropped("no-session")), (0, 0));

    // A process that ends takes its keys along: the peer hears of the new one by the control plane.
    let (before, EspNode { netns, driver, config, .. }) = (one.driver.public_key(), one);
    drop(driver);
    let mut started = None;
    // A command that another test is about to run holds what this process had, until it is that command.
    eventually("the port is free", || {
        started = netns.inside(|| UserIpsecDriver::start(config.clone(), false)).ok();
        started.is_some()
    });
    let driver = started.unwrap();
    assert_ne!(driver.public_key(), before);
    let mut one = EspNode { netns, desired: wanted(&config, &driver, 1), driver, config };
    one.meet(&two.driver, 2, endpoint([172, 31, 2, 2]));
    assert!(!world.b.pings(mesh_v4(1)), "the peer's old association is nobody's now");
    two.meet(&one.driver, 1, endpoint([172, 31, 1, 2]));
    assert!(world.b.pings(mesh_v4(1)) && world.a.pings(mesh_v6(2)));
}

#[test]
fn two_secrets_do_not_understand_each_other() {
    let world = World::new();
    let (mut one, mut two) = (EspNode::start(&world.a, 1), EspNode::start(&world.b, 2));
    let config = ipsec(2, two.config.device.clone(), &SECRET.replace("1 00", "1 ff"));
    drop(two.driver);
    two.driver = world.b.inside(|| UserIpsecDriver::start(config, false)).unwrap();
    two.desired = wanted(&two.config, &two.driver, 2);
    one.meet(&two.driver, 2, endpoint([172, 31, 2, 2]));
    two.meet(&one.driver, 1, endpoint([172, 31, 1, 2]));
    assert!(!world.a.pings(mesh_v4(2)));
    eventually("it is counted", || two.dropped("no-session") > 0);
}

#[test]
fn secrets_and_worn_keys_change_under_traffic_and_nothing_is_lost() {
    let world = World::new();
    let wear = Wear { rest: Duration::from_millis(300), ..Wear::DEFAULT };
    let start = |netns, n| {
        let config = IpsecConfig {
            keyring: keyring(&[1]),
            wear,
            ..ipsec(n, DeviceName::parse(&unique()).unwrap(), SECRET)
        };
        let driver = world_inside(netns, &config);
        EspNode { netns, desired: wanted(&config, &driver, n), driver, config }
    };
    let (mut one, mut two) = (start(&world.a, 1), start(&world.b, 2));
    let at = [endpoint([172, 31, 1, 2]), endpoint([172, 31, 2, 2])];
    let hear = |one: &mut EspNode<'_>, two: &EspNode<'_>, n: u8| {
        one.meet(&two.driver, n, at[usize::from(n) - 1]);
        assert_eq!(one.netns.inside(|| reconcile(&one.driver, &one.desired)), []);
        a_while();
    };
    hear(&mut one, &two, 2);
    hear(&mut two, &one, 1);
    let receives = |node: &EspNode<'_>| {
        node.stats().keys.unwrap().receives.iter().map(|of| of.to_string()).collect::<Vec<_>>()
    };
    nothing_is_lost_while(&world, || {
        // One node has the new secret beside the old one before the other has heard of it, and then alone.
        one.driver.tend(&keyring(&[1, 2])).unwrap();
        a_while();
        hear(&mut two, &one, 1);
        two.driver.tend(&keyring(&[2])).unwrap();
        a_while();
        hear(&mut one, &two, 2);
        hear(&mut two, &one, 1);
        one.driver.tend(&keyring(&[2])).unwrap();
        hear(&mut two, &one, 1);
        eventually("the old one rests, and goes", || {
            one.driver.tend(&keyring(&[2])).unwrap();
            two.driver.tend(&keyring(&[2])).unwrap();
            receives(&one).len() + receives(&two).len() == 2
        });
        assert_eq!((receives(&one), receives(&two)), (vec!["2.2".into()], vec!["2.2".into()]));
        assert_eq!(one.stats().keys.unwrap().sends, [(hawser_model::Epoch::new(2).unwrap(), 1)].into());

        // A key that is worn: here after a few packets.
        one.config =
            IpsecConfig { keyring: keyring(&[2]), wear: Wear { bytes: 1, ..wear }, ..one.config.clone() };
        one.driver = one.netns.inside(|| UserIpsecDriver::start(one.config.clone(), true)).unwrap();
        one.driver.tend(&keyring(&[2])).unwrap();
        hear(&mut one, &two, 2);
        one.driver.tend(&keyring(&[2])).unwrap();
        assert_eq!(receives(&one), ["2.2", "2.3"]);
        hear(&mut two, &one, 1);
        eventually("the worn one goes", || {
            one.driver.tend(&keyring(&[2])).unwrap();
            !receives(&one).contains(&"2.2".to_owned())
        });
    });
    for node in [&one, &two] {
        assert_eq!(
            (node.dropped("no-session"), node.dropped("bad-tag"), node.dropped("replayed")),
            (0, 0, 0)
        );
    }
    let refused = one.driver.tend(&Keyring::parse(&SECRET.replace("1 00", "2 00")).unwrap()).unwrap_err();
    assert!(matches!(refused, DriverError::SecretChanged { .. }), "{refused}");
}

fn world_inside(netns: &Netns, config: &IpsecConfig) -> UserIpsecDriver {
    netns.inside(|| UserIpsecDriver::start(config.clone(), false)).unwrap()
}
