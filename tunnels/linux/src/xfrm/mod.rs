//! IPsec in the kernel: an XFRM interface, two states for each peer (more while keys change), and three policies for each
//! prefix, all with one interface id. What they carry the kernel carries on while no process runs.
//!
//! ```text
//! route ──> hawser0 (xfrm, if_id) ──policy: prefix──> state (AES-GCM, ESN, mark) ──> ESP ──> main table
//! ESP ──SPI──> state ──> hawser0 ──policy: a peer's sources by its own states alone──> node
//!                           └── `tunnel_in` asks the same before it hands a packet to a pod
//! ```
//! Between two kernels ESP goes as it is, for that needs no process. With a peer whose agent carries itself it goes in UDP.

mod encap;
mod heard;
mod kernel;
mod ledger;
mod leftovers;
mod pairs;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use hawser_model::{BootId, Epoch, EspEnd, PublicKey, Time};
use hawser_tunnels::{
    Derivation, DeviceName, Keyring, Mark, MeshSecret, Observed, ObservedDevice, Op, PeerName, Receiving,
    Wear,
};
use nix::sys::socket::{setsockopt, sockopt};

use crate::clock::Millis;
use crate::driver::{Driver, DriverError, PeerStats, Stats};
use crate::net::{Kind, Net};
use crate::wireguard::{apply_to_kernel, check_limits, netlink_error};
use encap::Encap;
use heard::{Follower, Keepalive};
use kernel::{Place, Xfrm};
use ledger::{Circumstances, Ledger};
pub use leftovers::IpsecLeftovers;
use leftovers::{clear, remove, shut};
use pairs::Without;

#[derive(Clone, Debug)]
pub struct IpsecConfig {
    pub device: DeviceName,
    /// Of ESP in UDP, and what peers are told: ESP itself has no ports.
    pub port: u16,
    pub mtu: u16,
    pub mark: Mark,
    /// The interface id of our states and policies; and the routing table that an earlier version had.
    pub table: u32,
    /// This node, as its peers name it.
    pub name: PeerName,
    pub boot_id: BootId,
    pub keyring: Keyring,
    pub wear: Wear,
    /// Which keys are in use; made on the first start, and anew after each boot.
    pub ledger: PathBuf,
}

pub struct IpsecDriver {
    core: Arc<Core>,
    _follower: Follower,
}

/// What the driver's callers and its follower share.
struct Core {
    config: IpsecConfig,
    public_key: PublicKey,
    inner: Mutex<Inner>,
    encap: Encap,
}

struct Inner {
    removed: bool,
    net: Net,
    xfrm: Xfrm,
    ledger: Ledger,
    /// The newest that could be taken up.
    keyring: Keyring,
    /// Its secrets, and those of earlier ones that are still in use.
    held: BTreeMap<Epoch, MeshSecret>,
    /// States that nothing is sent by any more, since when; packets may be on their way through them.
    left: HashMap<u32, Time>,
    /// What states of peers had received and sent when they were deleted.
    carried: HashMap<PublicKey, (u64, u64)>,
    /// Peers that cannot have a tunnel, and what was asked for them: one peer's misfortune keeps no other waiting.
    without: HashMap<PublicKey, Without>,
    /// Where peers were put last: one that is followed since is left where it is heard from.
    put: HashMap<PublicKey, SocketAddr>,
    keepalives: HashMap<PublicKey, Keepalive>,
}

impl std::fmt::Debug for IpsecDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IPsec tunnels of {}", self.core.config.device)
    }
}

