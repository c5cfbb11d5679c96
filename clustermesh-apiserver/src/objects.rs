//! What the source says now, indexed the way export asks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hawser_model::{NodeName, ServiceKey, SliceKey};
use hawser_sources::{
    Kind, Namespace, Node, Object, ObjectRef, Pod, Policy, Problem, Service, ServiceExport, Slice,
    SourceEvent,
};

/// Which parts of the export have to be made anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    pub nodes: bool,
    pub endpoints: bool,
    /// All of them.
    pub services: bool,
    /// Where it is not all of them.
    pub few: Few,
}

/// Services of which something changed, and slices that changed. From [`Few::MOST`] on it is simpler to look at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Few {
    pub services: BTreeSet<ServiceKey>,
    pub slices: BTreeSet<SliceKey>,
}

impl Few {
    const MOST: usize = 1_000;
    const NONE: Self = Self { services: BTreeSet::new(), slices: BTreeSet::new() };

    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.slices.is_empty()
    }
}

impl Touched {
    pub const ALL: Self = Self { nodes: true, endpoints: true, services: true, few: Few::NONE };

    pub fn any(&self) -> bool {
        self.nodes || self.endpoints || self.services || !self.few.is_empty()
    }

    #[must_use]
    pub fn and(mut self, mut other: Self) -> Self {
        self.nodes |= other.nodes;
        self.endpoints |= other.endpoints;
        self.few.services.append(&mut other.few.services);
        self.few.slices.append(&mut other.few.slices);
        let many = self.few.services.len() + self.few.slices.len() > Few::MOST;
        self.services |= other.services || many;
        if self.services {
            self.few = Few::NONE;
        }
        self
    }

    fn by(kind: Kind) -> Self {
        let none = Self::default();
        match kind {
            // Endpoints name their node's address.
            Kind::Node => Self { nodes: true, endpoints: true, ..none },
            Kind::Namespace | Kind::Pod => Self { endpoints: true, ..none },
            Kind::Service | Kind::EndpointSlice | Kind::ServiceExport => Self { services: true, ..none },
            Kind::NetworkPolicy => none,
        }
    }
}

#[derive(Debug, Default)]
pub struct Objects {
    pub namespaces: BTreeMap<String, Arc<Namespace>>,
    pub nodes: BTreeMap<NodeName, Arc<Node>>,
    pub pods: BTreeMap<(String, String), Arc<Pod>>,
    pub services: BTreeMap<ServiceKey, Arc<Service>>,
    pub service_exports: BTreeMap<ServiceKey, Arc<ServiceExport>>,
    slices: BTreeMap<SliceKey, Arc<Slice>>,
    /// A set within the map would be a third of a kilobyte for nearly every service's one slice.
    /// None stands before all: there a service's begin.
    slices_of: BTreeSet<(ServiceKey, Option<SliceKey>)>,
    pub policies: BTreeMap<(String, String), Arc<Policy>>,
    /// Files that cannot be read, and what is wrong with them.
    pub problems: BTreeMap<String, Problem>,
    pub synced: bool,
}

impl Objects {
    pub fn apply(&mut self, event: SourceEvent) -> Touched {
        match event {
            SourceEvent::Upsert(object) => {
                // Kubernetes tells every change of an object; most are of nothing that is kept here (a node's heartbeat).
                if self.holds(&object) {
                    return Touched::default();
                }
                let reference = object.reference();
                let before = self.touched(&reference);
                self.insert(object);
                before.and(self.touched(&reference))
            }
            SourceEvent::Remove(reference) => {
                let touched = self.touched(&reference);
                self.remove(&reference);
                touched
            }
            SourceEvent::Synced => {
                self.synced = true;
                Touched::ALL
            }
            SourceEvent::Problem(problem) => {
                self.problems.insert(problem.file.clone(), problem);
                Touched::default()
            }
            SourceEvent::Healed { file } => {
                // What a file that could not be read used to hold may be let go now.
                let blind = self.problems.remove(&file).is_some_and(|problem| problem.blind);
                if blind { Touched::ALL } else { Touched::default() }
            }
        }
    }

    /// What a change of this object, as it is held now, touches.
    fn touched(&self, reference: &ObjectRef) -> Touched {
        let mut few = Few::default();
        match reference.kind {
            Kind::Service => few.services.extend(ServiceKey::new(&reference.namespace, &reference.name)),
            Kind::EndpointSlice => {
                let Ok(key) = SliceKey::new(&reference.namespace, &reference.name) else {
                    return Touched::default();
                };
                few.services.extend(self.slices.get(&key).and_then(|slice| slice.service()));
                few.slices.insert(key);
            }
            kind => return Touched::by(kind),
        }
        Touched { few, ..Touched::default() }
    }

