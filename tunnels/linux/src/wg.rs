//! The device's key, port, mark and peers: of the kernel's WireGuard by `wireguard-control` (generic netlink), of our engine,
//! which is in this process, by a call. The engine answers `wireguard-control` and `wg` as well, on its UAPI socket.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;

use hawser_model::PublicKey;
use hawser_tunnels::DeviceName;
use ipnet::IpNet;
use wireguard_control::{
    Backend, Device, DeviceUpdate, InterfaceName, Key, KeyPair, PeerConfigBuilder, PeerInfo,
};

use crate::uapi::{SetDevice, SetPeer};
use crate::{Engine, PeerStats, PrivateKey};

/// Prefixes per request to the kernel: one peer's part of a message must fit into a page.
const PREFIXES: usize = 64;

/// The kernel's WireGuard of one device.
pub(crate) struct Wg {
    name: InterfaceName,
}

/// Who holds keys and peers.
pub(crate) enum Client<'a> {
    Kernel(&'a Wg),
    Engine(&'a Engine),
}

/// The device as it shows itself.
#[derive(Default)]
pub(crate) struct View {
    pub(crate) public_key: Option<PublicKey>,
    pub(crate) port: u16,
    pub(crate) mark: u32,
    pub(crate) peers: BTreeMap<PublicKey, PeerView>,
}

pub(crate) struct PeerView {
    pub(crate) allowed: BTreeSet<IpNet>,
    pub(crate) keepalive: Option<u16>,
    /// None of the kernel, which has one session a peer.
    pub(crate) more_ports: Option<Vec<u16>>,
    pub(crate) stats: PeerStats,
}

impl PeerView {
    /// Without its prefixes.
    fn of(peer: &PeerInfo) -> Self {
        let stats = PeerStats {
            endpoint: peer.config.endpoint,
            last_handshake: peer.stats.last_handshake_time,
            mtu: None,
            sessions: None,
            rx_bytes: peer.stats.rx_bytes,
            tx_bytes: peer.stats.tx_bytes,
        };
        let keepalive = peer.config.persistent_keepalive_interval.filter(|seconds| *seconds > 0);
        Self { allowed: BTreeSet::new(), keepalive, more_ports: None, stats }
    }
}

impl Wg {
    pub(crate) fn new(device: &DeviceName) -> io::Result<Self> {
        Ok(Self { name: device.as_str().parse()? })
    }

    /// The kernel's device, without peers and down; one that is there stays as it is.
    pub(crate) fn create(&self) -> io::Result<()> {
        DeviceUpdate::new().apply(&self.name, Backend::Kernel)
    }

    /// The kernel's device, and what it knew.
    pub(crate) fn delete(&self) -> io::Result<()> {
        match Device::get(&self.name, Backend::Kernel) {
            Ok(device) => device.delete(),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn view(&self) -> io::Result<View> {
        let device = Device::get(&self.name, Backend::Kernel)?;
        let mut peers = BTreeMap::<_, PeerView>::new();
        for peer in &device.peers {
            let Some(key) = public_key(&peer.config.public_key) else { continue };
            let prefixes = peer.config.allowed_ips.iter();
            let prefixes = prefixes.filter_map(|ip| IpNet::new(ip.address, ip.cidr).ok());
            // The kernel dumps a peer of many prefixes in several messages, and all but the first have nothing else.
            let view = peers.entry(key).or_insert_with(|| PeerView::of(peer));
            view.allowed.extend(prefixes);
        }
        Ok(View {
            public_key: device.public_key.as_ref().and_then(public_key),
            port: device.listen_port.unwrap_or(0),
            mark: device.fwmark.unwrap_or(0),
            peers,
        })
    }

    fn update(&self, update: DeviceUpdate) -> io::Result<()> {
        update.apply(&self.name, Backend::Kernel)
    }

    fn give(&self, key: &Key, prefixes: &[IpNet]) -> io::Result<()> {
        self.update(DeviceUpdate::new().add_peer(with_prefixes(PeerConfigBuilder::new(key), prefixes)))
    }
}

impl Client<'_> {
    /// With every prefix, or with statistics alone. The kernel dumps both.
    pub(crate) fn view(&self, prefixes: bool) -> io::Result<View> {
        match self {
            Self::Kernel(wg) => wg.view(),
            Self::Engine(engine) => Ok(engine.view(prefixes)),
        }
    }

    pub(crate) fn configure(&self, key: &PrivateKey, port: u16, mark: u32) -> io::Result<()> {
        match self {
            Self::Kernel(wg) => {
                let keys = KeyPair::from_private(Key(key.to_bytes()));
                wg.update(DeviceUpdate::new().set_keypair(keys).set_listen_port(port).set_fwmark(mark))
            }
            Self::Engine(engine) => engine.set(SetDevice {
                private_key: Some(key.clone()),
                port: Some(port),
                mark: Some(mark),
                ..SetDevice::default()
            }),
        }
    }

    pub(crate) fn set_peer(
        &self,
        key: PublicKey,
        endpoint: Option<SocketAddr>,
        keepalive: Option<Option<u16>>,
    ) -> io::Result<()> {
        let keepalive = keepalive.map(|seconds| seconds.unwrap_or(0));
        match self {
            Self::Kernel(wg) => {
                let mut peer = PeerConfigBuilder::new(&Key(*key.as_bytes()));
                if let Some(endpoint) = endpoint {
                    peer = peer.set_endpoint(endpoint);
                }
                if let Some(seconds) = keepalive {
                    peer = peer.set_persistent_keepalive_interval(seconds);
                }
                wg.update(DeviceUpdate::new().add_peer(peer))
            }
            Self::Engine(engine) => engine.set_peer(SetPeer { endpoint, keepalive, ..SetPeer::new(key) }),
        }
    }

    /// Adds, and takes from whoever has it, prefix by prefix: a packet finds the old owner or the new one, never none.
    pub(crate) fn allow(&self, key: PublicKey, prefixes: &BTreeSet<IpNet>) -> io::Result<()> {
        match self {
            Self::Kernel(wg) => {
                let all: Vec<_> = prefixes.iter().copied().collect();
                all.chunks(PREFIXES).try_for_each(|some| wg.give(&Key(*key.as_bytes()), some))
            }
            Self::Engine(engine) => {
                let allowed = prefixes.iter().map(|prefix| (*prefix, true)).collect();
                engine.set_peer(SetPeer { allowed, ..SetPeer::new(key) })
            }
        }
    }

    /// Takes `drop` from a peer. No other prefix of it is without its owner for an instant.
    ///
    /// The client cannot take one prefix away from the kernel, which empties a peer's list before it fills it again: what is
    /// dropped is given to a peer that is then removed (the removal flag came with 6.16, `WGALLOWEDIP_F_REMOVE_ME`, and is
    /// not needed). O(`drop`).
    pub(crate) fn restrict(&self, key: PublicKey, drop: &BTreeSet<IpNet>) -> io::Result<()> {
        match self {
            Self::Kernel(wg) => {
                let nobody = KeyPair::generate().public;
                let given = drop.iter().copied().collect::<Vec<_>>();
                let given = given.chunks(PREFIXES).try_for_each(|some| wg.give(&nobody, some));
                wg.update(DeviceUpdate::new().remove_peer_by_key(&nobody)).and(given)
            }
            Self::Engine(engine) => {
                let allowed = drop.iter().map(|prefix| (*prefix, false)).collect();
                engine.set_peer(SetPeer { allowed, ..SetPeer::new(key) })
            }
        }
    }

    pub(crate) fn remove_peer(&self, key: PublicKey) -> io::Result<()> {
        match self {
            Self::Kernel(wg) => wg.update(DeviceUpdate::new().remove_peer_by_key(&Key(*key.as_bytes()))),
            Self::Engine(engine) => engine.set_peer(SetPeer { remove: true, ..SetPeer::new(key) }),
        }
    }
}

fn with_prefixes<'a>(
    peer: PeerConfigBuilder,
    prefixes: impl IntoIterator<Item = &'a IpNet>,
) -> PeerConfigBuilder {
    prefixes.into_iter().fold(peer, |peer, prefix| peer.add_allowed_ip(prefix.network(), prefix.prefix_len()))
}

fn public_key(key: &Key) -> Option<PublicKey> {
    PublicKey::new(key.0).ok()
}
