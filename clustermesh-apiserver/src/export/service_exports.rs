//! ServiceExports (MCS-API): what the clusterset is told of a Service, and the global service that carries its endpoints.

use hawser_model::{EndpointSlice, ExportedPort, ImportKind, ServiceExport, ServiceKey, SliceKey, Timestamp};
use hawser_sources::{Addresses, Pairs, Service, Slice};
use hawser_wire::{Entry, derived};

use super::services::backends;
use super::{Export, Part};
use crate::objects::Objects;

/// Says of a derived service whose it is, as Cilium's says.
const SERVICE_NAME_LABEL: &str = "multicluster.kubernetes.io/service-name";

impl Export {
    /// Cost: the exports and the endpoints of their services.
    pub(super) fn export_service_exports(&self, objects: &Objects) -> Part {
        let mut part = Part::default();
        if !self.clusterset {
            return part;
        }
        for export in objects.service_exports.values() {
            match self.exportable(objects.services.get(&export.key).map(|service| &**service), export) {
                Err(why) => part.problems.push(format!("service export {}: {why}", export.key)),
                Ok((service, created)) => {
                    let entry = self.service_export(service, export, created);
                    part.add(&self.record, &Entry::Export(entry));
                    self.export_derived(objects, service, &mut part);
                }
            }
        }
        part
    }

    /// The Service behind it, and when it was exported.
    fn exportable<'a>(
        &self,
        service: Option<&'a Service>,
        export: &hawser_sources::ServiceExport,
    ) -> Result<(&'a Service, Timestamp), &'static str> {
        let service =
            service.ok_or("there is no Service of that name; fix: create it, or remove the export")?;
        if service.external_name {
            return Err("an ExternalName cannot be exported; fix: remove the export");
        }
        let created = export.created.ok_or(
            "metadata.creationTimestamp is missing, and between clusters the oldest export wins; \
             fix: write it into the manifest as `kubectl get -o yaml` prints it",
        )?;
        Ok((service, created))
    }

    fn service_export(
        &self,
        service: &Service,
        export: &hawser_sources::ServiceExport,
        created: Timestamp,
    ) -> ServiceExport {
        let traffic = &service.traffic;
        let port = |(name, port): &(hawser_model::PortName, hawser_model::ServicePort)| ExportedPort {
            name: name.clone(),
            protocol: port.protocol,
            app_protocol: traffic.app_protocols.get(name).cloned(),
            port: port.port,
        };
        ServiceExport {
            cluster: self.cluster.clone(),
            key: service.key.clone(),
            annotations: export.annotations.to_map(),
            labels: export.labels.to_map(),
            created,
            ports: service.ports.iter().map(port).collect(),
            kind: match service.cluster_ips.is_empty() {
                true => ImportKind::Headless,
                false => ImportKind::ClusterSetIp,
            },
            session_affinity: traffic.session_affinity,
            ip_families: traffic.ip_families.into_iter().flatten().collect(),
            internal_traffic_policy: traffic.internal_policy,
            traffic_distribution: traffic.distribution,
        }
    }

    /// The endpoints of an exported Service, under the name that every cluster derives for it.
    fn export_derived(&self, objects: &Objects, service: &Service, part: &mut Part) {
        let key = derived(&service.key);
        let slices: Vec<Slice> =
            objects.slices_of(&service.key).map(|slice| self.admissible(slice, part)).collect();
        // The Service's own, too: a peer's export filter selects by them.
        let mut labels = service.labels.to_map();
        labels.insert(SERVICE_NAME_LABEL.to_owned(), service.key.name().to_owned());
        // It has no address of its own here.
        let labels = Pairs::from(&labels);
        let as_derived =
            Service { key: key.clone(), cluster_ips: Addresses::default(), labels, ..service.clone() };
        let shared = self.shared_service(&as_derived, backends(&slices), &slices);
        part.add(&self.record, &Entry::Service(shared));
        for slice in slices {
            match derived_slice(&key, slice) {
                Ok(slice) => {
                    if let Some(slice) = self.shared_slice(&slice) {
                        part.add(&self.record, &Entry::Slice(slice));
                    }
                }
                Err(why) => part.problems.push(format!("service export {}: {why}", service.key)),
            }
        }
    }
}

/// The slice as the derived service's: its name has to be another one, for a global service may have the same slice.
fn derived_slice(service: &ServiceKey, slice: Slice) -> Result<Slice, String> {
    let name = format!("{}-{}", service.name(), slice.key.name());
    let key = SliceKey::new(service.namespace(), &name).map_err(|error| error.to_string())?;
    let mut labels = slice.labels.to_map();
    labels.insert(EndpointSlice::SERVICE_LABEL.to_owned(), service.name().to_owned());
    Ok(Slice { key, labels: Pairs::from(&labels), ..slice })
}
