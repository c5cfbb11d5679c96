//! What a handshake leaves: a key and a counter to seal with, a key and a replay window to open with (§5.4.6).
//!
//! Any number of threads may seal and open at once. A counter is drawn by one atomic addition, so no two messages share
//! a nonce, whoever seals them. Keys leave only for a successor of this process, and are wiped when the session is
//! dropped.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::aead::{Aad, LessSafeKey};
use zeroize::Zeroizing;

use super::handshake::Keys;
use super::primitives::{Forged, Key, aead, nonce};
use super::window::Window;
use super::{
    DATA, DATA_HEADER, REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, REKEY_AFTER_MESSAGES, REKEY_AFTER_TIME, TAG,
};
use crate::clock::Millis;

pub(crate) struct Session {
    pub(crate) local: u32,
    remote: u32,
    /// Who asked for this session renews it (§6.2), so that not both ends do.
    pub(crate) initiator: bool,
    pub(crate) made: Millis,
    /// The peer has shown that it has the keys. An initiator knows that from the start.
    confirmed: AtomicBool,
    send: LessSafeKey,
    receive: LessSafeKey,
    counter: AtomicU64,
    window: Mutex<Window>,
    keys: [Key; 2],
}

/// Left out by a successor: more than threads of the predecessor could have been at work unseen, and less than a peer's
/// replay window.
const GAP: u64 = 1024;

impl Session {
    pub(crate) fn new(keys: Keys, initiator: bool, made: Millis) -> Result<Self, Forged> {
        Ok(Self {
            local: keys.local,
            remote: keys.remote,
            initiator,
            made,
            confirmed: AtomicBool::new(initiator),
            send: aead(&keys.send)?,
            receive: aead(&keys.receive)?,
            counter: AtomicU64::new(0),
            window: Mutex::new(Window::new()),
            keys: [keys.send, keys.receive],
        })
    }

    /// For a successor: numbers and keys in hexadecimal. Nobody may seal any more.
    pub(crate) fn export(&self, text: &mut Zeroizing<String>) {
        let flags = u64::from(self.initiator) | u64::from(self.is_confirmed()) << 1;
        let own = [u64::from(self.local), u64::from(self.remote), flags, self.made.0];
        let counter = self.counter.load(Ordering::Acquire);
        let keys =
            self.keys.iter().flat_map(|key| key.as_chunks::<8>().0).map(|part| u64::from_le_bytes(*part));
        let window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        for number in own.into_iter().chain(keys).chain([counter]).chain(window.export()) {
            // To a string, which cannot fail.
            let _ = write!(text, "{number:x} ");
        }
    }

    /// None for what is none.
    pub(crate) fn import(text: &str) -> Option<Self> {
        let mut numbers = text.split_whitespace().map_while(|number| u64::from_str_radix(number, 16).ok());
        let mut next = || numbers.next();
        let (local, remote) = (next()?.try_into().ok()?, next()?.try_into().ok()?);
        let (flags, made) = (next()?, Millis(next()?));
        let mut key = || {
            let mut key = Key::default();
            for part in key.as_chunks_mut::<8>().0 {
                *part = next()?.to_le_bytes();
            }
            Some(key)
        };
        let keys = Keys { local, remote, send: key()?, receive: key()? };
        let mut session = Self::new(keys, flags & 1 != 0, made).ok()?;
        session.confirmed = AtomicBool::new(flags & 2 != 0);
        session.counter = AtomicU64::new(numbers.next()?.saturating_add(GAP));
        session.window = Mutex::new(Window::import(numbers)?);
        Some(session)
    }

    /// Neither sealed nor opened with afterwards.
    pub(crate) fn is_over(&self, now: Millis) -> bool {
        now.since(self.made) >= REJECT_AFTER_TIME
            || self.counter.load(Ordering::Relaxed) >= REJECT_AFTER_MESSAGES
    }

    /// Old enough to be renewed, when it is used.
    pub(crate) fn is_old(&self, now: Millis) -> bool {
        now.since(self.made) >= REKEY_AFTER_TIME
    }

    /// Renewed whatever its age and whoever made it.
    pub(crate) fn is_worn(&self) -> bool {
        self.counter.load(Ordering::Relaxed) >= REKEY_AFTER_MESSAGES
    }

    pub(crate) fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Acquire)
    }

    pub(crate) fn confirm(&self) {
        self.confirmed.store(true, Ordering::Release);
    }

    /// Seals in place a message of `DATA_HEADER` bytes of room, a packet, and `TAG` bytes of room. Fails when there are
    /// no counters left.
    pub(crate) fn seal(&self, message: &mut [u8]) -> Result<(), Forged> {
        let (header, rest) = message.split_first_chunk_mut::<DATA_HEADER>().ok_or(Forged)?;
        let (packet, room) = rest.split_last_chunk_mut::<TAG>().ok_or(Forged)?;
        // Looked at before it is drawn: threads that are past this at once are fewer than the counters in reserve.
        if self.counter.load(Ordering::Relaxed) >= REJECT_AFTER_MESSAGES {
            return Err(Forged);
        }
        let counter = self.counter.fetch_add(1, Ordering::Relaxed);
        header[..4].copy_from_slice(&[DATA, 0, 0, 0]);
        header[4..8].copy_from_slice(&self.remote.to_le_bytes());
        header[8..].copy_from_slice(&counter.to_le_bytes());
        *room = self
            .send
            .seal_in_place_separate_tag(nonce(counter), Aad::empty(), packet)?
            .as_ref()
            .try_into()
            .map_err(|_| Forged)?;
        Ok(())
    }

    /// Opens a data message in place and gives its counter, which [`Session::admit`] has yet to see. The packet is what
    /// stands between header and tag.
    pub(crate) fn open(&self, message: &mut [u8]) -> Result<u64, Forged> {
        let (header, rest) = message.split_first_chunk_mut::<DATA_HEADER>().ok_or(Forged)?;
        let (packet, tag) = rest.split_last_chunk_mut::<TAG>().ok_or(Forged)?;
        let counter = counter(header);
        self.receive.open_in_place_separate_tag(nonce(counter), Aad::empty(), tag, packet)?;
        Ok(counter)
    }

    /// Calls `fresh` for each of the counters, which have proved authentic, in order: whether it is here for the first
    /// time. One lock for all of them.
    pub(crate) fn admit<T>(
        &self,
        counters: &[T],
        counter: impl Fn(&T) -> u64,
        mut each: impl FnMut(&T, bool),
    ) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        counters.iter().for_each(|item| each(item, window.admit(counter(item))));
    }
}

fn counter(header: &[u8; DATA_HEADER]) -> u64 {
    let [_, _, _, _, _, _, _, _, counter @ ..] = *header;
    u64::from_le_bytes(counter)
}

#[cfg(test)]
pub(super) fn at_counter(session: &Session, counter: u64) {
    session.counter.store(counter, Ordering::Relaxed);
}
