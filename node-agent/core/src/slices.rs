//! EndpointSlices of a cluster that publishes its backends so (`endpointslices/v1`), by the service they belong to.
//!
//! Cost: an entry is O(log slices + its endpoints); the backends of a service are O(endpoints of its slices).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hawser_model::{EndpointSlice, PortMap, PortName, ServiceKey, ServicePort, SliceKey};

use crate::kept::{KeptBackends, Served};

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Slices {
    by_service: BTreeMap<ServiceKey, BTreeMap<SliceKey, KeptBackends>>,
    service_of: BTreeMap<SliceKey, ServiceKey>,
}

impl Slices {
    /// One that belongs to no service, or to another one than before, is gone from where it was.
    pub(crate) fn insert(&mut self, slice: &EndpointSlice) {
        self.remove(&slice.key);
        let Some(service) = slice.service() else { return };
        self.by_service.entry(service.clone()).or_default().insert(slice.key.clone(), kept(slice));
        self.service_of.insert(slice.key.clone(), service);
    }

    pub(crate) fn remove(&mut self, key: &SliceKey) {
        let Some(service) = self.service_of.remove(key) else { return };
        let left = self.by_service.get_mut(&service).is_none_or(|slices| {
            slices.remove(key);
            slices.is_empty()
        });
        if left {
            self.by_service.remove(&service);
        }
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&SliceKey) -> bool) {
        let gone: Vec<_> = self.service_of.keys().filter(|key| !keep(key)).cloned().collect();
        gone.iter().for_each(|key| self.remove(key));
    }

    /// Slices.
    pub fn len(&self) -> usize {
        self.service_of.len()
    }

    pub fn is_empty(&self) -> bool {
        self.service_of.is_empty()
    }

    pub fn services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.by_service.keys()
    }

    /// Where the port of that name is served. An address that two slices name counts once, and is ready if one says so.
    pub(crate) fn of_port(&self, service: &ServiceKey, name: &PortName) -> Vec<Served<'_>> {
        let Some(slices) = self.by_service.get(service) else { return Vec::new() };
        let mut found = BTreeMap::new();
        for served in slices.values().flat_map(|slice| slice.of_port(name)) {
            let known = found.entry((served.ip, served.port)).or_insert(served);
            known.draining &= served.draining;
        }
        found.into_values().collect()
    }
}

/// A port without a number means every port: nothing that could be chosen.
fn kept(slice: &EndpointSlice) -> KeptBackends {
    let numbered = slice.ports.iter().filter_map(|port| {
        Some((port.name.clone(), ServicePort { protocol: port.protocol, port: port.port? }))
    });
    let ports: BTreeMap<_, _> = numbered.collect();
    let ends = || slice.endpoints.iter().filter(|end| end.is_backend());
    let map: PortMap = ends().flat_map(|end| &end.addresses).map(|ip| (*ip, ports.clone())).collect();
    let draining: BTreeSet<IpAddr> =
        ends().filter(|end| end.is_draining()).flat_map(|end| end.addresses.iter().copied()).collect();
    let zones = ends().flat_map(|end| end.addresses.iter().filter_map(|ip| Some((*ip, end.zone.clone()?))));
    KeptBackends::new(&map, |ip| draining.contains(ip), &zones.collect())
}
