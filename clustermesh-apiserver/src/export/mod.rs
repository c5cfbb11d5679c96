//! Export: objects in, the keys that this cluster's keyspace should hold out. Pure; what differs is written elsewhere.
//!
//! Nothing of it is kept: the keyspace holds what was written, and a section that is made anew comes in pieces.

mod diff;
mod endpoints;
mod namespaces;
mod nodes;
mod sections;
mod service_exports;
mod services;

use std::collections::BTreeMap;

use bytes::Bytes;
use hawser_model::{ClusterConfig, ClusterRef, ExportMode, NodeName, ServiceKey, Time};
use hawser_wire::{Entry, Key, PeerRecord, Resource, admit};

use crate::config::Config;
use crate::events::{Misread, Subject};
use crate::identity::Allocator;
use crate::nodes::Indices;
use crate::reports::NodeReport;

pub use diff::{Held, Step};
pub use sections::{Pieces, Section};

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

/// What decides between objects, and what could not be exported of each section.
#[derive(Debug)]
pub struct Export {
    record: PeerRecord,
    cluster: ClusterRef,
    /// Whether ServiceExports count.
    clusterset: bool,
    identities: Allocator,
    indices: Indices,
    reports: BTreeMap<NodeName, NodeReport>,
    /// But for those of one Service.
    problems: BTreeMap<Section, Vec<String>>,
    of_services: BTreeMap<ServiceKey, Vec<String>>,
    /// Annotations that are not understood.
    misread: BTreeMap<Subject, Misread>,
}

/// Keys with their values.
pub type Entries = Vec<(String, Bytes)>;

/// Some keys with their values, and what could not be exported.
#[derive(Debug, Default)]
struct Part {
    entries: Entries,
    problems: Vec<String>,
    /// Those about a Service's annotations, as its owner reads them.
    misread: Vec<String>,
}

impl Part {
    /// A peer would refuse what is not inside our own ranges, so it is not written, and somebody is told here.
    fn add(&mut self, record: &PeerRecord, entry: &Entry) {
        let key = entry.key(&record.cluster);
        let ours = matches!(entry, Entry::LocalService(_) | Entry::LocalPeer(_));
        match admit(record, &key, entry) {
            Err(refusal) if !ours => self.problems.push(format!("not exported: {refusal}")),
            _ => self.entries.push((key.to_string(), entry.encode())),
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
            problems: BTreeMap::new(),
            of_services: BTreeMap::new(),
            misread: BTreeMap::new(),
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

    /// When an update is due though nothing was touched.
    pub fn poll_deadline(&self) -> Option<Time> {
        self.identities.poll_deadline()
    }

    /// Services and nodes whose annotations are not understood.
    pub fn misread(&self) -> &BTreeMap<Subject, Misread> {
        &self.misread
    }

    /// Of every section as it was made last.
    pub fn problems(&self) -> impl Iterator<Item = &str> {
        self.problems.values().chain(self.of_services.values()).flatten().map(String::as_str)
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
        path: config.path,
    })
}

/// The canary of a part.
pub fn canary(cluster: &ClusterRef, resource: Resource) -> String {
    Key::synced(&cluster.name, resource).to_string()
}
