//! The filesystem itself: every call is passed to the file below, unless the disk's mood is against it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Duration;

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, WriteFlags,
};

use super::{Mood, Undo, Unsynced, lock};

/// Nothing is cached in the kernel longer than a call: the power may be cut.
const TTL: Duration = Duration::ZERO;

/// The filesystem: every path below the mount is the one below the backing directory.
pub(super) struct Passthrough {
    mood: Arc<Mood>,
    unsynced: Arc<Mutex<Unsynced>>,
    inodes: Mutex<Inodes>,
    files: Mutex<HashMap<u64, Arc<Open>>>,
}

struct Open {
    file: File,
    path: PathBuf,
}

struct Inodes {
    paths: HashMap<u64, PathBuf>,
    numbers: HashMap<PathBuf, u64>,
    next: u64,
}

impl Inodes {
    fn new(root: &Path) -> Self {
        let numbers = HashMap::from([(root.to_owned(), INodeNo::ROOT.0)]);
        Self {
            paths: HashMap::from([(INodeNo::ROOT.0, root.to_owned())]),
            numbers,
            next: INodeNo::ROOT.0 + 1,
        }
    }

    fn path(&self, inode: INodeNo) -> io::Result<PathBuf> {
        self.paths.get(&inode.0).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn number(&mut self, path: &Path) -> u64 {
        if let Some(number) = self.numbers.get(path) {
            return *number;
        }
        let number = self.next;
        self.next += 1;
        self.paths.insert(number, path.to_owned());
        self.numbers.insert(path.to_owned(), number);
        number
    }

    fn forget(&mut self, path: &Path) {
        self.numbers.remove(path);
    }

    fn rename(&mut self, from: &Path, to: &Path) {
        if let Some(number) = self.numbers.remove(from) {
            self.paths.insert(number, to.to_owned());
            self.numbers.insert(to.to_owned(), number);
        }
    }
}

impl Passthrough {
    pub(super) fn new(mood: Arc<Mood>, unsynced: Arc<Mutex<Unsynced>>, backing: &Path) -> Self {
        Self { mood, unsynced, inodes: Mutex::new(Inodes::new(backing)), files: Mutex::default() }
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> io::Result<PathBuf> {
        Ok(lock(&self.inodes).path(parent)?.join(name))
    }

    fn attributes(&self, path: &Path) -> io::Result<FileAttr> {
        let metadata = fs::symlink_metadata(path)?;
        let number = lock(&self.inodes).number(path);
        attributes(number, &metadata)
    }

    fn file(&self, handle: FileHandle) -> io::Result<Arc<Open>> {
        lock(&self.files).get(&handle.0).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn open_file(&self, options: &OpenOptions, path: PathBuf) -> io::Result<FileHandle> {
        let file = options.open(&path)?;
        let mut files = lock(&self.files);
        let handle = files.keys().max().map_or(1, |last| last + 1);
        files.insert(handle, Arc::new(Open { file, path }));
        Ok(FileHandle(handle))
    }

    /// Remembers how to take back a change of `len` bytes at `at`.
    fn remember(&self, file: &File, path: &Path, at: u64, len: u64) -> io::Result<()> {
        let old = file.metadata()?.len();
        let mut bytes = vec![0; usize::try_from(old.saturating_sub(at).min(len)).unwrap_or(0)];
        if !bytes.is_empty() {
            File::open(path)?.read_exact_at(&mut bytes, at)?;
        }
        lock(&self.unsynced).entry(path.to_owned()).or_default().push(Undo { len: old, at, bytes });
        Ok(())
    }

    fn store(&self, handle: FileHandle, at: u64, data: &[u8]) -> io::Result<u32> {
        let open = self.file(handle)?;
        let error = self.mood.write_error.load(Ordering::Relaxed);
        // A full disk takes what fits: half of it, and of the rest nothing.
        let part = if error == 0 { data.len() } else { data.len() / 2 };
        if error != 0 && part < 16 {
            return Err(io::Error::from_raw_os_error(error));
        }
        self.remember(&open.file, &open.path, at, part as u64)?;
        open.file.write_all_at(&data[..part], at)?;
        Ok(u32::try_from(part).unwrap_or(u32::MAX))
    }

    fn resize(&self, path: &Path, len: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(path)?;
        self.remember(&file, path, len, u64::MAX)?;
        file.set_len(len)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        let delay = self.mood.sync_delay_ms.load(Ordering::Relaxed);
        if delay > 0 {
            sleep(Duration::from_millis(delay));
        }
        match self.mood.sync_error.load(Ordering::Relaxed) {
            0 if self.mood.lies.load(Ordering::Relaxed) => {}
            // The page cache of the machine below is safe enough: what dies here is a process.
            0 => _ = lock(&self.unsynced).remove(path),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        Ok(())
    }
}

fn attributes(number: u64, metadata: &Metadata) -> io::Result<FileAttr> {
    let kind = FileType::from_std(metadata.file_type()).ok_or(io::ErrorKind::Unsupported)?;
    let modified = metadata.modified()?;
    Ok(FileAttr {
        ino: INodeNo(number),
        size: metadata.len(),
        blocks: metadata.blocks(),
        atime: modified,
        mtime: modified,
        ctime: modified,
        crtime: modified,
        kind,
        perm: (metadata.permissions().mode() & 0o7777) as u16,
        nlink: metadata.nlink() as u32,
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    })
}

fn answer(result: io::Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(Errno::from(error)),
    }
}

impl Filesystem for Passthrough {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.child(parent, name).and_then(|path| self.attributes(&path)) {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let path = lock(&self.inodes).path(inode);
        match path.and_then(|path| self.attributes(&path)) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<fuser::TimeOrNow>,
        _: Option<fuser::TimeOrNow>,
        _: Option<std::time::SystemTime>,
        _: Option<FileHandle>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let path = lock(&self.inodes).path(inode);
        let set = path.and_then(|path| {
            if let Some(len) = size {
                self.resize(&path, len)?;
            }
            if let Some(mode) = mode {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o7777))?;
            }
            self.attributes(&path)
        });
        match set {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let made = self.child(parent, name).and_then(|path| {
            fs::create_dir(&path)?;
            self.attributes(&path)
        });
        match made {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.child(parent, name).and_then(|path| {
            fs::remove_file(&path)?;
            lock(&self.inodes).forget(&path);
            lock(&self.unsynced).remove(&path);
            Ok(())
        });
        answer(removed, reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = self.child(parent, name).and_then(|from| {
            let to = self.child(new_parent, new_name)?;
            fs::rename(&from, &to)?;
            lock(&self.inodes).rename(&from, &to);
            let mut unsynced = lock(&self.unsynced);
            if let Some(undos) = unsynced.remove(&from) {
                unsynced.insert(to, undos);
            }
            Ok(())
        });
        answer(renamed, reply);
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let path = lock(&self.inodes).path(inode);
        let writes = flags.0 & libc::O_ACCMODE != libc::O_RDONLY;
        let opened = path.and_then(|path| {
            if writes && flags.0 & libc::O_TRUNC != 0 {
                self.resize(&path, 0)?;
            }
            self.open_file(OpenOptions::new().read(true).write(writes), path)
        });
        match opened {
            Ok(handle) => reply.opened(handle, FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let created = self.child(parent, name).and_then(|path| {
            let mut options = OpenOptions::new();
            let handle =
                self.open_file(options.read(true).write(true).create(true).truncate(true), path.clone())?;
            Ok((self.attributes(&path)?, handle))
        });
        match created {
            Ok((attributes, handle)) => {
                reply.created(&TTL, &attributes, Generation(0), handle, FopenFlags::FOPEN_DIRECT_IO);
            }
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut data = vec![0; size as usize];
        match self.file(handle).and_then(|open| open.file.read_at(&mut data, offset)) {
            Ok(len) => reply.data(&data[..len]),
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.store(handle, offset, data) {
            Ok(len) => reply.written(len),
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        lock(&self.files).remove(&handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, inode: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        // By its present name: a file may have been renamed since it was opened.
        let path = lock(&self.inodes).path(inode).or_else(|_| Ok(self.file(handle)?.path.clone()));
        answer(path.and_then(|path| self.sync(&path)), reply);
    }

    fn readdir(&self, _: &Request, inode: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let path = lock(&self.inodes).path(inode);
        let names = path.and_then(|path| {
            let mut names = Vec::new();
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                let kind = FileType::from_std(entry.file_type()?).unwrap_or(FileType::RegularFile);
                names.push((lock(&self.inodes).number(&entry.path()), kind, entry.file_name()));
            }
            names.sort_by(|a, b| a.2.cmp(&b.2));
            Ok(names)
        });
        match names {
            Ok(names) => {
                for (next, (number, kind, name)) in (1u64..).zip(names).skip(offset as usize) {
                    if reply.add(INodeNo(number), next, kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(Errno::from(error)),
        }
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.mood.sync_error.load(Ordering::Relaxed) {
            0 => reply.ok(),
            error => reply.error(Errno::from_i32(error)),
        }
    }
}