impl IpsecDriver {
    /// Adopts what an earlier start of this boot left, with its key; else begins with a new key, and what was ours before is
    /// deleted. Everything is in the network namespace of this thread.
    pub fn start(config: IpsecConfig) -> Result<Self, DriverError> {
        check_limits(config.mtu, config.mark, config.table)?;
        let mut net = Net::open(config.device.clone(), config.table)
            .map_err(|source| DriverError::OpenNetlink { source })?;
        let mut xfrm = Xfrm::open(config.table).map_err(|source| DriverError::NoKernelIpsec { source })?;
        let found = net.link().map_err(netlink_error("show the device"))?.map(|link| link.kind);
        let ours = Kind::Xfrm { id: config.table };
        let is_new = found.is_none();
        if let Some(found) = found.filter(|found| *found != ours) {
            return Err(DriverError::NotIpsec { device: config.device.clone(), found });
        }
        let encap = Encap::open(config.port, config.mark)
            .map_err(|source| DriverError::EncapPort { port: config.port, source })?;
        xfrm.refresh().map_err(netlink_error("list IPsec states and policies"))?;
        if is_new {
            // A new device has no program that judges what comes in: nothing may come in until peers are put back.
            shut(&mut xfrm).map_err(netlink_error("delete IPsec policies"))?;
        }
        let ledger = ledger(&config, &mut xfrm)?;
        create(&config, &mut net)?;
        let held = config.keyring.iter().map(|secret| (secret.epoch(), secret.clone())).collect();
        let mut inner = Inner {
            removed: false,
            net,
            xfrm,
            ledger,
            keyring: config.keyring.clone(),
            held,
            left: HashMap::new(),
            carried: HashMap::new(),
            without: HashMap::new(),
            put: HashMap::new(),
            keepalives: HashMap::new(),
        };
        inner.sweep().map_err(netlink_error("tidy IPsec states and policies"))?;
        let public_key = inner.ledger.key.public();
        let core = Arc::new(Core { config, public_key, inner: Mutex::new(inner), encap });
        let follower = Follower::start(&core).map_err(|source| DriverError::OpenNetlink { source })?;
        let driver = Self { core, _follower: follower };
        if let Err(error) = driver.tend(&driver.core.config.keyring) {
            tracing::warn!(%error, "the IPsec secrets are not all in use yet");
        }
        Ok(driver)
    }

    /// What peers must know us by: another one after each boot.
    pub fn public_key(&self) -> PublicKey {
        self.core.public_key
    }

    /// By which keys peers may send: what is installed.
    pub fn end(&self) -> Result<EspEnd, DriverError> {
        Ok(self.core.lock()?.stated())
    }

    /// Takes up what the keyring has by now, and does what is due: new keys for worn ones, and the end of those that nobody uses
    /// any more. Gives what peers are to be told from then on. Costs a dump of all states.
    pub fn tend(&self, keyring: &Keyring) -> Result<EspEnd, DriverError> {
        let mut inner = self.core.lock()?;
        let inner = &mut *inner;
        let refused = inner.take_up(keyring, now())?;
        inner.xfrm.refresh_states().map_err(netlink_error("list IPsec states"))?;
        self.core.turn(inner, now())?;
        self.core.keep_alive(inner, now());
        match refused {
            None => Ok(inner.stated()),
            Some(refused) => Err(refused),
        }
    }
}

impl Core {
    fn lock(&self) -> Result<MutexGuard<'_, Inner>, DriverError> {
        // What a panic left half-done, the next plan sees.
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.removed {
            return Err(DriverError::Removed { device: self.config.device.clone() });
        }
        Ok(inner)
    }

    fn place(&self, endpoint: SocketAddr, slot: u32, stated: &EspEnd) -> io::Result<Place> {
        let source = source_to(endpoint, self.config.mark)?;
        let udp = stated.in_udp.then_some((self.config.port, endpoint.port()));
        Ok(Place { source, destination: endpoint.ip(), reqid: slot, udp })
    }
}

/// Since boot: a ledger's times count for as long as it does.
fn now() -> Time {
    Time::from_millis(Millis::now().0)
}

