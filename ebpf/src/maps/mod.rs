//! Typed handles of the maps: only differences are written, additions before removals.

mod blocks;
mod cell;
mod over;
mod services;
mod table;
mod words;

use std::collections::BTreeMap;
use std::fmt;

use aya::Ebpf;
use aya::maps::{Array, HashMap, LpmTrie, MapData, PerCpuArray};
use hawser_ebpf_abi::{
    Addr, CONFIG_OWN_STALE, CONFIG_STOPPED, Config, DesiredDatapath, Endpoint, Exported, Flow, FlowKey,
    IP_GUARDED, IpEntry, LeftOut, Nat, NatKey, NodeTraffic, PrefixKey, Reason, ResetWish, ServiceKey,
    ServiceSpec, map, size,
};
use hawser_ebpf_logic::users;
use hawser_model::Time;

use crate::error::{LoadError, MapError};
use crate::sys;
use blocks::Blocks;
use cell::Cell;
use services::Services;
use table::Table;

pub use over::Connection;
pub use words::Words;

/// What a sync did. A failed write is retried by the next sync, because it only remembers what succeeded.
#[derive(Debug, Default)]
pub struct SyncReport {
    /// System calls that changed a map.
    pub writes: u64,
    pub problems: Vec<MapError>,
}

impl SyncReport {
    fn note(&mut self, result: Result<u64, MapError>) {
        match result {
            Ok(writes) => self.writes += writes,
            Err(error) => self.problems.push(error),
        }
    }
}

/// Every map of the datapath that user space writes or reads.
pub struct Maps {
    config: Array<MapData, Cell<Config>>,
    written_config: Option<Config>,
    services: Services,
    ipcache: Table<PrefixKey, IpEntry, LpmTrie<MapData, Cell<Addr>, Cell<IpEntry>>>,
    blocks: Blocks,
    endpoints: Table<Addr, Endpoint, HashMap<MapData, Cell<Addr>, Cell<Endpoint>>>,
    exported: Table<ServiceKey, Exported, HashMap<MapData, Cell<ServiceKey>, Cell<Exported>>>,
    reset_wishes: Table<ServiceKey, ResetWish, HashMap<MapData, Cell<ServiceKey>, Cell<ResetWish>>>,
    left_out: Table<u64, LeftOut, HashMap<MapData, Cell<u64>, Cell<LeftOut>>>,
    frontends: Table<ServiceKey, ServiceKey, HashMap<MapData, Cell<ServiceKey>, Cell<ServiceKey>>>,
    flows: HashMap<MapData, Cell<FlowKey>, Cell<Flow>>,
    nat: HashMap<MapData, Cell<NatKey>, Cell<Nat>>,
    words: Words,
    node_traffic: Array<MapData, Cell<NodeTraffic>>,
    counters: PerCpuArray<MapData, u64>,
    cluster_words: u64,
    node_words: u64,
}

impl fmt::Debug for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maps").field("config", &self.written_config).finish_non_exhaustive()
    }
}

impl Maps {
    /// Adopts what is in the maps: an entry that is as desired will not be written again.
    pub(crate) fn open(object: &mut Ebpf) -> Result<Self, LoadError> {
        Ok(Self {
            config: take(object, map::CONFIG)?,
            written_config: None,
            services: Services::adopt(
                take(object, map::SERVICES)?,
                take(object, map::SLICES)?,
                take(object, map::BACKENDS)?,
            )?,
            ipcache: Table::adopt(map::IPCACHE, size::IPCACHE, take(object, map::IPCACHE)?)?,
            blocks: Blocks::adopt(take(object, map::REMOTE_BLOCKS)?)?,
            endpoints: Table::adopt(map::ENDPOINTS, size::ENDPOINTS, take(object, map::ENDPOINTS)?)?,
            exported: Table::adopt(map::EXPORTED, size::EXPORTED, take(object, map::EXPORTED)?)?,
            reset_wishes: Table::adopt(
                map::RESET_WISHES,
                size::RESET_WISHES,
                take(object, map::RESET_WISHES)?,
            )?,
            left_out: Table::adopt(map::LEFT_OUT, size::LEFT_OUT, take(object, map::LEFT_OUT)?)?,
            frontends: Table::adopt(map::FRONTENDS, size::FRONTENDS, take(object, map::FRONTENDS)?)?,
            flows: take(object, map::FLOWS)?,
            nat: take(object, map::NAT)?,
            words: Words::new(take(object, map::CLUSTER_HEALTH)?, take(object, map::NODE_HEALTH)?),
            node_traffic: take(object, map::NODE_TRAFFIC)?,
            counters: take(object, map::COUNTERS)?,
            cluster_words: 0,
            node_words: 0,
        })
    }

    /// Brings the kernel to `desired`. Additions first, then removals; a service flips to its new backends with one write,
    /// after everything it points at is there. O(entries) comparisons in memory, one system call per difference.
    pub fn sync(&mut self, desired: &DesiredDatapath, now: Time) -> SyncReport {
        let mut report = SyncReport::default();
        report.note(self.set_config(desired.config));
        self.blocks.add(&desired.ipcache, &mut report);
        self.ipcache.add(&desired.ipcache, &mut report);
        self.endpoints.add(&desired.endpoints, &mut report);
        self.exported.add(&desired.exported, &mut report);
        self.reset_wishes.add(&desired.reset_wishes, &mut report);
        // A pod is translated before its sockets are left alone, and as long as they are.
        self.left_out.add(&desired.left_out, &mut report);
        self.services.add(&desired.services, now, &mut report);
        self.frontends.add(&desired.frontends, &mut report);
        self.frontends.remove(&desired.frontends, &mut report);
        self.services.remove(&desired.services, now, &mut report);
        self.left_out.remove(&desired.left_out, &mut report);
        self.reset_wishes.remove(&desired.reset_wishes, &mut report);
        self.exported.remove(&desired.exported, &mut report);
        self.endpoints.remove(&desired.endpoints, &mut report);
        self.ipcache.remove(&desired.ipcache, &mut report);
        self.blocks.remove(&desired.ipcache, &mut report);
        report
    }

