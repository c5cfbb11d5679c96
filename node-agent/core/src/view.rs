//! `MeshView`: what every cluster says, merged by cluster and found by key.
//!
//! What comes in is decoded and, of a remote cluster, held against what it was admitted with (decision 4): the API server
//! has done so already, and an agent believes no more than it must.
//!
//! Cost: an entry or a deletion is O(log n) in the number of entries of its kind and cluster; nothing is copied.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use hawser_model::{
    ClusterConfig, ClusterIdWidth, ClusterName, ClusterRef, ExportMode, GlobalService, IdentityId,
    ImportKind, MeshPlan, Node, NodeName, Peer, PeerKind, PortName, ServiceKey, SharedService, Time,
    TunnelNode,
};
use hawser_wire::{Context, Entry, Key, PeerRecord, Resource, admit, decode, derived};

use crate::kept::{KeptEndpoint, KeptGlobal, KeptService, Served};
use crate::slices::Slices;

/// Nothing heard of a keyspace for this long: it cannot be read, or nobody writes to it.
pub(crate) const QUIET: Duration = Duration::from_secs(15);
/// A cluster's data is used once all of these have been published and listed; one on Cilium has no tunnel nodes.
const NEEDED: [Resource; 5] =
    [Resource::Nodes, Resource::Identities, Resource::Ips, Resource::Services, Resource::TunnelNodes];

/// Entries that were kept out, and the newest reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    pub count: u64,
    pub last: Option<String>,
}

/// What one cluster says.
#[derive(Clone, Debug)]
pub struct ClusterView {
    pub name: ClusterName,
    pub config: Option<ClusterConfig>,
    pub nodes: BTreeMap<NodeName, Node>,
    pub tunnel_nodes: BTreeMap<NodeName, TunnelNode>,
    pub endpoints: BTreeMap<IpAddr, KeptEndpoint>,
    pub identities: BTreeSet<IdentityId>,
    pub services: BTreeMap<ServiceKey, KeptService>,
    /// It runs Cilium: also its slices and exports are kept, and nobody expects tunnel nodes of it.
    pub cilium: bool,
    /// Of a cluster on Cilium only: one on Hawser says the same in its services.
    pub slices: Slices,
    /// Of a cluster on Cilium only: services exported to the clusterset (MCS-API). Their endpoints are those of the service
    /// with the derived name.
    pub exports: BTreeMap<ServiceKey, ImportKind>,
    /// Of the own keyspace only.
    pub local_services: BTreeMap<ServiceKey, KeptGlobal>,
    /// Of the own keyspace only.
    pub peers: BTreeMap<ClusterName, Peer>,
    pub refused: Refused,
    /// Everything up to here has been seen.
    pub revision: i64,
    /// When its keyspace was last heard, be it only to say that nothing happened.
    pub heard: Option<Time>,
    /// Why it cannot be read now.
    pub interrupted: Option<String>,
    /// Since when it cannot be read, without a break.
    pub interrupted_since: Option<Time>,
    /// Since when it can be read without a break.
    pub read_since: Option<Time>,
    canaries: BTreeSet<Resource>,
    listed: bool,
    synced: bool,
    /// While a new follower lists: what it has given so far. The rest is gone when the list is complete.
    seen: Option<BTreeSet<Key>>,
}

impl ClusterView {
    fn new(name: ClusterName) -> Self {
        Self {
            name,
            config: None,
            nodes: BTreeMap::new(),
            tunnel_nodes: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            identities: BTreeSet::new(),
            services: BTreeMap::new(),
            cilium: false,
            slices: Slices::default(),
            exports: BTreeMap::new(),
            local_services: BTreeMap::new(),
            peers: BTreeMap::new(),
            refused: Refused::default(),
            revision: 0,
            heard: None,
            interrupted: None,
            interrupted_since: None,
            read_since: None,
            canaries: BTreeSet::new(),
            listed: false,
            synced: false,
            seen: None,
        }
    }

    /// Complete once: everything listed, every canary seen. It stays so, because what comes later are differences.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// What is still missing for [`ClusterView::is_synced`], for people.
    pub fn waits_for(&self) -> String {
        if self.synced {
            return String::new();
        }
        if !self.listed {
            return self.interrupted.clone().unwrap_or_else(|| "its first list is not complete".into());
        }
        let missing = self.needed().filter(|kind| !self.canaries.contains(kind)).map(|kind| kind.canary());
        format!("it has not published {} yet", missing.collect::<Vec<_>>().join(", "))
    }

