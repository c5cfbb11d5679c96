//! The WireGuard driver: the kernel's device, or an engine in this process on a TUN; one client configures either, and
//! the rest of the kernel's part (link, addresses, routes, rules) is the same.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hawser_model::PublicKey;
use hawser_tunnels::{DeviceName, MIN_MTU_IPV6, Mark, Observed, ObservedDevice, ObservedPeer, Op, Sa};
use zeroize::Zeroizing;

use crate::net::{Kind, Net};
use crate::wg::{Client, PeerView, View, Wg};
use crate::{
    AssociateError, Driver, DriverError, Engine, EngineSettings, MAX_MTU, PrivateKey, Protocol, Stats,
};

/// Who encrypts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The one that the device is already of; else the kernel where it can, else this process.
    #[default]
    Auto,
    Kernel,
    Userspace,
}

impl Choice {
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Auto, Self::Kernel, Self::Userspace].into_iter().find(|choice| choice.as_str() == text)
    }

    /// As it is written in `agent.yaml`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

#[derive(Clone, Debug)]
pub struct WireguardConfig {
    pub choice: Choice,
    pub device: DeviceName,
    /// UDP, on every address of the machine; 0 takes a free one.
    pub port: u16,
    /// Where this process carries: ports for parallel sessions with peers that have such, too; one that cannot be had is one
    /// less.
    pub more_ports: Vec<u16>,
    pub mtu: u16,
    pub mark: Mark,
    /// The routing table that an earlier version had.
    pub table: u32,
    /// Made on the first start.
    pub private_key: PathBuf,
    /// Where this process carries: go on with what another one carries for this device now (a planned restart).
    pub take_over: bool,
}

/// Refused before anything is changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("mtu {mtu} is out of range {MIN_MTU_IPV6}..={MAX_MTU}. fix: 1420 suits a path of 1500")]
    Mtu { mtu: u16 },
    #[error(
        "mark {mark}: the value has bits outside of its mask, or none. fix: mark within markMask, not zero"
    )]
    Mark { mark: Mark },
    #[error("table {table} is the kernel's. fix: a number of your own, like 18551")]
    Table { table: u32 },
}

pub struct WireguardDriver {
    config: WireguardConfig,
    key: PrivateKey,
    inner: Mutex<Inner>,
}

struct Inner {
    /// None once removed.
    carrier: Option<Carrier>,
    net: Net,
    wg: Wg,
    /// Where each peer was put last: it may roam from there.
    configured: HashMap<PublicKey, SocketAddr>,
}

/// What has the keys of the sessions.
enum Carrier {
    Engine(Box<Engine>),
    Kernel,
}

impl std::fmt::Debug for WireguardDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WireGuard tunnels of {}", self.config.device)
    }
}

impl WireguardDriver {
    /// Creates or adopts the device, in the network namespace of this thread, and starts to carry packets for peers as
    /// soon as there are any. Nothing else changes until the first `apply`.
    ///
    /// A device that the kernel carries goes on while no driver runs; one of this process waits for the next.
    pub fn start(config: WireguardConfig) -> Result<Self, DriverError> {
        check_limits(config.mtu, config.mark, config.table)?;
        let key = PrivateKey::load_or_create(&config.private_key)?;
        Self::start_with(config, key, Protocol::Wireguard)
    }

    /// With ESP the key is the predecessor's where one has handed its engine over.
    pub(crate) fn start_with(
        config: WireguardConfig,
        key: PrivateKey,
        protocol: Protocol,
    ) -> Result<Self, DriverError> {
        let mut net = Net::open(config.device.clone(), config.table)
            .map_err(|source| DriverError::OpenNetlink { source })?;
        let kernel = in_kernel(&config, &mut net)?;
        let carrier = if kernel {
            Carrier::Kernel
        } else {
            Carrier::Engine(Box::new(Engine::start(EngineSettings {
                device: config.device.clone(),
                key: key.clone(),
                port: config.port,
                more_ports: config.more_ports.clone(),
                mark: config.mark.value,
                mtu: config.mtu,
                take_over: config.take_over,
                protocol,
            })?))
        };
        let key = match &carrier {
            Carrier::Engine(engine) => engine.key(),
            Carrier::Kernel => key,
        };
        let wg = wg(&config)?;
        let inner = Inner { carrier: Some(carrier), net, wg, configured: HashMap::new() };
        Ok(Self { config, key, inner: Mutex::new(inner) })
    }

