//! IPsec in the kernel under our driver: ESP and nothing else on the wire, a restart that nobody notices, and nobody else's
//! states touched.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use hawser_model::{BootId, PublicKey};
use hawser_tunnels::{Desired, Device, DeviceName, Keyring, Op, Peer, Wear};
use hawser_tunnels_linux::{Driver, DriverError, IpsecConfig, IpsecDriver, Kind};
use ipnet::IpNet;

use crate::flow::{a_while, keyring, nothing_is_lost_while};
use crate::kernel::lost_while;
use crate::node::{MARK, PORT, TABLE, endpoint, mesh_v4, mesh_v6, name, nets, reconcile};
use crate::world::{Capture, Netns, World, echo_by_tcp, eventually, output, run, send_udp, unique};

pub(crate) const SECRET: &str = "1 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
/// Of Cilium's Secret.
const CILIUM: &str = "3+ rfc4106(gcm(aes)) 000102030405060708090a0b0c0d0e0f10111213 128";

pub(crate) struct Node<'a> {
    pub(crate) netns: &'a Netns,
    pub(crate) driver: IpsecDriver,
    pub(crate) desired: Desired,
    pub(crate) config: IpsecConfig,
    dir: tempfile::TempDir,
}

impl<'a> Node<'a> {
    pub(crate) fn start(netns: &'a Netns, n: u8, secret: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = config(n, secret, dir.path().join("ipsec.state"));
        Self::start_with(netns, n, config, dir)
    }

    fn start_with(netns: &'a Netns, n: u8, config: IpsecConfig, dir: tempfile::TempDir) -> Self {
        let driver = netns.inside(|| IpsecDriver::start(config.clone())).unwrap();
        let desired = Desired {
            device: Device {
                name: config.device.clone(),
                public_key: driver.public_key(),
                port: PORT,
                mtu: 1420,
                mark: MARK,
            },
            addresses: [mesh_v4(n), mesh_v6(n)].into(),
            peers: Vec::new(),
            routes: BTreeSet::new(),
            guards: nets(&["240.0.0.0/4", "fd68:6177:7365::/48"]),
        };
        Self { netns, driver, desired, config, dir }
    }

    fn meet(&mut self, other: &Node<'_>, n: u8, at: SocketAddr) {
        self.desired.routes.extend(allowed(n));
        self.desired.peers.push(Peer {
            name: name(n),
            public_key: other.driver.public_key(),
            endpoint: at,
            allowed: allowed(n),
            keepalive: None,
            boot_id: Some(other.config.boot_id.clone()),
            esp: Some(other.driver.end().unwrap()),
            more_ports: Vec::new(),
            via: None,
            slot: n.into(),
        });
    }

    pub(crate) fn reconcile(&self) -> Vec<Op> {
        self.netns.inside(|| reconcile(&self.driver, &self.desired))
    }

    /// Another process for the same node; the old one does nothing any more.
    pub(crate) fn restart(&self) -> IpsecDriver {
        self.netns.inside(|| IpsecDriver::start(self.config.clone())).unwrap()
    }

    fn dropped(&self, reason: &str) -> u64 {
        let drops = self.netns.inside(|| self.driver.stats()).unwrap().drops;
        drops.iter().find(|(name, _)| *name == reason).expect("a reason that exists").1
    }
}

pub(crate) fn config(n: u8, secret: &str, ledger: PathBuf) -> IpsecConfig {
    IpsecConfig {
        device: DeviceName::parse(&unique()).unwrap(),
        port: PORT,
        mtu: 1420,
        mark: MARK,
        table: TABLE,
        name: name(n),
        boot_id: BootId::parse(&format!("6c1f0c1e-1111-4222-8333-44445555666{n}")).unwrap(),
        keyring: Keyring::parse(secret).unwrap(),
        wear: Wear::DEFAULT,
        ledger,
    }
}

fn connected<'a>(world: &'a World, secret: &str) -> (Node<'a>, Node<'a>) {
    connected_by(world, secret, [[172, 31, 1, 2].into(), [172, 31, 2, 2].into()])
}

