//! Whose datagram it is: every index that this end has given out, to a session or to a handshake that waits for its
//! answer.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::peer::Peer;
use crate::noise::session::Session;

pub(crate) type Table = HashMap<u32, Entry>;

pub(crate) struct Entry {
    pub(crate) peer: Arc<Peer>,
    /// None while the handshake runs.
    pub(crate) session: Option<Arc<Session>>,
}

/// Locked last: whoever holds it takes no other lock.
#[derive(Default)]
pub(crate) struct Sessions(RwLock<Table>);

impl Sessions {
    /// For a batch.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new index for a handshake. Random, so that indices tell nothing about how many sessions there are or were.
    pub(crate) fn reserve(&self, peer: &Arc<Peer>) -> u32 {
        let mut table = self.write();
        loop {
            let index = rand::random();
            if let std::collections::hash_map::Entry::Vacant(vacant) = table.entry(index) {
                vacant.insert(Entry { peer: Arc::clone(peer), session: None });
                return index;
            }
        }
    }

    /// The handshake of this index has made a session.
    pub(crate) fn fulfil(&self, session: &Arc<Session>) {
        if let Some(entry) = self.write().get_mut(&session.local) {
            entry.session = Some(Arc::clone(session));
        }
    }

    /// One that a predecessor has made. False if its index is taken.
    pub(crate) fn adopt(&self, peer: &Arc<Peer>, session: &Arc<Session>) -> bool {
        let entry = Entry { peer: Arc::clone(peer), session: Some(Arc::clone(session)) };
        match self.write().entry(session.local) {
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(entry);
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
