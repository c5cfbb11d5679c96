//! Services in three maps: what a service points at is written first, then one hash update flips to it.
//!
//! A cluster's backends are a run of their own, so that a change in one cluster rewrites that run, the service's run of
//! slices (one slot per cluster) and the service's entry: `backends of the cluster + clusters + 1` writes.

use std::collections::BTreeMap;

use aya::maps::{Array, HashMap, MapData};
use hawser_ebpf_abi::{
    BACKEND_DRAINING, Backend, BackendSpec, FewMap, HEALTH_FULL_WEIGHT, SERVICE_MAGLEV, Service, ServiceKey,
    ServiceSpec, Slice, SliceSpec, TIERS, map, size,
};
use hawser_model::Time;

use super::cell::Cell;
use super::table::full_or;
use super::{SyncReport, kernel};
use crate::error::MapError;
use crate::runs::{Run, RunAllocator};
use crate::table::run_of;

/// What the kernel holds of one service.
#[derive(Clone, Debug)]
struct Held {
    id: u32,
    /// None for what an earlier agent left: it is flipped to runs of ours at the first sync.
    spec: Option<ServiceSpec>,
    slices: Run,
    /// By cluster and group.
    backends: FewMap<(u16, u8), HeldSlice>,
}

#[derive(Clone, Copy, Debug)]
struct HeldSlice {
    run: Run,
    generation: u32,
}

pub(super) struct Services {
    services: HashMap<MapData, Cell<ServiceKey>, Cell<Service>>,
    slices: Array<MapData, Cell<Slice>>,
    backends: Array<MapData, Cell<Backend>>,
    slice_runs: RunAllocator,
    backend_runs: RunAllocator,
    held: BTreeMap<ServiceKey, Held>,
    next_id: u32,
    next_generation: u32,
}

impl Services {
    /// Reads every service and reserves the runs it points at: connections go on being answered from them until each
    /// service is flipped.
    pub(super) fn adopt(
        services: HashMap<MapData, Cell<ServiceKey>, Cell<Service>>,
        slices: Array<MapData, Cell<Slice>>,
        backends: Array<MapData, Cell<Backend>>,
    ) -> Result<Self, MapError> {
        let mut adopted = Self {
            slice_runs: RunAllocator::new(slices.len()),
            backend_runs: RunAllocator::new(backends.len()),
            services,
            slices,
            backends,
            held: BTreeMap::new(),
            next_id: 1,
            next_generation: 1,
        };
        let entries: Result<Vec<_>, _> = adopted.services.iter().collect();
        for (key, service) in entries.map_err(|source| kernel(map::SERVICES, source))? {
            let held = adopted.read(service.0)?;
            adopted.held.insert(key.0, held);
        }
        Ok(adopted)
    }

    fn read(&mut self, service: Service) -> Result<Held, MapError> {
        let run = Run { at: service.slices_at, len: u32::from(service.slices_len) };
        self.slice_runs.reserve(run);
        self.next_id = self.next_id.max(service.id.wrapping_add(1));
        self.next_generation = self.next_generation.max(service.generation.wrapping_add(1));
        let mut backends = Vec::new();
        for (at, group) in (run.at..run.at.saturating_add(run.len)).zip((0..=u8::MAX).cycle()) {
            let slice = self.slices.get(&at, 0).map_err(|source| kernel(map::SLICES, source))?.0;
            let run = Run { at: slice.backends_at, len: slice.backends_len };
            self.backend_runs.reserve(run);
            // Whichever group it is: runs of an earlier agent are never pointed at again.
            backends.push(((slice.cluster, group), HeldSlice { run, generation: slice.backends_generation }));
        }
        Ok(Held { id: service.id, spec: None, slices: run, backends: backends.into_iter().collect() })
    }

    pub(super) fn add(
        &mut self,
        desired: &BTreeMap<ServiceKey, ServiceSpec>,
        now: Time,
        report: &mut SyncReport,
    ) {
        for (key, spec) in desired {
            if self.held.get(key).is_none_or(|held| held.spec.as_ref() != Some(spec)) {
                let result = self.flip(*key, spec, now);
                report.note(result);
            }
        }
    }

    pub(super) fn remove(
        &mut self,
        desired: &BTreeMap<ServiceKey, ServiceSpec>,
        now: Time,
        report: &mut SyncReport,
    ) {
        let gone: Vec<ServiceKey> =
            self.held.keys().filter(|key| !desired.contains_key(key)).copied().collect();
        for key in gone {
            match self.services.remove(&Cell(key)) {
                Ok(()) => {
                    report.writes += 1;
                    if let Some(held) = self.held.remove(&key) {
                        self.let_go(held.slices, held.backends.into_values(), now);
                    }
                }
                Err(source) => report.problems.push(kernel(map::SERVICES, source)),
            }
        }
    }