fn connected_by<'a>(world: &'a World, secret: &str, at: [IpAddr; 2]) -> (Node<'a>, Node<'a>) {
    let (mut one, mut two) = (Node::start(&world.a, 1, secret), Node::start(&world.b, 2, secret));
    one.meet(&two, 2, endpoint(at[1]));
    two.meet(&one, 1, endpoint(at[0]));
    for node in [&one, &two] {
        node.reconcile();
        assert_eq!(node.reconcile(), [], "the second plan is empty");
    }
    (one, two)
}

/// IP protocols of what went between two addresses, in both directions.
pub(crate) fn protocols(wire: &Capture, one: [u8; 4], other: [u8; 4]) -> BTreeSet<u8> {
    let frames = wire.frames.lock().unwrap();
    let between = |f: &&Vec<u8>| {
        f.len() > 34 && f[12..14] == [8, 0] && {
            let ends: (&[u8], &[u8]) = (&f[26..30], &f[30..34]);
            ends == (&one, &other) || ends == (&other, &one)
        }
    };
    frames.iter().filter(between).map(|f| f[23]).collect()
}

/// A third node's worth of names: peers that nobody reaches.
fn strangers(world: &World, node: &mut Node<'_>, count: u8) {
    let other = Node::start(&world.router, 9, SECRET);
    for at in 0..count {
        let mut key = *other.driver.public_key().as_bytes();
        key[0] ^= at + 1;
        let allowed = nets(&[&format!("10.{}.0.0/16", 100 + at)]);
        node.desired.routes.extend(&allowed);
        node.desired.peers.push(Peer {
            name: name(20 + at),
            public_key: PublicKey::new(key).unwrap(),
            endpoint: endpoint([172, 31, 2, 100 + at]),
            allowed,
            keepalive: None,
            boot_id: None,
            esp: Some(other.driver.end().unwrap()),
            more_ports: Vec::new(),
            via: None,
            slot: u32::from(20 + at),
        });
    }
    world.router.inside(|| other.driver.remove()).unwrap();
}

#[test]
fn traffic_flows_in_both_families_and_only_esp_is_on_the_wire() {
    let world = World::new();
    let wire = Capture::on(&world.router);
    let (one, two) = connected(&world, SECRET);
    assert!(world.a.pings(mesh_v4(2)));
    assert!(world.b.pings(mesh_v6(1)));
    echo_by_tcp(&world.a, &world.b, mesh_v4(2), 1 << 20);
    echo_by_tcp(&world.b, &world.a, mesh_v6(1), 1 << 18);
    send_udp(&world.a, &format!("{}:9", mesh_v4(2)), b"what nobody else may read").unwrap();
    let protocols = protocols(&wire, [172, 31, 1, 2], [172, 31, 2, 2]);
    assert_eq!(protocols, BTreeSet::from([50]), "between the nodes there is ESP");
    assert!(!wire.saw(b"what nobody else may read"));
    let stats = world.a.inside(|| one.driver.stats()).unwrap();
    let peer = &stats.peers[&two.driver.public_key()];
    assert!(stats.in_kernel && peer.last_handshake.is_some());
    assert!(peer.rx_bytes > 1 << 20 && peer.tx_bytes > 1 << 20, "{peer:?}");
    states_are_as_strong_as_said(&world.a);
}

