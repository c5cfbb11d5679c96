//! Whose datagram it is: every index that this end has given out, to a session or to a handshake that waits for its
//! answer, and every SPI that a peer may send by.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use zeroize::Zeroizing;

use super::associate::Spent;
use super::peer::Peer;
use crate::esp::Inbound;
use crate::noise::session::Session;

pub(crate) type Table = HashMap<u32, Entry>;

pub(crate) struct Entry {
    pub(crate) peer: Arc<Peer>,
    pub(crate) held: Held,
}

pub(crate) enum Held {
    /// The handshake runs.
    Nothing,
    Wireguard(Arc<Session>),
    Esp(Arc<Inbound>),
}

/// Locked last: whoever holds it takes no other lock.
#[derive(Default)]
pub(crate) struct Sessions {
    table: RwLock<Table>,
    pub(super) spent: Mutex<Spent>,
    note: Mutex<Zeroizing<String>>,
}

impl Sessions {
    pub(super) fn set_note(&self, note: Zeroizing<String>) {
        *self.note.lock().unwrap_or_else(PoisonError::into_inner) = note;
    }

    pub(super) fn note(&self) -> Zeroizing<String> {
        self.note.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For a batch.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new index for a handshake. Random, so that indices tell nothing about how many sessions there are or were.
    pub(crate) fn reserve(&self, peer: &Arc<Peer>) -> u32 {
        let mut table = self.write();
        loop {
            let index = rand::random();
            if let std::collections::hash_map::Entry::Vacant(vacant) = table.entry(index) {
                vacant.insert(Entry { peer: Arc::clone(peer), held: Held::Nothing });
                return index;
            }
        }
    }

    /// The handshake of this index has made a session.
    pub(crate) fn fulfil(&self, session: &Arc<Session>) {
        if let Some(entry) = self.write().get_mut(&session.local) {
            entry.held = Held::Wireguard(Arc::clone(session));
        }
    }

    /// One that a predecessor has made. False if its index is taken.
    pub(crate) fn adopt(&self, peer: &Arc<Peer>, session: &Arc<Session>) -> bool {
        self.insert(session.local, peer, Held::Wireguard(Arc::clone(session)))
    }

    /// False if the number is taken.
    pub(crate) fn insert(&self, index: u32, peer: &Arc<Peer>, held: Held) -> bool {
        match self.write().entry(index) {
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(Entry { peer: Arc::clone(peer), held });
                true
            }
            std::collections::hash_map::Entry::Occupied(_) => false,
        }
    }

    pub(crate) fn remove(&self, index: u32) {
        self.write().remove(&index);
    }

    /// Whose handshake or session this index is.
    pub(crate) fn peer(&self, index: u32) -> Option<Arc<Peer>> {
        self.read().get(&index).map(|entry| Arc::clone(&entry.peer))
    }
}
