//! A disk in the test's hand: a FUSE filesystem over a directory that is slow, full or failing on command, and that
//! forgets what was not synced when its power is cut.
//!
//! It is mounted in the lab's own mount namespace and served by the lab's PID 1: when that dies, however it dies, the
//! connection is aborted and the mount goes with the namespace.

mod passthrough;

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use fuser::MountOption;
use passthrough::Passthrough;

/// What the disk does to those who use it. All zero: it works.
#[derive(Debug, Default)]
struct Mood {
    sync_delay_ms: AtomicU64,
    /// An errno for every sync, and for every write.
    sync_error: AtomicI32,
    write_error: AtomicI32,
    /// Syncs are answered and not done.
    lies: AtomicBool,
}

/// A mounted disk; dropping it unmounts it.
pub struct FaultyDisk {
    mood: Arc<Mood>,
    unsynced: Arc<Mutex<Unsynced>>,
    mounted: Option<fuser::BackgroundSession>,
    pub path: PathBuf,
}

impl std::fmt::Debug for FaultyDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FaultyDisk")
            .field("path", &self.path)
            .field("mood", &self.mood)
            .finish_non_exhaustive()
    }
}

/// How to undo, per file, what was done since its last sync, oldest first.
type Unsynced = HashMap<PathBuf, Vec<Undo>>;

#[derive(Debug)]
struct Undo {
    len: u64,
    at: u64,
    bytes: Vec<u8>,
}

impl FaultyDisk {
    /// Shows `backing` at `path`.
    pub fn mount(backing: &Path, path: &Path) -> Result<Self> {
        for dir in [backing, path] {
            fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        let (mood, unsynced) = <(Arc<Mood>, Arc<Mutex<Unsynced>>)>::default();
        let passthrough = Passthrough::new(mood.clone(), unsynced.clone(), backing);
        let mut config = fuser::Config::default();
        config.mount_options = vec![MountOption::FSName("hawser-faulty-disk".into())];
        let mounted = fuser::spawn_mount(passthrough, path, &config).with_context(|| {
            format!("mounting a FUSE filesystem at {} (is there /dev/fuse?)", path.display())
        })?;
        Ok(Self { mood, unsynced, mounted: Some(mounted), path: path.to_owned() })
    }

    pub fn slow(&self, delay: Duration) {
        self.mood.sync_delay_ms.store(delay.as_millis() as u64, Ordering::Relaxed);
    }

    /// Every sync fails with `errno`; 0: none.
    pub fn fail_syncs(&self, errno: i32) {
        self.mood.sync_error.store(errno, Ordering::Relaxed);
    }

    /// Every write ends half way with `errno`; 0: none.
    pub fn fail_writes(&self, errno: i32) {
        self.mood.write_error.store(errno, Ordering::Relaxed);
    }

    /// Syncs are answered and not done: no store can be right on such a disk, and a checker must find out.
    pub fn lie(&self) {
        self.mood.lies.store(true, Ordering::Relaxed);
    }

    pub fn works_again(&self) {
        self.mood.lies.store(false, Ordering::Relaxed);
        self.slow(Duration::ZERO);
        self.fail_syncs(0);
        self.fail_writes(0);
    }

    /// Takes back what was not synced. To be called when nobody has a file open. Returns how many bytes that were.
    pub fn cut_power(&self, backing: &Path) -> Result<u64> {
        let unsynced = std::mem::take(&mut *lock(&self.unsynced));
        let mut bytes = 0;
        for (path, undos) in unsynced {
            debug_assert!(path.starts_with(backing));
            // A file that was removed meanwhile is nobody's loss.
            let Ok(file) = OpenOptions::new().write(true).open(&path) else { continue };
            for undo in undos.into_iter().rev() {
                bytes += file.metadata().map_or(0, |m| m.len()).saturating_sub(undo.len);
                let undone = file.write_all_at(&undo.bytes, undo.at).and_then(|()| file.set_len(undo.len));
                undone.with_context(|| format!("forgetting what was not synced of {}", path.display()))?;
            }
        }
        Ok(bytes)
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        self.works_again();
        if let Some(mounted) = self.mounted.take() {
            let _ = mounted.umount_and_join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
