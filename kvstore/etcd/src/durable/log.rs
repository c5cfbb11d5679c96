//! The log: a directory of frames behind a snapshot. What `append` returned for is on disk.
//!
//! `snapshot-N` holds the state after frame N, `log-M` the frames from M on. A log is begun before the snapshot
//! that makes its forerunners superfluous is written, so at every moment some snapshot and an unbroken chain of
//! frames behind it exist.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::disk::{Disk, DiskFile};
use super::frame::{self, Tail};
use super::snapshot;

const LOG_MAGIC: [u8; 8] = *b"HWSRLOG1";
pub(super) const LOG_HEADER: usize = 28;

/// What a store holds at start.
#[derive(Debug)]
pub struct Recovered {
    pub lineage: u64,
    /// The state as the last snapshot has it.
    pub snapshot: Bytes,
    /// Everything acknowledged since, oldest first, and perhaps a last batch that nobody was told about.
    pub records: Vec<Bytes>,
    /// Bytes of a torn tail that were cut, if there were any.
    pub cut: Option<usize>,
    /// There was nothing: this is a new store.
    pub created: bool,
}

/// Why a store does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the store {place} cannot be read or written: {source}")]
    Io {
        place: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "the store {place} is damaged: {file} {what}. Nothing was changed. \
         fix: restore the directory from a backup, or see what `clustermesh-apiserver repair --store {place}` would save"
    )]
    Damaged { place: String, file: String, what: String },
}

/// Why a write was not acknowledged. After `Stopped` it may be there when the store is opened again, or not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    #[error(
        "the store {place} could not write: {why}. The write was undone. fix: free disk space or replace the disk"
    )]
    Write { place: String, why: String },
    #[error(
        "the store {place} failed to sync ({why}); what is on disk is unknown, so it takes no more writes. \
         fix: check the disk, then restart this process"
    )]
    Stopped { place: String, why: String },
    #[error("a batch of {len} bytes is more than the {max} a log frame holds")]
    TooLarge { len: usize, max: usize },
}

/// See the module's text.
pub struct Log {
    disk: Arc<dyn Disk>,
    lineage: u64,
    file: Box<dyn DiskFile>,
    /// Where the next frame goes; all before it is on disk.
    len: u64,
    /// The number of the next frame.
    next: u64,
    /// Bytes of frames behind the last snapshot.
    behind_snapshot: u64,
    stopped: Option<String>,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("next", &self.next).field("len", &self.len).finish_non_exhaustive()
    }
}

impl Log {
    /// Opens the store on `disk`; when there is none, creates it with `fresh`: a lineage and an empty snapshot.
    pub fn open(
        disk: Arc<dyn Disk>,
        fresh: impl FnOnce() -> (u64, Bytes),
    ) -> Result<(Self, Recovered), OpenError> {
        let place = disk.place();
        let io = |source| OpenError::Io { place: place.clone(), source };
        let names = disk.list().map_err(io)?;
        let newest = names.iter().filter_map(|n| numbered(n, SNAPSHOT)).max();
        let logs = sorted(names.iter().filter_map(|n| numbered(n, LOG)));
        let created = newest.is_none();
        let (at, lineage, state) = match newest {
            Some(at) => {
                let file = snapshot_name(at);
                let (lineage, state) = snapshot::decode(&Bytes::from(disk.read(&file).map_err(io)?), at)
                    .map_err(|what| OpenError::Damaged { place: place.clone(), file, what })?;
                (at, lineage, state)
            }
            None if logs.is_empty() => {
                let (lineage, state) = fresh();
                snapshot::write(&*disk, &snapshot_name(0), lineage, 0, &state).map_err(io)?;
                (0, lineage, state)
            }
            None => {
                return Err(OpenError::Damaged {
                    place,
                    file: log_name(logs[0]),
                    what: "has no snapshot in front of it".to_owned(),
                });
            }
        };
        let chain = Chain::read(&*disk, lineage, at, &logs)?;
        let cut = chain.cut;
        let (log, records) = chain.into_log(disk, lineage).map_err(io)?;
        log.disk.sync_dir().map_err(io)?;
        forget_before(&*log.disk, at);
        Ok((log, Recovered { lineage, snapshot: state, records, cut, created }))
    }

