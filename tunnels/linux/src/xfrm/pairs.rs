//! What the kernel has for each peer: states of every generation that counts, and policies that lead to the newest.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hawser_model::{BootId, Epoch, EspEnd, Generation, PublicKey, Time};
use hawser_tunnels::{Carried, End, Keyring, ObservedPeer, Op, Sa};
use ipnet::IpNet;

use super::heard::Keepalive;
use super::kernel::{DIRECTIONS, OUT, Place, Policies, State};
use super::ledger::Pair;
use super::{Core, Inner, now, source_to};
use crate::driver::{DriverError, KeysInUse};
use crate::noise::primitives::agree;
use crate::wireguard::netlink_error;

/// No node's slot: no policy takes what comes in by a state of this request.
const NOBODYS: u32 = u32::MAX;

/// A state that nothing is sent by any more stays so long, for packets that are on their way through it.
const LEFT_FOR: Duration = Duration::from_secs(10);

/// A peer without a tunnel.
#[derive(Clone, Debug)]
pub(super) struct Without {
    op: Op,
    allowed: BTreeSet<IpNet>,
    /// The peer, and why.
    said: String,
}

impl fmt::Display for Without {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said)
    }
}

impl Without {
    fn parts(&self) -> Option<(SocketAddr, u32, Option<EspEnd>)> {
        match &self.op {
            Op::AddPeer { endpoint, slot, esp, .. } => Some((*endpoint, *slot, *esp)),
            _ => None,
        }
    }
}

impl Core {
    pub(super) fn add_peer(&self, inner: &mut Inner, op: &Op) -> Result<(), DriverError> {
        let Op::AddPeer { peer, public_key, endpoint, keepalive, boot_id, esp, slot, .. } = op else {
            return Ok(());
        };
        inner.without.remove(public_key);
        inner.put.insert(*public_key, *endpoint);
        inner.set_keepalive(*public_key, *keepalive);
        let Some(stated) = *esp else {
            inner.refuse(
                *public_key,
                op,
                "it states no keys of IPsec. fix: set the same encryption in the cluster.yaml of both clusters, and the same version of \
                the agent on both nodes",
            );
            return Ok(());
        };
        let Ok(place) = self.place(*endpoint, *slot, &stated) else {
            // It is not there then, so it is asked for again.
            tracing::warn!(%peer, %endpoint, "no IPsec tunnel yet: there is no route to it");
            return Ok(());
        };
        let before = inner.ledger.pairs.get(public_key).cloned();
        if before.as_ref().is_some_and(|pair| !pair.spis().all(|spi| inner.xfrm.states().contains_key(&spi)))
        {
            inner.refuse(
                *public_key,
                op,
                "its states were deleted by somebody and its counters with \
                them. fix: start the agent again, it begins with a new key",
            );
            return Ok(());
        }
        let known = before.is_some();
        let (sending, out, into) = before.map(|pair| (pair.sending, pair.out, pair.into)).unwrap_or_default();
        let (name, boot_id, port) = (peer.clone(), boot_id.clone(), endpoint.port());
        let pair = Pair { name, boot_id, port, present: true, stated, sending, out, into };
        if known {
            inner.ledger.note(*public_key, pair.clone())?;
            inner.settle(&pair, place).map_err(netlink_error(op))?;
        }
        if !stated.receives().any(|of| inner.held.contains_key(&of.epoch)) && pair.spi_out().is_none() {
            let (here, there) =
                (epochs(inner.held.keys().copied()), epochs(stated.receives().map(|of| of.epoch)));
            let why = format!(
                "it holds the mesh secret of epoch {there}, and this node of epoch {here}. fix: give both the newer one (ipsecSecret)"
            );
            inner.refuse(*public_key, op, &why);
            return Ok(());
        }
        match self.associate(inner, *public_key, pair, place) {
            Err(DriverError::SpiTaken { .. }) => {
                inner.refuse(
                    *public_key,
                    op,
                    "its SPI is another peer's. fix: start either node's agent again \
                    after `hawser-node-agent --remove`, it begins with a new key",
                );
                Ok(())
            }
            done => done,
        }
    }

