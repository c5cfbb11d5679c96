//! A disk that lies as disks and kernels do: what was not synced is lost, kept or torn by the sector when the
//! machine stops, writes run out of space half way, and a failed sync forgets the pages it could not write.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::disk::{Disk, DiskFile};

const SECTOR: usize = 512;

/// What goes wrong at one operation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// A write ends half way with ENOSPC.
    NoSpace,
    /// EIO; of a sync, the pages are then clean in memory and unknown on disk.
    Io,
    /// The machine stops during this operation.
    Crash,
}

#[derive(Clone, Debug)]
enum Pending {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

#[derive(Clone, Debug, Default)]
struct Image {
    /// What a running program reads.
    now: Vec<u8>,
    /// What is surely on disk.
    disk: Vec<u8>,
    /// What was done since the last sync.
    pending: Vec<Pending>,
}

#[derive(Clone, Debug)]
enum NameOp {
    Link(String, usize),
    Rename(String, String),
    Remove(String),
}

#[derive(Debug)]
struct State {
    files: Vec<Image>,
    names: BTreeMap<String, usize>,
    names_on_disk: BTreeMap<String, usize>,
    names_pending: Vec<NameOp>,
    done: u64,
    faults: BTreeMap<u64, Fault>,
    stopped: bool,
    rng: StdRng,
}

/// Clones are the same disk.
#[derive(Clone, Debug)]
pub(crate) struct FaultDisk(Arc<Mutex<State>>);

impl FaultDisk {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            files: Vec::new(),
            names: BTreeMap::new(),
            names_on_disk: BTreeMap::new(),
            names_pending: Vec::new(),
            done: 0,
            faults: BTreeMap::new(),
            stopped: false,
            rng: StdRng::seed_from_u64(seed),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Operations (writes, syncs, renames and the like) so far.
    pub(crate) fn operations(&self) -> u64 {
        self.state().done
    }

    /// `fault` happens at the `at`th operation, the next being `operations() + 1`.
    pub(crate) fn fault(&self, at: u64, fault: Fault) {
        self.state().faults.insert(at, fault);
    }

    pub(crate) fn stopped(&self) -> bool {
        self.state().stopped
    }

    /// What one machine could find after stopping now. Different seeds find different things.
    pub(crate) fn after_crash(&self, seed: u64) -> Self {
        let old = self.state();
        let new = Self::new(seed);
        let mut state = new.state();
        let keep = [0.0, 0.5, 1.0][(seed % 3) as usize];
        state.files = old.files.clone();
        for i in 0..state.files.len() {
            settle(&mut state, i, keep);
            state.files[i].now = state.files[i].disk.clone();
        }
        let mut names = old.names_on_disk.clone();
        // Directory operations reach the disk in their order, as journals have it.
        let survived = state.rng.random_range(0..=old.names_pending.len());
        for op in &old.names_pending[..survived] {
            apply_name(&mut names, op);
        }
        state.names_on_disk = names.clone();
        state.names = names;
        drop(state);
        new
    }

    /// What a new process on the same, running machine finds: everything as last seen, dirty or not.
    pub(crate) fn after_restart(&self) -> Self {
        let mut state = self.state();
        state.stopped = false;
        state.faults.clear();
        drop(state);
        self.clone()
    }

    /// Flips one bit of a file, on disk and in memory.
    pub(crate) fn flip(&self, name: &str, bit: usize) {
        let mut state = self.state();
        let id = state.names[name];
        let image = &mut state.files[id];
        image.now[bit / 8] ^= 1 << (bit % 8);
        image.disk = image.now.clone();
    }

    fn begin(&self) -> io::Result<(MutexGuard<'_, State>, Option<Fault>)> {
        let mut state = self.state();
        if state.stopped {
            return Err(io::Error::other("the machine has stopped"));
        }
        state.done += 1;
        let fault = state.faults.get(&state.done).copied();
        state.stopped = matches!(fault, Some(Fault::Crash));
        Ok((state, fault))
    }

