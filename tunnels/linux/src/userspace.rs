//! The user-space driver: an engine in this process, configured through its own socket, and the kernel's part by netlink.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hawser_model::PublicKey;
use hawser_tunnels::{DeviceName, MIN_MTU_IPV6, Mark, Observed, ObservedDevice, ObservedPeer, Op};

use crate::net::Net;
use crate::wg::Wg;
use crate::{Driver, DriverError, Engine, EngineSettings, MAX_MTU, PrivateKey, Stats};

#[derive(Clone, Debug)]
pub struct EngineConfig {
    pub device: DeviceName,
    /// UDP, on every address of the machine; 0 takes a free one.
    pub port: u16,
    pub mtu: u16,
    pub mark: Mark,
    /// The routing table that is ours alone.
    pub table: u32,
    /// Made on the first start.
    pub private_key: PathBuf,
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

pub struct UserspaceDriver {
    config: EngineConfig,
    key: PrivateKey,
    inner: Mutex<Inner>,
}

struct Inner {
    /// None once removed.
    engine: Option<Engine>,
    net: Net,
    wg: Wg,
    /// Where each peer was put last: it may roam from there.
    configured: HashMap<PublicKey, SocketAddr>,
}

impl std::fmt::Debug for UserspaceDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "user-space tunnels of {}", self.config.device)
    }
}

impl UserspaceDriver {
    /// Creates or adopts the device, in the network namespace of this thread, and starts to carry packets for peers as
    /// soon as there are any. Nothing else changes until the first `apply`.
    pub fn start(config: EngineConfig) -> Result<Self, DriverError> {
        check(&config)?;
        let key = PrivateKey::load_or_create(&config.private_key)?;
        let net = Net::open(config.device.clone(), config.table)
            .map_err(|source| DriverError::OpenNetlink { source })?;
        let engine = Engine::start(EngineSettings {
            device: config.device.clone(),
            key: key.clone(),
            port: config.port,
            mark: config.mark.value,
            mtu: config.mtu,
        })?;
        let wg = Wg::new(config.device.clone()).map_err(|source| DriverError::Wireguard {
            device: config.device.clone(),
            doing: "take its name".into(),
            source,
        })?;
        let inner = Inner { engine: Some(engine), net, wg, configured: HashMap::new() };
        Ok(Self { config, key, inner: Mutex::new(inner) })
    }

    /// What peers must know us by.
    pub fn public_key(&self) -> PublicKey {
        self.key.public()
    }

    /// The UDP port in use, also when the configuration left it to the kernel.
    pub fn port(&self) -> Result<u16, DriverError> {
        Ok(self.engine(&self.lock())?.port())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // What a panic left half-done, the next plan sees.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn engine<'a>(&self, inner: &'a Inner) -> Result<&'a Engine, DriverError> {
        inner.engine.as_ref().ok_or_else(|| DriverError::Removed { device: self.config.device.clone() })
    }

    fn wg_error(&self, doing: impl ToString) -> impl FnOnce(io::Error) -> DriverError {
        let (device, doing) = (self.config.device.clone(), doing.to_string());
        move |source| DriverError::Wireguard { device, doing, source }
    }
}

fn check(config: &EngineConfig) -> Result<(), ConfigError> {
    if !(MIN_MTU_IPV6..=MAX_MTU).contains(&config.mtu) {
        return Err(ConfigError::Mtu { mtu: config.mtu });
    }
    if config.mark.value == 0 || config.mark.value & !config.mark.mask != 0 {
        return Err(ConfigError::Mark { mark: config.mark });
    }
    // unspec, compat, default, main, local: `linux/rtnetlink.h`.
    if matches!(config.table, 0 | 252..=255) {
        return Err(ConfigError::Table { table: config.table });
    }
    Ok(())
}

fn netlink_error(doing: impl ToString) -> impl FnOnce(io::Error) -> DriverError {
    let doing = doing.to_string();
    move |source| DriverError::Netlink { doing, source }
}

