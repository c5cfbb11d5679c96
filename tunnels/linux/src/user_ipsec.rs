//! IPsec in this process, for kernels without it: the WireGuard driver around an engine that speaks ESP in UDP, and the keys
//! that the mesh secrets give.
//!
//! No number is used twice under a key: keys are made of both ends' public keys, and this end has a new one whenever its
//! numbers begin anew, so with every process that no predecessor has handed its engine over to. Nothing of it is on disk.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hawser_model::{BootId, Epoch, EspEnd, Generation, PublicKey, Time};
use hawser_tunnels::{
    Carried, Derivation, End, Keyring, MeshSecret, Observed, Op, PeerName, Receiving, Sa, Sending,
};
use zeroize::Zeroizing;

use crate::clock::Millis;
use crate::driver::{Driver, DriverError, KeysInUse, Stats};
use crate::net::{Kind, Net};
use crate::noise::primitives::{agree, random};
use crate::wireguard::{check_limits, netlink_error};
use crate::{Choice, IpsecConfig, PrivateKey, Protocol, WireguardConfig, WireguardDriver};

/// What [`IpsecDriver`](crate::IpsecDriver) is where the kernel has no ESP. Peers of either kind reach it over
/// [`IpsecConfig::port`].
#[derive(Debug)]
pub struct UserIpsecDriver {
    inner: WireguardDriver,
    config: IpsecConfig,
    keys: Mutex<Keys>,
}

#[derive(Debug)]
struct Keys {
    receiving: Receiving,
    /// The newest that could be taken up.
    keyring: Keyring,
    /// Its secrets, and those of earlier ones that are still in use.
    held: BTreeMap<Epoch, MeshSecret>,
    /// Peers whose associations this process has derived.
    peers: HashMap<PublicKey, Known>,
}

#[derive(Clone, Debug)]
struct Known {
    name: PeerName,
    boot_id: Option<BootId>,
    stated: Option<EspEnd>,
    slot: u32,
    sending: Sending,
    out: Option<Sa>,
    into: BTreeMap<Generation, Sa>,
}

/// Of a peer that a predecessor has left, which may have had another secret: the plan adds it once more. No peer has it.
const UNKNOWN: u32 = u32::MAX;

impl UserIpsecDriver {
    /// As [`WireguardDriver::start`]. With `take_over` the associations of a predecessor go on, and its key stays.
    pub fn start(config: IpsecConfig, take_over: bool) -> Result<Self, DriverError> {
        check_limits(config.mtu, config.mark, config.table)?;
        not_of_cilium(&config.keyring)?;
        let device = config.device.clone();
        let found = Net::open(device.clone(), config.table)
            .map_err(|source| DriverError::OpenNetlink { source })?
            .link()
            .map_err(netlink_error("show the device"))?;
        if let Some(found) = found.map(|link| link.kind).filter(|kind| *kind != Kind::Tun) {
            return Err(DriverError::NotIpsec { device, found });
        }
        let wireguard = WireguardConfig {
            choice: Choice::Userspace,
            device: device.clone(),
            port: config.port,
            more_ports: Vec::new(),
            mtu: config.mtu,
            mark: config.mark,
            table: config.table,
            private_key: Default::default(),
            take_over,
        };
        let key = random().ok().map(Zeroizing::new).and_then(|bytes| PrivateKey::from_bytes(*bytes));
        let key = key.ok_or(DriverError::NoRandom { device })?;
        let inner = WireguardDriver::start_with(wireguard, key, Protocol::Esp)?;
        let keys = Keys::of(&inner.note()?, &config.keyring);
        let driver = Self { inner, config, keys: Mutex::new(keys) };
        if let Err(error) = driver.tend(&driver.config.keyring) {
            tracing::warn!(%error, "the IPsec secrets are not all in use yet");
        }
        Ok(driver)
    }

    /// What peers must know us by: another one after each start that took nothing over.
    pub fn public_key(&self) -> PublicKey {
        self.inner.public_key()
    }

    /// The UDP port in use, also when the configuration left it to the kernel.
    pub fn port(&self) -> Result<u16, DriverError> {
        self.inner.port()
    }

    /// Whether a successor has what this process had.
    pub fn is_given(&self) -> bool {
        self.inner.is_given()
    }

    /// By which keys peers may send: what is there to be opened by.
    pub fn end(&self) -> EspEnd {
        self.keys().receiving.stated(true)
    }