    /// What peers must know us by.
    pub fn public_key(&self) -> PublicKey {
        self.key.public()
    }

    /// The UDP port in use, also when the configuration left it to the kernel.
    pub fn port(&self) -> Result<u16, DriverError> {
        let inner = self.lock();
        match self.carrier(&inner)? {
            Carrier::Engine(engine) => Ok(engine.port()),
            Carrier::Kernel => Ok(inner.wg.view().map_err(self.wg_error("state its port"))?.port),
        }
    }

    /// The ports for parallel sessions that this node has: none where the kernel carries.
    pub fn more_ports(&self) -> Vec<u16> {
        match &self.lock().carrier {
            Some(Carrier::Engine(engine)) => engine.more_ports(),
            Some(Carrier::Kernel) | None => Vec::new(),
        }
    }

    fn spread(&self, inner: &Inner, peer: &PublicKey, ports: &[u16]) -> Result<(), DriverError> {
        if let Carrier::Engine(engine) = self.carrier(inner)? {
            engine.spread(peer, ports);
        }
        Ok(())
    }

    /// Whether nothing here is needed any more for packets to be carried: a successor has what this process had, or the
    /// kernel carries anyway.
    pub fn is_given(&self) -> bool {
        match &self.lock().carrier {
            Some(Carrier::Engine(engine)) => engine.is_given(),
            Some(Carrier::Kernel) | None => true,
        }
    }

    /// Whether paths are asked for more than the base: by our engine, and not by the kernel.
    pub fn finds_mtu(&self) -> bool {
        matches!(self.lock().carrier, Some(Carrier::Engine(_)))
    }

    pub(crate) fn private_key(&self) -> &PrivateKey {
        &self.key
    }

    /// Of an engine that speaks ESP.
    pub(crate) fn associate(
        &self,
        peer: &PublicKey,
        outbound: Option<&Sa>,
        inbound: &[Sa],
    ) -> Result<(), DriverError> {
        self.esp(|engine| Ok(engine.associate(peer, outbound, inbound)?))
    }

    /// The newest number of each association, by SPI.
    pub(crate) fn received(&self) -> Result<HashMap<u32, u64>, DriverError> {
        self.esp(|engine| Ok(engine.received()))
    }

    /// What a successor finds again.
    pub(crate) fn set_note(&self, note: Zeroizing<String>) -> Result<(), DriverError> {
        self.esp(|engine| {
            engine.set_note(note);
            Ok(())
        })
    }

    pub(crate) fn note(&self) -> Result<Zeroizing<String>, DriverError> {
        self.esp(|engine| Ok(engine.note()))
    }

    fn esp<T>(&self, ask: impl FnOnce(&Engine) -> Result<T, DriverError>) -> Result<T, DriverError> {
        match self.carrier(&self.lock())? {
            Carrier::Engine(engine) => ask(engine),
            Carrier::Kernel => Err(AssociateError::NotEsp.into()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // What a panic left half-done, the next plan sees.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn carrier<'a>(&self, inner: &'a Inner) -> Result<&'a Carrier, DriverError> {
        inner.carrier.as_ref().ok_or_else(|| DriverError::Removed { device: self.config.device.clone() })
    }

    fn client<'a>(&self, inner: &'a Inner) -> Result<Client<'a>, DriverError> {
        Ok(match self.carrier(inner)? {
            Carrier::Engine(engine) => Client::Engine(engine),
            Carrier::Kernel => Client::Kernel(&inner.wg),
        })
    }

    fn wg_error(&self, doing: impl ToString) -> impl FnOnce(io::Error) -> DriverError {
        let (device, doing) = (self.config.device.clone(), doing.to_string());
        move |source| DriverError::Wireguard { device, doing, source }
    }
}

pub(crate) fn check_limits(mtu: u16, mark: Mark, table: u32) -> Result<(), ConfigError> {
    if !(MIN_MTU_IPV6..=MAX_MTU).contains(&mtu) {
        return Err(ConfigError::Mtu { mtu });
    }
    if mark.value == 0 || mark.value & !mark.mask != 0 {
        return Err(ConfigError::Mark { mark });
    }
    // unspec, compat, default, main, local: `linux/rtnetlink.h`.
    if matches!(table, 0 | 252..=255) {
        return Err(ConfigError::Table { table });
    }
    Ok(())
}

