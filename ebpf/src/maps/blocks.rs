//! The bits that say where anything remote or guarded can be at all: set before the first entry of a block, cleared after the last.

use std::collections::BTreeMap;

use aya::maps::{Array, MapData};
use hawser_ebpf_abi::{BLOCK_WORDS, IP_CARRIED, IpEntry, PrefixKey, blocks, map};

use super::{SyncReport, kernel};
use crate::error::MapError;

pub(super) struct Blocks {
    map: Array<MapData, u64>,
    /// What the kernel holds.
    words: Vec<u64>,
}

impl Blocks {
    pub(super) fn adopt(map: Array<MapData, u64>) -> Result<Self, MapError> {
        let word = |at| map.get(&at, 0).map_err(|source| kernel(map::REMOTE_BLOCKS, source));
        let words = (0..BLOCK_WORDS).map(word).collect::<Result<_, _>>()?;
        Ok(Self { map, words })
    }

    /// Before `ipcache` is filled. O(entries), a system call for each word that gains a bit.
    pub(super) fn add(&mut self, ipcache: &BTreeMap<PrefixKey, IpEntry>, report: &mut SyncReport) {
        for (at, bits) in wanted(ipcache).into_iter().enumerate() {
            report.note(self.write(at, self.words[at] | bits));
        }
    }

    /// After what is not wanted has left `ipcache`. As above.
    pub(super) fn remove(&mut self, ipcache: &BTreeMap<PrefixKey, IpEntry>, report: &mut SyncReport) {
        for (at, bits) in wanted(ipcache).into_iter().enumerate() {
            report.note(self.write(at, bits));
        }
    }

    fn write(&mut self, at: usize, bits: u64) -> Result<u64, MapError> {
        if self.words[at] == bits {
            return Ok(0);
        }
        self.map.set(at as u32, bits, 0).map_err(|source| kernel(map::REMOTE_BLOCKS, source))?;
        self.words[at] = bits;
        Ok(1)
    }
}

fn wanted(ipcache: &BTreeMap<PrefixKey, IpEntry>) -> Vec<u64> {
    let mut words = vec![0_u64; BLOCK_WORDS as usize];
    let looked_for = |entry: &IpEntry| entry.is_guarded() || entry.flags & IP_CARRIED != 0;
    for (prefix, _) in ipcache.iter().filter(|(_, entry)| looked_for(entry)) {
        for block in blocks(prefix) {
            words[(block / 64) as usize] |= 1 << (block % 64);
        }
    }
    words
}
