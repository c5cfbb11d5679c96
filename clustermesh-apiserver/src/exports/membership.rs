//! Which keys of the own keyspace a filter exports, kept as they change.
//!
//! A service is exported where the filter selects it and its namespace; its slices and its ServiceExport go with it, then the
//! addresses behind it, then their identities. What cannot be read, or is of a kind not known here, stays home.
//!
//! Cost: for a change of an address two look-ups, and of a service or slice one for each of its addresses, beside decoding it;
//! of a namespace's or node's labels nothing, unless it decides otherwise by them, and then a look at its pods and services.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use hawser_kvstore::Filter;
use hawser_model::{Identity, Labels, ServiceKey, SliceKey};
use hawser_wire::{Context, Entry, Key, decode, derived, prefix};
use serde::Deserialize;

use super::pods::Pods;
use super::{ExportFilter, NAMESPACES, Namespaces};

/// What Kubernetes labels every namespace with.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

#[derive(Debug)]
pub struct Membership {
    filter: Arc<ExportFilter>,
    context: Context,
    /// Prefixes of what matters here.
    reads: Vec<String>,
    /// Those whose labels are known.
    namespaces: HashMap<String, BTreeMap<String, String>>,
    services: BTreeMap<ServiceKey, Service>,
    slices: HashMap<SliceKey, Slice>,
    slices_of: HashMap<ServiceKey, BTreeSet<SliceKey>>,
    /// ServiceExports by the service that their endpoints travel under.
    exports: HashMap<ServiceKey, ServiceKey>,
    pods: Pods,
}

#[derive(Debug)]
struct Service {
    /// The selector selects it.
    selected: bool,
    addresses: Vec<IpAddr>,
    shown: bool,
}

#[derive(Debug)]
struct Slice {
    service: ServiceKey,
    addresses: Vec<IpAddr>,
}

#[derive(Deserialize)]
struct NamespaceText {
    labels: BTreeMap<String, String>,
}

/// The value of [`super::namespace_key`].
pub fn encode_namespace(labels: &BTreeMap<String, String>) -> Bytes {
    Bytes::from(serde_json::json!({ "labels": labels }).to_string())
}

impl Membership {
    /// Of an empty keyspace.
    pub fn new(filter: Arc<ExportFilter>, context: Context) -> Self {
        let own = &context.cluster.name;
        let reads = vec![
            prefix::HEARTBEAT.into(),
            format!("{}{own}", prefix::CLUSTER_CONFIG),
            format!("{}{own}/", prefix::SYNCED),
            prefix::STATE.into(),
            prefix::HAWSER_STATE.into(),
            NAMESPACES.into(),
        ];
        Self {
            pods: Pods::new(filter.pods.is_some()),
            filter,
            context,
            reads,
            namespaces: HashMap::new(),
            services: BTreeMap::new(),
            slices: HashMap::new(),
            slices_of: HashMap::new(),
            exports: HashMap::new(),
        }
    }

    fn within(&self, namespace: &str) -> bool {
        match &self.filter.namespaces {
            Namespaces::All => true,
            Namespaces::Named(names) => names.contains(namespace),
            Namespaces::Labelled(selector) => match self.namespaces.get(namespace) {
                Some(labels) => selector.matches(labels),
                None => selector.matches(&name_label(namespace)),
            },
        }
    }

    fn set_namespace(&mut self, namespace: &str, value: Option<&Bytes>, touched: &mut Vec<Bytes>) {
        if !matches!(self.filter.namespaces, Namespaces::Labelled(_)) {
            return;
        }
        let before = self.within(namespace);
        match value.and_then(|value| serde_json::from_slice::<NamespaceText>(value).ok()) {
            Some(text) => {
                let mut labels = name_label(namespace);
                labels.extend(text.labels);
                self.namespaces.insert(namespace.to_owned(), labels);
            }
            None => drop(self.namespaces.remove(namespace)),
        }
        let within = self.within(namespace);
        if within == before {
            return;
        }
        let there = self.services.keys().filter(|key| key.namespace() == namespace);
        for key in there.cloned().collect::<Vec<_>>() {
            self.reckon(&key, touched);
        }
        let exports = self.exports.values().filter(|key| key.namespace() == namespace);
        touched.extend(exports.map(|key| self.export_key(key)));
        self.pods.set_namespace(namespace, within, touched);
    }

