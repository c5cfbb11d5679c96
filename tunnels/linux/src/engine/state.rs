//! The engine's configuration: one key, its peers, and who owns which prefix. Changed as a whole under one lock.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519;
use hawser_model::PublicKey;
use hawser_tunnels::PrefixTable;
use ipnet::IpNet;

use super::peer::Peer;
use crate::PrivateKey;
use crate::uapi::SetPeer;

/// Handshakes per second before cookies are asked for: a whole mesh of a thousand nodes may start at once.
const HANDSHAKES_PER_SECOND: u64 = 1000;

pub(crate) struct State {
    pub(crate) key: PrivateKey,
    pub(crate) mark: u32,
    pub(crate) limiter: Arc<RateLimiter>,
    pub(crate) peers: BTreeMap<PublicKey, Arc<Peer>>,
    pub(crate) by_index: HashMap<u32, Arc<Peer>>,
    pub(crate) owners: PrefixTable<Arc<Peer>>,
}

impl State {
    pub(crate) fn new(key: PrivateKey, mark: u32) -> Self {
        Self {
            limiter: limiter(&key),
            key,
            mark,
            peers: BTreeMap::new(),
            by_index: HashMap::new(),
            owners: PrefixTable::default(),
        }
    }

    /// Every session ends with the key it was made with.
    pub(crate) fn set_key(&mut self, key: PrivateKey) {
        if key.public() == self.key.public() {
            return;
        }
        self.remove(key.public());
        self.limiter = limiter(&key);
        self.peers.values().for_each(|peer| peer.set_own_key(&key));
        self.key = key;
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
            peer.set_preshared(&self.key, (preshared != [0; 32]).then_some(preshared));
        }
        let mut noise = peer.lock();
        noise.endpoint = set.endpoint.or(noise.endpoint);
        if let Some(seconds) = set.keepalive {
            noise.keepalive = (seconds > 0).then_some(seconds);
        }
        drop(noise);
        if set.replace_allowed {
            self.disown(&peer);
        }
        for (prefix, add) in &set.allowed {
            if *add {
                self.owners.insert(*prefix, Arc::clone(&peer));
            } else if self.owners.get(prefix).is_some_and(|owner| Arc::ptr_eq(owner, &peer)) {
                self.owners.remove(prefix);
            }
        }
    }

    pub(crate) fn remove_all(&mut self) {
        self.peers.clear();
        self.by_index.clear();
        self.owners = PrefixTable::default();
    }

    pub(crate) fn remove(&mut self, key: PublicKey) {
        if let Some(peer) = self.peers.remove(&key) {
            self.by_index.remove(&peer.index);
            self.disown(&peer);
        }
    }

    /// The prefixes of each peer. O(prefixes).
    pub(crate) fn owned(&self) -> HashMap<PublicKey, Vec<IpNet>> {
        let mut owned = HashMap::<PublicKey, Vec<IpNet>>::new();
        self.owners.iter().for_each(|(prefix, peer)| owned.entry(peer.key).or_default().push(prefix));
        owned.values_mut().for_each(|prefixes| prefixes.sort());
        owned
    }

    fn add(&mut self, key: PublicKey) -> Arc<Peer> {
        // Random, so that indices of one run say nothing about another's; 24 bits, because boringtun counts sessions in
        // the lower eight.
        let index = loop {
            let index = rand::random::<u32>() >> 8;
            if !self.by_index.contains_key(&index) {
                break index;
            }
        };
        let peer = Arc::new(Peer::new(&self.key, key, index));
        self.peers.insert(key, Arc::clone(&peer));
        self.by_index.insert(index, Arc::clone(&peer));
        peer
    }

    fn disown(&mut self, peer: &Arc<Peer>) {
        let owned = self.owners.iter().filter(|(_, owner)| Arc::ptr_eq(owner, peer));
        let owned: Vec<IpNet> = owned.map(|(prefix, _)| prefix).collect();
        owned.iter().for_each(|prefix| drop(self.owners.remove(prefix)));
    }
}

fn limiter(key: &PrivateKey) -> Arc<RateLimiter> {
    let public = x25519::PublicKey::from(*key.public().as_bytes());
    Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_SECOND))
}