    /// Makes the states that a pair lacks, what comes in first, and lets leave by the newest what leaves.
    fn associate(
        &self,
        inner: &mut Inner,
        key: PublicKey,
        pair: Pair,
        place: Place,
    ) -> Result<(), DriverError> {
        let mut next = pair.clone();
        let receives: Vec<_> = inner.ledger.receiving.all().collect();
        let lacking: Vec<_> = receives.into_iter().filter(|of| !pair.into.contains_key(of)).collect();
        let left = next.sending.handle_stated(&pair.stated, |epoch| inner.held.contains_key(&epoch));
        let begun = next.sending.current().filter(|of| left.is_some() && !pair.out.contains_key(of));
        // A key that gives no secret proves nothing; the mesh secret still keeps everybody else out.
        let shared = || agree(inner.ledger.key.secret(), key.as_bytes()).unwrap_or_default();
        let shared = if lacking.is_empty() && begun.is_none() { Default::default() } else { shared() };
        let derive = |of: Generation, inbound: bool| {
            let secret = inner.held.get(&of.epoch)?;
            let own = End {
                name: &self.config.name,
                public_key: &self.public_key,
                boot_id: Some(&self.config.boot_id),
                address: place.source,
            };
            let boot_id: Option<&BootId> = pair.boot_id.as_ref();
            let peer = End { name: &pair.name, public_key: &key, boot_id, address: place.destination };
            let (from, to) = if inbound { (peer, own) } else { (own, peer) };
            Some(secret.association(of.turn, &shared, from, to))
        };
        let mut made: Vec<(Sa, Place, bool)> = Vec::new();
        for of in lacking {
            if let Some(sa) = derive(of, true) {
                next.into.insert(of, sa.spi);
                made.push((sa, place.turned(), true));
            }
        }
        if let Some((of, sa)) = begun.and_then(|of| Some((of, derive(of, false)?))) {
            next.out.insert(of, sa.spi);
            made.push((sa, place, false));
        }
        let mut spis = BTreeSet::new();
        let taken =
            |(sa, ..): &&(Sa, Place, bool)| inner.xfrm.states().contains_key(&sa.spi) || !spis.insert(sa.spi);
        if let Some((sa, ..)) = made.iter().find(taken) {
            return Err(DriverError::SpiTaken { peer: pair.name.clone(), spi: sa.spi });
        }
        inner.ledger.note(key, next.clone())?;
        for (sa, place, inbound) in &made {
            let mark = (!inbound).then_some(self.config.mark);
            if let Err(source) = inner.xfrm.add_state(sa.spi, &sa.key, *place, mark) {
                // Nothing has come or gone by them: as if they had not been.
                for (sa, ..) in &made {
                    let _ = inner.xfrm.delete_state(sa.spi);
                }
                inner.ledger.note(key, pair)?;
                return Err(netlink_error("add an IPsec state")(source));
            }
        }
        if let Some(before) = left.flatten().and_then(|before| next.out.get(&before).copied())
            && let Some(spi) = next.spi_out()
        {
            let moved: Vec<_> = inner.xfrm.policies().of(before).collect();
            for prefix in moved {
                inner.xfrm.allow(prefix, spi, place).map_err(netlink_error("change an IPsec policy"))?;
            }
            inner.left.insert(before, now());
        }
        Ok(())
    }

    /// Everybody's associations, as they should be by now.
    pub(super) fn turn(&self, inner: &mut Inner, now: Time) -> Result<(), DriverError> {
        let mut receiving = inner.ledger.receiving.clone();
        let (carried, needed) = (inner.carried_by(), inner.needed());
        receiving.handle_carried(&inner.keyring, &carried, &needed, &self.config.wear, now);
        let used: BTreeSet<Epoch> = receiving.all().map(|of| of.epoch).chain(needed).collect();
        inner.held.retain(|epoch, _| used.contains(epoch) || inner.keyring.get(*epoch).is_some());
        let mut secrets = inner.ledger.secrets.clone();
        secrets.extend(inner.held.iter().map(|(epoch, secret)| (*epoch, secret.fingerprint())));
        inner.ledger.note_receiving(receiving, secrets)?;
        let present = inner.ledger.pairs.iter().filter(|(_, pair)| pair.present);
        let present: Vec<_> = present.map(|(key, pair)| (*key, pair.clone())).collect();
        for (key, pair) in present {
            // Somebody deleted it: the next plan says so.
            let Some(state) = pair.spi_out().and_then(|spi| inner.xfrm.states().get(&spi)) else { continue };
            let place = state.place;
            match self.associate(inner, key, pair, place) {
                Err(error @ DriverError::SpiTaken { .. }) => {
                    tracing::error!(%error, "no other keys of IPsec")
                }
                done => done?,
            }
        }
        inner.tidy(now)?;
        // They may have what they lacked.
        for (_, without) in std::mem::take(&mut inner.without) {
            self.add_peer(inner, &without.op)?;
            if let Op::AddPeer { public_key, .. } = &without.op {
                inner.allow(*public_key, &without.allowed).map_err(netlink_error("add IPsec policies"))?;
            }
        }
        Ok(())
    }

