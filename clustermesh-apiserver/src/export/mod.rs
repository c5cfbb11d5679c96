//! Export: objects in, the keys that this cluster's keyspace should hold out. Pure; what differs is written elsewhere.

mod diff;
mod endpoints;
mod namespaces;
mod nodes;
mod service_exports;
mod services;

use std::collections::BTreeMap;

use bytes::Bytes;
use hawser_model::{ClusterConfig, ClusterRef, ExportMode, NodeName, Time};
use hawser_wire::{Entry, Key, PeerRecord, Resource, admit, prefix};

use crate::config::Config;
use crate::identity::Allocator;
use crate::nodes::Indices;
use crate::objects::{Objects, Touched};
use crate::reports::NodeReport;

pub use diff::{Held, PREFIXES, Step, diff};

/// The parts of the export that are written with a canary each.
pub const RESOURCES: [Resource; 7] = [
    Resource::Nodes,
    Resource::Identities,
    Resource::Ips,
    Resource::Services,
    Resource::EndpointSlices,
    // Also where none are exported: Cilium's operators wait for it.
    Resource::ServiceExports,
    Resource::TunnelNodes,
];

type Entries = BTreeMap<String, Bytes>;

/// What should be written, remembered by part so that a change makes only its own part anew.
#[derive(Debug)]
pub struct Export {
    record: PeerRecord,
    cluster: ClusterRef,
    /// Whether ServiceExports count.
    clusterset: bool,
    identities: Allocator,
    indices: Indices,
    reports: BTreeMap<NodeName, NodeReport>,
    namespaces: Part,
    nodes: Part,
    endpoints: Part,
    services: Part,
}

/// Some keys with their values, and what could not be exported.
#[derive(Debug, Default)]
struct Part {
    entries: Entries,
    problems: Vec<String>,
}

impl Part {
    /// A peer would refuse what is not inside our own ranges, so it is not written, and somebody is told here.
    fn add(&mut self, record: &PeerRecord, entry: &Entry) {
        let key = entry.key(&record.cluster);
        let ours = matches!(entry, Entry::LocalService(_) | Entry::LocalPeer(_));
        match admit(record, &key, entry) {
            Err(refusal) if !ours => self.problems.push(format!("not exported: {refusal}")),
            _ => _ = self.entries.insert(key.to_string(), entry.encode()),
        }
    }
}

impl Export {
    pub fn new(config: &Config, identities: Allocator, indices: Indices) -> Self {
        Self {
            record: PeerRecord {
                cluster: config.cluster.clone(),
                width: config.width,
                mesh: config.plan,
                pod_cidrs: config.pod_cidrs.clone(),
                node_cidrs: config.node_cidrs.clone(),
            },
            cluster: config.cluster.clone(),
            clusterset: config.service_exports,
            identities,
            indices,
            reports: BTreeMap::new(),
            namespaces: Part::default(),
            nodes: Part::default(),
            endpoints: Part::default(),
            services: Part::default(),
        }
    }

    /// What agents said before this process began, as the keyspace remembers it.
    pub fn remember(&mut self, node: NodeName, report: NodeReport) {
        self.reports.insert(node, report);
    }

    /// True when it says something new.
    pub fn report(&mut self, node: NodeName, report: NodeReport) -> bool {
        self.reports.insert(node, report.clone()) != Some(report)
    }

    pub fn index(&self, node: &NodeName) -> Option<hawser_model::NodeIndex> {
        self.indices.get(node)
    }

    /// Makes the touched parts anew; `settle`: what is absent may be taken for gone. Cost: the objects of those parts.
    pub fn update(&mut self, objects: &Objects, touched: Touched, settle: bool, now: Time) {
        if touched.endpoints {
            self.namespaces = Self::export_namespaces(objects);
        }
        if touched.nodes {
            self.nodes = self.export_nodes(objects, settle, now);
        }
        if touched.endpoints {
            self.endpoints = self.export_endpoints(objects, settle, now);
        }
        if touched.services {
            self.services = self.export_services(objects);
        }
    }

    /// The store holds this value of a key: if it is the wanted one, one copy is enough. Cost: logarithmic.
    pub fn share(&mut self, key: &str, stored: &Bytes) {
        let parts = [&mut self.nodes, &mut self.endpoints, &mut self.services];
        let wanted = parts.into_iter().find_map(|part| part.entries.get_mut(key));
        if let Some(value) = wanted.filter(|value| *value == stored) {
            *value = stored.clone();
        }
    }

    /// When an update is due though nothing was touched.
    pub fn poll_deadline(&self) -> Option<Time> {
        self.identities.poll_deadline()
    }

    /// Every key that the keyspace should hold, with its value. Canaries and heartbeat are not among them.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        let parts = [&self.namespaces, &self.nodes, &self.endpoints, &self.services];
        parts.into_iter().flat_map(|part| part.entries.iter().map(|(key, value)| (key.as_str(), value)))
    }

    pub fn problems(&self) -> impl Iterator<Item = &str> {
        let parts = [&self.nodes, &self.endpoints, &self.services];
        parts.into_iter().flat_map(|part| part.problems.iter().map(String::as_str))
    }

    /// How many identities, endpoints and global services there are.
    pub fn counts(&self) -> (u32, u32, u32) {
        let count = |part: &Part, prefix: &str| {
            let keys = part.entries.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
            u32::try_from(keys.count()).unwrap_or(u32::MAX)
        };
        (
            count(&self.endpoints, prefix::IDENTITIES),
            count(&self.endpoints, prefix::IPS),
            count(&self.services, prefix::LOCAL_SERVICES),
        )
    }
}

/// What this cluster says about its keyspace.
pub fn cluster_config(config: &Config) -> Entry {
    Entry::ClusterConfig(ClusterConfig {
        cluster: config.cluster.clone(),
        width: config.width,
        synced_canaries: true,
        cached: false,
        service_exports: Some(config.service_exports),
        endpoint_slices: ExportMode::ServicesAndSlices,
    })
}

/// The canary of a part.
pub fn canary(cluster: &ClusterRef, resource: Resource) -> String {
    Key::synced(&cluster.name, resource).to_string()
}