/// Whether the kernel carries; its device is there afterwards. Refused before anything is changed when another kind of
/// device has the name.
fn in_kernel(config: &WireguardConfig, net: &mut Net) -> Result<bool, DriverError> {
    let found = net.link().map_err(netlink_error("show the device"))?.map(|link| link.kind);
    let device = || config.device.clone();
    match (config.choice, found) {
        (Choice::Auto | Choice::Kernel, Some(Kind::Wireguard)) => Ok(true),
        (Choice::Auto | Choice::Userspace, Some(Kind::Tun)) => Ok(false),
        (Choice::Userspace, None) => Ok(false),
        (choice, Some(found)) => Err(DriverError::OtherKind { device: device(), found, choice }),
        (choice, None) => match wg(config)?.create() {
            Ok(()) => Ok(true),
            // The kernel has no such kind of link, or none that it could load.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => match choice {
                Choice::Kernel => Err(DriverError::NoKernelWireguard),
                Choice::Auto | Choice::Userspace => Ok(false),
            },
            Err(source) => {
                Err(DriverError::Wireguard { device: device(), doing: "be created".into(), source })
            }
        },
    }
}

/// Whether the kernel holds `port` for `device` already: then it is ours and not in anybody's way.
pub fn kernel_listens(device: &DeviceName, port: u16) -> bool {
    let view = Wg::new(device).and_then(|wg| wg.view());
    view.is_ok_and(|view| view.port == port)
}

fn wg(config: &WireguardConfig) -> Result<Wg, DriverError> {
    Wg::new(&config.device).map_err(|source| DriverError::Wireguard {
        device: config.device.clone(),
        doing: "take its name".into(),
        source,
    })
}

pub(crate) fn netlink_error(doing: impl ToString) -> impl FnOnce(io::Error) -> DriverError {
    let doing = doing.to_string();
    move |source| DriverError::Netlink { doing, source }
}

impl WireguardDriver {
    /// All but the peers. O(routes).
    fn around(&self, inner: &mut Inner, view: &View) -> Result<Observed, DriverError> {
        let link = inner.net.link().map_err(netlink_error("show the device"))?;
        let addresses = match &link {
            Some(link) => inner.net.addresses(link).map_err(netlink_error("list the device's addresses"))?,
            None => Default::default(),
        };
        let routes = inner.net.routes(link.as_ref()).map_err(netlink_error("list routes"))?;
        let rules = inner.net.rules().map_err(netlink_error("list rules"))?;
        let device = link.map(|link| ObservedDevice {
            up: link.up,
            mtu: link.mtu,
            public_key: view.public_key,
            port: view.port,
            mark: view.mark,
        });
        let (routes, guards) = (routes.devices, routes.guards);
        Ok(Observed { device, addresses, rules, peers: BTreeMap::new(), routes, guards })
    }
}

impl Driver for WireguardDriver {
    fn observe(&self) -> Result<Observed, DriverError> {
        let mut inner = self.lock();
        let gone = inner.net.link().map_err(netlink_error("show the device"))?.is_none();
        let mut view = match self.client(&inner)? {
            // The kernel's peers went with its device.
            Client::Kernel(_) if gone => View::default(),
            client => client.view(true).map_err(self.wg_error("state its configuration"))?,
        };
        let peers = std::mem::take(&mut view.peers).into_iter().map(|(key, peer)| {
            let configured = inner.configured.get(&key).copied();
            let PeerView { allowed, keepalive, more_ports, stats } = peer;
            let endpoint = stats.endpoint;
            let (slot, esp) = (None, None);
            (key, ObservedPeer { endpoint, configured, allowed, keepalive, more_ports, slot, esp })
        });
        let peers = peers.collect();
        Ok(Observed { peers, ..self.around(&mut inner, &view)? })
    }

    /// The kernel's WireGuard states its key and port only together with all of its peers: there it is the whole look.
    fn glance(&self) -> Result<Option<Observed>, DriverError> {
        let mut inner = self.lock();
        let view = match self.client(&inner)? {
            Client::Kernel(_) => return Ok(None),
            Client::Engine(engine) => engine.view_of_device(),
        };
        self.around(&mut inner, &view).map(Some)
    }

