//! The directory source: one thread that watches a directory of manifests and sends events.
//!
//! inotify says which files to read; a slow sweep catches what it cannot see (a symlink's far end, NFS). The directory
//! itself failing is a problem to report and never a reason to remove anything. What adds or changes something is read at once, as
//! long as reading takes no more than half of the time; what takes something away waits until all is quiet, for the other half of it
//! may be in another file.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use inotify::{EventMask, Inotify, WatchMask};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use tokio::sync::mpsc;

use crate::{Change, Files, Problem, SourceEvent, manifest};

/// Editors and `cp` touch a file several times; a batch ends when this long nothing more came.
const QUIET: Duration = Duration::from_millis(20);
/// A directory that never falls quiet is read this often all the same.
const BUSY: Duration = Duration::from_millis(250);
/// How often everything is looked at without having been told.
const SWEEP: Duration = Duration::from_secs(30);
/// How often a directory that is not there is looked for, and a closed channel noticed.
const TICK: Duration = Duration::from_millis(500);
/// One manifest. 30,000 services of four endpoints are about 60 MB.
const MAX_FILE: u64 = 256 << 20;
/// Events in flight; the thread waits when the consumer does.
const QUEUE: usize = 1024;

#[derive(Debug, thiserror::Error)]
#[error("cannot start the thread that reads {dir}: {source}")]
pub struct WatchError {
    pub dir: PathBuf,
    #[source]
    pub source: io::Error,
}

/// A running directory source. Dropping it ends its thread.
#[derive(Debug)]
pub struct DirSource {
    events: mpsc::Receiver<SourceEvent>,
}

impl DirSource {
    pub fn start(dir: &Path) -> Result<Self, WatchError> {
        let (to, events) = mpsc::channel(QUEUE);
        let mut reader = Reader::new(dir.to_owned(), to);
        std::thread::Builder::new()
            .name("manifests".into())
            .spawn(move || while reader.watch().is_ok() {})
            .map_err(|source| WatchError { dir: dir.to_owned(), source })?;
        Ok(Self { events })
    }

    /// None never comes while the source lives: its thread outlives every failure of the directory.
    pub async fn next(&mut self) -> Option<SourceEvent> {
        self.events.recv().await
    }

    /// What is already there, without waiting.
    pub fn try_next(&mut self) -> Option<SourceEvent> {
        self.events.try_recv().ok()
    }
}

/// The consumer is gone.
struct Closed;

/// What tells two versions of a file apart without reading them.
type Stamp = (u64, u64, u64, i64, i64);

struct Reader {
    dir: PathBuf,
    to: mpsc::Sender<SourceEvent>,
    files: Files,
    stamps: BTreeMap<String, Stamp>,
    synced: bool,
    dir_problem: Option<Problem>,
}

/// Which files to look at.
enum Look {
    Nothing,
    At(BTreeSet<String>),
    /// As above, and at once.
    Early(BTreeSet<String>),
    Everything,
    /// The directory itself went away or was replaced.
    Again,
}

impl Reader {
    fn new(dir: PathBuf, to: mpsc::Sender<SourceEvent>) -> Self {
        let (files, stamps) = (Files::default(), BTreeMap::new());
        Self { dir, to, files, stamps, synced: false, dir_problem: None }
    }

    /// One life of the directory: until it goes away, or the consumer does.
    fn watch(&mut self) -> Result<(), Closed> {
        let mut inotify = match self.open() {
            Ok(inotify) => inotify,
            Err(error) => return self.dir_failed("cannot watch the directory", &error),
        };
        // Armed before the first look, so nothing falls between the two.
        if let Err(error) = self.look_at_everything()? {
            return self.dir_failed("cannot list the directory", &error);
        }
        let mut swept = Instant::now();
        // When the last look ended, and what it took.
        let mut looked = (Instant::now(), Duration::ZERO);
        let mut rest = BTreeSet::new();
        loop {
            let calm = rest.is_empty().then(|| looked.0 + looked.1);
            let look = match self.wait(&mut inotify, std::mem::take(&mut rest), calm)? {
                Look::Nothing if swept.elapsed() >= SWEEP => Look::Everything,
                look => look,
            };
            let began = Instant::now();
            match look {
                Look::Nothing => {}
                Look::Again => return Ok(()),
                Look::Early(names) => rest = self.look_early(names)?,
                Look::At(names) => self.look_at(names, true)?,
                Look::Everything => {
                    swept = Instant::now();
                    if let Err(error) = self.look_at_everything()? {
                        return self.dir_failed("cannot list the directory", &error);
                    }
                }
            }
            looked = (Instant::now(), began.elapsed());
        }
    }

