//! The two maps of health words. They have a handle of their own, so that a word waits for nothing that is being written elsewhere.

use aya::maps::{Array, Map, MapData};
use hawser_ebpf_abi::{HEALTH_RESET, HEALTH_SINCE_SHIFT, TICKS_MASK, map};

use super::kernel;
use crate::error::MapError;
use crate::load::LoadConfig;
use crate::sys;

/// Any number of them may be open.
pub struct Words {
    clusters: Array<MapData, u32>,
    nodes: Array<MapData, u32>,
}

impl std::fmt::Debug for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Words").finish_non_exhaustive()
    }
}

impl Words {
    pub(super) fn new(clusters: Array<MapData, u32>, nodes: Array<MapData, u32>) -> Self {
        Self { clusters, nodes }
    }

    /// Of a datapath that has been loaded.
    pub fn open(config: &LoadConfig) -> Result<Self, MapError> {
        let open = |name: &'static str| {
            let data = MapData::from_pin(config.pin(name)).map_err(|source| kernel(name, source))?;
            Array::try_from(Map::Array(data)).map_err(|source| kernel(name, source))
        };
        Ok(Self { clusters: open(map::CLUSTER_HEALTH)?, nodes: open(map::NODE_HEALTH)? })
    }

    /// One map write: how a cluster fails over, whatever it serves. A word with *reset* is stamped with this moment.
    pub fn set_cluster(&mut self, cluster: u16, word: u32) -> Result<(), MapError> {
        let set = self.clusters.set(u32::from(cluster), stamped(word), 0);
        set.map_err(|source| kernel(map::CLUSTER_HEALTH, source))
    }

    /// One map write, as above.
    pub fn set_node(&mut self, slot: u32, word: u32) -> Result<(), MapError> {
        self.nodes.set(slot, stamped(word), 0).map_err(|source| kernel(map::NODE_HEALTH, source))
    }

    pub fn cluster(&self, cluster: u16) -> Result<u32, MapError> {
        self.clusters.get(&u32::from(cluster), 0).map_err(|source| kernel(map::CLUSTER_HEALTH, source))
    }

    pub fn node(&self, slot: u32) -> Result<u32, MapError> {
        self.nodes.get(&slot, 0).map_err(|source| kernel(map::NODE_HEALTH, source))
    }
}

fn stamped(word: u32) -> u32 {
    if word & HEALTH_RESET == 0 {
        return word;
    }
    word & !(TICKS_MASK << HEALTH_SINCE_SHIFT) | (sys::ticks() & TICKS_MASK) << HEALTH_SINCE_SHIFT
}