    /// Services as people know them: without those that only carry the endpoints of an export. O(services).
    pub fn service_count(&self) -> usize {
        let carriers: BTreeSet<_> = self.exports.keys().map(derived).collect();
        let of_slices = self.slices_only().then(|| self.slices.services());
        let all = self.services.keys().chain(of_slices.into_iter().flatten());
        all.filter(|key| !carriers.contains(*key)).count()
    }

    /// Where the port of that name of a service is served: services/v1 wherever the cluster publishes it, for it is whole in
    /// one value and all clusters have it; slices of one that publishes nothing else. Never both.
    pub(crate) fn backends(&self, service: &ServiceKey, port: &PortName) -> Vec<Served<'_>> {
        if self.slices_only() {
            return self.slices.of_port(service, port);
        }
        // `shared: false` is read as "gone".
        let shared = self.services.get(service).filter(|service| service.shared);
        shared.map(|service| service.backends.of_port(port).collect()).unwrap_or_default()
    }

    fn slices_only(&self) -> bool {
        self.config.as_ref().is_some_and(|config| config.endpoint_slices == ExportMode::SlicesOnly)
    }

    fn needed(&self) -> impl Iterator<Item = &'static Resource> {
        let cilium = self.cilium;
        NEEDED.iter().filter(move |kind| !cilium || **kind != Resource::TunnelNodes)
    }

    fn is_empty(&self) -> bool {
        self.nodes.is_empty()
            && self.tunnel_nodes.is_empty()
            && self.endpoints.is_empty()
            && self.identities.is_empty()
            && self.services.is_empty()
            && self.slices.is_empty()
            && self.exports.is_empty()
            && self.local_services.is_empty()
            && self.peers.is_empty()
    }

    fn settle(&mut self) {
        self.synced |= self.listed && self.needed().all(|kind| self.canaries.contains(kind));
    }

    fn put(&mut self, key: Key, entry: Entry) {
        match entry {
            Entry::ClusterConfig(config) => self.config = Some(config),
            Entry::Node(node) => drop(self.nodes.insert(node.name.clone(), node)),
            Entry::TunnelNode(node) => drop(self.tunnel_nodes.insert(node.name.clone(), node)),
            Entry::Identity(identity) => drop(self.identities.insert(identity.id)),
            Entry::Endpoint(endpoint) => {
                self.endpoints.insert(endpoint.ip.to_canonical(), KeptEndpoint::from(&endpoint));
            }
            Entry::Service(service) => {
                let kept = KeptService::from(&service);
                self.services.insert(service.key, kept);
            }
            Entry::LocalService(service) => {
                let kept = KeptGlobal::from(&service);
                self.local_services.insert(service.key, kept);
            }
            Entry::LocalPeer(peer) => drop(self.peers.insert(peer.cluster.name.clone(), peer)),
            Entry::Synced { resource, .. } => {
                self.canaries.insert(resource);
                self.settle();
            }
            Entry::Slice(slice) => self.slices.insert(&slice),
            Entry::Export(export) => drop(self.exports.insert(export.key, export.kind)),
            Entry::Heartbeat(_) | Entry::Trust(_) | Entry::Trusted(_) => {}
        }
        if let Some(seen) = &mut self.seen {
            seen.insert(key);
        }
    }

    /// Drops what a complete list did not name.
    fn sweep(&mut self) {
        let Some(seen) = self.seen.take() else { return };
        let name = &self.name;
        let cluster = || name.clone();
        self.nodes.retain(|node, _| seen.contains(&Key::Node { cluster: cluster(), node: node.clone() }));
        self.tunnel_nodes
            .retain(|node, _| seen.contains(&Key::TunnelNode { cluster: cluster(), node: node.clone() }));
        self.endpoints.retain(|ip, _| seen.contains(&Key::ip(*ip)));
        self.identities.retain(|id| seen.contains(&Key::Identity(*id)));
        self.services
            .retain(|key, _| seen.contains(&Key::Service { cluster: cluster(), service: key.clone() }));
        self.slices
            .retain(|slice| seen.contains(&Key::EndpointSlice { cluster: cluster(), slice: slice.clone() }));
        self.exports
            .retain(|key, _| seen.contains(&Key::ServiceExport { cluster: cluster(), service: key.clone() }));
        self.local_services
            .retain(|key, _| seen.contains(&Key::LocalService { cluster: cluster(), service: key.clone() }));
        self.peers.retain(|peer, _| seen.contains(&Key::LocalPeer(peer.clone())));
    }

    fn delete(&mut self, key: &Key) {
        match key {
            Key::ClusterConfig(_) => self.config = None,
            Key::Node { node, .. } => drop(self.nodes.remove(node)),
            Key::TunnelNode { node, .. } => drop(self.tunnel_nodes.remove(node)),
            Key::Identity(id) => drop(self.identities.remove(id)),
            Key::Ip(ip) => drop(self.endpoints.remove(ip)),
            Key::Service { service, .. } => drop(self.services.remove(service)),
            Key::EndpointSlice { slice, .. } => self.slices.remove(slice),
            Key::ServiceExport { service, .. } => drop(self.exports.remove(service)),
            Key::LocalService { service, .. } => drop(self.local_services.remove(service)),
            Key::LocalPeer(name) => drop(self.peers.remove(name)),
            // A canary that goes says nothing about the data (Cilium's readers ignore it too).
            Key::Synced { .. } | Key::Heartbeat => {}
            Key::Trust(_) | Key::Trusted { .. } | Key::Private(_) | Key::Other(_) => {}
        }
    }
}

