//! The device's key, port, mark and peers by `wireguard-control`, the client that the kernel's WireGuard will share.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;

use hawser_model::PublicKey;
use hawser_tunnels::DeviceName;
use ipnet::IpNet;
use wireguard_control::{Backend, Device, DeviceUpdate, InterfaceName, Key, KeyPair, PeerConfigBuilder};

use crate::{PeerStats, PrivateKey, uapi};

pub(crate) struct Wg {
    device: DeviceName,
    name: InterfaceName,
}

/// The engine as its socket shows it.
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

impl Wg {
    pub(crate) fn new(device: DeviceName) -> io::Result<Self> {
        let name = device.as_str().parse()?;
        Ok(Self { device, name })
    }

    pub(crate) fn view(&self) -> io::Result<View> {
        let device = Device::get(&self.name, Backend::Userspace)?;
        let peers = device.peers.iter().filter_map(|peer| {
            let key = public_key(&peer.config.public_key)?;
            let allowed =
                peer.config.allowed_ips.iter().filter_map(|ip| IpNet::new(ip.address, ip.cidr).ok());
            let stats = PeerStats {
                endpoint: peer.config.endpoint,
                last_handshake: peer.stats.last_handshake_time,
                rx_bytes: peer.stats.rx_bytes,
                tx_bytes: peer.stats.tx_bytes,
            };
            let keepalive = peer.config.persistent_keepalive_interval.filter(|seconds| *seconds > 0);
            Some((key, PeerView { allowed: allowed.collect(), keepalive, stats }))
        });
        Ok(View {
            public_key: device.public_key.as_ref().and_then(public_key),
            port: device.listen_port.unwrap_or(0),
            mark: device.fwmark.unwrap_or(0),
            peers: peers.collect(),
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

    /// Adds, and takes from whoever has it.
    pub(crate) fn allow(&self, key: PublicKey, prefixes: &BTreeSet<IpNet>) -> io::Result<()> {
        let peer = PeerConfigBuilder::new(&Key(*key.as_bytes()));
        self.update(DeviceUpdate::new().add_peer(with_prefixes(peer, prefixes)))
    }

    /// The client has no way to take one prefix away; the engine carries out the whole request under one lock, so
    /// replacing the list opens no gap.
    pub(crate) fn replace_allowed(&self, key: PublicKey, prefixes: &BTreeSet<IpNet>) -> io::Result<()> {
        let peer = PeerConfigBuilder::new(&Key(*key.as_bytes())).replace_allowed_ips();
        self.update(DeviceUpdate::new().add_peer(with_prefixes(peer, prefixes)))
    }

    pub(crate) fn remove_peer(&self, key: PublicKey) -> io::Result<()> {
        self.update(DeviceUpdate::new().remove_peer_by_key(&Key(*key.as_bytes())))
    }

    /// `wireguard-control` starts `wireguard-go` when nobody answers the socket, so it is asked only when somebody does.
    fn update(&self, update: DeviceUpdate) -> io::Result<()> {
        UnixStream::connect(uapi::path(&self.device))?;
        update.apply(&self.name, Backend::Userspace)
    }
}

fn with_prefixes(peer: PeerConfigBuilder, prefixes: &BTreeSet<IpNet>) -> PeerConfigBuilder {
    prefixes.iter().fold(peer, |peer, prefix| peer.add_allowed_ip(prefix.network(), prefix.prefix_len()))
}

fn public_key(key: &Key) -> Option<PublicKey> {
    PublicKey::new(key.0).ok()
}
