//! File IO as the store sees it: one flat directory, so that a test can put a disk that lies underneath.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// One directory. Names are plain file names. Nothing is on disk until the matching `sync` has returned:
/// bytes by [`DiskFile::sync`], names by [`Disk::sync_dir`].
pub trait Disk: Send + Sync + 'static {
    fn list(&self) -> io::Result<Vec<String>>;
    /// The whole file. Cost: its size in memory; logs are kept short by snapshots.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// In bytes.
    fn len(&self, name: &str) -> io::Result<u64>;
    /// An existing file, to be written to.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// A new empty file; an existing one of that name is emptied.
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    fn sync_dir(&self) -> io::Result<()>;
    /// Where this is, for people.
    fn place(&self) -> String;
}

/// One file of a [`Disk`].
pub trait DiskFile: Send {
    /// May have written a part when it fails.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    fn set_len(&mut self, len: u64) -> io::Result<()>;
    /// `fdatasync`: contents and length.
    fn sync(&mut self) -> io::Result<()>;
}

/// The real thing, holding the directory's lock for as long as it lives.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    handle: File,
    _lock: File,
}

const LOCK: &str = "LOCK";

/// Why a directory could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    #[error(
        "the store {path} is in use by pid {pid}; two processes never share a store. \
         fix: stop that process, or give this one its own directory \
         (`store: embedded:DIR`, `mirrors: DIR`)"
    )]
    InUse { path: PathBuf, pid: String },
    #[error("the directory {path} cannot be used: {source}. fix: make it a directory this user may write")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Directory {
    /// Creates the directory (mode 0700: it holds hashed tokens) if it is absent, and locks it with `flock`,
    /// which the kernel lets go however the process ends.
    pub fn take(path: &Path) -> Result<Self, TakeError> {
        let fail = |source| TakeError::Io { path: path.to_owned(), source };
        if !path.exists() {
            create_private(path).map_err(fail)?;
            // Its own name is on disk only when its parent is synced.
            sync_parent(path).map_err(fail)?;
        }
        let handle = File::open(path).map_err(fail)?;
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(fail)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                let pid = std::fs::read_to_string(&lock_path).unwrap_or_default();
                let pid = pid.trim();
                let pid = if pid.is_empty() { "(not yet written)" } else { pid };
                return Err(TakeError::InUse { path: path.to_owned(), pid: pid.chars().take(32).collect() });
            }
            Err(std::fs::TryLockError::Error(source)) => return Err(fail(source)),
        }
        lock.set_len(0).map_err(fail)?;
        lock.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0).map_err(fail)?;
        Ok(Self { path: path.to_owned(), handle, _lock: lock })
    }
}

fn create_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.canonicalize()?.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

impl Disk for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            if let Ok(name) = entry?.file_name().into_string()
                && name != LOCK
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        std::fs::read(self.path.join(name))
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        Ok(std::fs::metadata(self.path.join(name))?.len())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OpenOptions::new().write(true).open(self.path.join(name))?))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        Ok(Box::new(options.write(true).create(true).truncate(true).open(self.path.join(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path.join(name)) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }
}

impl DiskFile for File {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}
