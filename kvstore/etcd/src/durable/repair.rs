//! Repair of a damaged store: what can be read is kept, what cannot is named, and nothing is changed before somebody
//! has read that and said yes.
//!
//! A repaired store lacks writes that were acknowledged, so it is another lineage: clients list it anew and are never
//! told that what they know is still so. A crash at any point leaves either the damaged store or the repaired one.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use bytes::Bytes;
use hawser_kvstore::{Change, Identity, KeyValue, LeaseId, Record, Revision, Snapshot};

use super::codec::{self, CodecError};
use super::disk::Disk;
use super::frame;
use super::log::{self, LOG_HEADER};
use super::snapshot;

/// In front of the name of a file that is kept for whoever wants to look into it.
const KEPT: &str = "damaged-";
/// Of a lease whose own time to live cannot be read.
const LEASE_SECONDS: i64 = 60;

/// What a store holds that can be read, and what it lost.
#[derive(Debug)]
pub struct Salvage {
    pub place: String,
    /// In the order of the files. Empty: there is nothing to repair.
    pub damage: Vec<Damage>,
    /// Keys that can be kept, and the newest revision that can be read.
    pub keys: usize,
    pub revision: Revision,
    state: Snapshot,
    /// Behind every frame that was ever written here.
    at: u64,
    files: Vec<String>,
}

/// One thing that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub file: String,
    pub what: String,
    /// The first and last revision that were in it; nobody knows where that is not known.
    pub revisions: Option<(Revision, Revision)>,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}; ", self.file, self.what)?;
        match self.revisions {
            Some((first, last)) if first == last => write!(f, "lost is revision {first}"),
            Some((first, last)) if first < last => write!(f, "lost are revisions {first} to {last}"),
            Some(_) => f.write_str("no revision is lost"),
            None => f.write_str("which revisions were in it is not known"),
        }
    }
}

/// Why a store cannot be repaired.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    #[error("the store {place} cannot be read or written: {source}. fix: check the disk, then repair again")]
    Io {
        place: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "{place} holds no store: it has neither a log nor a snapshot. fix: name the directory of `store: embedded:DIR`"
    )]
    NoStore { place: String },
    #[error(
        "the store {place} holds nothing that can be read. fix: restore the directory from a backup, or move it away and \
         start with an empty one (peers and agents then take the new store over by themselves)"
    )]
    Nothing { place: String },
    #[error(
        "the store {place} has a whole record in {file} that cannot be understood: {why}. fix: repair with the version \
         of Hawser that wrote it"
    )]
    Codec { place: String, file: String, why: CodecError },
}

#[derive(Default)]
struct Reading {
    kvs: BTreeMap<Bytes, KeyValue>,
    leases: BTreeMap<LeaseId, i64>,
    revision: Revision,
    /// The number of the next frame; unknown before the first.
    next: Option<u64>,
    newest: u64,
    damage: Vec<Damage>,
    readable: bool,
    lineage: Option<u64>,
}

/// Reads all that can be read, and changes nothing. Cost: the store in memory.
pub fn salvage(disk: &dyn Disk) -> Result<Salvage, RepairError> {
    let place = disk.place();
    let io = |source| RepairError::Io { place: place.clone(), source };
    let names = disk.list().map_err(io)?;
    let mut reading = Reading::default();
    let snapshots = log::sorted(names.iter().filter_map(|n| log::numbered(n, log::SNAPSHOT)));
    let logs = log::sorted(names.iter().filter_map(|n| log::numbered(n, log::LOG)));
    let mut files: Vec<String> = snapshots.iter().map(|at| log::snapshot_name(*at)).collect();
    files.extend(logs.iter().map(|first| log::log_name(*first)));
    if files.is_empty() {
        return Err(RepairError::NoStore { place });
    }
    if let Some(at) = snapshots.last() {
        reading.snapshot(disk, *at).map_err(|error| error.at(&place))?;
    }
    for first in &logs {
        reading.log(disk, *first).map_err(|error| error.at(&place))?;
    }
    if !reading.readable {
        return Err(RepairError::Nothing { place });
    }
    for kv in reading.kvs.values().filter(|kv| kv.lease != 0) {
        // Its grant is in what was lost: who holds it keeps it alive, or it ends soon.
        reading.leases.entry(kv.lease).or_insert(LEASE_SECONDS);
    }
    let at =
        reading.newest.max(snapshots.last().copied().unwrap_or(0)).max(logs.last().copied().unwrap_or(0)) + 1;
    let state = Snapshot {
        identity: Identity::adopted(1),
        revision: reading.revision,
        kvs: reading.kvs.into_values().collect(),
        leases: reading.leases.into_iter().collect(),
    };
    let (keys, revision) = (state.kvs.len(), state.revision);
    Ok(Salvage { place, damage: reading.damage, keys, revision, state, at, files })
}

