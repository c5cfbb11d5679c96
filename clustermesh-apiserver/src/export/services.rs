//! Global services: what other clusters see of them, twice (services v1 and EndpointSlices), and what agents here need.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hawser_model::{
    EndpointSlice, GlobalService, PortMap, PortName, ServicePort, SharedService, ZoneAffinity,
};
use hawser_sources::{Endpoint, Service, Slice};
use hawser_wire::Entry;

use super::{Export, Part};
use crate::annotations::Wishes;
use crate::objects::Objects;

impl Export {
    /// Cost: its endpoints.
    pub(super) fn export_service(&self, objects: &Objects, service: &Service) -> Part {
        let mut part = Part::default();
        let (wishes, problems) = Wishes::read(&service.annotations.to_map());
        part.problems.extend(problems.iter().map(|text| format!("service {}: {text}", service.key)));
        part.misread = problems;
        if !wishes.global {
            return part;
        }
        if service.external_name {
            part.problems.push(format!("service {}: an ExternalName has no backends to share", service.key));
            return part;
        }
        let slices: Vec<Slice> =
            objects.slices_of(&service.key).map(|slice| self.admissible(slice, &mut part)).collect();
        let backends = backends(&slices);
        let local = self.local_service(service, &wishes, &backends, &slices);
        part.add(&self.record, &Entry::LocalService(local));
        if wishes.shared {
            part.add(&self.record, &Entry::Service(self.shared_service(service, backends, &slices)));
            for slice in slices.iter().filter_map(|slice| self.shared_slice(slice)) {
                part.add(&self.record, &Entry::Slice(slice));
            }
        }
        part
    }

    /// Without the endpoints that no peer would admit: one stray address must not take the whole service away.
    pub(super) fn admissible(&self, slice: &Slice, part: &mut Part) -> Slice {
        let name = slice.key.to_string();
        let ranges = || self.record.pod_cidrs.iter().chain(&self.record.node_cidrs);
        let mut endpoints = slice.endpoints.to_vec();
        for endpoint in &mut endpoints {
            let mut addresses = endpoint.addresses.to_vec();
            addresses.retain(|ip| {
                let inside = ranges().any(|net| net.contains(ip));
                if !inside {
                    part.problems.push(format!(
                        "endpoint slice {name}: {ip} is in none of this cluster's podCIDRs and nodeCIDRs and not \
                         exported; fix: add its range, and give every peer a new bundle"
                    ));
                }
                inside
            });
            endpoint.addresses = addresses.into();
        }
        endpoints.retain(|endpoint| !endpoint.addresses.is_empty());
        Slice { endpoints: endpoints.into(), ..slice.clone() }
    }

    fn local_service(
        &self,
        service: &Service,
        wishes: &Wishes,
        backends: &PortMap,
        slices: &[Slice],
    ) -> GlobalService {
        let routing = wishes.routing(service.traffic.session_affinity);
        let zones = match routing.zone_affinity {
            ZoneAffinity::None => BTreeMap::new(),
            ZoneAffinity::Local => of_each(slices, |endpoint| endpoint.place.zone.as_deref()),
        };
        GlobalService {
            cluster: self.cluster.clone(),
            key: service.key.clone(),
            cluster_ips: service.cluster_ips.to_vec(),
            ports: service.port_map(),
            routing,
            shared: wishes.shared,
            backends: backends.clone(),
            draining: draining(slices),
            zones,
            outside: service.outside.as_deref().cloned().unwrap_or_default(),
        }
    }

    pub(super) fn shared_service(
        &self,
        service: &Service,
        backends: PortMap,
        slices: &[Slice],
    ) -> SharedService {
        SharedService {
            cluster: self.cluster.clone(),
            key: service.key.clone(),
            frontends: service.cluster_ips.iter().map(|ip| (*ip, service.port_map())).collect(),
            hostnames: of_each(slices, |endpoint| endpoint.hostname.as_deref()),
            zones: of_each(slices, |endpoint| endpoint.place.zone.as_deref()),
            backends,
            draining: draining(slices),
            labels: service.labels.to_map(),
            selector: service.selector.to_map(),
            include_external: true,
            shared: true,
        }
    }

    pub(super) fn shared_slice(&self, slice: &Slice) -> Option<EndpointSlice> {
        Some(EndpointSlice {
            cluster: self.cluster.clone(),
            key: slice.key.clone(),
            labels: slice.labels.to_map(),
            annotations: BTreeMap::new(),
            family: slice.family?,
            endpoints: slice.endpoints.iter().map(Into::into).collect(),
            ports: slice.ports.to_vec(),
        })
    }
}

/// A text of each backend that has it, by address.
fn of_each(slices: &[Slice], text: fn(&Endpoint) -> Option<&str>) -> BTreeMap<IpAddr, String> {
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints).filter(|e| e.is_backend());
    let pairs = endpoints.flat_map(|endpoint| {
        let text = text(endpoint);
        endpoint.addresses.iter().filter_map(move |ip| Some((*ip, text?.to_string())))
    });
    pairs.collect()
}

/// The backends that take nothing new while another one is ready. An address that another slice calls ready is.
fn draining(slices: &[Slice]) -> BTreeSet<IpAddr> {
    let endpoints = || slices.iter().flat_map(|slice| &slice.endpoints).filter(|e| e.is_backend());
    let addresses = |draining: bool| {
        endpoints().filter(move |e| e.is_draining() == draining).flat_map(|e| e.addresses.iter().copied())
    };
    let mut found: BTreeSet<IpAddr> = addresses(true).collect();
    if !found.is_empty() {
        addresses(false).for_each(|ready| _ = found.remove(&ready));
    }
    found
}

/// The backends that take traffic. Cost: the endpoints of these slices times their ports.
pub(super) fn backends(slices: &[Slice]) -> PortMap {
    let mut backends = PortMap::new();
    for slice in slices {
        let ports: Vec<(PortName, ServicePort)> = slice
            .ports
            .iter()
            // No number means every port, which no port of a service can mean.
            .filter_map(|p| Some((p.name.clone(), ServicePort { protocol: p.protocol, port: p.port? })))
            .collect();
        for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.is_backend()) {
            for ip in endpoint.addresses.iter() {
                backends.entry(*ip).or_default().extend(ports.iter().cloned());
            }
        }
    }
    backends
}
