//! Who may be connected at once: certified clients have places of their own, and guests make room for each other.
//!
//! A guest is a client that has not shown a certificate that means something here: one still in its TLS handshake, one
//! about to join, one that is refused. Anybody can open as many of those as he likes; when there are too many, the
//! oldest goes, because an honest guest is done in a moment. So guests can neither fill the places of the mesh's own
//! clients nor keep the next one from its handshake.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Certified connections at once: 5,000 nodes with a few each.
const CERTIFIED: u64 = 20_000;
const GUESTS: u64 = 1_000;
/// Files that are no client's connection: store, mirrors, source, the runtime.
const FILES: u64 = 1_024;

/// Raises the limit of open files as far as this process may, and gives it.
pub fn raise_open_files() -> u64 {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files cannot be read");
            return FILES;
        }
    };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(%error, soft, hard, "the limit of open files cannot be raised");
            soft
        }
    }
}

#[derive(Clone, Debug)]
pub struct Places {
    certified: Arc<Semaphore>,
    guests: Arc<Guests>,
}

#[derive(Debug)]
struct Guests {
    room: usize,
    /// Oldest first.
    here: Mutex<(u64, BTreeMap<u64, CancellationToken>)>,
}

impl Guests {
    fn here(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, CancellationToken>)> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    /// As many as fit in this many open files.
    pub fn within(files: u64) -> Self {
        let guests = GUESTS.min(files / 4);
        let certified = files.saturating_sub(guests + FILES).max(files / 4).clamp(1, CERTIFIED);
        if certified < CERTIFIED {
            tracing::debug!(files, certified, guests, "the limit of open files sets how many clients fit");
        }
        let size = |places: u64| usize::try_from(places).unwrap_or(usize::MAX);
        Self::new(size(certified), size(guests.max(1)))
    }

    fn new(certified: usize, guests: usize) -> Self {
        let guests = Guests { room: guests, here: Mutex::default() };
        Self { certified: Arc::new(Semaphore::new(certified)), guests: Arc::new(guests) }
    }

    /// Never refuses. Cost: logarithmic in the guests.
    pub fn guest(&self) -> Guest {
        let asked_to_go = CancellationToken::new();
        let mut here = self.guests.here();
        let (next, guests) = &mut *here;
        let number = *next;
        *next += 1;
        guests.insert(number, asked_to_go.clone());
        if guests.len() > self.guests.room
            && let Some((_, oldest)) = guests.pop_first()
        {
            oldest.cancel();
        }
        drop(here);
        Guest { guests: Arc::clone(&self.guests), number, asked_to_go }
    }

    /// None when all are taken.
    pub fn certified(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.certified).try_acquire_owned().ok()
    }
}

/// A guest's place, until it is dropped or another guest needs it more.
#[derive(Debug)]
pub struct Guest {
    guests: Arc<Guests>,
    number: u64,
    asked_to_go: CancellationToken,
}

impl Guest {
    pub async fn asked_to_go(&self) {
        self.asked_to_go.cancelled().await;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.guests.here().1.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_guest_makes_room_and_certified_clients_do_not_notice() {
        let places = Places::new(2, 2);
        let (first, second) = (places.guest(), places.guest());
        let kept = (places.certified().unwrap(), places.certified().unwrap());
        assert!(places.certified().is_none(), "a certified client takes no guest's place");
        assert!(!first.asked_to_go.is_cancelled());
        let third = places.guest();
        let gone = [&first, &second, &third].map(|guest| guest.asked_to_go.is_cancelled());
        assert_eq!(gone, [true, false, false]);
        drop((kept, third));
        assert!(places.certified().is_some());
        let _fourth = places.guest();
        assert!(!second.asked_to_go.is_cancelled(), "a place that was left is free");
    }

    #[test]
    fn places_fit_in_the_open_files() {
        for (files, certified, guests) in
            [(1 << 20, 20_000, 1_000), (20_000, 17_976, 1_000), (1_024, 256, 256), (0, 1, 1)]
        {
            let places = Places::within(files);
            assert_eq!(
                (places.certified.available_permits(), places.guests.room),
                (certified, guests),
                "{files}"
            );
        }
    }
}