/// Whether a change can matter to a planner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    Nothing,
    Data,
    /// Where one service is served, and nothing else.
    Service(ServiceKey),
    /// A pod of a remote cluster is there, and nothing else.
    Pod(IpAddr),
    /// The own cluster's list of peers, above all.
    Peers,
}

/// All clusters that are followed.
#[derive(Clone, Debug)]
pub struct MeshView {
    own: ClusterRef,
    width: ClusterIdWidth,
    mesh: MeshPlan,
    clusters: BTreeMap<ClusterName, ClusterView>,
    /// What each peer may say, from the own cluster's peers.
    records: BTreeMap<ClusterName, PeerRecord>,
}

impl MeshView {
    pub fn new(own: ClusterRef, width: ClusterIdWidth, mesh: MeshPlan) -> Self {
        let clusters = BTreeMap::from([(own.name.clone(), ClusterView::new(own.name.clone()))]);
        Self { own, width, mesh, clusters, records: BTreeMap::new() }
    }

    pub fn own(&self) -> &ClusterView {
        &self.clusters[&self.own.name]
    }

    pub fn cluster(&self, name: &ClusterName) -> Option<&ClusterView> {
        self.clusters.get(name)
    }

    pub fn clusters(&self) -> impl Iterator<Item = &ClusterView> {
        self.clusters.values()
    }

    pub fn is_own(&self, name: &ClusterName) -> bool {
        *name == self.own.name
    }

    /// Remote clusters that this one has admitted, whether or not their data is complete.
    pub fn peers(&self) -> impl Iterator<Item = (&Peer, Option<&ClusterView>)> {
        self.own().peers.values().map(|peer| (peer, self.clusters.get(&peer.cluster.name)))
    }

    /// A new follower begins: its first list is the whole truth about the cluster.
    pub fn begin(&mut self, cluster: &ClusterName) {
        let view = self.cluster_mut(cluster);
        // There is nothing to sweep after a first list: then no key is remembered.
        view.seen = (!view.is_empty()).then(BTreeSet::new);
        view.revision = 0;
    }

    /// Takes in one value. A malformed one is counted and kept out; what the key held before stays, because the cluster
    /// has not said that it is gone.
    pub fn upsert(&mut self, cluster: &ClusterName, key: &[u8], value: &[u8]) -> Changed {
        let read = self.read(cluster, key, value);
        let own = self.is_own(cluster);
        let view = self.cluster_mut(cluster);
        match read {
            // What others see of our services; here counts what is local.
            Ok(Some((_, Entry::Service(_)))) if own => Changed::Nothing,
            Ok(Some((key, entry))) => {
                let changed = match &entry {
                    Entry::LocalPeer(_) => Changed::Peers,
                    Entry::Service(SharedService { key, .. })
                    | Entry::LocalService(GlobalService { key, .. }) => Changed::Service(key.clone()),
                    Entry::Endpoint(endpoint) if !own => Changed::Pod(endpoint.ip.to_canonical()),
                    _ => Changed::Data,
                };
                view.put(key, entry);
                if changed == Changed::Peers {
                    self.peers_changed();
                }
                changed
            }
            Ok(None) => Changed::Nothing,
            Err(reason) => {
                view.refused.count += 1;
                view.refused.last = Some(reason);
                Changed::Nothing
            }
        }
    }