impl Salvage {
    /// Makes what can be read the store, under a new lineage. The files as they were stay beside it; returns their
    /// names. Cost: a copy of them, and a snapshot.
    pub fn repair(self, disk: &dyn Disk, lineage: u64) -> Result<Vec<String>, RepairError> {
        let place = self.place;
        let io = |source| RepairError::Io { place: place.clone(), source };
        let mut kept = Vec::new();
        for file in &self.files {
            let copy = format!("{KEPT}{:020}-{file}", self.at);
            let write = |bytes: Vec<u8>| {
                let mut file = disk.create(&copy)?;
                file.write_at(0, &bytes)?;
                file.sync()
            };
            disk.read(file).and_then(write).map_err(io)?;
            kept.push(copy);
        }
        disk.sync_dir().map_err(io)?;
        // From here on the newest snapshot counts, and no log of the old lineage does.
        let state = codec::encode_state(self.state);
        snapshot::write(disk, &log::snapshot_name(self.at), lineage, self.at, &state).map_err(io)?;
        self.files.iter().try_for_each(|file| disk.remove(file)).map_err(io)?;
        disk.sync_dir().map_err(io)?;
        Ok(kept)
    }
}

enum Fault {
    Io(io::Error),
    Codec(String, CodecError),
}

impl Fault {
    fn at(self, place: &str) -> RepairError {
        let place = place.to_owned();
        match self {
            Self::Io(source) => RepairError::Io { place, source },
            Self::Codec(file, why) => RepairError::Codec { place, file, why },
        }
    }
}

impl Reading {
    fn snapshot(&mut self, disk: &dyn Disk, at: u64) -> Result<(), Fault> {
        let file = log::snapshot_name(at);
        let bytes = Bytes::from(disk.read(&file).map_err(Fault::Io)?);
        match snapshot::decode(&bytes, at) {
            Ok((lineage, state)) => {
                let state = codec::decode_state(state, Identity::adopted(1));
                let state = state.map_err(|why| Fault::Codec(file, why))?;
                self.kvs = state.kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
                self.leases = state.leases.into_iter().collect();
                (self.revision, self.next, self.newest) = (state.revision, Some(at + 1), at);
                (self.lineage, self.readable) = (Some(lineage), true);
            }
            Err(what) => {
                let what = format!("{what}: everything that was written before it and not since is lost");
                self.damage.push(Damage { file, what, revisions: None });
            }
        }
        Ok(())
    }

    fn log(&mut self, disk: &dyn Disk, first: u64) -> Result<(), Fault> {
        let file = log::log_name(first);
        let bytes = Bytes::from(disk.read(&file).map_err(Fault::Io)?);
        self.newest = self.newest.max(first);
        // A damaged snapshot knows its lineage no more; the logs behind it say it, each for itself.
        let told = log::lineage_of(&bytes);
        let Some(lineage) = self.lineage.or(told) else {
            self.unreadable(file, "does not begin as a log, and no snapshot says whose it is");
            return Ok(());
        };
        if told.is_some_and(|told| told != lineage) {
            self.unreadable(file, "is of another store");
            return Ok(());
        }
        self.lineage = Some(lineage);
        let mut from = if told.is_some() { LOG_HEADER } else { 0 };
        let mut hole: Option<(usize, usize)> = None;
        loop {
            let scan = frame::scan(lineage, &bytes, from);
            for frame in scan.frames {
                self.newest = self.newest.max(frame.seq);
                self.frame(&file, frame, hole.take())?;
            }
            match scan.tail {
                frame::Tail::Damaged { next_good } => {
                    hole = Some((hole.map_or(scan.good, |(from, _)| from), next_good));
                    from = next_good;
                }
                // Of the last file nobody was told. Before it, the next file's first frame says whether one is missing.
                frame::Tail::Torn { .. } | frame::Tail::Clean => break,
            }
        }
        Ok(())
    }

    fn unreadable(&mut self, file: String, what: &str) {
        self.damage.push(Damage { file, what: what.to_owned(), revisions: None });
    }

    fn frame(&mut self, file: &str, frame: frame::Frame, hole: Option<(usize, usize)>) -> Result<(), Fault> {
        let due = self.next.unwrap_or(frame.seq);
        if frame.seq < due {
            return Ok(());
        }
        let decoded = frame.records.into_iter().map(codec::decode_record).collect::<Result<Vec<Record>, _>>();
        let records = decoded.map_err(|why| Fault::Codec(file.to_owned(), why))?;
        if frame.seq > due || hole.is_some() && self.next.is_none() {
            let what = match hole {
                Some((from, to)) => format!("is unreadable from byte {from} to byte {to}"),
                None => format!("goes on with frame {} where {due} is due", frame.seq),
            };
            // A record's revision is the one that it made, or the newest where it changed no key.
            let next = records.iter().find(|r| r.revision > self.revision).map(|r| r.revision);
            let revisions = self.next.and(next).map(|next| (self.revision + 1, next - 1));
            self.damage.push(Damage { file: file.to_owned(), what, revisions });
        }
        self.next = Some(frame.seq + 1);
        self.readable = true;
        records.into_iter().for_each(|record| self.record(record));
        Ok(())
    }

    fn record(&mut self, record: Record) {
        self.revision = self.revision.max(record.revision);
        for change in record.changes {
            match change {
                Change::Put(kv) => _ = self.kvs.insert(kv.key.clone(), kv),
                Change::Delete { key } => _ = self.kvs.remove(&key),
                Change::LeaseGrant { id, ttl } => _ = self.leases.insert(id, ttl),
                Change::LeaseRevoke { id } => _ = self.leases.remove(&id),
                Change::Compact { .. } => {}
            }
        }
    }
}