    fn set_service(&mut self, key: &ServiceKey, said: Option<(bool, Vec<IpAddr>)>, touched: &mut Vec<Bytes>) {
        let shown = self.services.get(key).is_some_and(|service| service.shown);
        let (selected, addresses) = said.unwrap_or_default();
        if shown {
            // The new ones first: an address that stays is exported all along.
            addresses.iter().for_each(|ip| self.pods.back(*ip, touched));
            let before = self.services.get_mut(key).map(|service| &mut service.addresses);
            let before = before.map(std::mem::take).unwrap_or_default();
            before.into_iter().for_each(|ip| self.pods.unback(ip, touched));
        }
        self.services.insert(key.clone(), Service { selected, addresses, shown });
        self.reckon(key, touched);
    }

    /// Decides anew whether a service is exported, and with it all that goes with it.
    fn reckon(&mut self, key: &ServiceKey, touched: &mut Vec<Bytes>) {
        let within = self.within(key.namespace());
        let Some(service) = self.services.get_mut(key) else { return };
        let shown = service.selected && within;
        if service.shown == shown {
            return;
        }
        service.shown = shown;
        let slices: Vec<&SliceKey> = self.slices_of.get(key).into_iter().flatten().collect();
        let of_slices = slices.iter().filter_map(|key| self.slices.get(*key)).flat_map(|s| &s.addresses);
        for ip in service.addresses.iter().chain(of_slices) {
            match shown {
                true => self.pods.back(*ip, touched),
                false => self.pods.unback(*ip, touched),
            }
        }
        let cluster = &self.context.cluster.name;
        let of_slice =
            |slice: &&SliceKey| Key::EndpointSlice { cluster: cluster.clone(), slice: (**slice).clone() };
        let service = Key::Service { cluster: cluster.clone(), service: key.clone() };
        let keys = std::iter::once(service).chain(slices.iter().map(of_slice));
        touched.extend(keys.map(|key| Bytes::from(key.to_string())));
        touched.extend(self.exports.get(key).map(|exported| self.export_key(exported)));
    }

    fn shows_service(&self, key: &ServiceKey) -> bool {
        self.services.get(key).is_some_and(|service| service.shown)
    }

    fn set_slice(&mut self, key: &SliceKey, said: Option<Slice>, touched: &mut Vec<Bytes>) {
        if let Some(slice) = &said
            && self.shows_service(&slice.service)
        {
            slice.addresses.iter().for_each(|ip| self.pods.back(*ip, touched));
        }
        if let Some(before) = self.slices.remove(key) {
            if self.shows_service(&before.service) {
                before.addresses.iter().for_each(|ip| self.pods.unback(*ip, touched));
            }
            if let Some(slices) = self.slices_of.get_mut(&before.service) {
                slices.remove(key);
                if slices.is_empty() {
                    self.slices_of.remove(&before.service);
                }
            }
        }
        if let Some(slice) = said {
            self.slices_of.entry(slice.service.clone()).or_default().insert(key.clone());
            self.slices.insert(key.clone(), slice);
        }
    }

    fn export_key(&self, exported: &ServiceKey) -> Bytes {
        let cluster = self.context.cluster.name.clone();
        Bytes::from(Key::ServiceExport { cluster, service: exported.clone() }.to_string())
    }

    /// A ServiceExport carries the labels that were chosen for export and not the Service's, so a selector is asked of the
    /// service that its endpoints travel under.
    fn shows_export(&self, exported: &ServiceKey) -> bool {
        let any = self.filter.services.expressions.is_empty();
        if any { self.within(exported.namespace()) } else { self.shows_service(&derived(exported)) }
    }

    fn selects(&self, identity: &Identity) -> bool {
        let Some(selector) = &self.filter.pods else { return false };
        let labels = identity.labels.iter().filter(|(_, label)| label.source == Labels::K8S);
        let labels = labels.map(|(key, label)| (key.to_owned(), label.value.clone()));
        selector.matches(&labels.collect::<BTreeMap<_, _>>())
    }