    pub(super) fn set_endpoint(
        &self,
        inner: &mut Inner,
        key: PublicKey,
        to: SocketAddr,
    ) -> Result<(), DriverError> {
        if let Some(without) = inner.without.get_mut(&key) {
            if let Op::AddPeer { endpoint, .. } = &mut without.op {
                *endpoint = to;
            }
            return Ok(());
        }
        inner.put.insert(key, to);
        self.lead(inner, key, to)
    }

    /// A peer is there from now on, whoever says so.
    pub(super) fn lead(&self, inner: &mut Inner, key: PublicKey, to: SocketAddr) -> Result<(), DriverError> {
        let Some(pair) = inner.ledger.pairs.get(&key).cloned() else { return Ok(()) };
        let state = pair.spi_out().and_then(|spi| inner.xfrm.states().get(&spi));
        let Some(slot) = state.map(|state| state.place.reqid) else { return Ok(()) };
        let pair = Pair { port: to.port(), ..pair };
        inner.ledger.note(key, pair.clone())?;
        match self.place(to, slot, &pair.stated) {
            Ok(place) => inner.settle(&pair, place).map_err(netlink_error("move a peer")),
            // It stays where it was while there is no route to where it should be.
            Err(_) => Ok(()),
        }
    }

    pub(super) fn peers(&self, inner: &Inner) -> BTreeMap<PublicKey, ObservedPeer> {
        let (states, policies) = (inner.xfrm.states(), inner.xfrm.policies());
        let mut peers = BTreeMap::new();
        for (key, pair) in inner.ledger.pairs.iter().filter(|(_, pair)| pair.present) {
            // What lost a state is not there: adding it again says why it cannot come back.
            let of = |spis: &BTreeMap<Generation, u32>| -> Option<Vec<State>> {
                spis.values().map(|spi| states.get(spi).copied()).collect()
            };
            let (Some(out), Some(into)) = (of(&pair.out), of(&pair.into)) else { continue };
            let Some((spi, state)) = pair.spi_out().and_then(|spi| Some((spi, states.get(&spi)?))) else {
                continue;
            };
            let place = state.place;
            let endpoint = SocketAddr::new(place.destination, pair.port);
            let stands = out.iter().all(|state| state.place == place)
                && into.iter().all(|state| state.place == place.turned())
                && place.udp == pair.stated.in_udp.then_some((self.config.port, pair.port))
                && source_to(endpoint, self.config.mark).is_ok_and(|source| source == place.source);
            let allowed = owned(policies, spi, place);
            let peer = ObservedPeer {
                endpoint: stands.then_some(endpoint),
                configured: inner.put.get(key).copied().filter(|_| stands),
                keepalive: inner.keepalive(key),
                allowed,
                slot: Some(place.reqid),
                esp: Some(pair.stated),
                ..ObservedPeer::default()
            };
            peers.insert(*key, peer);
        }
        for (key, without) in &inner.without {
            let Some((endpoint, slot, esp)) = without.parts() else { continue };
            let (endpoint, slot, allowed) = (Some(endpoint), Some(slot), without.allowed.clone());
            let keepalive = inner.keepalive(key);
            let peer = ObservedPeer { endpoint, allowed, keepalive, slot, esp, ..ObservedPeer::default() };
            peers.insert(*key, peer);
        }
        peers
    }
}

impl Inner {
    /// Takes the keyring's secrets to those that are held, unless it contradicts them; then why.
    pub(super) fn take_up(
        &mut self,
        keyring: &Keyring,
        now: Time,
    ) -> Result<Option<DriverError>, DriverError> {
        let other = keyring.iter().find(|secret| {
            let print = self.ledger.secrets.get(&secret.epoch());
            print.is_some_and(|print| *print != secret.fingerprint())
        });
        if let Some(secret) = other {
            return Ok(Some(DriverError::SecretChanged { epoch: secret.epoch() }));
        }
        let mut receiving = self.ledger.receiving.clone();
        if let Err(refused) = receiving.handle_keyring(keyring, now) {
            return Ok(Some(refused.into()));
        }
        self.keyring = keyring.clone();
        self.held.extend(keyring.iter().map(|secret| (secret.epoch(), secret.clone())));
        let mut secrets = self.ledger.secrets.clone();
        secrets.extend(self.held.iter().map(|(epoch, secret)| (*epoch, secret.fingerprint())));
        self.ledger.note_receiving(receiving, secrets)?;
        Ok(None)
    }