    fn open(&self) -> io::Result<Inotify> {
        let inotify = Inotify::init()?;
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::MOVE
            | WatchMask::DELETE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        inotify.watches().add(&self.dir, mask)?;
        Ok(inotify)
    }

    fn dir_failed(&mut self, what: &str, error: &io::Error) -> Result<(), Closed> {
        let problem = Problem {
            file: self.dir.display().to_string(),
            line: 0,
            reason: format!("{what}: {error}; what was read from it stays"),
            blind: !self.synced,
        };
        if self.dir_problem.as_ref() != Some(&problem) {
            self.dir_problem = Some(problem.clone());
            self.send(SourceEvent::Problem(problem))?;
        }
        std::thread::sleep(TICK);
        if self.to.is_closed() { Err(Closed) } else { Ok(()) }
    }

    fn send(&self, event: SourceEvent) -> Result<(), Closed> {
        self.to.blocking_send(event).map_err(|_| Closed)
    }

    /// Waits for the next batch of changes, `rest` among them; `Nothing` after a tick without any. `calm`: the
    /// first need not wait for more.
    fn wait(
        &self,
        inotify: &mut Inotify,
        rest: BTreeSet<String>,
        calm: Option<Instant>,
    ) -> Result<Look, Closed> {
        let mut began = (!rest.is_empty()).then(Instant::now);
        let mut look = if rest.is_empty() { Look::Nothing } else { Look::At(rest) };
        let mut buffer = [0; 16 * 1024];
        loop {
            let patience = if began.is_some() { QUIET } else { TICK };
            let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
            let ready = {
                let mut fds = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
                nix::poll::poll(&mut fds, timeout)
            };
            match ready {
                Ok(0) if self.to.is_closed() => return Err(Closed),
                Ok(0) => return Ok(look),
                Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => return Ok(Look::Again),
                Ok(_) => {}
            }
            match inotify.read_events(&mut buffer) {
                Ok(events) => {
                    for event in events {
                        look = self.merge(look, event.mask, event.name);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Ok(Look::Again),
            }
            look = match look {
                Look::Nothing => continue,
                Look::At(names) if calm.is_some_and(|from| from <= Instant::now()) => {
                    return Ok(Look::Early(names));
                }
                look => look,
            };
            let began = *began.get_or_insert_with(Instant::now);
            if matches!(look, Look::Again) || began.elapsed() >= BUSY {
                return Ok(look);
            }
        }
    }

    fn merge(&self, look: Look, mask: EventMask, name: Option<&OsStr>) -> Look {
        const SELF: EventMask = EventMask::DELETE_SELF
            .union(EventMask::MOVE_SELF)
            .union(EventMask::IGNORED)
            .union(EventMask::UNMOUNT);
        if matches!(look, Look::Again) || mask.intersects(SELF) {
            return Look::Again;
        }
        if mask.contains(EventMask::Q_OVERFLOW) {
            return Look::Everything;
        }
        let name = name.and_then(OsStr::to_str).unwrap_or_default();
        // How a mounted ConfigMap changes: `..data` is another link, and all its files with it.
        if name.starts_with("..") {
            return Look::Everything;
        }
        // A plain file that was just created is empty yet: its CLOSE_WRITE follows. Links are complete at once.
        let unfinished = mask.contains(EventMask::CREATE)
            && self.dir.join(name).symlink_metadata().is_ok_and(|m| m.is_file() && m.nlink() == 1);
        if unfinished || !is_manifest(name) {
            return look;
        }
        match look {
            Look::Nothing => Look::At(BTreeSet::from([name.to_owned()])),
            Look::At(mut names) => {
                names.insert(name.to_owned());
                Look::At(names)
            }
            more => more,
        }
    }

    fn look_at_everything(&mut self) -> Result<io::Result<()>, Closed> {
        let listed = match list(&self.dir) {
            Ok(listed) => listed,
            Err(error) => return Ok(Err(error)),
        };
        let known: BTreeSet<String> = self.files.names().map(str::to_owned).collect();
        let names = listed.into_iter().chain(known).collect();
        if self.dir_problem.take().is_some() {
            self.send(SourceEvent::Healed { file: self.dir.display().to_string() })?;
        }
        self.look_at(names, false)?;
        if !self.synced {
            self.synced = true;
            self.send(SourceEvent::Synced)?;
        }
        Ok(Ok(()))
    }

    /// Tells what only adds to what is known, or changes it; what does more is given back, all of it.
    fn look_early(&mut self, names: BTreeSet<String>) -> Result<BTreeSet<String>, Closed> {
        let mut changes = Vec::new();
        for name in &names {
            let path = self.dir.join(name);
            let stamp = path.metadata().map(|metadata| stamp(&metadata));
            let objects = match read(&path) {
                Change::Objects(objects) => Some(objects),
                Change::Text(text) => manifest::parse(&text).ok(),
                Change::Unreadable(_) | Change::Gone => None,
            };
            match (stamp, objects.filter(|objects| self.files.is_plain(name, objects))) {
                (Ok(stamp), Some(objects)) => changes.push((name, stamp, objects)),
                _ => return Ok(names),
            }
        }
        self.stamps.extend(changes.iter().map(|(name, stamp, _)| ((*name).clone(), *stamp)));
        let changes = changes.into_iter().map(|(name, _, objects)| (name.clone(), Change::Objects(objects)));
        for event in self.files.apply(changes.collect()) {
            self.send(event)?;
        }
        Ok(BTreeSet::new())
    }

    /// Reads the files that changed; `told` when somebody said so and the clock's coarse word is not needed.
    fn look_at(&mut self, names: BTreeSet<String>, told: bool) -> Result<(), Closed> {
        let mut changes = Vec::new();
        for name in names {
            let path = self.dir.join(&name);
            let stamp = path.metadata().map(|metadata| stamp(&metadata));
            let change = match stamp {
                // Gone with the whole directory is not gone.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if !self.dir.is_dir() {
                        return Ok(());
                    }
                    self.stamps.remove(&name);
                    Change::Gone
                }
                Err(error) => Change::Unreadable(format!("cannot be read: {error}")),
                Ok(stamp) if !told && self.stamps.get(&name) == Some(&stamp) => continue,
                Ok(stamp) => {
                    self.stamps.insert(name.clone(), stamp);
                    read(&path)
                }
            };
            if matches!(change, Change::Unreadable(_)) {
                self.stamps.remove(&name);
            }
            changes.push((name, change));
        }
        for event in self.files.apply(changes) {
            self.send(event)?;
        }
        Ok(())
    }
}

fn stamp(m: &Metadata) -> Stamp {
    (m.dev(), m.ino(), m.len(), m.mtime(), m.mtime_nsec())
}

fn is_manifest(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(OsStr::to_str);
    !name.starts_with('.') && matches!(extension, Some("yaml" | "yml" | "json"))
}

fn list(dir: &Path) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        names.extend(name.to_str().filter(|name| is_manifest(name)).map(str::to_owned));
    }
    Ok(names)
}

fn read(path: &Path) -> Change {
    match path.metadata() {
        Ok(meta) if meta.len() > MAX_FILE => {
            return Change::Unreadable(format!("is larger than {} MiB; fix: split it", MAX_FILE >> 20));
        }
        Ok(meta) if !meta.is_file() => return Change::Unreadable("is not a file".into()),
        _ => {}
    }
    // What cannot be read so is read again as text, for the reason and its line.
    if path.extension().is_some_and(|extension| extension == "json")
        && let Some(objects) = File::open(path).ok().and_then(manifest::read_json_list)
    {
        return Change::Objects(objects);
    }
    match std::fs::read_to_string(path) {
        Ok(text) => Change::Text(text),
        Err(error) => Change::Unreadable(format!("cannot be read: {error}")),
    }
}