    fn apply(&self, op: &Op) -> Result<(), DriverError> {
        let mut inner = self.lock();
        let carrier = self.carrier(&inner)?;
        match op {
            Op::CreateDevice { .. } => match carrier {
                Carrier::Engine(engine) => Ok(engine.reopen_if_gone()?),
                Carrier::Kernel => inner.wg.create().map_err(self.wg_error(op)),
            },
            Op::Configure { name, public_key, port, mark } => {
                if *public_key != self.key.public() {
                    let (device, wanted, held) = (name.clone(), *public_key, self.key.public());
                    return Err(DriverError::ForeignKey { device, wanted, held });
                }
                self.client(&inner)?.configure(&self.key, *port, mark.value).map_err(self.wg_error(op))
            }
            Op::SetLink { mtu, .. } => {
                if let Carrier::Engine(engine) = carrier {
                    engine.set_mtu(*mtu);
                }
                inner.net.set_up(*mtu).map_err(netlink_error(op))
            }
            Op::AddPeer { public_key, endpoint, keepalive, more_ports, .. } => {
                inner.configured.insert(*public_key, *endpoint);
                let set = self.client(&inner)?.set_peer(*public_key, Some(*endpoint), Some(*keepalive));
                set.map_err(self.wg_error(op))?;
                self.spread(&inner, public_key, more_ports)
            }
            Op::SetPorts { public_key, ports, .. } => self.spread(&inner, public_key, ports),
            Op::SetEndpoint { public_key, endpoint, .. } => {
                let set = self.client(&inner)?.set_peer(*public_key, Some(*endpoint), None);
                set.map_err(self.wg_error(op))?;
                inner.configured.insert(*public_key, *endpoint);
                Ok(())
            }
            Op::SetKeepalive { public_key, keepalive, .. } => {
                let set = self.client(&inner)?.set_peer(*public_key, None, Some(*keepalive));
                set.map_err(self.wg_error(op))
            }
            Op::Allow { public_key, prefixes, .. } => {
                self.client(&inner)?.allow(*public_key, prefixes).map_err(self.wg_error(op))
            }
            Op::Restrict { public_key, drop, .. } => {
                self.client(&inner)?.restrict(*public_key, drop).map_err(self.wg_error(op))
            }
            Op::RemovePeer { public_key } => {
                self.client(&inner)?.remove_peer(*public_key).map_err(self.wg_error(op))?;
                inner.configured.remove(public_key);
                Ok(())
            }
            kernels => apply_to_kernel(&mut inner.net, kernels).map_err(netlink_error(op)),
        }
    }

    fn stats(&self) -> Result<Stats, DriverError> {
        let mut inner = self.lock();
        let drops = match self.carrier(&inner)? {
            Carrier::Engine(engine) => engine.drops(),
            Carrier::Kernel => inner.net.drops().map_err(netlink_error("count drops"))?,
        };
        let view = self.client(&inner)?.view(false).map_err(self.wg_error("state its counters"))?;
        let peers = view.peers.into_iter().map(|(key, peer)| (key, peer.stats)).collect();
        let in_kernel = matches!(inner.carrier, Some(Carrier::Kernel));
        Ok(Stats { peers, drops, in_kernel, ..Stats::default() })
    }

    /// The device goes first: the guards answer for every mesh prefix until they follow.
    fn remove(&self) -> Result<(), DriverError> {
        let mut inner = self.lock();
        match inner.carrier.take() {
            Some(Carrier::Engine(engine)) => engine.remove()?,
            Some(Carrier::Kernel) => inner.wg.delete().map_err(self.wg_error("be removed"))?,
            None => {}
        }
        let net = &mut inner.net;
        net.remove_former().map_err(netlink_error("remove the rules and routes of an earlier version"))?;
        for prefix in net.routes(None).map_err(netlink_error("list routes"))?.guards {
            net.remove_guard(prefix).map_err(netlink_error(format!("remove guard {prefix}")))?;
        }
        Ok(())
    }
}

pub(crate) fn apply_to_kernel(net: &mut Net, op: &Op) -> io::Result<()> {
    match op {
        Op::AddGuard { prefix } => net.add_guard(*prefix),
        Op::RemoveGuard { prefix } => net.remove_guard(*prefix),
        Op::RemoveRule { rule } => net.remove_rule(rule),
        Op::AddAddress { address } => net.add_address(*address),
        Op::RemoveAddress { address } => net.remove_address(*address),
        Op::SetRoute { prefix, source } => net.set_route(*prefix, *source),
        Op::RemoveRoute { prefix } => net.remove_route(*prefix),
        // The engine's.
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}