    /// Of a sync the additions of a few services and addresses, and of what they lead to. One system call per difference.
    pub fn flip(
        &mut self,
        ipcache: &BTreeMap<PrefixKey, IpEntry>,
        services: &BTreeMap<ServiceKey, ServiceSpec>,
        exported: &BTreeMap<ServiceKey, Exported>,
        now: Time,
    ) -> SyncReport {
        let mut report = SyncReport::default();
        if !ipcache.is_empty() {
            self.blocks.add(ipcache, &mut report);
            self.ipcache.add(ipcache, &mut report);
        }
        self.exported.add(exported, &mut report);
        self.services.add(services, now, &mut report);
        report
    }

    /// What is for these leaves this node through the tunnel or not at all, as far as nothing better is known of them.
    pub fn guard(&mut self, prefixes: impl Iterator<Item = PrefixKey>) -> SyncReport {
        let mut report = SyncReport::default();
        let guarded = IpEntry { flags: IP_GUARDED, ..IpEntry::default() };
        let unknown =
            prefixes.filter(|prefix| !self.ipcache.contains(prefix)).map(|prefix| (prefix, guarded));
        let unknown = unknown.collect();
        self.blocks.add(&unknown, &mut report);
        self.ipcache.add(&unknown, &mut report);
        report
    }

    /// The agent stops on purpose: whoever asks after this node is told so, until the next [`Maps::sync`].
    pub fn say_stopped(&mut self) -> Result<(), MapError> {
        let config = self.found_config()?;
        self.set_config(Config { flags: config.flags | CONFIG_STOPPED, ..config }).map(drop)
    }

    /// As it was written last, if by an earlier run.
    fn found_config(&self) -> Result<Config, MapError> {
        match self.written_config {
            Some(config) => Ok(config),
            None => Ok(self.config.get(&0, 0).map_err(|source| kernel(map::CONFIG, source))?.0),
        }
    }

    /// Before the first [`Maps::sync`]: what an earlier run wrote of the own cluster is old by now.
    pub fn say_own_stale(&mut self) -> Result<(), MapError> {
        if self.written_config.is_some() {
            return Ok(());
        }
        let config = self.found_config()?;
        self.set_config(Config { flags: config.flags | CONFIG_OWN_STALE, ..config }).map(drop)
    }

    fn set_config(&mut self, config: Config) -> Result<u64, MapError> {
        if self.written_config == Some(config) {
            return Ok(0);
        }
        self.config.set(0, Cell(config), 0).map_err(|source| kernel(map::CONFIG, source))?;
        self.written_config = Some(config);
        Ok(1)
    }

    /// See [`Words`].
    pub fn set_cluster_health(&mut self, cluster: u16, word: u32) -> Result<(), MapError> {
        self.words.set_cluster(cluster, word)?;
        self.cluster_words += 1;
        Ok(())
    }

    pub fn set_node_health(&mut self, slot: u32, word: u32) -> Result<(), MapError> {
        self.words.set_node(slot, word)?;
        self.node_words += 1;
        Ok(())
    }

    pub fn cluster_health(&self, cluster: u16) -> Result<u32, MapError> {
        self.words.cluster(cluster)
    }

    pub fn node_health(&self, slot: u32) -> Result<u32, MapError> {
        self.words.node(slot)
    }

    /// What became of users' connections to a node, since the maps were made. One system call.
    pub fn node_traffic(&self, slot: u32) -> Result<NodeTraffic, MapError> {
        let found = self.node_traffic.get(&slot, 0).map_err(|source| kernel(map::NODE_TRAFFIC, source))?;
        Ok(found.0)
    }

    /// How many clients at least had no answer in the last seconds before this moment.
    pub fn late_clients(&self, seen: &NodeTraffic) -> u32 {
        users::late_clients(seen, sys::ticks() >> users::EPOCH_SHIFT)
    }

    /// Health words written by this process: of clusters, of nodes.
    pub fn word_writes(&self) -> (u64, u64) {
        (self.cluster_words, self.node_words)
    }

    /// Packets and connections by reason, summed over CPUs, since the maps were made. One system call per reason.
    pub fn counters(&self) -> Result<Vec<(Reason, u64)>, MapError> {
        let count = |reason: &Reason| {
            let values =
                self.counters.get(&(*reason as u32), 0).map_err(|source| kernel(map::COUNTERS, source))?;
            Ok((*reason, values.iter().sum()))
        };
        Reason::ALL.iter().map(count).collect()
    }
}

fn take<M>(object: &mut Ebpf, name: &'static str) -> Result<M, LoadError>
where
    M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    let map = object.take_map(name).ok_or(LoadError::Missing { what: name })?;
    Ok(M::try_from(map).map_err(|source| kernel(name, source))?)
}

fn kernel(map: &'static str, source: aya::maps::MapError) -> MapError {
    MapError::Kernel { map, source: Box::new(source) }
}