    /// Takes up what the keyring has by now, and does what is due: new keys for worn ones, and the end of those that nobody uses
    /// any more. Gives what peers are to be told from then on. O(peers).
    pub fn tend(&self, keyring: &Keyring) -> Result<EspEnd, DriverError> {
        not_of_cilium(keyring)?;
        let mut keys = self.keys();
        let keys = &mut *keys;
        let now = Time::from_millis(Millis::now().0);
        let refused = keys.take_up(keyring, now);
        let carried = self.carried(keys)?;
        let needed = keys.needed();
        keys.receiving.handle_carried(&keys.keyring, &carried, &needed, &self.config.wear, now);
        let used: BTreeSet<Epoch> = keys.receiving.all().map(|of| of.epoch).chain(needed).collect();
        keys.held.retain(|epoch, _| used.contains(epoch) || keys.keyring.get(*epoch).is_some());
        // A successor is told before any peer is.
        self.inner.set_note(keys.note())?;
        let peers: Vec<_> = keys.peers.keys().copied().collect();
        peers.into_iter().try_for_each(|key| self.associate(keys, key))?;
        match refused {
            None => Ok(keys.receiving.stated(true)),
            Some(refused) => Err(refused),
        }
    }

    /// In numbers of packets, of which none is longer than the tunnel's MTU.
    fn carried(&self, keys: &Keys) -> Result<BTreeMap<Generation, Carried>, DriverError> {
        let newest = self.inner.received()?;
        let mut carried = BTreeMap::<Generation, Carried>::new();
        for (of, sa) in keys.peers.values().flat_map(|known| &known.into) {
            let packets = newest.get(&sa.spi).copied().unwrap_or(0);
            let all = carried.entry(*of).or_default();
            all.most = all.most.max(packets.saturating_mul(self.config.mtu.into()));
            all.total = all.total.saturating_add(packets);
        }
        Ok(carried)
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a peer the associations that count by now; both ends derive them alike. One peer's misfortune keeps no other
    /// waiting.
    fn associate(&self, keys: &mut Keys, key: PublicKey) -> Result<(), DriverError> {
        let Keys { receiving, held, peers, .. } = keys;
        let Some(known) = peers.get_mut(&key) else { return Ok(()) };
        let before = known.clone();
        let lacking: Vec<_> = receiving.all().filter(|of| !known.into.contains_key(of)).collect();
        let holds = |epoch: Epoch| held.contains_key(&epoch);
        let begun = known.stated.is_some_and(|end| known.sending.handle_stated(&end, holds).is_some());
        if begun || !lacking.is_empty() {
            // Only Cilium's derivation asks for addresses.
            let address = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
            let public_key = self.public_key();
            let own = End {
                name: &self.config.name,
                public_key: &public_key,
                boot_id: Some(&self.config.boot_id),
                address,
            };
            let peer =
                End { name: &before.name, public_key: &key, boot_id: before.boot_id.as_ref(), address };
            // A key that gives no secret proves nothing; the mesh secret still keeps everybody else out.
            let shared = agree(self.inner.private_key().secret(), key.as_bytes()).unwrap_or_default();
            let derive =
                |of: Generation, from, to| Some(held.get(&of.epoch)?.association(of.turn, &shared, from, to));
            known.into.extend(lacking.iter().filter_map(|of| Some((*of, derive(*of, peer, own)?))));
            if let Some(of) = known.sending.current().filter(|_| begun) {
                known.out = derive(of, own, peer);
            }
        }
        known.into.retain(|of, _| receiving.contains(*of));
        let into: Vec<Sa> = known.into.values().cloned().collect();
        match self.inner.associate(&key, known.out.as_ref(), &into) {
            Err(DriverError::Associate(error)) => {
                tracing::error!(peer = %known.name, %error, "no IPsec tunnel");
                *known = before;
                Ok(())
            }
            done => done,
        }
    }

    fn meet(&self, op: &Op) -> Result<(), DriverError> {
        let Op::AddPeer { peer, public_key, boot_id, esp, slot, .. } = op else { return Ok(()) };
        let mut keys = self.keys();
        let before = keys.peers.remove(public_key);
        let same = before.filter(|known| known.name == *peer && known.boot_id == *boot_id);
        let known = Known { stated: *esp, slot: *slot, ..same.unwrap_or_else(|| Known::new(peer, boot_id)) };
        keys.peers.insert(*public_key, known);
        self.associate(&mut keys, *public_key)?;
        if let Some(why) = keys.peers.get(public_key).and_then(|known| keys.why_not(known)) {
            tracing::error!("{why}");
        }
        Ok(())
    }
}

impl Known {
    fn new(name: &PeerName, boot_id: &Option<BootId>) -> Self {
        Self {
            name: name.clone(),
            boot_id: boot_id.clone(),
            stated: None,
            slot: UNKNOWN,
            sending: Sending::default(),
            out: None,
            into: BTreeMap::new(),
        }
    }
}

impl Keys {
    /// As a predecessor has noted it.
    fn of(note: &str, keyring: &Keyring) -> Self {
        let now = Time::from_millis(Millis::now().0);
        let mut parts = note.split(';');
        let receiving = parts.next().and_then(|text| Receiving::import(text, now));
        let mut held: BTreeMap<_, _> = parts
            .filter_map(|line| MeshSecret::parse(line).ok())
            .map(|secret| (secret.epoch(), secret))
            .collect();
        if receiving.is_none() {
            held.clear();
        }
        let receiving = receiving.unwrap_or_else(|| Receiving::begin(keyring, now));
        let keyring = keyring.clone();
        let of_keyring: Vec<_> = keyring.iter().cloned().collect();
        for secret in of_keyring {
            held.entry(secret.epoch()).or_insert(secret);
        }
        Self { receiving, keyring, held, peers: HashMap::new() }
    }

