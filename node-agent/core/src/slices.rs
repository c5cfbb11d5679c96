//! EndpointSlices of a cluster that publishes its backends so (`endpointslices/v1`), by the service they belong to.
//!
//! Cost: an entry is O(log slices + its endpoints); the backends of a service are O(endpoints of its slices).

use std::collections::BTreeMap;
use std::net::IpAddr;

use hawser_model::{EndpointSlice, PortMap, PortName, ServiceKey, ServicePort, SliceEndpoint, SliceKey};

use crate::kept::KeptBackends;

/// Of one slice: who takes new connections, and who takes them when nobody else does (Kubernetes: serving, not ready).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
struct KeptSlice {
    ready: KeptBackends,
    draining: KeptBackends,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Slices {
    by_service: BTreeMap<ServiceKey, BTreeMap<SliceKey, KeptSlice>>,
    service_of: BTreeMap<SliceKey, ServiceKey>,
}

impl Slices {
    /// One that belongs to no service, or to another one than before, is gone from where it was.
    pub(crate) fn insert(&mut self, slice: &EndpointSlice) {
        self.remove(&slice.key);
        let Some(service) = slice.service() else { return };
        let kept =
            KeptSlice { ready: backends(slice, is_ready), draining: backends(slice, |end| !is_ready(end)) };
        self.by_service.entry(service.clone()).or_default().insert(slice.key.clone(), kept);
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

    /// Where the port of that name is served: by those that are ready, and without any by those that still serve. An
    /// address that two slices name counts once.
    pub(crate) fn of_port(&self, service: &ServiceKey, name: &PortName) -> Vec<(IpAddr, ServicePort)> {
        let Some(slices) = self.by_service.get(service) else { return Vec::new() };
        let all = |kind: fn(&KeptSlice) -> &KeptBackends| {
            let found: BTreeMap<_, _> = slices.values().flat_map(|slice| kind(slice).of_port(name)).collect();
            found.into_iter().collect::<Vec<_>>()
        };
        let ready = all(|slice| &slice.ready);
        if ready.is_empty() { all(|slice| &slice.draining) } else { ready }
    }
}

fn is_ready(end: &SliceEndpoint) -> bool {
    end.ready.unwrap_or(true) && end.terminating != Some(true)
}

/// A port without a number means every port: nothing that could be chosen.
fn backends(slice: &EndpointSlice, of: impl Fn(&SliceEndpoint) -> bool) -> KeptBackends {
    let numbered = slice.ports.iter().filter_map(|port| {
        Some((port.name.clone(), ServicePort { protocol: port.protocol, port: port.port? }))
    });
    let ports: BTreeMap<_, _> = numbered.collect();
    let ends = slice.endpoints.iter().filter(|end| end.is_backend() && of(end));
    let map: PortMap = ends.flat_map(|end| &end.addresses).map(|ip| (*ip, ports.clone())).collect();
    KeptBackends::new(&map)
}
