//! The engine's configuration: one key, its peers, and who owns which prefix. Changed as a whole under one lock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use hawser_model::PublicKey;
use hawser_tunnels::PrefixTable;
use ipnet::IpNet;

use super::carry::Protocol;
use super::peer::Peer;
use super::sessions::Sessions;
use crate::PrivateKey;
use crate::clock::Millis;
use crate::noise::cookie::Guard;
use crate::noise::primitives::Forged;
use crate::uapi::SetPeer;

pub(crate) struct State {
    pub(crate) key: PrivateKey,
    pub(crate) mark: u32,
    pub(crate) guard: Guard,
    pub(crate) peers: BTreeMap<PublicKey, Arc<Peer>>,
    pub(crate) owners: PrefixTable<Arc<Peer>>,
    /// The same the other way round.
    owned: HashMap<PublicKey, BTreeSet<IpNet>>,
    /// Of peers that are added.
    pub(super) protocol: Protocol,
    sessions: Arc<Sessions>,
}

impl State {
    /// Fails when the machine has no random numbers.
    pub(crate) fn new(key: PrivateKey, mark: u32, sessions: Arc<Sessions>) -> Result<Self, Forged> {
        let guard = Guard::new(&key.public(), Millis::now())?;
        let (peers, owners, owned) = (BTreeMap::new(), PrefixTable::default(), HashMap::new());
        Ok(Self { key, mark, guard, peers, owners, owned, protocol: Protocol::Wireguard, sessions })
    }

    pub(super) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Every session ends with the key it was made with.
    pub(crate) fn set_key(&mut self, key: PrivateKey) -> Result<(), Forged> {
        if key.public() != self.key.public() {
            self.guard = Guard::new(&key.public(), Millis::now())?;
            self.remove(key.public());
            self.peers.values().for_each(|peer| peer.forget_keys(&self.sessions));
            self.key = key;
        }
        Ok(())
    }

    /// As `wg set` means it: what is not mentioned stays.
    pub(crate) fn set_peer(&mut self, set: &SetPeer) {
        if set.remove {
            return self.remove(set.public_key);
        }
        // A device is never its own peer; the kernel passes over it in silence too.
        if set.public_key == self.key.public() {
            return;
        }
        let peer = match self.peers.get(&set.public_key) {
            Some(peer) => Arc::clone(peer),
            None if set.update_only => return,
            None => self.add(set.public_key),
        };
        if let Some(preshared) = set.preshared_key {
            peer.set_preshared(preshared);
        }
        if let Some(endpoint) = set.endpoint {
            peer.set_endpoint(endpoint);
        }
        if let Some(seconds) = set.keepalive {
            peer.set_keepalive(seconds);
        }
        if set.replace_allowed {
            self.disown(set.public_key);
        }
        for (prefix, add) in &set.allowed {
            let prefix = prefix.trunc();
            if *add {
                self.give(prefix, &peer);
            } else if self.owners.get(&prefix).is_some_and(|owner| Arc::ptr_eq(owner, &peer)) {
                self.owners.remove(&prefix);
                self.forget(peer.key, prefix);
            }
        }
    }

    /// O(log of the prefixes of both peers).
    fn give(&mut self, prefix: IpNet, peer: &Arc<Peer>) {
        match self.owners.insert(prefix, Arc::clone(peer)) {
            Some(before) if Arc::ptr_eq(&before, peer) => return,
            Some(before) => self.forget(before.key, prefix),
            None => {}
        }
        self.owned.entry(peer.key).or_default().insert(prefix);
    }

    fn forget(&mut self, key: PublicKey, prefix: IpNet) {
        if let Some(owned) = self.owned.get_mut(&key) {
            owned.remove(&prefix);
        }
    }

    pub(crate) fn remove_all(&mut self) {
        self.owners = PrefixTable::default();
        self.owned.clear();
        std::mem::take(&mut self.peers).values().for_each(|peer| peer.remove(&self.sessions));
    }

    pub(crate) fn remove(&mut self, key: PublicKey) {
        if let Some(peer) = self.peers.remove(&key) {
            peer.remove(&self.sessions);
            self.disown(key);
        }
    }

    /// The prefixes of a peer, in order.
    pub(crate) fn owned(&self, key: &PublicKey) -> BTreeSet<IpNet> {
        self.owned.get(key).cloned().unwrap_or_default()
    }

    fn add(&mut self, key: PublicKey) -> Arc<Peer> {
        let peer = Arc::new(Peer::new(key, self.protocol));
        self.peers.insert(key, Arc::clone(&peer));
        peer
    }

    /// O(its prefixes).
    fn disown(&mut self, key: PublicKey) {
        let owned = self.owned.remove(&key).unwrap_or_default();
        owned.iter().for_each(|prefix| drop(self.owners.remove(prefix)));
    }
}
