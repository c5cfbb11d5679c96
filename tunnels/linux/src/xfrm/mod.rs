//! IPsec in the kernel: an XFRM interface, two states for each peer and three policies for each prefix, all with one
//! interface id. What they carry the kernel carries on while no process runs.
//!
//! ```text
//! route ──> hawser0 (xfrm, if_id) ──policy: prefix──> state (AES-GCM, ESN, mark) ──> ESP ──> main table
//! ESP ──SPI──> state ──> hawser0 ──policy: a peer's sources by its own states alone──> node
//!                           └── `tunnel_in` asks the same before it hands a packet to a pod
//! ```

mod kernel;
mod ledger;
mod leftovers;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use hawser_model::{BootId, PublicKey};
use hawser_tunnels::{
    Derivation, DeviceName, End, Mark, MeshSecret, Observed, ObservedDevice, ObservedPeer, Op, PeerName,
};
use ipnet::IpNet;
use nix::sys::socket::{setsockopt, sockopt};

use crate::driver::{Driver, DriverError, PeerStats, Stats};
use crate::net::{Kind, Net};
use crate::noise::primitives::agree;
use crate::wireguard::{apply_to_kernel, check_limits, netlink_error};
use kernel::{DIRECTIONS, OUT, Place, Policies, State, Xfrm};
use ledger::{Circumstances, Ledger, Pair};
pub use leftovers::IpsecLeftovers;
use leftovers::{clear, remove, shut};

#[derive(Clone, Debug)]
pub struct IpsecConfig {
    pub device: DeviceName,
    /// What peers are told: ESP itself has no ports.
    pub port: u16,
    pub mtu: u16,
    pub mark: Mark,
    /// The routing table that is ours alone, and the interface id of our states and policies.
    pub table: u32,
    /// This node, as its peers name it.
    pub name: PeerName,
    pub boot_id: BootId,
    pub secret: MeshSecret,
    /// Which keys are in use; made on the first start, and anew after each boot.
    pub ledger: PathBuf,
}

pub struct IpsecDriver {
    config: IpsecConfig,
    public_key: PublicKey,
    inner: Mutex<Inner>,
}

struct Inner {
    removed: bool,
    net: Net,
    xfrm: Xfrm,
    ledger: Ledger,
    /// Peers that cannot have a tunnel, and what was asked for them: one peer's misfortune keeps no other waiting.
    without: HashMap<PublicKey, Without>,
}

#[derive(Clone, Debug, Default)]
struct Without {
    endpoint: Option<SocketAddr>,
    slot: Option<u32>,
    allowed: BTreeSet<IpNet>,
}

type States = BTreeMap<u32, State>;