    fn set(&mut self, key: Key, entry: Option<Entry>, touched: &mut Vec<Bytes>) {
        match (key, entry) {
            (Key::Service { service: key, .. }, entry) => {
                let said = match entry {
                    Some(Entry::Service(said)) => {
                        let selected = said.shared && self.filter.services.matches(&said.labels);
                        Some((selected, said.backends.keys().map(IpAddr::to_canonical).collect()))
                    }
                    _ => None,
                };
                let gone = said.is_none();
                self.set_service(&key, said, touched);
                if gone {
                    self.services.remove(&key);
                }
            }
            (Key::EndpointSlice { slice: key, .. }, entry) => {
                let said = match entry {
                    Some(Entry::Slice(said)) => said.service().map(|service| Slice {
                        service,
                        addresses: said
                            .endpoints
                            .iter()
                            .flat_map(|e| &e.addresses)
                            .map(IpAddr::to_canonical)
                            .collect(),
                    }),
                    _ => None,
                };
                self.set_slice(&key, said, touched);
            }
            (Key::ServiceExport { service, .. }, Some(_)) => {
                _ = self.exports.insert(derived(&service), service)
            }
            (Key::ServiceExport { service, .. }, None) => _ = self.exports.remove(&derived(&service)),
            (Key::Ip(ip), entry) => {
                let said = if let Some(Entry::Endpoint(said)) = &entry { Some(said) } else { None };
                let within = said.is_some_and(|said| self.within(&said.namespace));
                self.pods.set_pod(ip, said, within, touched);
            }
            (Key::Identity(id), entry) => {
                let selected = matches!(&entry, Some(Entry::Identity(said)) if self.selects(said));
                self.pods.set_identity(id, selected, touched);
            }
            (Key::Node { node, .. }, entry) => {
                let said = if let Some(Entry::Node(said)) = &entry { Some(said) } else { None };
                self.pods.set_node(&node, said, touched);
            }
            _ => {}
        }
    }
}

fn name_label(namespace: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(NAME_LABEL.to_owned(), namespace.to_owned())])
}

impl Filter for Membership {
    fn reads(&self, key: &[u8]) -> bool {
        self.reads.iter().any(|prefix| key.starts_with(prefix.as_bytes()))
    }

    fn handle_change(&mut self, key: &Bytes, value: Option<&Bytes>, touched: &mut Vec<Bytes>) {
        if let Some(namespace) = key.strip_prefix(NAMESPACES.as_bytes()) {
            let namespace = String::from_utf8_lossy(namespace).into_owned();
            return self.set_namespace(&namespace, value, touched);
        }
        let Ok(parsed) = Key::parse(key) else { return };
        let decides = matches!(
            parsed,
            Key::Service { .. }
                | Key::EndpointSlice { .. }
                | Key::ServiceExport { .. }
                | Key::Ip(_)
                | Key::Identity(_)
                | Key::Node { .. }
        );
        if decides {
            let entry = value.and_then(|value| decode(&parsed, value, &self.context).ok());
            self.set(parsed, entry, touched);
        }
    }

    fn shows(&self, key: &[u8]) -> bool {
        match Key::parse(key) {
            Ok(Key::Service { service, .. }) => self.shows_service(&service),
            Ok(Key::EndpointSlice { slice, .. }) => {
                self.slices.get(&slice).is_some_and(|slice| self.shows_service(&slice.service))
            }
            Ok(Key::ServiceExport { service, .. }) => {
                self.exports.contains_key(&derived(&service)) && self.shows_export(&service)
            }
            Ok(Key::Ip(ip)) => self.pods.shows_ip(ip),
            Ok(Key::Identity(identity)) => self.pods.shows_identity(identity),
            Ok(Key::LocalService { .. } | Key::LocalPeer(_) | Key::Private(_)) | Err(_) => false,
            // What keeps the mesh together is nobody's secret, whatever it may come to be.
            Ok(Key::Other(key)) => key.starts_with(prefix::HAWSER_STATE),
            Ok(_) => true,
        }
    }
}