    fn note(&self) -> Zeroizing<String> {
        let mut note = Zeroizing::new(self.receiving.export());
        for line in self.held.values().filter_map(MeshSecret::line) {
            note.push(';');
            note.push_str(&line);
        }
        note
    }

    /// Unless it contradicts what is held; then why.
    fn take_up(&mut self, keyring: &Keyring, now: Time) -> Option<DriverError> {
        let other =
            keyring.iter().find(|secret| self.held.get(&secret.epoch()).is_some_and(|is| is != *secret));
        if let Some(secret) = other {
            return Some(DriverError::SecretChanged { epoch: secret.epoch() });
        }
        if let Err(refused) = self.receiving.handle_keyring(keyring, now) {
            return Some(refused.into());
        }
        self.keyring = keyring.clone();
        self.held.extend(keyring.iter().map(|secret| (secret.epoch(), secret.clone())));
        None
    }

    /// Epochs that a peer has nothing else of, or is sent to by.
    fn needed(&self) -> BTreeSet<Epoch> {
        let mut needed = BTreeSet::new();
        for known in self.peers.values() {
            needed.extend(known.sending.current().map(|of| of.epoch));
            let stated = || known.stated.iter().flat_map(EspEnd::receives).map(|of| of.epoch);
            if !stated().any(|epoch| self.keyring.get(epoch).is_some()) {
                needed.extend(stated());
            }
        }
        needed
    }

    /// Why nothing can be sent to a peer; none where it can.
    fn why_not(&self, known: &Known) -> Option<String> {
        let (peer, here) = (&known.name, self.held.keys().map(ToString::to_string).collect::<Vec<_>>());
        match (&known.out, &known.stated) {
            (Some(_), _) => None,
            (None, None) => Some(format!(
                "no IPsec tunnel to {peer}: it states no keys of IPsec. fix: set the same encryption in the cluster.yaml of both clusters, and \
                 the same version of the agent on both nodes"
            )),
            (None, Some(stated)) => {
                let there: Vec<_> = stated.receives().map(|of| of.epoch.to_string()).collect();
                let (here, there) = (here.join(" and "), there.join(" and "));
                Some(format!(
                    "no IPsec tunnel to {peer}: it holds the mesh secret of epoch {there}, and this node of epoch {here}. fix: give both the \
                     newer one (ipsecSecret)"
                ))
            }
        }
    }

    fn in_use(&self) -> KeysInUse {
        KeysInUse::of(&self.receiving, self.peers.values().map(|known| &known.sending))
    }
}

/// Its keys are made of boot ids alone.
fn not_of_cilium(keyring: &Keyring) -> Result<(), DriverError> {
    match keyring.iter().any(|secret| secret.derivation() == Derivation::Cilium) {
        true => Err(DriverError::CiliumInUserspace),
        false => Ok(()),
    }
}

impl Driver for UserIpsecDriver {
    fn observe(&self) -> Result<Observed, DriverError> {
        let mut observed = self.inner.observe()?;
        let keys = self.keys();
        for (key, peer) in &mut observed.peers {
            let known = keys.peers.get(key);
            peer.slot = Some(known.map_or(UNKNOWN, |known| known.slot));
            peer.esp = known.and_then(|known| known.stated);
        }
        Ok(observed)
    }

    fn apply(&self, op: &Op) -> Result<(), DriverError> {
        self.inner.apply(op)?;
        match op {
            Op::AddPeer { .. } => self.meet(op)?,
            Op::RemovePeer { public_key } => {
                self.keys().peers.remove(public_key);
            }
            _ => {}
        }
        Ok(())
    }

    fn stats(&self) -> Result<Stats, DriverError> {
        let stats = self.inner.stats()?;
        let keys = self.keys();
        let without = keys.peers.values().filter_map(|known| keys.why_not(known)).collect();
        Ok(Stats { keys: Some(keys.in_use()), without, ..stats })
    }

    fn remove(&self) -> Result<(), DriverError> {
        self.inner.remove()
    }
}