impl std::fmt::Debug for IpsecDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IPsec tunnels of {}", self.config.device)
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
        let states = xfrm.states().map_err(netlink_error("list IPsec states"))?;
        if is_new {
            // A new device has no program that judges what comes in: nothing may come in until peers are put back.
            shut(&mut xfrm).map_err(netlink_error("delete IPsec policies"))?;
        }
        let ledger = ledger(&config, &states, &mut xfrm)?;
        create(&config, &mut net)?;
        let mut inner = Inner { removed: false, net, xfrm, ledger, without: HashMap::new() };
        inner.sweep().map_err(netlink_error("tidy IPsec policies"))?;
        let public_key = inner.ledger.key.public();
        Ok(Self { config, public_key, inner: Mutex::new(inner) })
    }

    /// What peers must know us by: another one after each boot.
    pub fn public_key(&self) -> PublicKey {
        self.public_key
    }

    fn lock(&self) -> Result<MutexGuard<'_, Inner>, DriverError> {
        // What a panic left half-done, the next plan sees.
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.removed {
            return Err(DriverError::Removed { device: self.config.device.clone() });
        }
        Ok(inner)
    }

    fn add_peer(&self, inner: &mut Inner, op: &Op) -> Result<(), DriverError> {
        let Op::AddPeer { peer, public_key, endpoint, boot_id, slot, .. } = op else { return Ok(()) };
        let failed = || netlink_error(op);
        inner.without.remove(public_key);
        let states = inner.xfrm.states().map_err(failed())?;
        let Ok(place) = self.place(*endpoint, *slot) else {
            // It is not there then, so it is asked for again.
            tracing::warn!(%peer, %endpoint, "no IPsec tunnel yet: there is no route to it");
            return Ok(());
        };
        if let Some(pair) = inner.ledger.pairs.get(public_key).copied() {
            let Some((out, into)) = both(&states, pair) else {
                inner.refuse(
                    *public_key,
                    op,
                    "its states were deleted by somebody and its counters with \
                    them. fix: start the agent again, it begins with a new key",
                );
                return Ok(());
            };
            inner.ledger.note(*public_key, Pair { port: endpoint.port(), present: true, ..pair })?;
            return inner.settle(pair, out, into, place).map_err(failed());
        }
        let (out, into) = self.associations(inner, peer, public_key, boot_id.as_ref(), place);
        if states.contains_key(&into.spi) || states.contains_key(&out.spi) || out.spi == into.spi {
            inner.refuse(
                *public_key,
                op,
                "its SPI is another peer's. fix: start either node's agent again \
                after `hawser-node-agent --remove`, it begins with a new key",
            );
            return Ok(());
        }
        let pair = Pair { spi_out: out.spi, spi_in: into.spi, port: endpoint.port(), present: true };
        inner.ledger.note(*public_key, pair)?;
        // Whoever is asked first can answer: what comes in is understood before anything goes out.
        inner.xfrm.add_state(into.spi, &into.key, place.turned(), None).map_err(failed())?;
        inner.xfrm.add_state(out.spi, &out.key, place, Some(self.config.mark)).map_err(failed())
    }

    fn associations(
        &self,
        inner: &Inner,
        peer: &PeerName,
        public_key: &PublicKey,
        boot_id: Option<&BootId>,
        place: Place,
    ) -> (hawser_tunnels::Sa, hawser_tunnels::Sa) {
        let Place { source, destination, .. } = place;
        let own = End {
            name: &self.config.name,
            public_key: &self.public_key,
            boot_id: Some(&self.config.boot_id),
            address: source,
        };
        let peer = End { name: peer, public_key, boot_id, address: destination };
        // A key that gives no secret proves nothing; the mesh secret still keeps everybody else out.
        let shared = agree(inner.ledger.key.secret(), public_key.as_bytes()).unwrap_or_default();
        let secret = &self.config.secret;
        (secret.association(&shared, own, peer), secret.association(&shared, peer, own))
    }

    fn place(&self, endpoint: SocketAddr, slot: u32) -> io::Result<Place> {
        let source = source_to(endpoint, self.config.mark)?;
        Ok(Place { source, destination: endpoint.ip(), reqid: slot })
    }

    fn set_endpoint(
        &self,
        inner: &mut Inner,
        key: PublicKey,
        endpoint: SocketAddr,
    ) -> Result<(), DriverError> {
        if let Some(without) = inner.without.get_mut(&key) {
            without.endpoint = Some(endpoint);
            return Ok(());
        }
        let failed = || netlink_error("move a peer");
        let states = inner.xfrm.states().map_err(failed())?;
        let Some(pair) = inner.ledger.pairs.get(&key).copied() else { return Ok(()) };
        let Some((out, into)) = both(&states, pair) else { return Ok(()) };
        inner.ledger.note(key, Pair { port: endpoint.port(), ..pair })?;
        match self.place(endpoint, out.reqid) {
            Ok(place) => inner.settle(pair, out, into, place).map_err(failed()),
            // It stays where it was while there is no route to where it should be.
            Err(_) => Ok(()),
        }
    }

    fn peers(&self, inner: &mut Inner) -> io::Result<BTreeMap<PublicKey, ObservedPeer>> {
        let (states, policies) = (inner.xfrm.states()?, inner.xfrm.policies()?);
        let mut peers = BTreeMap::new();
        for (key, pair) in inner.ledger.pairs.iter().filter(|(_, pair)| pair.present) {
            // What lost a state is not there: adding it again says why it cannot come back.
            let Some((out, into)) = both(&states, *pair) else { continue };
            let place = out.place();
            let endpoint = SocketAddr::new(out.destination, pair.port);
            let stands = place.turned() == into.place()
                && source_to(endpoint, self.config.mark).is_ok_and(|source| source == out.source);
            let allowed = owned(&policies, *pair, place);
            let endpoint = stands.then_some(endpoint);
            let slot = Some(out.reqid);
            let peer = ObservedPeer { endpoint, configured: None, allowed, keepalive: None, slot };
            peers.insert(*key, peer);
        }
        for (key, without) in &inner.without {
            let Without { endpoint, slot, allowed } = without.clone();
            peers.insert(*key, ObservedPeer { endpoint, configured: None, allowed, keepalive: None, slot });
        }
        Ok(peers)
    }
}

