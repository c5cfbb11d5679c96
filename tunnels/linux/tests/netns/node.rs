//! A node under test: a driver in a namespace, and the reconciler's loop in ten lines.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use hawser_model::{ClusterId, ClusterIdWidth, ClusterName, ClusterRef, NodeName, PublicKey};
use hawser_tunnels::{Desired, Device, DeviceName, Mark, Op, Peer, PeerName, check, plan};
use hawser_tunnels_linux::{Choice, Driver, Stats, WireguardConfig, WireguardDriver};
use ipnet::IpNet;

use crate::world::{Netns, unique};

pub(crate) const MARK: Mark = Mark { value: 0x0048_0000, mask: 0x00ff_0000 };
pub(crate) const TABLE: u32 = 18551;
pub(crate) const PORT: u16 = 51871;

pub(crate) struct Node<'a> {
    pub(crate) netns: &'a Netns,
    pub(crate) driver: WireguardDriver,
    pub(crate) desired: Desired,
    pub(crate) config: WireguardConfig,
    _keys: tempfile::TempDir,
}

pub(crate) fn config(device: DeviceName, private_key: PathBuf) -> WireguardConfig {
    WireguardConfig {
        choice: Choice::Userspace,
        device,
        port: PORT,
        more_ports: Vec::new(),
        mtu: 1420,
        mark: MARK,
        table: TABLE,
        private_key,
        take_over: false,
    }
}

/// Cluster `c<n>`, whose node has 240.n.0.1 and fd68:6177:7365:n::1.
pub(crate) fn desired(config: &WireguardConfig, public_key: PublicKey, n: u8) -> Desired {
    Desired {
        device: Device {
            name: config.device.clone(),
            public_key,
            port: config.port,
            mtu: config.mtu,
            mark: MARK,
        },
        addresses: mesh_addresses(n),
        peers: Vec::new(),
        routes: BTreeSet::new(),
        guards: nets(&["240.0.0.0/4", "fd68:6177:7365::/48"]),
    }
}

impl<'a> Node<'a> {
    pub(crate) fn start(netns: &'a Netns, n: u8) -> Self {
        Self::start_as(Choice::Userspace, netns, n)
    }

    pub(crate) fn start_as(choice: Choice, netns: &'a Netns, n: u8) -> Self {
        Self::start_with(netns, n, |config| config.choice = choice)
    }

    pub(crate) fn start_with(netns: &'a Netns, n: u8, change: impl FnOnce(&mut WireguardConfig)) -> Self {
        let keys = tempfile::tempdir().unwrap();
        let device = DeviceName::parse(&unique()).unwrap();
        let mut config = config(device, keys.path().join("wireguard.key"));
        change(&mut config);
        let driver = netns.inside(|| WireguardDriver::start(config.clone())).unwrap();
        let desired = desired(&config, driver.public_key(), n);
        Self { netns, driver, desired, config, _keys: keys }
    }

    /// Adds a node of cluster `c<n>` as a peer, with routes to its mesh addresses and to `more`.
    pub(crate) fn add_peer(&mut self, n: u8, public_key: PublicKey, endpoint: SocketAddr, more: &[&str]) {
        let mut allowed: BTreeSet<IpNet> = mesh_addresses(n).into_iter().map(IpNet::from).collect();
        allowed.extend(nets(more));
        self.desired.routes.extend(&allowed);
        let peer = Peer {
            name: name(n),
            public_key,
            endpoint,
            allowed,
            keepalive: None,
            boot_id: None,
            esp: None,
            more_ports: Vec::new(),
            via: None,
            slot: 0,
        };
        self.desired.peers.push(peer);
    }

    /// Observes, plans, checks and applies; returns what it did.
    pub(crate) fn reconcile(&self) -> Vec<Op> {
        self.netns.inside(|| reconcile(&self.driver, &self.desired))
    }

    pub(crate) fn device(&self) -> &str {
        self.config.device.as_str()
    }

    pub(crate) fn stats(&self) -> Stats {
        self.driver.stats().unwrap()
    }

    pub(crate) fn dropped(&self, reason: &str) -> u64 {
        let drops = self.stats().drops;
        drops.iter().find(|(name, _)| *name == reason).expect("a reason that exists").1
    }
}

pub(crate) fn reconcile(driver: &dyn Driver, desired: &Desired) -> Vec<Op> {
    let observed = driver.observe().unwrap();
    let plan = plan(desired, &observed);
    assert_eq!(plan.problems, []);
    check(&plan.ops, &observed, desired).unwrap();
    for op in &plan.ops {
        driver.apply(op).unwrap();
    }
    plan.ops
}

/// Two nodes that know each other and have nothing left to do.
pub(crate) fn connected<'a>(a: &'a Netns, b: &'a Netns) -> (Node<'a>, Node<'a>) {
    connected_as([Choice::Userspace; 2], a, b)
}

pub(crate) fn connected_as<'a>(choices: [Choice; 2], a: &'a Netns, b: &'a Netns) -> (Node<'a>, Node<'a>) {
    let (mut one, mut two) = (Node::start_as(choices[0], a, 1), Node::start_as(choices[1], b, 2));
    one.add_peer(2, two.driver.public_key(), endpoint([172, 31, 2, 2]), &[]);
    two.add_peer(1, one.driver.public_key(), endpoint([172, 31, 1, 2]), &[]);
    for node in [&one, &two] {
        node.reconcile();
        assert_eq!(node.reconcile(), []);
    }
    (one, two)
}

pub(crate) fn endpoint(address: impl Into<IpAddr>) -> SocketAddr {
    SocketAddr::new(address.into(), PORT)
}

pub(crate) fn mesh_v4(n: u8) -> IpAddr {
    [240, n, 0, 1].into()
}

pub(crate) fn mesh_v6(n: u8) -> IpAddr {
    format!("fd68:6177:7365:{n}::1").parse().unwrap()
}

pub(crate) fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn mesh_addresses(n: u8) -> BTreeSet<IpAddr> {
    [mesh_v4(n), mesh_v6(n)].into()
}

pub(crate) fn name(n: u8) -> PeerName {
    let id = ClusterId::new(n.into(), ClusterIdWidth::Bits8).unwrap();
    let cluster = ClusterRef { name: ClusterName::parse(&format!("c{n}")).unwrap(), id };
    PeerName { cluster, node: NodeName::parse("node-1").unwrap() }
}