    pub(super) fn stated(&self) -> EspEnd {
        self.ledger.receiving.stated(false)
    }

    pub(super) fn keys(&self) -> KeysInUse {
        let present = self.ledger.pairs.values().filter(|pair| pair.present);
        KeysInUse::of(&self.ledger.receiving, present.map(|pair| &pair.sending))
    }

    fn carried_by(&self) -> BTreeMap<Generation, Carried> {
        let mut carried = BTreeMap::<Generation, Carried>::new();
        for (of, spi) in self.ledger.pairs.values().flat_map(|pair| &pair.into) {
            let bytes = self.xfrm.states().get(spi).map_or(0, |state| state.bytes);
            let all = carried.entry(*of).or_default();
            *all = Carried { most: all.most.max(bytes), total: all.total.saturating_add(bytes) };
        }
        carried
    }

    /// Epochs that a peer has nothing else of, or is sent to by.
    fn needed(&self) -> BTreeSet<Epoch> {
        let mut needed = BTreeSet::new();
        for pair in self.ledger.pairs.values().filter(|pair| pair.present) {
            needed.extend(pair.sending.current().map(|of| of.epoch));
            let stated = || pair.stated.receives().map(|of| of.epoch);
            if !stated().any(|epoch| self.keyring.get(epoch).is_some()) {
                needed.extend(stated());
            }
        }
        needed
    }

    /// Deletes the states of generations that are over.
    fn tidy(&mut self, now: Time) -> Result<(), DriverError> {
        let mut gone = Vec::new();
        for (key, pair) in &self.ledger.pairs {
            let over = pair.into.keys().filter(|of| !self.ledger.receiving.contains(**of)).copied();
            let over: Vec<_> = over.collect();
            let current = pair.sending.current();
            let mut left = Vec::new();
            for (of, spi) in pair.out.iter().filter(|(of, _)| Some(**of) != current) {
                if now.since(*self.left.entry(*spi).or_insert(now)) >= LEFT_FOR {
                    left.push(*of);
                }
            }
            if !over.is_empty() || !left.is_empty() {
                gone.push((*key, pair.clone(), over, left));
            }
        }
        for (key, mut pair, over, left) in gone {
            let into: Vec<_> = over.iter().filter_map(|of| pair.into.remove(of)).collect();
            let out: Vec<_> = left.iter().filter_map(|of| pair.out.remove(of)).collect();
            self.ledger.note(key, pair)?;
            let bytes = |spis: &[u32]| -> u64 {
                spis.iter().filter_map(|spi| self.xfrm.states().get(spi)).map(|state| state.bytes).sum()
            };
            let (rx, tx) = (bytes(&into), bytes(&out));
            let carried = self.carried.entry(key).or_default();
            *carried = (carried.0 + rx, carried.1 + tx);
            for spi in into.into_iter().chain(out) {
                self.left.remove(&spi);
                self.xfrm.delete_state(spi).map_err(netlink_error("delete an IPsec state"))?;
            }
        }
        Ok(())
    }

    pub(super) fn set_keepalive(&mut self, key: PublicKey, seconds: Option<u16>) {
        if self.keepalive(&key) == seconds {
            return;
        }
        self.keepalives.remove(&key);
        self.keepalives.extend(seconds.map(|seconds| (key, Keepalive::every(seconds))));
    }

    fn keepalive(&self, key: &PublicKey) -> Option<u16> {
        self.keepalives.get(key).map(|keepalive| keepalive.seconds)
    }

    fn refuse(&mut self, key: PublicKey, op: &Op, why: &str) {
        if let Op::AddPeer { peer, .. } = op {
            let said = format!("no IPsec tunnel to {peer}: {why}");
            tracing::error!("{said}");
            self.without.insert(key, Without { op: op.clone(), allowed: BTreeSet::new(), said });
        }
    }

    /// Puts a pair's states, and the policies that lead there, where they belong now.
    fn settle(&mut self, pair: &Pair, place: Place) -> io::Result<()> {
        let differs = |inner: &Self, spi: &u32, to: Place| {
            inner.xfrm.states().get(spi).is_some_and(|state| state.place != to)
        };
        for spi in pair.into.values() {
            if differs(self, spi, place.turned()) {
                self.xfrm.move_state(*spi, place.turned())?;
            }
        }
        for spi in pair.out.values() {
            if differs(self, spi, place) {
                self.xfrm.move_state(*spi, place)?;
            }
        }
        if let Some(spi) = pair.spi_out() {
            let prefixes: Vec<_> = self.xfrm.policies().of(spi).collect();
            prefixes.into_iter().try_for_each(|prefix| self.xfrm.allow(prefix, spi, place))?;
        }
        Ok(())
    }

