//! A hash or trie map with its content remembered, so that only differences are written.

use std::collections::BTreeMap;
use std::io;

use aya::maps::lpm_trie::Key as LpmKey;
use aya::maps::{HashMap, LpmTrie, MapData};
use hawser_ebpf_abi::{Addr, Plain, PrefixKey};

use super::cell::Cell;
use super::{SyncReport, kernel};
use crate::error::MapError;

/// The calls a table needs of its map.
pub(super) trait Entries<K, V> {
    fn entries(&self) -> Result<BTreeMap<K, V>, aya::maps::MapError>;
    fn put(&mut self, key: K, value: V) -> Result<(), aya::maps::MapError>;
    fn delete(&mut self, key: K) -> Result<(), aya::maps::MapError>;
}

impl<K: Plain + Ord, V: Plain> Entries<K, V> for HashMap<MapData, Cell<K>, Cell<V>> {
    fn entries(&self) -> Result<BTreeMap<K, V>, aya::maps::MapError> {
        self.iter().map(|entry| entry.map(|(key, value)| (key.0, value.0))).collect()
    }

    fn put(&mut self, key: K, value: V) -> Result<(), aya::maps::MapError> {
        self.insert(Cell(key), Cell(value), 0)
    }

    fn delete(&mut self, key: K) -> Result<(), aya::maps::MapError> {
        self.remove(&Cell(key))
    }
}

impl<V: Plain> Entries<PrefixKey, V> for LpmTrie<MapData, Cell<Addr>, Cell<V>> {
    fn entries(&self) -> Result<BTreeMap<PrefixKey, V>, aya::maps::MapError> {
        let plain = |(key, value): (LpmKey<Cell<Addr>>, Cell<V>)| {
            (PrefixKey { bits: key.prefix_len(), addr: key.data().0 }, value.0)
        };
        self.iter().map(|entry| entry.map(plain)).collect()
    }

    fn put(&mut self, key: PrefixKey, value: V) -> Result<(), aya::maps::MapError> {
        self.insert(&LpmKey::new(key.bits, Cell(key.addr)), Cell(value), 0)
    }

    fn delete(&mut self, key: PrefixKey) -> Result<(), aya::maps::MapError> {
        self.remove(&LpmKey::new(key.bits, Cell(key.addr)))
    }
}

pub(super) struct Table<K, V, M> {
    name: &'static str,
    map: M,
    size: u32,
    /// What the kernel holds.
    content: BTreeMap<K, V>,
}

impl<K: Copy + Ord, V: Copy + Eq, M: Entries<K, V>> Table<K, V, M> {
    pub(super) fn adopt(name: &'static str, size: u32, map: M) -> Result<Self, MapError> {
        let content = map.entries().map_err(|source| kernel(name, source))?;
        Ok(Self { name, size, map, content })
    }

    pub(super) fn contains(&self, key: &K) -> bool {
        self.content.contains_key(key)
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.content.get(key)
    }

    pub(super) fn map(&self) -> &M {
        &self.map
    }

    /// Writes what is missing or different.
    pub(super) fn add(&mut self, desired: &BTreeMap<K, V>, report: &mut SyncReport) {
        for (key, value) in desired {
            if self.content.get(key) != Some(value) {
                let result = self.put(*key, *value);
                let full = matches!(result, Err(MapError::Full { .. }));
                report.note(result);
                // Every further addition would say the same.
                if full {
                    return;
                }
            }
        }
    }

    /// Deletes what is not desired.
    pub(super) fn remove(&mut self, desired: &BTreeMap<K, V>, report: &mut SyncReport) {
        let gone: Vec<K> = self.content.keys().filter(|key| !desired.contains_key(key)).copied().collect();
        for key in gone {
            report.note(self.delete(key));
        }
    }

    fn put(&mut self, key: K, value: V) -> Result<u64, MapError> {
        self.map.put(key, value).map_err(|source| full_or(self.name, self.size, source))?;
        self.content.insert(key, value);
        Ok(1)
    }

    fn delete(&mut self, key: K) -> Result<u64, MapError> {
        match self.map.delete(key) {
            Ok(()) | Err(aya::maps::MapError::KeyNotFound) => {}
            Err(source) if errno(&source) == Some(libc::ENOENT) => {}
            Err(source) => return Err(kernel(self.name, source)),
        }
        self.content.remove(&key);
        Ok(1)
    }
}

/// E2BIG from hashes, ENOSPC from tries.
pub(super) fn full_or(map: &'static str, size: u32, source: aya::maps::MapError) -> MapError {
    match errno(&source) {
        Some(libc::E2BIG | libc::ENOSPC) => MapError::Full { map, size },
        _ => kernel(map, source),
    }
}

fn errno(error: &aya::maps::MapError) -> Option<i32> {
    match error {
        aya::maps::MapError::SyscallError(error) => error.io_error.raw_os_error(),
        aya::maps::MapError::IoError(error) => io::Error::raw_os_error(error),
        _ => None,
    }
}
