//! Global services: what other clusters see of them, twice (services v1 and EndpointSlices), and what agents here need.

use std::collections::BTreeMap;
use std::net::IpAddr;

use hawser_model::{EndpointSlice, GlobalService, PortMap, PortName, ServicePort, SharedService};
use hawser_sources::{Service, Slice};
use hawser_wire::Entry;

use super::{Export, Part};
use crate::annotations::Wishes;
use crate::objects::Objects;

impl Export {
    pub(super) fn export_services(&self, objects: &Objects) -> Part {
        let mut part = Part::default();
        if self.clusterset {
            self.export_service_exports(objects, &mut part);
        }
        for service in objects.services.values() {
            let (wishes, problems) = Wishes::read(&service.annotations);
            part.problems.extend(problems.iter().map(|text| format!("service {}: {text}", service.key)));
            if !wishes.global {
                continue;
            }
            if service.external_name {
                part.problems
                    .push(format!("service {}: an ExternalName has no backends to share", service.key));
                continue;
            }
            let slices: Vec<Slice> =
                objects.slices_of(&service.key).map(|slice| self.admissible(slice, &mut part)).collect();
            let backends = backends(&slices);
            let local = self.local_service(service, &wishes, &backends);
            part.add(&self.record, &Entry::LocalService(local));
            if !wishes.shared {
                continue;
            }
            part.add(&self.record, &Entry::Service(self.shared_service(service, backends, &slices)));
            for slice in &slices {
                if let Some(slice) = self.shared_slice(slice) {
                    part.add(&self.record, &Entry::Slice(slice));
                }
            }
        }
        part
    }

    /// Without the endpoints that no peer would admit: one stray address must not take the whole service away.
    pub(super) fn admissible(&self, slice: &Slice, part: &mut Part) -> Slice {
        let mut slice = slice.clone();
        let name = slice.key.to_string();
        let ranges = || self.record.pod_cidrs.iter().chain(&self.record.node_cidrs);
        for endpoint in &mut slice.endpoints {
            endpoint.addresses.retain(|ip| {
                let inside = ranges().any(|net| net.contains(ip));
                if !inside {
                    part.problems.push(format!(
                        "endpoint slice {name}: {ip} is in none of this cluster's podCIDRs and nodeCIDRs and not \
                         exported; fix: add its range, and give every peer a new bundle"
                    ));
                }
                inside
            });
        }
        slice.endpoints.retain(|endpoint| !endpoint.addresses.is_empty());
        slice
    }

    fn local_service(&self, service: &Service, wishes: &Wishes, backends: &PortMap) -> GlobalService {
        GlobalService {
            cluster: self.cluster.clone(),
            key: service.key.clone(),
            cluster_ips: service.cluster_ips.clone(),
            ports: service.ports.clone(),
            routing: wishes.routing(service.traffic.session_affinity),
            shared: wishes.shared,
            backends: backends.clone(),
        }
    }

    pub(super) fn shared_service(
        &self,
        service: &Service,
        backends: PortMap,
        slices: &[Slice],
    ) -> SharedService {
        let endpoints = || slices.iter().flat_map(|slice| &slice.endpoints).filter(|e| e.is_backend());
        let of_each = |text: fn(&hawser_model::SliceEndpoint) -> Option<&String>| {
            let pairs = endpoints().flat_map(|endpoint| {
                let text = text(endpoint).cloned();
                endpoint.addresses.iter().filter_map(move |ip| Some((*ip, text.clone()?)))
            });
            pairs.collect::<BTreeMap<IpAddr, String>>()
        };
        SharedService {
            cluster: self.cluster.clone(),
            key: service.key.clone(),
            frontends: service.cluster_ips.iter().map(|ip| (*ip, service.ports.clone())).collect(),
            hostnames: of_each(|endpoint| endpoint.hostname.as_ref()),
            zones: of_each(|endpoint| endpoint.zone.as_ref()),
            backends,
            labels: service.labels.clone(),
            selector: service.selector.clone(),
            include_external: true,
            shared: true,
        }
    }

    pub(super) fn shared_slice(&self, slice: &Slice) -> Option<EndpointSlice> {
        Some(EndpointSlice {
            cluster: self.cluster.clone(),
            key: slice.key.clone(),
            labels: slice.labels.clone(),
            annotations: BTreeMap::new(),
            family: slice.family?,
            endpoints: slice.endpoints.clone(),
            ports: slice.ports.clone(),
        })
    }
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
            for ip in &endpoint.addresses {
                backends.entry(*ip).or_default().extend(ports.iter().cloned());
            }
        }
    }
    backends
}