/// Goes on with what the last start of this boot used, if the kernel has all of it still.
fn ledger(config: &IpsecConfig, xfrm: &mut Xfrm) -> Result<Ledger, DriverError> {
    let circumstances =
        Circumstances { boot_id: config.boot_id.as_str().to_owned(), mark: config.mark.to_string() };
    let secrets: BTreeMap<_, _> =
        config.keyring.iter().map(|secret| (secret.epoch(), secret.fingerprint())).collect();
    let last = Ledger::load(&config.ledger, now())?.filter(|last| last.circumstances == circumstances);
    if let Some(mut last) = last {
        let same = |(epoch, print): (&Epoch, &String)| secrets.get(epoch).is_none_or(|is| is == print);
        let whole = last.pairs.values().all(|pair| pair.spis().all(|spi| xfrm.states().contains_key(&spi)));
        if last.secrets.iter().all(same) && whole {
            last.rewrite()?;
            return Ok(last);
        }
        // Its keys are made of boot ids alone, so a new key of ours changes nothing.
        if config.keyring.iter().any(|secret| secret.derivation() == Derivation::Cilium) {
            return Err(DriverError::CountersLost { ledger: config.ledger.clone() });
        }
        let why = if whole {
            "a secret is another one, and its epoch is not"
        } else {
            "states of the last run are gone"
        };
        tracing::warn!("IPsec begins with a new key, so that no counter is used twice: {why}");
    }
    clear(xfrm).map_err(netlink_error("delete the IPsec states and policies of an earlier run"))?;
    Ok(Ledger::begin(&config.ledger, circumstances, secrets, Receiving::begin(&config.keyring, now()))?)
}

fn create(config: &IpsecConfig, net: &mut Net) -> Result<(), DriverError> {
    net.create_xfrm(config.table).map_err(|source| match source.raw_os_error() {
        Some(libc::EOPNOTSUPP) => DriverError::NoKernelIpsec { source },
        _ => netlink_error(format!("create {}", config.device))(source),
    })
}

