//! Maps in memory, laid out as the loader lays them out.

use std::collections::BTreeMap;

use hawser_ebpf_abi::{
    Addr, BACKEND_DRAINING, Backend, CONFIG_OWN_STALE, Config, IPPROTO_TCP, Port, Reason, Service,
    ServiceKey, Slice, TIERS,
};
use hawser_ebpf_logic::choice::{Choice, Tables, choose, unset_is_up};

pub(crate) const OWN: u16 = 1;
pub(crate) const UP: u32 = 256;
pub(crate) const DOWN: u32 = 1 << 30;

/// One cluster's part of a service: weight, and the node slot of every backend.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) cluster: u16,
    pub(crate) weight: u16,
    pub(crate) nodes: Vec<u32>,
    pub(crate) tier: u16,
    pub(crate) ignores_health: bool,
    pub(crate) draining: bool,
}

/// A part of the first tier.
pub(crate) fn part(cluster: u16, weight: u16, nodes: &[u32]) -> Part {
    Part { cluster, weight, nodes: nodes.to_vec(), tier: 0, ignores_health: false, draining: false }
}

/// In the last tier: the planner puts it behind everything else.
pub(crate) fn draining(part: Part) -> Part {
    Part { tier: u16::from(TIERS) - 1, draining: true, ..part }
}

pub(crate) fn in_tier(tier: u16, part: Part) -> Part {
    Part { tier, ..part }
}

#[derive(Debug, Default)]
pub(crate) struct Maps {
    pub(crate) services: BTreeMap<ServiceKey, Service>,
    pub(crate) slices: BTreeMap<u32, Slice>,
    pub(crate) backends: BTreeMap<u32, Backend>,
    pub(crate) clusters: BTreeMap<u16, u32>,
    pub(crate) nodes: BTreeMap<u32, u32>,
    pub(crate) next: u32,
}

pub(crate) fn key() -> ServiceKey {
    ServiceKey::new(Addr::from(std::net::Ipv4Addr::new(10, 96, 0, 1)), Port::new(80), IPPROTO_TCP)
}

/// The address says where a backend is: 10.<cluster>.<index>.
pub(crate) fn backend_addr(cluster: u16, index: usize) -> Addr {
    std::net::Ipv4Addr::new(10, cluster as u8, (index >> 8) as u8, index as u8).into()
}

/// Where those of a cluster begin that drain.
pub(crate) const DRAINING_FROM: usize = 30_000;

impl Part {
    pub(crate) fn addr(&self, index: usize) -> Addr {
        backend_addr(self.cluster, index + if self.draining { DRAINING_FROM } else { 0 })
    }
}

impl Maps {
    /// Writes a service as the loader does: into fresh slots first, then the one entry that makes it count.
    pub(crate) fn write(&mut self, parts: &[Part], at: u32) -> Service {
        self.next += 1;
        let (id, generation) = (7, self.next);
        let mut backends_at = at;
        for (offset, part) in parts.iter().enumerate() {
            let slice = Slice {
                service: id,
                generation,
                backends_at,
                backends_len: part.nodes.len() as u32,
                backends_generation: generation,
                cluster: part.cluster,
                weight: if part.nodes.is_empty() { 0 } else { part.weight },
                tier: part.tier,
                floor: if part.ignores_health { UP as u16 } else { 0 },
            };
            self.slices.insert(at + offset as u32, slice);
            for (index, node) in part.nodes.iter().enumerate() {
                let addr = part.addr(index);
                let backend = Backend {
                    addr,
                    service: id,
                    generation,
                    node: *node,
                    port: Port::new(8080),
                    cluster: part.cluster,
                    flags: if part.draining { BACKEND_DRAINING } else { 0 },
                    ..Backend::default()
                };
                self.backends.insert(backends_at, backend);
                backends_at += 1;
            }
        }
        Service {
            check: key().check(),
            id,
            generation,
            slices_at: at,
            slices_len: parts.len() as u16,
            flags: 0,
            session_seconds: 0,
        }
    }

    pub(crate) fn publish(&mut self, service: Service) {
        self.services.insert(key(), service);
    }

    pub(crate) fn choose(&self, own_stale: bool, seed: u64) -> Choice {
        lookup(self, &config(own_stale), seed)
    }
}

/// As a connection without pins is chosen for.
pub(crate) fn lookup<T: Tables>(tables: &T, config: &Config, seed: u64) -> Choice {
    match tables.service(&key()) {
        Some(service) => choose(tables, &key(), service, config, seed),
        None => Choice::Untouched(Reason::ConnectOther),
    }
}

pub(crate) fn config(own_stale: bool) -> Config {
    Config { flags: if own_stale { CONFIG_OWN_STALE } else { 0 }, ..Config::new(OWN) }
}

impl Tables for Maps {
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        self.services.get(key).copied()
    }

    fn slice(&self, at: u32) -> Option<Slice> {
        self.slices.get(&at).copied()
    }

    fn backend(&self, at: u32) -> Option<Backend> {
        self.backends.get(&at).copied()
    }

    fn cluster_word(&self, cluster: u16) -> u32 {
        unset_is_up(self.clusters.get(&cluster).copied().unwrap_or(0))
    }

    fn node_word(&self, slot: u32) -> u32 {
        unset_is_up(self.nodes.get(&slot).copied().unwrap_or(0))
    }
}