    /// Make before break: new runs are written, the entry flips, then the old runs rest.
    fn flip(&mut self, key: ServiceKey, spec: &ServiceSpec, now: Time) -> Result<u64, MapError> {
        let old = self.held.get(&key).cloned();
        let id = old.as_ref().map_or(self.next_id, |held| held.id);
        let generation = self.next_generation;
        let mut fresh: Vec<Run> = Vec::new();
        match self.build(key, spec, id, generation, old.as_ref(), now, &mut fresh) {
            Ok((held, writes)) => {
                self.next_id = self.next_id.max(id.wrapping_add(1));
                self.next_generation = generation.wrapping_add(1);
                let kept: Vec<u32> = held.backends.values().map(|slice| slice.generation).collect();
                self.held.insert(key, held);
                if let Some(old) = old {
                    // A generation is given once, so it tells which runs live on.
                    let left = old.backends.into_values().filter(|slice| !kept.contains(&slice.generation));
                    self.let_go(old.slices, left, now);
                }
                Ok(writes)
            }
            Err(error) => {
                // Nothing points at them, but a generation may have been seen: they rest as well.
                self.next_generation = generation.wrapping_add(1);
                for run in fresh.split_off(1.min(fresh.len())) {
                    self.backend_runs.free(run, now);
                }
                if let Some(run) = fresh.pop() {
                    self.slice_runs.free(run, now);
                }
                Err(error)
            }
        }
    }

    /// `fresh` is what was taken, the run of slices first.
    #[expect(clippy::too_many_arguments, reason = "the state of one flip, used once")]
    fn build(
        &mut self,
        key: ServiceKey,
        spec: &ServiceSpec,
        id: u32,
        generation: u32,
        old: Option<&Held>,
        now: Time,
        fresh: &mut Vec<Run>,
    ) -> Result<(Held, u64), MapError> {
        let len = u32::try_from(spec.slices.len()).unwrap_or(u32::MAX);
        let slices = self.slice_runs.take(len, now).ok_or_else(|| full(map::SLICES, &self.slice_runs))?;
        fresh.push(slices);
        let mut runs = Vec::with_capacity(spec.slices.len());
        let mut writes = 0;
        for (at, (of, slice)) in (slices.at..).zip(&spec.slices) {
            let backends = match unchanged(old, *of, spec, slice) {
                Some(kept) => kept,
                None => {
                    let (run, written) = self.write_backends(
                        id,
                        generation,
                        of.0,
                        key.proto,
                        run_of(&slice.backends, spec.maglev),
                        now,
                    )?;
                    fresh.push(run);
                    writes += written;
                    HeldSlice { run, generation }
                }
            };
            let value = Slice {
                service: id,
                generation,
                backends_at: backends.run.at,
                backends_len: backends.run.len,
                backends_generation: backends.generation,
                cluster: of.0,
                weight: if slice.backends.is_empty() { 0 } else { slice.weight.max(1) },
                tier: u16::from(slice.tier.min(TIERS - 1)),
                floor: if slice.ignores_health { HEALTH_FULL_WEIGHT as u16 } else { 0 },
            };
            self.slices.set(at, Cell(value), 0).map_err(|source| kernel(map::SLICES, source))?;
            writes += 1;
            runs.push((*of, backends));
        }
        let entry = Service {
            check: key.check(),
            id,
            generation,
            slices_at: slices.at,
            slices_len: u16::try_from(slices.len).unwrap_or(u16::MAX),
            flags: if spec.maglev { SERVICE_MAGLEV } else { 0 },
            session_seconds: spec.session_seconds,
        };
        self.services
            .insert(Cell(key), Cell(entry), 0)
            .map_err(|source| full_or(map::SERVICES, size::SERVICES, source))?;
        let backends = runs.into_iter().collect();
        Ok((Held { id, spec: Some(spec.clone()), slices, backends }, writes + 1))
    }

    fn write_backends(
        &mut self,
        service: u32,
        generation: u32,
        cluster: u16,
        proto: u8,
        backends: Vec<BackendSpec>,
        now: Time,
    ) -> Result<(Run, u64), MapError> {
        let len = u32::try_from(backends.len()).unwrap_or(u32::MAX);
        let run = self.backend_runs.take(len, now).ok_or_else(|| full(map::BACKENDS, &self.backend_runs))?;
        for (at, spec) in (run.at..).zip(backends) {
            let BackendSpec { addr, port, node, draining } = spec;
            let flags = if draining { BACKEND_DRAINING } else { 0 };
            let value = Backend { addr, service, generation, node, port, cluster, proto, flags, pad: 0 };
            if let Err(source) = self.backends.set(at, Cell(value), 0) {
                self.backend_runs.free(run, now);
                return Err(kernel(map::BACKENDS, source));
            }
        }
        Ok((run, u64::from(run.len)))
    }

    fn let_go(&mut self, slices: Run, backends: impl Iterator<Item = HeldSlice>, now: Time) {
        self.slice_runs.free(slices, now);
        backends.for_each(|slice| self.backend_runs.free(slice.run, now));
    }
}

/// The run of backends that can be pointed at again.
fn unchanged(old: Option<&Held>, of: (u16, u8), new: &ServiceSpec, slice: &SliceSpec) -> Option<HeldSlice> {
    let old = old?;
    let spec = old.spec.as_ref()?;
    if spec.maglev != new.maglev || spec.slices.get(&of)?.backends != slice.backends {
        return None;
    }
    old.backends.get(&of).copied()
}

fn full(map: &'static str, runs: &RunAllocator) -> MapError {
    MapError::Full { map, size: runs.size() }
}