    pub fn remove(&mut self, cluster: &ClusterName, key: &[u8]) -> Changed {
        // A key that does not parse never came in.
        let Ok(key) = Key::parse(key) else { return Changed::Nothing };
        self.cluster_mut(cluster).delete(&key);
        if !matches!(key, Key::LocalPeer(_)) {
            return Changed::Data;
        }
        self.peers_changed();
        Changed::Peers
    }

    /// A list of all that is followed is complete.
    pub fn listed(&mut self, cluster: &ClusterName) -> Changed {
        let view = self.cluster_mut(cluster);
        view.listed = true;
        (view.interrupted, view.interrupted_since) = (None, None);
        view.sweep();
        view.settle();
        self.peers_changed();
        Changed::Peers
    }

    pub fn heard(&mut self, cluster: &ClusterName, revision: Option<i64>, now: Time) {
        let view = self.cluster_mut(cluster);
        let quiet = view.heard.is_none_or(|heard| now.since(heard) >= QUIET);
        if view.interrupted.is_some() || quiet {
            view.read_since = Some(now);
        }
        view.heard = Some(now);
        (view.interrupted, view.interrupted_since) = (None, None);
        view.revision = revision.unwrap_or(view.revision);
    }

    pub fn interrupted(&mut self, cluster: &ClusterName, reason: String, now: Time) {
        let view = self.cluster_mut(cluster);
        view.interrupted = Some(reason);
        view.interrupted_since.get_or_insert(now);
    }

    /// Forgets a cluster that is no longer followed. The own one stays.
    pub fn forget(&mut self, cluster: &ClusterName) {
        if !self.is_own(cluster) {
            self.clusters.remove(cluster);
        }
    }

    fn peers_changed(&mut self) {
        let record = |peer: &Peer| PeerRecord::new(peer, self.width, self.mesh);
        self.records = self.own().peers.iter().map(|(name, peer)| (name.clone(), record(peer))).collect();
        let kinds: Vec<_> =
            self.own().peers.values().map(|peer| (peer.cluster.name.clone(), on_cilium(peer))).collect();
        for (name, cilium) in kinds {
            if let Some(view) = self.clusters.get_mut(&name) {
                view.cilium = cilium;
                view.settle();
            }
        }
    }

    fn cluster_mut(&mut self, cluster: &ClusterName) -> &mut ClusterView {
        let cilium = self.own().peers.get(cluster).is_some_and(on_cilium);
        self.clusters
            .entry(cluster.clone())
            .or_insert_with(|| ClusterView { cilium, ..ClusterView::new(cluster.clone()) })
    }

    /// A key and value as they may stand in `cluster`'s keyspace; none when no planner needs it. The error is for people.
    fn read(&self, cluster: &ClusterName, key: &[u8], value: &[u8]) -> Result<Option<(Key, Entry)>, String> {
        let key = Key::parse(key).map_err(|error| error.to_string())?;
        let trust = matches!(key, Key::Trust(_) | Key::Trusted { .. });
        let unread = matches!(key, Key::Other(_) | Key::Private(_) | Key::Heartbeat);
        let ciliums = matches!(key, Key::EndpointSlice { .. } | Key::ServiceExport { .. });
        let cilium = self.clusters.get(cluster).is_some_and(|view| view.cilium)
            || self.own().peers.get(cluster).is_some_and(on_cilium);
        if trust || unread || (ciliums && !cilium) {
            return Ok(None);
        }
        if self.is_own(cluster) {
            let context = Context { cluster: self.own.clone(), width: self.width };
            let entry = decode(&key, value, &context).map_err(|error| error.to_string())?;
            return Ok(Some((key, entry)));
        }
        let record = self.records.get(cluster).ok_or_else(|| format!("{cluster} is not admitted"))?;
        let entry = decode(&key, value, &record.context()).map_err(|error| error.to_string())?;
        admit(record, &key, &entry).map_err(|refusal| refusal.to_string())?;
        Ok(Some((key, entry)))
    }
}

fn on_cilium(peer: &Peer) -> bool {
    matches!(peer.kind, PeerKind::Cilium(_))
}