    /// Writes `records` as one frame and returns when it is on disk. Cost: one write and one `fdatasync`,
    /// however many records.
    ///
    /// After a failed write the frame is taken back and the log goes on; after a failed sync, or when it cannot
    /// be taken back, nobody knows what is on disk (the kernel forgets the pages it could not write) and the log
    /// takes no more.
    pub fn append(&mut self, records: &[Bytes]) -> Result<u64, AppendError> {
        let place = || self.disk.place();
        if let Some(why) = &self.stopped {
            return Err(AppendError::Stopped { place: place(), why: why.clone() });
        }
        let len = frame::payload_len(records);
        if len > frame::MAX_PAYLOAD {
            return Err(AppendError::TooLarge { len, max: frame::MAX_PAYLOAD });
        }
        self.buffer.clear();
        frame::encode(self.lineage, self.next, records, &mut self.buffer);
        if let Err(e) = self.file.write_at(self.len, &self.buffer) {
            let undone = self.file.set_len(self.len).and_then(|()| self.file.sync());
            return Err(match undone {
                Ok(()) => AppendError::Write { place: place(), why: e.to_string() },
                Err(undo) => self.stop(format!("{e}, and then {undo}")),
            });
        }
        if let Err(e) = self.file.sync() {
            return Err(self.stop(e.to_string()));
        }
        self.len += self.buffer.len() as u64;
        self.behind_snapshot += self.buffer.len() as u64;
        if self.buffer.capacity() > (1 << 20) {
            self.buffer = Vec::new();
        }
        self.next += 1;
        Ok(self.next - 1)
    }

    /// Begins a new log file, so that the frames so far can go once a snapshot holds them. Returns the number of
    /// the last frame before it. On failure the present file stays in use.
    pub fn rotate(&mut self) -> Result<u64, AppendError> {
        if let Some(why) = &self.stopped {
            return Err(AppendError::Stopped { place: self.disk.place(), why: why.clone() });
        }
        if self.len == LOG_HEADER as u64 {
            // Nothing is in it yet, and a new one would have its name.
            return Ok(self.next - 1);
        }
        let name = log_name(self.next);
        match begin(&*self.disk, &name, self.lineage, self.next) {
            Ok(file) => {
                self.file = file;
                self.len = LOG_HEADER as u64;
                self.behind_snapshot = 0;
                Ok(self.next - 1)
            }
            Err(e) => {
                // A leftover holds no frame, and a reader passes over it.
                let _ = self.disk.remove(&name);
                Err(AppendError::Write { place: self.disk.place(), why: e.to_string() })
            }
        }
    }

    /// Bytes of frames that a restart would have to replay from the present file.
    pub fn behind_snapshot(&self) -> u64 {
        self.behind_snapshot
    }

    pub fn lineage(&self) -> u64 {
        self.lineage
    }

    pub fn disk(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }

    fn stop(&mut self, why: String) -> AppendError {
        self.stopped = Some(why.clone());
        AppendError::Stopped { place: self.disk.place(), why }
    }
}

/// Writes the snapshot of the state after frame `at`, then removes what lies before it. Runs beside appends.
pub fn write_snapshot(disk: &dyn Disk, lineage: u64, at: u64, state: &Bytes) -> io::Result<()> {
    snapshot::write(disk, &snapshot_name(at), lineage, at, state)?;
    forget_before(disk, at);
    Ok(())
}

/// Removes what the snapshot `at` holds too. A file that cannot be removed now goes next time.
fn forget_before(disk: &dyn Disk, at: u64) {
    let Ok(names) = disk.list() else { return };
    let logs = sorted(names.iter().filter_map(|n| numbered(n, LOG)));
    // A log goes when the next one begins at or before the frame behind the snapshot.
    let old_logs = logs.windows(2).filter(|pair| pair[1] <= at + 1).map(|pair| log_name(pair[0]));
    let snapshots = names.iter().filter_map(|n| numbered(n, SNAPSHOT)).filter(|n| *n < at).map(snapshot_name);
    let temporary = names.iter().filter(|n| n.ends_with(snapshot::TEMPORARY)).cloned();
    for name in old_logs.chain(snapshots).chain(temporary) {
        if let Err(error) = disk.remove(&name) {
            tracing::warn!(store = disk.place(), file = name, %error, "an old file of the store stays for now");
        }
    }
}

/// The frames of all logs, in order, as found.
struct Chain {
    records: Vec<Bytes>,
    next: u64,
    /// The file to go on with.
    last: Option<LastFile>,
    behind_snapshot: u64,
    cut: Option<usize>,
}

struct LastFile {
    first: u64,
    /// Where its last good frame begins, and its bytes.
    at: usize,
    frame: Bytes,
}

impl Chain {
    fn read(disk: &dyn Disk, lineage: u64, at: u64, logs: &[u64]) -> Result<Self, OpenError> {
        let mut chain = Self { records: Vec::new(), next: at + 1, last: None, behind_snapshot: 0, cut: None };
        for (i, first) in logs.iter().enumerate() {
            let file = log_name(*first);
            let damaged = |what| OpenError::Damaged { place: disk.place(), file: file.clone(), what };
            let bytes = disk.read(&file).map_err(|source| OpenError::Io { place: disk.place(), source })?;
            chain.file(lineage, *first, &Bytes::from(bytes), i + 1 == logs.len()).map_err(damaged)?;
        }
        Ok(chain)
    }

