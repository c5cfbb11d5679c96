//! The maps that forget their oldest entries where they are full: their sizes, and what they have let go.

use std::fs;
use std::path::Path;

use aya::maps::{MapInfo, MapType};
use hawser_ebpf_abi::{Reason, map, size};

use crate::error::LoadError;

/// Entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LruSizes {
    pub sock_rev: u32,
    pub socket_pins: u32,
    pub client_pins: u32,
    pub flows: u32,
    pub nat: u32,
    pub entered: u32,
}

impl Default for LruSizes {
    fn default() -> Self {
        Self {
            sock_rev: size::SOCK_REV,
            socket_pins: size::SOCKET_PINS,
            client_pins: size::CLIENT_PINS,
            flows: size::FLOWS,
            nat: size::NAT,
            entered: size::ENTERED,
        }
    }
}

impl LruSizes {
    /// As small as one is ever made.
    pub const LEAST: u32 = 1_024;

    pub(crate) fn of(&self) -> [(&'static str, u32); 6] {
        [
            (map::SOCK_REV, self.sock_rev),
            (map::SOCKET_PINS, self.socket_pins),
            (map::CLIENT_PINS, self.client_pins),
            (map::FLOWS, self.flows),
            (map::NAT, self.nat),
            (map::ENTERED, self.entered),
        ]
    }

    pub(crate) fn uses(&self, counters: &[(Reason, u64)]) -> Vec<LruUse> {
        let count = |wanted: Reason| {
            counters.iter().find(|(reason, _)| *reason == wanted).map_or(0, |(_, count)| *count)
        };
        let made = |map| match map {
            map::SOCK_REV => count(Reason::ReplyMade),
            map::SOCKET_PINS => count(Reason::PinMade),
            map::CLIENT_PINS => count(Reason::ClientPinMade),
            map::FLOWS => count(Reason::FlowMade),
            // A flow is there twice, once for each way.
            map::NAT => 2 * count(Reason::NatMade) + count(Reason::NatRestored),
            _ => 2 * count(Reason::EnterMade) + count(Reason::EnterRestored),
        };
        self.of().map(|(map, size)| LruUse { map, size, made: made(map) }).into()
    }
}

/// A map's use since the counters were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LruUse {
    pub map: &'static str,
    pub size: u32,
    /// Entries that went in; some may have been written over.
    pub made: u64,
}

impl LruUse {
    /// About so many were let go to make room: the kernel does not say, and keeps up to 128 places a CPU free.
    pub fn forgotten(&self) -> u64 {
        self.made.saturating_sub(self.size.into())
    }
}

/// A map of another size cannot be adopted. What such a map holds may be lost at any time, so it is made anew; programs go on
/// with the old one until they are replaced.
pub(crate) fn let_go_if_resized(path: &Path, entries: u32) -> Result<(), LoadError> {
    match MapInfo::from_pin(path) {
        Ok(info) if info.max_entries() != entries && matches!(info.map_type(), Ok(MapType::LruHash)) => {
            fs::remove_file(path).map_err(|source| LoadError::Directory { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
