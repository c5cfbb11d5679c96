//! The keyspaces a server has, by cluster name, and what wakes the watchers of each.

use super::writer::Writer;
use hawser_kvstore::{Keyspace, Revision};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A keyspace that readers, watchers and one writer share. Cloning it counts a reference.
#[derive(Clone)]
pub struct SharedKeyspace(Arc<Shared>);

struct Shared {
    keyspace: RwLock<Keyspace>,
    progress: watch::Sender<(u64, Revision)>,
    started: Instant,
}

impl SharedKeyspace {
    pub fn new(keyspace: Keyspace) -> Self {
        let progress = watch::Sender::new(keyspace.progress());
        Self(Arc::new(Shared { keyspace: RwLock::new(keyspace), progress, started: Instant::now() }))
    }

    /// The keyspace's clock: what its lease deadlines are counted in.
    pub fn now(&self) -> Duration {
        crate::clock::since(self.0.started)
    }

    /// Never hold anything across an await: `f` gets a reference and gives it back.
    pub fn read<R>(&self, f: impl FnOnce(&Keyspace) -> R) -> R {
        f(&self.lock_to_read())
    }

    /// Changes the keyspace and, if that published something, wakes the watchers.
    pub fn update<R>(&self, f: impl FnOnce(&mut Keyspace) -> R) -> R {
        let (result, progress) = {
            let mut keyspace = self.lock_to_write();
            let result = f(&mut keyspace);
            (result, keyspace.progress())
        };
        self.0.progress.send_if_modified(|seen| {
            let newer = *seen < progress;
            if newer {
                *seen = progress;
            }
            newer
        });
        result
    }

    /// Changes when there is something to pull: [`Keyspace::progress`].
    pub fn subscribe(&self) -> watch::Receiver<(u64, Revision)> {
        self.0.progress.subscribe()
    }

    /// A poisoned lock is taken all the same: the core checks before it changes, so a panic cannot leave half an operation.
    fn lock_to_read(&self) -> RwLockReadGuard<'_, Keyspace> {
        self.0.keyspace.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_to_write(&self) -> RwLockWriteGuard<'_, Keyspace> {
        self.0.keyspace.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SharedKeyspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.read(|keyspace| keyspace.fmt(f))
    }
}

/// What was asked of a keyspace since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Range calls. A client that resumed its watch after a cut has not made one.
    pub ranges: u64,
    /// Put, DeleteRange, Txn, Compact and lease calls.
    pub writes: u64,
    /// Watches created, and of those the ones open now.
    pub watches: u64,
    pub open_watches: u64,
    /// Watches ended because their reader fell behind the history.
    pub fell_behind: u64,
    /// Events sent: each as often as watches were sent it.
    pub events: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) ranges: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) watches: AtomicU64,
    pub(crate) closed_watches: AtomicU64,
    pub(crate) fell_behind: AtomicU64,
    pub(crate) events: AtomicU64,
}

impl Counters {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A served keyspace: its name, its state, who writes it. Cloning it counts references.
#[derive(Clone)]
pub struct KeyspaceHandle {
    name: Arc<str>,
    keyspace: SharedKeyspace,
    writer: Arc<dyn Writer>,
    counters: Arc<Counters>,
    /// Cancelled when the keyspace is no longer served: its watch streams end.
    removed: CancellationToken,
}

impl KeyspaceHandle {
    /// `name` is the cluster's.
    pub fn new(name: &str, keyspace: SharedKeyspace, writer: Arc<dyn Writer>) -> Self {
        Self {
            name: name.into(),
            keyspace,
            writer,
            counters: Arc::default(),
            removed: CancellationToken::new(),
        }
    }

    /// The same to whoever asks for it, with another content: a view. It is counted and removed with this one.
    pub(crate) fn with_keyspace(&self, keyspace: SharedKeyspace) -> Self {
        Self { keyspace, ..self.clone() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn keyspace(&self) -> &SharedKeyspace {
        &self.keyspace
    }

    pub fn writer(&self) -> &dyn Writer {
        &*self.writer
    }

    /// Whether both are about one and the same.
    pub fn same_keyspace(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.keyspace.0, &other.keyspace.0)
    }

    pub fn stats(&self) -> Stats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let closed = get(&self.counters.closed_watches);
        let watches = get(&self.counters.watches);
        Stats {
            ranges: get(&self.counters.ranges),
            writes: get(&self.counters.writes),
            watches,
            open_watches: watches.saturating_sub(closed),
            fell_behind: get(&self.counters.fell_behind),
            events: get(&self.counters.events),
        }
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    pub(crate) fn removed(&self) -> &CancellationToken {
        &self.removed
    }
}

impl fmt::Debug for KeyspaceHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyspaceHandle")
            .field("name", &self.name)
            .field("keyspace", &self.keyspace)
            .finish_non_exhaustive()
    }
}

/// The registry: the server's own keyspace and the mirrors, added and removed at run time.
#[derive(Clone, Debug)]
pub struct Keyspaces(Arc<Registry>);

#[derive(Debug)]
struct Registry {
    own: KeyspaceHandle,
    mirrors: RwLock<BTreeMap<String, KeyspaceHandle>>,
}

impl Keyspaces {
    pub fn new(own: KeyspaceHandle) -> Self {
        Self(Arc::new(Registry { own, mirrors: RwLock::default() }))
    }

    pub fn own(&self) -> &KeyspaceHandle {
        &self.0.own
    }

    pub fn get(&self, cluster: &str) -> Option<KeyspaceHandle> {
        if cluster == self.own().name() {
            return Some(self.own().clone());
        }
        self.mirrors_to_read().get(cluster).cloned()
    }

    /// Serves `mirror` from now on; one of the same name before it is no longer served. The own keyspace cannot be replaced.
    pub fn add(&self, mirror: KeyspaceHandle) {
        let replaced = {
            let mut mirrors = self.0.mirrors.write().unwrap_or_else(PoisonError::into_inner);
            mirrors.insert(mirror.name().to_owned(), mirror)
        };
        if let Some(replaced) = replaced {
            replaced.removed.cancel();
        }
    }

    /// Its watch streams end; clients get `NotFound` when they come again.
    pub fn remove(&self, cluster: &str) -> Option<KeyspaceHandle> {
        let removed = {
            let mut mirrors = self.0.mirrors.write().unwrap_or_else(PoisonError::into_inner);
            mirrors.remove(cluster)
        };
        removed.inspect(|handle| handle.removed.cancel())
    }

    /// The own one first, then the mirrors by name.
    pub fn all(&self) -> Vec<KeyspaceHandle> {
        std::iter::once(self.own().clone()).chain(self.mirrors_to_read().values().cloned()).collect()
    }

    fn mirrors_to_read(&self) -> RwLockReadGuard<'_, BTreeMap<String, KeyspaceHandle>> {
        self.0.mirrors.read().unwrap_or_else(PoisonError::into_inner)
    }
}