    fn file(&mut self, lineage: u64, first: u64, bytes: &Bytes, is_last: bool) -> Result<(), String> {
        let whole = bytes.starts_with(&header(lineage, first));
        let scan = frame::scan(lineage, bytes, if whole { LOG_HEADER } else { 0 });
        if !whole {
            // Its header is synced before its first frame: without one it was never in use.
            return match scan.tail {
                Tail::Damaged { next_good } => Err(format!(
                    "does not begin as a log of this store, yet holds a frame at byte {next_good}"
                )),
                _ => Ok(()),
            };
        }
        for frame in scan.frames {
            if frame.seq > self.next {
                return Err(format!("goes on with frame {} where {} is due", frame.seq, self.next));
            }
            if frame.seq == self.next {
                self.records.extend(frame.records);
                self.next += 1;
            }
        }
        match scan.tail {
            Tail::Damaged { next_good } => {
                return Err(format!(
                    "is unreadable from byte {} on, and good again at byte {next_good}",
                    scan.good
                ));
            }
            Tail::Torn { lost } if is_last => self.cut = Some(lost),
            // A write that failed and was taken back; the next file's first number proves that none is missing.
            Tail::Torn { .. } | Tail::Clean => {}
        }
        if is_last {
            if first > self.next {
                return Err(format!("begins with frame {first} where {} is due", self.next));
            }
            self.last = Some(LastFile { first, at: scan.last, frame: bytes.slice(scan.last..scan.good) });
            self.behind_snapshot = (scan.good - LOG_HEADER) as u64;
        }
        Ok(())
    }

    fn into_log(self, disk: Arc<dyn Disk>, lineage: u64) -> io::Result<(Log, Vec<Bytes>)> {
        let (file, len) = match self.last {
            Some(LastFile { first, at, frame }) => {
                let mut file = disk.open(&log_name(first))?;
                let end = (at + frame.len()) as u64;
                file.set_len(end)?;
                // If our forerunner's last sync failed, the kernel shows us this frame from its cache, marked
                // clean, and the disk may not have it. Written again, it is dirty again, and synced or refused.
                file.write_at(at as u64, &frame)?;
                file.sync()?;
                (file, end)
            }
            None => (begin(&*disk, &log_name(self.next), lineage, self.next)?, LOG_HEADER as u64),
        };
        let log = Log {
            disk,
            lineage,
            file,
            len,
            next: self.next,
            behind_snapshot: self.behind_snapshot,
            stopped: None,
            buffer: Vec::new(),
        };
        Ok((log, self.records))
    }
}

/// Creates a log file whose header and name are on disk.
fn begin(disk: &dyn Disk, name: &str, lineage: u64, first: u64) -> io::Result<Box<dyn DiskFile>> {
    let mut file = disk.create(name)?;
    file.write_at(0, &header(lineage, first))?;
    file.sync()?;
    disk.sync_dir()?;
    Ok(file)
}

fn header(lineage: u64, first: u64) -> [u8; LOG_HEADER] {
    let mut header = [0; LOG_HEADER];
    header[..8].copy_from_slice(&LOG_MAGIC);
    header[8..16].copy_from_slice(&lineage.to_le_bytes());
    header[16..24].copy_from_slice(&first.to_le_bytes());
    let crc = crc32fast::hash(&header[..24]);
    header[24..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// Whose log this is; nothing when it does not begin as one.
pub(super) fn lineage_of(bytes: &[u8]) -> Option<u64> {
    let first: &[u8; LOG_HEADER] = bytes.first_chunk()?;
    let lineage = u64::from_le_bytes(*first[8..].first_chunk()?);
    let number = u64::from_le_bytes(*first[16..].first_chunk()?);
    (*first == header(lineage, number)).then_some(lineage)
}

pub(super) const LOG: &str = "log-";
pub(super) const SNAPSHOT: &str = "snapshot-";

pub(super) fn log_name(first: u64) -> String {
    format!("{LOG}{first:020}")
}

pub(super) fn snapshot_name(at: u64) -> String {
    format!("{SNAPSHOT}{at:020}")
}

pub(super) fn numbered(name: &str, kind: &str) -> Option<u64> {
    name.strip_prefix(kind)?.parse().ok()
}

pub(super) fn sorted(numbers: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut numbers: Vec<u64> = numbers.collect();
    numbers.sort_unstable();
    numbers
}
