//! Snapshot files: written beside, synced, then renamed into place, so that a name always means a whole file.
//!
//! Layout, little endian: magic, lineage u64, frame number u64, length u64, CRC-32 u32 over all of it, state.

use std::io;

use bytes::Bytes;

use super::disk::Disk;

const MAGIC: [u8; 8] = *b"HWSRSNP1";
const HEADER: usize = 36;

/// The ending of a snapshot that is being written; found at start, it is removed.
pub(crate) const TEMPORARY: &str = ".tmp";

/// Returns when the snapshot is on disk under `name`. Cost: one copy of the state in memory.
pub(crate) fn write(disk: &dyn Disk, name: &str, lineage: u64, at: u64, state: &Bytes) -> io::Result<()> {
    let temporary = format!("{name}{TEMPORARY}");
    let mut file = disk.create(&temporary)?;
    file.write_at(0, &header(lineage, at, state))?;
    file.write_at(HEADER as u64, state)?;
    file.sync()?;
    drop(file);
    disk.rename(&temporary, name)?;
    disk.sync_dir()
}

/// The lineage and the state, or what is wrong with the file.
pub(crate) fn decode(bytes: &Bytes, at: u64) -> Result<(u64, Bytes), String> {
    if bytes.len() < HEADER || bytes[..8] != MAGIC {
        return Err("is not a snapshot of this version".to_owned());
    }
    let lineage = bytes[8..].first_chunk().map(|b| u64::from_le_bytes(*b)).unwrap_or_default();
    let state = bytes.slice(HEADER..);
    if bytes[..HEADER] != header(lineage, at, &state) {
        return Err(format!("fails its checksum ({} bytes)", bytes.len()));
    }
    Ok((lineage, state))
}

fn header(lineage: u64, at: u64, state: &[u8]) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8..16].copy_from_slice(&lineage.to_le_bytes());
    header[16..24].copy_from_slice(&at.to_le_bytes());
    header[24..32].copy_from_slice(&(state.len() as u64).to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..32]);
    hasher.update(state);
    header[32..].copy_from_slice(&hasher.finalize().to_le_bytes());
    header
}