    /// Whether absence may be believed: all was read once, and nothing that was never read is left.
    pub fn complete(&self) -> bool {
        self.synced && !self.problems.values().any(|problem| problem.blind)
    }

    fn holds(&self, object: &Object) -> bool {
        let pair = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        match object {
            Object::Namespace(o) => self.namespaces.get(&o.name) == Some(o),
            Object::Node(o) => self.nodes.get(&o.name) == Some(o),
            Object::Pod(o) => self.pods.get(&pair(&o.namespace, &o.name)) == Some(o),
            Object::Service(o) => self.services.get(&o.key) == Some(o),
            Object::EndpointSlice(o) => self.slices.get(&o.key) == Some(o),
            Object::ServiceExport(o) => self.service_exports.get(&o.key) == Some(o),
            Object::NetworkPolicy(o) => self.policies.get(&pair(&o.namespace, &o.name)) == Some(o),
        }
    }

    fn insert(&mut self, object: Object) {
        match object {
            Object::Namespace(o) => _ = self.namespaces.insert(o.name.clone(), o),
            Object::Node(o) => _ = self.nodes.insert(o.name.clone(), o),
            Object::Pod(o) => _ = self.pods.insert((o.namespace.clone(), o.name.clone()), o),
            Object::Service(o) => _ = self.services.insert(o.key.clone(), o),
            Object::ServiceExport(o) => _ = self.service_exports.insert(o.key.clone(), o),
            Object::NetworkPolicy(o) => _ = self.policies.insert((o.namespace.clone(), o.name.clone()), o),
            Object::EndpointSlice(o) => {
                self.remove_slice(&o.key);
                if let Some(service) = o.service() {
                    // The service's own texts, where it came first.
                    let known = self.services.get_key_value(&service).map(|(key, _)| key.clone());
                    let service = known.unwrap_or(service);
                    self.slices_of.insert((service, Some(o.key.clone())));
                }
                self.slices.insert(o.key.clone(), o);
            }
        }
    }

    fn remove(&mut self, reference: &ObjectRef) {
        let pair = || (reference.namespace.to_string(), reference.name.to_string());
        match reference.kind {
            Kind::Namespace => _ = self.namespaces.remove(&*reference.name),
            Kind::Pod => _ = self.pods.remove(&pair()),
            Kind::NetworkPolicy => _ = self.policies.remove(&pair()),
            // A name that does not parse was never inserted.
            Kind::Node => _ = NodeName::parse(&reference.name).map(|name| self.nodes.remove(&name)),
            Kind::Service => {
                _ = ServiceKey::new(&reference.namespace, &reference.name).map(|k| self.services.remove(&k));
            }
            Kind::ServiceExport => {
                let key = ServiceKey::new(&reference.namespace, &reference.name);
                _ = key.map(|key| self.service_exports.remove(&key));
            }
            Kind::EndpointSlice => {
                _ = SliceKey::new(&reference.namespace, &reference.name).map(|key| self.remove_slice(&key));
            }
        }
    }

    fn remove_slice(&mut self, key: &SliceKey) {
        if let Some(service) = self.slices.remove(key).and_then(|slice| slice.service()) {
            self.slices_of.remove(&(service, Some(key.clone())));
        }
    }

    /// Cost: the slices of that service.
    pub fn slices_of<'a>(&'a self, service: &'a ServiceKey) -> impl Iterator<Item = &'a Slice> {
        let own = self.slices_of.range((service.clone(), None)..).take_while(move |(of, _)| of == service);
        own.filter_map(|(_, key)| self.slices.get(key.as_ref()?).map(|slice| &**slice))
    }

    /// Pods by address; host-network pods have their node's. Cost: all pods.
    pub fn pods_by_ip(&self) -> BTreeMap<IpAddr, &Pod> {
        let pods = self.pods.values().filter(|pod| pod.holds_its_addresses());
        pods.flat_map(|pod| pod.ips.iter().map(move |ip| (*ip, &**pod))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_that_is_told_again_as_it_was_touches_nothing() {
        let mut objects = Objects::default();
        let shop = hawser_sources::parse(include_str!("../sources/testdata/shop.yaml")).unwrap();
        for object in &shop {
            objects.apply(SourceEvent::Upsert(object.clone()));
        }
        for object in shop {
            assert_eq!(objects.apply(SourceEvent::Upsert(object.clone())), Touched::default(), "{object:?}");
            if let Object::Node(mut node) = object {
                Arc::make_mut(&mut node).labels = [("a", "b")].into_iter().collect();
                assert!(objects.apply(SourceEvent::Upsert(Object::Node(node))).nodes);
            }
        }
    }
}