    /// What a process that was killed left half-done: a state that is in no ledger, a prefix without one of its directions, or of
    /// nobody.
    pub(super) fn sweep(&mut self) -> io::Result<()> {
        let known: BTreeSet<u32> = self.ledger.pairs.values().flat_map(Pair::spis).collect();
        let strays: Vec<_> = self.xfrm.states().keys().filter(|spi| !known.contains(spi)).copied().collect();
        strays.into_iter().try_for_each(|spi| self.xfrm.delete_state(spi))?;
        let present = self.ledger.pairs.values().filter(|pair| pair.present);
        let leading = present.filter_map(|pair| {
            let spi = pair.spi_out()?;
            Some(owned(self.xfrm.policies(), spi, self.xfrm.states().get(&spi)?.place))
        });
        let stay: BTreeSet<IpNet> = leading.flatten().collect();
        let all: Vec<_> = self.xfrm.policies().all().filter(|(prefix, _)| !stay.contains(prefix)).collect();
        all.into_iter().try_for_each(|(prefix, direction)| self.xfrm.delete_policy(prefix, direction))
    }

    pub(super) fn allow(&mut self, key: PublicKey, prefixes: &BTreeSet<IpNet>) -> io::Result<()> {
        if let Some(without) = self.without.get_mut(&key) {
            without.allowed.extend(prefixes);
            return Ok(());
        }
        let spi = self.ledger.pairs.get(&key).filter(|pair| pair.present).and_then(Pair::spi_out);
        let Some((spi, state)) = spi.and_then(|spi| Some((spi, self.xfrm.states().get(&spi)?))) else {
            // It could not be added, and is asked for again.
            return Ok(());
        };
        let place = state.place;
        prefixes.iter().try_for_each(|prefix| self.xfrm.allow(*prefix, spi, place))
    }

    /// Takes prefixes away, unless they are another's by now; all of them where none are named.
    pub(super) fn take(&mut self, key: PublicKey, prefixes: Option<&BTreeSet<IpNet>>) -> io::Result<()> {
        if let Some(without) = self.without.get_mut(&key) {
            without.allowed.retain(|prefix| prefixes.is_some_and(|prefixes| !prefixes.contains(prefix)));
            return Ok(());
        }
        let Some(pair) = self.ledger.pairs.get(&key) else { return Ok(()) };
        let its = pair.out.values().flat_map(|spi| self.xfrm.policies().of(*spi));
        let taken: Vec<_> =
            its.filter(|prefix| prefixes.is_none_or(|prefixes| prefixes.contains(prefix))).collect();
        taken.into_iter().try_for_each(|prefix| self.xfrm.deny(prefix))
    }

    /// The states stay: their counters must go on if the peer comes back. Without policies they let nothing out, and with
    /// nobody's request nothing in.
    pub(super) fn remove_peer(&mut self, key: PublicKey) -> Result<(), DriverError> {
        self.take(key, None).map_err(netlink_error("remove a peer"))?;
        self.put.remove(&key);
        self.keepalives.remove(&key);
        if self.without.remove(&key).is_none()
            && let Some(pair) = self.ledger.pairs.get(&key).cloned()
        {
            for spi in pair.into.values() {
                if let Some(state) = self.xfrm.states().get(spi) {
                    let place = Place { reqid: NOBODYS, ..state.place };
                    self.xfrm.move_state(*spi, place).map_err(netlink_error("remove a peer"))?;
                }
            }
            self.ledger.note(key, Pair { present: false, ..pair })?;
        }
        Ok(())
    }
}

/// Prefixes whose policies lead to a state and back, all of them.
fn owned(policies: &Policies, spi: u32, place: Place) -> BTreeSet<IpNet> {
    let whole = |prefix: &IpNet| {
        DIRECTIONS.iter().all(|direction| {
            policies.get(*prefix, *direction).is_some_and(|policy| {
                let out = *direction == OUT;
                let ends = out.then_some((place.source, place.destination));
                let leads = if out { policy.spi == spi } else { policy.spi == 0 };
                leads && policy.reqid == place.reqid && policy.ends == ends
            })
        })
    };
    policies.of(spi).filter(whole).collect()
}

fn epochs(epochs: impl Iterator<Item = Epoch>) -> String {
    let mut epochs: Vec<_> = epochs.map(|epoch| epoch.to_string()).collect();
    epochs.dedup();
    epochs.join(" and ")
}
