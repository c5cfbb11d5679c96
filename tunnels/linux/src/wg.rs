//! The device's key, port, mark and peers by `wireguard-control`: one client for the kernel's WireGuard (generic netlink)
//! and for our engine (its UAPI socket).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;

use hawser_model::PublicKey;
use hawser_tunnels::DeviceName;
use ipnet::IpNet;
use wireguard_control::{
    Backend, Device, DeviceUpdate, InterfaceName, Key, KeyPair, PeerConfigBuilder, PeerInfo,
};

use crate::{PeerStats, PrivateKey, uapi};

/// Prefixes per request to the kernel: one peer's part of a message must fit into a page.
const PREFIXES: usize = 64;

pub(crate) struct Wg {
    device: DeviceName,
    name: InterfaceName,
    backend: Backend,
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
    pub(crate) stats: PeerStats,
}

impl PeerView {
    /// Without its prefixes.
    fn of(peer: &PeerInfo) -> Self {
        let stats = PeerStats {
            endpoint: peer.config.endpoint,
            last_handshake: peer.stats.last_handshake_time,
            rx_bytes: peer.stats.rx_bytes,
            tx_bytes: peer.stats.tx_bytes,
        };
        let keepalive = peer.config.persistent_keepalive_interval.filter(|seconds| *seconds > 0);
        Self { allowed: BTreeSet::new(), keepalive, stats }
    }
}

impl Wg {
    pub(crate) fn new(device: DeviceName, backend: Backend) -> io::Result<Self> {
        let name = device.as_str().parse()?;
        Ok(Self { device, name, backend })
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
        let device = Device::get(&self.name, self.backend)?;
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

    pub(crate) fn configure(&self, key: &PrivateKey, port: u16, mark: u32) -> io::Result<()> {
        let keys = KeyPair::from_private(Key(key.to_bytes()));
        self.update(DeviceUpdate::new().set_keypair(keys).set_listen_port(port).set_fwmark(mark))
    }

    pub(crate) fn set_peer(
        &self,
        key: PublicKey,
        endpoint: Option<SocketAddr>,
        keepalive: Option<Option<u16>>,
    ) -> io::Result<()> {
        let mut peer = PeerConfigBuilder::new(&Key(*key.as_bytes()));
        if let Some(endpoint) = endpoint {
            peer = peer.set_endpoint(endpoint);
        }
        if let Some(seconds) = keepalive {
            peer = peer.set_persistent_keepalive_interval(seconds.unwrap_or(0));
        }
        self.update(DeviceUpdate::new().add_peer(peer))
    }

    /// Adds, and takes from whoever has it, prefix by prefix: a packet finds the old owner or the new one, never none.
    pub(crate) fn allow(&self, key: PublicKey, prefixes: &BTreeSet<IpNet>) -> io::Result<()> {
        let all: Vec<_> = prefixes.iter().copied().collect();
        all.chunks(self.at_once()).try_for_each(|some| self.give(&Key(*key.as_bytes()), some))
    }

    /// Leaves a peer with `keep`, taking `drop`. No prefix of `keep` is without its owner for an instant.
    ///
    /// The client cannot take one prefix away. Our engine carries out a whole request under one lock, so there the list
    /// is replaced. The kernel empties a peer's list before it fills it again, so there what is dropped is given to a
    /// peer that is then removed (the removal flag came with 6.16, `WGALLOWEDIP_F_REMOVE_ME`, and is not needed).
    pub(crate) fn restrict(
        &self,
        key: PublicKey,
        keep: &BTreeSet<IpNet>,
        drop: &BTreeSet<IpNet>,
    ) -> io::Result<()> {
        if self.backend == Backend::Userspace {
            let peer = PeerConfigBuilder::new(&Key(*key.as_bytes())).replace_allowed_ips();
            return self.update(DeviceUpdate::new().add_peer(with_prefixes(peer, keep)));
        }
        let nobody = KeyPair::generate().public;
        let given = drop.iter().copied().collect::<Vec<_>>();
        let given = given.chunks(PREFIXES).try_for_each(|some| self.give(&nobody, some));
        self.update(DeviceUpdate::new().remove_peer_by_key(&nobody)).and(given)
    }

    fn give(&self, key: &Key, prefixes: &[IpNet]) -> io::Result<()> {
        let peer = with_prefixes(PeerConfigBuilder::new(key), prefixes);
        self.update(DeviceUpdate::new().add_peer(peer))
    }

    fn at_once(&self) -> usize {
        if self.backend == Backend::Kernel { PREFIXES } else { usize::MAX }
    }

    pub(crate) fn remove_peer(&self, key: PublicKey) -> io::Result<()> {
        self.update(DeviceUpdate::new().remove_peer_by_key(&Key(*key.as_bytes())))
    }

    /// `wireguard-control` starts `wireguard-go` when nobody answers the socket, so it is asked only when somebody does.
    fn update(&self, update: DeviceUpdate) -> io::Result<()> {
        if self.backend == Backend::Userspace {
            UnixStream::connect(uapi::path(&self.device))?;
        }
        update.apply(&self.name, self.backend)
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
