//! Pods: who each address is (`ip/v1`), and what that identity means (`identities/v1`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hawser_model::{AddressKind, Endpoint, Identity, Time};
use hawser_sources::{Pairs, Pod, SOCKET_LB};
use hawser_wire::Entry;

use super::{Export, Part};
use crate::identity::identity_labels;
use crate::objects::Objects;

/// `Key` of an endpoint behind WireGuard. Always, even before its node has a key: the mesh never sends in clear.
const WIREGUARD: u8 = 255;

impl Export {
    pub(super) fn export_endpoints(&mut self, objects: &Objects, settle: bool, now: Time) -> Part {
        let mut part = Part::default();
        let mut carried = BTreeSet::new();
        let no_labels = Pairs::default();
        let mut owners: BTreeMap<IpAddr, &Pod> = BTreeMap::new();
        for pod in objects.pods.values().filter(|pod| !pod.host_network && pod.holds_its_addresses()) {
            if pod.ips.is_empty() {
                continue;
            }
            let namespace = objects.namespaces.get(&pod.namespace).map_or(&no_labels, |ns| &ns.labels);
            let labels = identity_labels(&self.cluster.name, namespace, pod);
            let identity = match self.identities.id_for(&labels, now) {
                Ok(identity) => identity,
                Err(error) => {
                    part.problems.push(format!("pod {}/{}: {error}", pod.namespace, pod.name));
                    continue;
                }
            };
            carried.insert(identity);
            if let Some(unknown) = &pod.unknown_socket_lb {
                part.problems.push(format!(
                    "pod {}/{}: {SOCKET_LB} is {unknown:?}, neither \"true\" nor \"false\", and not heeded; \
                     fix: say one of them, or remove it",
                    pod.namespace, pod.name
                ));
            }
            for ip in &pod.ips {
                if let Some(owner) = owners.insert(*ip, pod) {
                    // The first by name keeps it, whatever order they came in.
                    owners.insert(*ip, owner);
                    part.problems.push(format!(
                        "pod {}/{}: its address {ip} is {}/{}'s; fix: remove the manifest that is out of date",
                        pod.namespace, pod.name, owner.namespace, owner.name
                    ));
                    continue;
                }
                let endpoint = Endpoint {
                    ip: *ip,
                    host: host_of(objects, pod, *ip),
                    identity,
                    encryption_key: WIREGUARD,
                    namespace: pod.namespace.clone(),
                    pod: pod.name.clone(),
                    service_account: pod.service_account.clone(),
                    named_ports: BTreeMap::new(),
                    left_out: pod.left_out,
                };
                part.add(&self.record, &Entry::Endpoint(endpoint));
            }
        }
        if settle {
            self.identities.settle(&carried, now);
        }
        for (id, labels) in self.identities.iter() {
            part.add(&self.record, &Entry::Identity(Identity { id, labels: labels.clone() }));
        }
        part
    }
}

/// The node's InternalIP of the pod's family, else of the other: where the tunnel to the pod ends.
fn host_of(objects: &Objects, pod: &Pod, ip: IpAddr) -> Option<IpAddr> {
    let node = objects.nodes.get(pod.node.as_ref()?)?;
    let internal = || node.addresses.iter().filter(|a| a.kind == AddressKind::InternalIp).map(|a| a.ip);
    internal().find(|host| host.is_ipv6() == ip.is_ipv6()).or_else(|| internal().next())
}