impl State {
    fn place(&self) -> Place {
        Place { source: self.source, destination: self.destination, reqid: self.reqid }
    }
}

impl Place {
    /// The way back.
    fn turned(self) -> Self {
        Self { source: self.destination, destination: self.source, reqid: self.reqid }
    }
}

impl Inner {
    fn refuse(&mut self, key: PublicKey, op: &Op, why: &str) {
        if let Op::AddPeer { peer, endpoint, slot, .. } = op {
            tracing::error!(%peer, "no IPsec tunnel: {why}");
            let without = Without { endpoint: Some(*endpoint), slot: Some(*slot), allowed: BTreeSet::new() };
            self.without.insert(key, without);
        }
    }

    /// Puts a pair's states, and the policies that lead there, where they belong now.
    fn settle(&mut self, pair: Pair, out: &State, into: &State, place: Place) -> io::Result<()> {
        let back = place.turned();
        if into.place() != back {
            self.xfrm.move_state(pair.spi_in, into, back)?;
            if into.destination != back.destination {
                self.xfrm.delete_state(pair.spi_in, into.destination)?;
            }
        }
        if out.place() == place {
            return Ok(());
        }
        let policies = self.xfrm.policies()?;
        self.xfrm.move_state(pair.spi_out, out, place)?;
        for (prefix, _) in policies.by_prefix.iter().filter(|(_, policy)| policy.spi == pair.spi_out) {
            self.xfrm.allow(prefix.0, pair, place)?;
        }
        if out.destination != place.destination {
            self.xfrm.delete_state(pair.spi_out, out.destination)?;
        }
        Ok(())
    }

    /// What a process that was killed left half-done: a prefix without one of its directions, or of nobody.
    fn sweep(&mut self) -> io::Result<()> {
        let (states, policies) = (self.xfrm.states()?, self.xfrm.policies()?);
        let present = self.ledger.pairs.values().filter(|pair| pair.present);
        let whole = present.filter_map(|pair| Some((*pair, both(&states, *pair)?.0.place())));
        let stay: BTreeSet<(u32, IpNet)> = whole
            .flat_map(|(pair, place)| {
                let owned = owned(&policies, pair, place);
                owned.into_iter().flat_map(move |prefix| [(pair.spi_out, prefix), (pair.spi_in, prefix)])
            })
            .collect();
        for ((prefix, direction), policy) in &policies.by_prefix {
            if !stay.contains(&(policy.spi, *prefix)) {
                self.xfrm.delete_policy(*prefix, *direction)?;
            }
        }
        Ok(())
    }

    fn allow(&mut self, key: PublicKey, prefixes: &BTreeSet<IpNet>) -> io::Result<()> {
        if let Some(without) = self.without.get_mut(&key) {
            without.allowed.extend(prefixes);
            return Ok(());
        }
        let states = self.xfrm.states()?;
        let pair = self.ledger.pairs.get(&key).copied().filter(|pair| pair.present);
        let Some((pair, (out, _))) = pair.and_then(|pair| Some((pair, both(&states, pair)?))) else {
            // It could not be added, and is asked for again.
            return Ok(());
        };
        let place = out.place();
        for prefix in prefixes {
            self.xfrm.allow(*prefix, pair, place)?;
        }
        Ok(())
    }

    /// Takes prefixes away, unless they are another's by now; all of them where none are named.
    fn take(&mut self, key: PublicKey, prefixes: Option<&BTreeSet<IpNet>>) -> io::Result<()> {
        if let Some(without) = self.without.get_mut(&key) {
            without.allowed.retain(|prefix| prefixes.is_some_and(|prefixes| !prefixes.contains(prefix)));
            return Ok(());
        }
        let Some(pair) = self.ledger.pairs.get(&key).copied() else { return Ok(()) };
        let policies = self.xfrm.policies()?;
        for ((prefix, direction), policy) in &policies.by_prefix {
            let its = [pair.spi_in, pair.spi_out].contains(&policy.spi);
            if its && prefixes.is_none_or(|prefixes| prefixes.contains(prefix)) {
                self.xfrm.delete_policy(*prefix, *direction)?;
            }
        }
        Ok(())
    }