fn states_are_as_strong_as_said(netns: &Netns) {
    let shown = netns.run("ip -d xfrm state");
    assert_eq!(shown.matches("aead rfc4106(gcm(aes)) 0x").count(), 2, "{shown}");
    for part in
        ["flag af-unspec esn", "replay_window 4096", "mode tunnel", "if_id 0x4877", "mark 0x480000/0xff0000"]
    {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    // 32 octets of key and 4 of salt.
    let key =
        shown.split("0x").find(|part| part.split_whitespace().next().is_some_and(|hex| hex.len() == 72));
    assert!(key.is_some(), "{shown}");
}

#[test]
fn keys_in_ciliums_derivation_carry_as_well() {
    let world = World::new();
    let (one, _two) = connected(&world, CILIUM);
    assert!(world.a.pings(mesh_v4(2)));
    // A key that is made of boot ids alone would be used again with counters from the start.
    world.a.inside(|| one.driver.remove()).unwrap();
    let refused = world.a.inside(|| IpsecDriver::start(one.config.clone())).unwrap_err();
    assert!(matches!(refused, DriverError::CountersLost { .. }), "{refused}");
}

#[test]
fn nodes_with_different_secrets_hear_nothing_of_each_other() {
    let world = World::new();
    let (mut one, mut two) =
        (Node::start(&world.a, 1, SECRET), Node::start(&world.b, 2, &SECRET.replace("1 00", "1 ff")));
    one.meet(&two, 2, endpoint([172, 31, 2, 2]));
    two.meet(&one, 1, endpoint([172, 31, 1, 2]));
    one.reconcile();
    two.reconcile();
    assert!(!world.a.pings(mesh_v4(2)));
    assert!(two.dropped("xfrm-in-no-states") > 0);
}

#[test]
fn a_restart_finds_everything_as_it_was_and_loses_no_packet() {
    let world = World::new();
    let (one, _two) = connected(&world, SECRET);
    assert!(world.a.pings(mesh_v4(2)));
    let lost = lost_while(&world.b, mesh_v4(1), || {
        for _ in 0..5 {
            let again = one.restart();
            assert_eq!(again.public_key(), one.driver.public_key(), "counters go on under the same key");
            let ops = world.a.inside(|| reconcile(&again, &one.desired));
            assert_eq!(ops, [], "what the last process left is what is wanted");
        }
    });
    assert_eq!(lost, 0);
}

#[test]
fn states_and_policies_of_others_are_not_touched() {
    let world = World::new();
    let foreign = [
        "ip xfrm state add src 10.9.9.1 dst 10.9.9.2 proto esp spi 0x1000 reqid 7 mode tunnel aead rfc4106(gcm(aes)) 0x000102030405060708090a0b0c0d0e0f10111213 128",
        "ip xfrm policy add src 10.9.0.0/16 dst 10.8.0.0/16 dir out tmpl src 10.9.9.1 dst 10.9.9.2 proto esp reqid 7 mode tunnel",
        "ip xfrm policy add src 0.0.0.0/0 dst 10.7.0.0/16 dir out if_id 0x99 action block",
    ];
    foreign.iter().for_each(|command| drop(world.a.run(command)));
    let theirs = || {
        let shown = format!("{}{}", world.a.run("ip xfrm state"), world.a.run("ip xfrm policy"));
        ["0x00001000", "10.8.0.0/16", "10.7.0.0/16"].map(|part| shown.matches(part).count())
    };
    let before = theirs();
    assert_eq!(before, [1, 1, 1]);
    let (mut one, _two) = connected(&world, SECRET);
    assert!(world.a.pings(mesh_v4(2)));
    drop(one.restart());
    one.desired.peers.clear();
    one.desired.routes.clear();
    one.reconcile();
    assert_eq!(theirs(), before);
    world.a.inside(|| one.driver.remove()).unwrap();
    assert_eq!(theirs(), before);
    let left = format!("{}{}", world.a.run("ip xfrm state"), world.a.run("ip xfrm policy"));
    assert!(!left.contains("0x4877"), "of ours nothing stays: {left}");
    assert!(!output(&format!("ip -n {} link show {}", world.a.name, one.config.device)).status.success());
    assert!(!world.a.run("ip rule").contains("18551"));
}

#[test]
fn what_no_policy_allows_neither_leaves_nor_comes_in() {
    let world = World::new();
    let (mut one, two) = connected(&world, SECRET);
    assert!(world.a.pings(mesh_v4(2)));
    let wire = Capture::on(&world.router);
    // A route into the device that no peer owns.
    world.a.run(&format!("ip route add 10.66.0.0/16 dev {}", one.config.device));
    let _ = send_udp(&world.a, "10.66.0.1:9", b"a destination without a peer");
    // A peer may say only what is its own: its packets are decrypted, and dropped.
    world.b.run("ip addr add 10.55.0.1/32 dev lo");
    let _ = output(&format!("ip netns exec {} ping -c 2 -W 1 -I 10.55.0.1 {}", world.b.name, mesh_v4(1)));
    assert!(one.dropped("xfrm-in-blocked") + one.dropped("xfrm-in-bad-source") >= 2);
    // Taken away, the peer is gone at once, in both directions, and nothing of it leaves in clear.
    one.desired.peers.clear();
    one.reconcile();
    assert!(!world.a.pings(mesh_v4(2)) && !world.b.pings(mesh_v4(1)));
    let _ = send_udp(&world.a, &format!("{}:9", mesh_v4(2)), b"a peer that is gone");
    assert!(!wire.saw(b"a destination without a peer") && !wire.saw(b"a peer that is gone"));
    let between = protocols(&wire, [172, 31, 1, 2], [172, 31, 2, 2]);
    assert_eq!(between, BTreeSet::from([50]));
    drop(two);
}

#[test]
fn a_peer_that_comes_back_counts_on_and_states_that_are_gone_mean_a_new_key() {
    let world = World::new();
    let (mut one, two) = connected(&world, SECRET);
    assert!(world.a.pings(mesh_v4(2)));
    let sent = |netns: &Netns| {
        let shown = netns.run("ip -s xfrm state");
        let counts = shown.split("oseq 0x").skip(1).filter_map(|part| part.split_whitespace().next());
        counts.map(|hex| u32::from_str_radix(hex, 16).unwrap()).max().unwrap()
    };
    let before = sent(&world.a);
    assert!(before > 0);
    let peers = std::mem::take(&mut one.desired.peers);
    one.reconcile();
    assert!(!world.a.pings(mesh_v4(2)));
    one.desired.peers = peers;
    one.reconcile();
    assert!(world.a.pings(mesh_v4(2)));
    assert!(sent(&world.a) > before, "no counter is used twice");

    world.a.run("ip xfrm state flush");
    one.reconcile();
    assert!(!world.a.pings(mesh_v4(2)), "its keys are used up");
    let again = one.restart();
    assert_ne!(again.public_key(), one.driver.public_key());
    one.desired.device.public_key = again.public_key();
    let mut two = two;
    two.desired.peers[0].public_key = again.public_key();
    world.a.inside(|| reconcile(&again, &one.desired));
    two.reconcile();
    assert!(world.a.pings(mesh_v4(2)));
    drop(again);
}

#[test]
fn a_peer_that_moves_is_followed_and_one_that_gets_another_slot_goes_on() {
    let world = World::new();
    let (mut one, mut two) = connected(&world, SECRET);
    assert!(world.a.pings(mesh_v4(2)));
    run(&format!("ip -n {} addr add 172.31.2.7/24 dev eth0", world.b.name));
    one.desired.peers[0].endpoint = endpoint([172, 31, 2, 7]);
    one.desired.peers[0].slot = 77;
    one.reconcile();
    assert_eq!(one.reconcile(), []);
    // The other end sends from where it is reached: its only address of that family now.
    world.b.run("sysctl -qw net.ipv4.conf.eth0.promote_secondaries=1");
    run(&format!("ip -n {} addr del 172.31.2.2/24 dev eth0", world.b.name));
    run(&format!("ip -n {} route replace default via 172.31.2.1", world.b.name));
    assert_ne!(two.reconcile(), [], "its own address is another one");
    assert_eq!(two.reconcile(), []);
    assert!(world.a.pings(mesh_v4(2)));
    assert!(world.b.pings(mesh_v6(1)));
    assert!(world.a.run("ip xfrm state").contains("reqid 77"));
    two.desired.peers[0].endpoint = endpoint("fd31:1::2".parse::<IpAddr>().unwrap());
    one.desired.peers[0].endpoint = endpoint("fd31:2::2".parse::<IpAddr>().unwrap());
    one.reconcile();
    two.reconcile();
    assert!(world.a.pings(mesh_v4(2)), "from one family of the underlay to the other, counters and all");
}

#[test]
fn every_change_ends_in_an_empty_plan() {
    let world = World::new();
    let mut node = Node::start(&world.a, 1, SECRET);
    strangers(&world, &mut node, 3);
    let steps: [&dyn Fn(&mut Node<'_>); 6] = [
        &|_| {},
        &|node| node.desired.device.mtu = 1400,
        &|node| node.desired.peers[0].endpoint = endpoint([172, 31, 2, 200]),
        &|node| node.desired.peers[1].allowed.extend(nets(&["10.120.0.0/16"])),
        &|node| {
            let moved = std::mem::take(&mut node.desired.peers[1].allowed);
            node.desired.peers[2].allowed.extend(moved);
        },
        &|node| {
            node.desired.peers.clear();
            node.desired.routes.clear();
        },
    ];
    for (at, step) in steps.iter().enumerate() {
        step(&mut node);
        assert_ne!(node.reconcile(), [], "step {at} changes something");
        assert_eq!(node.reconcile(), [], "step {at} is complete");
    }
    assert!(node.dir.path().join("ipsec.state").exists());
}

#[test]
fn a_device_of_another_kind_is_refused_and_one_that_is_deleted_comes_back() {
    let world = World::new();
    let (one, _two) = connected(&world, SECRET);
    world.a.run(&format!("ip link del {}", one.config.device));
    assert!(!world.a.pings(mesh_v4(2)), "the guard answers");
    one.reconcile();
    assert!(world.a.pings(mesh_v4(2)));

    let config = config(3, SECRET, one.dir.path().join("other.state"));
    world.router.run(&format!("ip link add {} type dummy", config.device));
    let refused = world.router.inside(|| IpsecDriver::start(config)).unwrap_err();
    assert!(matches!(refused, DriverError::NotIpsec { found: Kind::Other(_), .. }), "{refused}");
}

fn receives(netns: &Netns, driver: &dyn Driver) -> Vec<String> {
    let keys = netns.inside(|| driver.stats()).unwrap().keys.unwrap();
    keys.receives.iter().map(ToString::to_string).collect()
}

#[test]
fn secrets_and_worn_keys_change_under_traffic_and_nothing_is_lost() {
    let world = World::new();
    let wear = Wear { rest: Duration::from_millis(300), ..Wear::DEFAULT };
    let start = |netns, n| {
        let dir = tempfile::tempdir().unwrap();
        let config = config(n, SECRET, dir.path().join("ipsec.state"));
        Node::start_with(netns, n, IpsecConfig { keyring: keyring(&[1]), wear, ..config }, dir)
    };
    let (mut one, mut two) = (start(&world.a, 1), start(&world.b, 2));
    let tend = |node: &Node<'_>, epochs: &[u8]| {
        node.netns.inside(|| node.driver.tend(&keyring(epochs))).unwrap();
    };
    let hear = |node: &mut Node<'_>, other: &Node<'_>, n: u8, at: [u8; 4]| {
        node.desired.peers.clear();
        node.meet(other, n, endpoint(at));
        node.reconcile();
        assert_eq!(node.reconcile(), []);
    };
    let (at_one, at_two) = ([172, 31, 1, 2], [172, 31, 2, 2]);
    hear(&mut one, &two, 2, at_two);
    hear(&mut two, &one, 1, at_one);
    nothing_is_lost_while(&world, || {
        // One node has the new secret beside the old one before the other has heard of it, and then alone.
        tend(&one, &[1, 2]);
        a_while();
        hear(&mut two, &one, 1, at_one);
        tend(&two, &[2]);
        hear(&mut one, &two, 2, at_two);
        hear(&mut two, &one, 1, at_one);
        tend(&one, &[2]);
        hear(&mut two, &one, 1, at_one);
        eventually("the old one rests, and goes", || {
            tend(&one, &[2]);
            tend(&two, &[2]);
            receives(&world.a, &one.driver).len() + receives(&world.b, &two.driver).len() == 2
        });

        // A key that is worn, and a restart in between: here after a few packets.
        one.config =
            IpsecConfig { keyring: keyring(&[2]), wear: Wear { bytes: 1, ..wear }, ..one.config.clone() };
        one.driver = one.restart();
        eventually("its turn comes", || {
            tend(&one, &[2]);
            receives(&world.a, &one.driver) != ["2.2"]
        });
        hear(&mut two, &one, 1, at_one);
        eventually("the worn one goes", || {
            tend(&one, &[2]);
            !receives(&world.a, &one.driver).contains(&"2.2".to_owned())
        });
    });
    for node in [&one, &two] {
        for reason in [
            "xfrm-in-no-states",
            "xfrm-in-bad-tag",
            "xfrm-in-replayed",
            "xfrm-in-blocked",
            "xfrm-out-no-states",
        ] {
            assert_eq!(node.dropped(reason), 0, "{reason}");
        }
    }
    let again = one.restart();
    assert_eq!(again.public_key(), one.driver.public_key(), "counters go on under the same key");
}

pub(crate) fn allowed(n: u8) -> BTreeSet<IpNet> {
    [mesh_v4(n), mesh_v6(n)].map(IpNet::from).into()
}