    fn name_op(&self, op: NameOp) -> io::Result<()> {
        let (mut state, fault) = self.begin()?;
        if matches!(fault, Some(Fault::Io | Fault::NoSpace)) {
            return Err(error(fault));
        }
        apply_name(&mut state.names, &op);
        state.names_pending.push(op);
        if fault.is_some() { Err(error(fault)) } else { Ok(()) }
    }
}

/// Lets each unsynced sector of a file reach the disk with the probability `keep`.
fn settle(state: &mut State, file: usize, keep: f64) {
    for pending in std::mem::take(&mut state.files[file].pending) {
        match pending {
            Pending::SetLen(len) => {
                if state.rng.random_bool(keep) {
                    state.files[file].disk.resize(len, 0);
                }
            }
            Pending::Write(offset, bytes) => {
                let mut at = 0;
                while at < bytes.len() {
                    let end = bytes.len().min(at + SECTOR - (offset + at) % SECTOR);
                    if state.rng.random_bool(keep) {
                        write(&mut state.files[file].disk, offset + at, &bytes[at..end]);
                    }
                    at = end;
                }
            }
        }
    }
}

fn write(image: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if image.len() < offset + bytes.len() {
        image.resize(offset + bytes.len(), 0);
    }
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn apply_name(names: &mut BTreeMap<String, usize>, op: &NameOp) {
    match op {
        NameOp::Link(name, id) => {
            names.insert(name.clone(), *id);
        }
        NameOp::Rename(from, to) => {
            if let Some(id) = names.remove(from) {
                names.insert(to.clone(), id);
            }
        }
        NameOp::Remove(name) => {
            names.remove(name);
        }
    }
}

fn error(fault: Option<Fault>) -> io::Error {
    match fault {
        Some(Fault::NoSpace) => io::Error::from_raw_os_error(28),
        Some(Fault::Io) => io::Error::from_raw_os_error(5),
        _ => io::Error::other("the machine has stopped"),
    }
}

struct FaultFile {
    disk: FaultDisk,
    id: usize,
}

impl FaultFile {
    fn pend(&self, state: &mut State, pending: Pending) {
        let image = &mut state.files[self.id];
        match &pending {
            Pending::Write(offset, bytes) => write(&mut image.now, *offset, bytes),
            Pending::SetLen(len) => image.now.resize(*len, 0),
        }
        image.pending.push(pending);
    }
}

impl DiskFile for FaultFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (mut state, fault) = self.disk.begin()?;
        let part = match fault {
            None | Some(Fault::Crash) => bytes.len(),
            Some(_) => state.rng.random_range(0..=bytes.len()),
        };
        self.pend(&mut state, Pending::Write(offset as usize, bytes[..part].to_vec()));
        if fault.is_some() { Err(error(fault)) } else { Ok(()) }
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        let (mut state, fault) = self.disk.begin()?;
        if matches!(fault, Some(Fault::Io | Fault::NoSpace)) {
            return Err(error(fault));
        }
        self.pend(&mut state, Pending::SetLen(len as usize));
        if fault.is_some() { Err(error(fault)) } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        let (mut state, fault) = self.disk.begin()?;
        match fault {
            None => {
                let image = &mut state.files[self.id];
                image.pending.clear();
                image.disk = image.now.clone();
                Ok(())
            }
            Some(Fault::Crash) => Err(error(fault)),
            Some(_) => {
                settle(&mut state, self.id, 0.5);
                Err(error(fault))
            }
        }
    }
}

impl Disk for FaultDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let state = self.state();
        let id = state.names.get(name).ok_or(ErrorKind::NotFound)?;
        Ok(state.files[*id].now.clone())
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        Ok(self.read(name)?.len() as u64)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let id = *self.state().names.get(name).ok_or(ErrorKind::NotFound)?;
        Ok(Box::new(FaultFile { disk: self.clone(), id }))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let id = {
            let mut state = self.state();
            state.files.push(Image::default());
            state.files.len() - 1
        };
        self.name_op(NameOp::Link(name.to_owned(), id))?;
        Ok(Box::new(FaultFile { disk: self.clone(), id }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.name_op(NameOp::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.name_op(NameOp::Remove(name.to_owned()))
    }

    fn sync_dir(&self) -> io::Result<()> {
        let (mut state, fault) = self.begin()?;
        if fault.is_some() {
            return Err(error(fault));
        }
        state.names_on_disk = state.names.clone();
        state.names_pending.clear();
        Ok(())
    }

    fn place(&self) -> String {
        "(fault disk)".to_owned()
    }
}