impl Driver for UserspaceDriver {
    fn observe(&self) -> Result<Observed, DriverError> {
        let mut inner = self.lock();
        self.engine(&inner)?;
        let view = inner.wg.view().map_err(self.wg_error("state its configuration"))?;
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
        let peers = view.peers.into_iter().map(|(key, peer)| {
            let configured = inner.configured.get(&key).copied();
            let endpoint = peer.stats.endpoint;
            (key, ObservedPeer { endpoint, configured, allowed: peer.allowed, keepalive: peer.keepalive })
        });
        let peers: BTreeMap<_, _> = peers.collect();
        Ok(Observed { device, addresses, rules, peers, routes: routes.devices, guards: routes.guards })
    }

    fn apply(&self, op: &Op) -> Result<(), DriverError> {
        let mut inner = self.lock();
        let engine = self.engine(&inner)?;
        match op {
            Op::CreateDevice { .. } => Ok(engine.reopen_if_gone()?),
            Op::Configure { name, public_key, port, mark } => {
                if *public_key != self.key.public() {
                    let (device, wanted, held) = (name.clone(), *public_key, self.key.public());
                    return Err(DriverError::ForeignKey { device, wanted, held });
                }
                inner.wg.configure(&self.key, *port, mark.value).map_err(self.wg_error(op))
            }
            Op::SetLink { mtu, .. } => {
                engine.set_mtu(*mtu);
                inner.net.set_up(*mtu).map_err(netlink_error(op))
            }
            Op::AddPeer { public_key, endpoint, keepalive, .. } => {
                inner.configured.insert(*public_key, *endpoint);
                let set = inner.wg.set_peer(*public_key, Some(*endpoint), Some(*keepalive));
                set.map_err(self.wg_error(op))
            }
            Op::SetEndpoint { public_key, endpoint, .. } => {
                inner.wg.set_peer(*public_key, Some(*endpoint), None).map_err(self.wg_error(op))?;
                inner.configured.insert(*public_key, *endpoint);
                Ok(())
            }
            Op::SetKeepalive { public_key, keepalive, .. } => {
                inner.wg.set_peer(*public_key, None, Some(*keepalive)).map_err(self.wg_error(op))
            }
            Op::Allow { public_key, prefixes, .. } => {
                inner.wg.allow(*public_key, prefixes).map_err(self.wg_error(op))
            }
            Op::Restrict { public_key, keep, .. } => {
                inner.wg.replace_allowed(*public_key, keep).map_err(self.wg_error(op))
            }
            Op::RemovePeer { public_key } => {
                inner.wg.remove_peer(*public_key).map_err(self.wg_error(op))?;
                inner.configured.remove(public_key);
                Ok(())
            }
            kernels => apply_to_kernel(&mut inner.net, kernels).map_err(netlink_error(op)),
        }
    }

    fn stats(&self) -> Result<Stats, DriverError> {
        let inner = self.lock();
        let drops = self.engine(&inner)?.drops();
        let view = inner.wg.view().map_err(self.wg_error("state its counters"))?;
        let peers = view.peers.into_iter().map(|(key, peer)| (key, peer.stats)).collect();
        Ok(Stats { peers, drops })
    }

    /// The device goes first: until the rules follow, the guards answer for every mesh prefix.
    fn remove(&self) -> Result<(), DriverError> {
        let mut inner = self.lock();
        if let Some(engine) = inner.engine.take() {
            engine.remove()?;
        }
        let net = &mut inner.net;
        for rule in net.rules().map_err(netlink_error("list rules"))? {
            net.remove_rule(&rule).map_err(netlink_error(format!("remove rule {rule}")))?;
        }
        for prefix in net.routes(None).map_err(netlink_error("list routes"))?.guards {
            net.remove_guard(prefix).map_err(netlink_error(format!("remove guard {prefix}")))?;
        }
        Ok(())
    }
}

fn apply_to_kernel(net: &mut Net, op: &Op) -> io::Result<()> {
    match op {
        Op::AddGuard { prefix } => net.add_guard(*prefix),
        Op::RemoveGuard { prefix } => net.remove_guard(*prefix),
        Op::AddRule { rule } => net.add_rule(rule),
        Op::RemoveRule { rule } => net.remove_rule(rule),
        Op::AddAddress { address } => net.add_address(*address),
        Op::RemoveAddress { address } => net.remove_address(*address),
        Op::SetRoute { prefix, source } => net.set_route(*prefix, *source),
        Op::RemoveRoute { prefix } => net.remove_route(*prefix),
        // The engine's.
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}