/// The address that packets to an endpoint leave with, by the kernel's own choice. No packet is sent.
fn source_to(endpoint: SocketAddr, mark: Mark) -> io::Result<IpAddr> {
    let any: IpAddr = match endpoint {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    setsockopt(&socket, sockopt::Mark, &mark.value)?;
    socket.connect(SocketAddr::new(endpoint.ip(), endpoint.port().max(1)))?;
    Ok(socket.local_addr()?.ip())
}

impl Driver for IpsecDriver {
    fn observe(&self) -> Result<Observed, DriverError> {
        self.core.observe()
    }

    fn apply(&self, op: &Op) -> Result<(), DriverError> {
        self.core.apply(op)
    }

    fn stats(&self) -> Result<Stats, DriverError> {
        self.core.stats()
    }

    fn remove(&self) -> Result<(), DriverError> {
        self.core.remove()
    }
}

impl Driver for Core {
    fn observe(&self) -> Result<Observed, DriverError> {
        let mut inner = self.lock()?;
        let link = inner.net.link().map_err(netlink_error("show the device"))?;
        let addresses = match &link {
            Some(link) => inner.net.addresses(link).map_err(netlink_error("list the device's addresses"))?,
            None => BTreeSet::new(),
        };
        let routes = inner.net.routes(link.as_ref()).map_err(netlink_error("list routes"))?;
        let rules = inner.net.rules().map_err(netlink_error("list rules"))?;
        inner.xfrm.refresh().map_err(netlink_error("list IPsec states and policies"))?;
        let blocked = inner.xfrm.policies().blocked;
        let peers = self.peers(&inner);
        let device = link.map(|link| ObservedDevice {
            up: link.up,
            mtu: link.mtu,
            // Not as it should be until everything else is blocked.
            public_key: blocked.then_some(self.public_key),
            port: self.config.port,
            mark: self.config.mark.value,
        });
        Ok(Observed { device, addresses, rules, peers, routes: routes.devices, guards: routes.guards })
    }

    fn apply(&self, op: &Op) -> Result<(), DriverError> {
        let mut inner = self.lock()?;
        let inner = &mut *inner;
        match op {
            Op::CreateDevice { .. } => create(&self.config, &mut inner.net),
            Op::Configure { name, public_key, .. } => {
                if *public_key != self.public_key {
                    let (device, wanted, held) = (name.clone(), *public_key, self.public_key);
                    return Err(DriverError::ForeignKey { device, wanted, held });
                }
                inner.xfrm.block().map_err(netlink_error(op))
            }
            Op::SetLink { mtu, .. } => inner.net.set_up(*mtu).map_err(netlink_error(op)),
            Op::AddPeer { .. } => self.add_peer(inner, op),
            Op::SetPorts { .. } => Ok(()),
            Op::SetEndpoint { public_key, endpoint, .. } => self.set_endpoint(inner, *public_key, *endpoint),
            Op::SetKeepalive { public_key, keepalive, .. } => {
                inner.set_keepalive(*public_key, *keepalive);
                Ok(())
            }
            Op::Allow { public_key, prefixes, .. } => {
                inner.allow(*public_key, prefixes).map_err(netlink_error(op))
            }
            Op::Restrict { public_key, drop, .. } => {
                inner.take(*public_key, Some(drop)).map_err(netlink_error(op))
            }
            Op::RemovePeer { public_key } => inner.remove_peer(*public_key),
            kernels => apply_to_kernel(&mut inner.net, kernels).map_err(netlink_error(op)),
        }
    }

    fn stats(&self) -> Result<Stats, DriverError> {
        let mut inner = self.lock()?;
        inner.xfrm.refresh_states().map_err(netlink_error("list IPsec states"))?;
        let mut drops = inner.net.drops().map_err(netlink_error("count drops"))?;
        drops.extend(kernels_drops());
        let states = inner.xfrm.states();
        let present = inner.ledger.pairs.iter().filter(|(_, pair)| pair.present);
        let peers = present.filter_map(|(key, pair)| {
            let place = states.get(&pair.spi_out()?)?.place;
            let of = |spis: &BTreeMap<_, u32>| {
                let all: Vec<_> = spis.values().filter_map(|spi| states.get(spi)).collect();
                let first = all.iter().map(|state| state.first_used).max().unwrap_or(0);
                (all.iter().map(|state| state.bytes).sum::<u64>(), first)
            };
            let ((rx, first), (tx, _)) = (of(&pair.into), of(&pair.out));
            let (rx_before, tx_before) = inner.carried.get(key).copied().unwrap_or_default();
            let since = (first > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(first));
            let stats = PeerStats {
                mtu: None,
                endpoint: Some(SocketAddr::new(place.destination, pair.port)),
                last_handshake: since,
                rx_bytes: rx + rx_before,
                tx_bytes: tx + tx_before,
                ..PeerStats::default()
            };
            Some((*key, stats))
        });
        let peers = peers.collect();
        let without = inner.without.values().map(ToString::to_string).collect();
        Ok(Stats { peers, drops, in_kernel: true, keys: Some(inner.keys()), without })
    }

    /// The device goes first: until the rules follow, the guards answer for every mesh prefix.
    fn remove(&self) -> Result<(), DriverError> {
        let mut inner = self.lock()?;
        let inner = &mut *inner;
        remove(&mut inner.net, &mut inner.xfrm)?;
        inner.removed = true;
        Ok(())
    }
}

/// What this namespace's IPsec dropped, ours and others' alike: the kernel counts them together.
fn kernels_drops() -> Vec<(&'static str, u64)> {
    const NAMES: [(&str, &str); 8] = [
        ("XfrmInNoStates", "xfrm-in-no-states"),
        ("XfrmInStateProtoError", "xfrm-in-bad-tag"),
        ("XfrmInStateSeqError", "xfrm-in-replayed"),
        ("XfrmInTmplMismatch", "xfrm-in-bad-source"),
        ("XfrmInNoPols", "xfrm-in-no-policy"),
        ("XfrmInPolBlock", "xfrm-in-blocked"),
        ("XfrmOutNoStates", "xfrm-out-no-states"),
        ("XfrmOutPolBlock", "xfrm-out-blocked"),
    ];
    // Of this thread's namespace.
    let text = std::fs::read_to_string("/proc/thread-self/net/xfrm_stat").unwrap_or_default();
    let count = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(char::is_whitespace));
        lines.find(|(is, _)| *is == name).and_then(|(_, count)| count.trim().parse().ok()).unwrap_or(0)
    };
    NAMES.iter().map(|(kernels, ours)| (*ours, count(kernels))).collect()
}