    /// The states stay: their counters must go on if the peer comes back, and without policies they let nothing through.
    fn remove_peer(&mut self, key: PublicKey) -> Result<(), DriverError> {
        self.take(key, None).map_err(netlink_error("remove a peer"))?;
        if self.without.remove(&key).is_none()
            && let Some(pair) = self.ledger.pairs.get(&key).copied()
        {
            self.ledger.note(key, Pair { present: false, ..pair })?;
        }
        Ok(())
    }
}

/// Both states of a pair.
fn both(states: &States, pair: Pair) -> Option<(&State, &State)> {
    Some((states.get(&pair.spi_out)?, states.get(&pair.spi_in)?))
}

/// Prefixes whose policies lead to a pair, all of them.
fn owned(policies: &Policies, pair: Pair, place: Place) -> BTreeSet<IpNet> {
    let whole = |prefix: &IpNet| {
        DIRECTIONS.iter().all(|direction| {
            let spi = if *direction == OUT { pair.spi_out } else { pair.spi_in };
            policies.by_prefix.get(&(*prefix, *direction)).is_some_and(|policy| policy.spi == spi)
        })
    };
    let out = policies.by_prefix.iter().filter(|(_, policy)| policy.tunnel == Some(place));
    out.filter(|(_, policy)| policy.spi == pair.spi_out)
        .map(|((prefix, _), _)| *prefix)
        .filter(whole)
        .collect()
}

/// Goes on with what the last start of this boot used, if the kernel has all of it still.
fn ledger(config: &IpsecConfig, states: &States, xfrm: &mut Xfrm) -> Result<Ledger, DriverError> {
    let circumstances = Circumstances {
        boot_id: config.boot_id.as_str().to_owned(),
        secret: config.secret.fingerprint(),
        mark: config.mark.to_string(),
    };
    let last = Ledger::load(&config.ledger)?.filter(|last| last.circumstances == circumstances);
    if let Some(last) = last {
        if last.pairs.values().all(|pair| both(states, *pair).is_some()) {
            return Ok(last);
        }
        // Its keys are made of boot ids alone, so a new key of ours changes nothing.
        if config.secret.derivation() == Derivation::Cilium {
            return Err(DriverError::CountersLost { ledger: config.ledger.clone() });
        }
        tracing::warn!("IPsec states of the last run are gone: a new key, so that no counter is used twice");
    }
    clear(xfrm).map_err(netlink_error("delete the IPsec states and policies of an earlier run"))?;
    Ok(Ledger::begin(&config.ledger, circumstances)?)
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
        let mut inner = self.lock()?;
        let link = inner.net.link().map_err(netlink_error("show the device"))?;
        let addresses = match &link {
            Some(link) => inner.net.addresses(link).map_err(netlink_error("list the device's addresses"))?,
            None => BTreeSet::new(),
        };
        let routes = inner.net.routes(link.as_ref()).map_err(netlink_error("list routes"))?;
        let rules = inner.net.rules().map_err(netlink_error("list rules"))?;
        let blocked = inner.xfrm.policies().map_err(netlink_error("list IPsec policies"))?.blocked;
        let peers = self.peers(&mut inner).map_err(netlink_error("list IPsec states and policies"))?;
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
            Op::SetEndpoint { public_key, endpoint, .. } => self.set_endpoint(inner, *public_key, *endpoint),
            // Who is silent is silent: ESP needs no handshake, and no NAT is on the way.
            Op::SetKeepalive { .. } => Ok(()),
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
        let states = inner.xfrm.states().map_err(netlink_error("list IPsec states"))?;
        let mut drops = inner.net.drops().map_err(netlink_error("count drops"))?;
        drops.extend(kernels_drops());
        let present = inner.ledger.pairs.iter().filter(|(_, pair)| pair.present);
        let peers = present.filter_map(|(key, pair)| {
            let (out, into) = both(&states, *pair)?;
            let since =
                (into.first_used > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(into.first_used));
            let stats = PeerStats {
                endpoint: Some(SocketAddr::new(out.destination, pair.port)),
                last_handshake: since,
                rx_bytes: into.bytes,
                tx_bytes: out.bytes,
            };
            Some((*key, stats))
        });
        Ok(Stats { peers: peers.collect(), drops, in_kernel: true })
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
