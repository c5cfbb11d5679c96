//! What a filter exports, told change by change, is what a look at the whole would select.
#![allow(clippy::unwrap_used, reason = "a test that unwraps reads better")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use clustermesh_apiserver::exports::{ExportFilter, Membership, Namespaces, encode_namespace, namespace_key};
use hawser_kvstore::Filter;
use hawser_model::{
    AddressFamily, AddressKind, ClusterId, ClusterIdWidth, ClusterName, ClusterRef, Endpoint, EndpointSlice,
    Identity, IdentityId, Labels, Node, NodeAddress, NodeName, PortMap, ServiceKey, SharedService,
    SliceEndpoint, SliceKey,
};
use hawser_sources::{Expression, Selector};
use hawser_wire::{Context, Entry, derived};
use proptest::prelude::*;
use proptest::sample::select;

const NAMESPACES: [&str; 3] = ["bank", "shop", "till"];
const ADDRESSES: [&str; 6] = ["10.1.0.1", "10.1.0.2", "10.1.1.1", "10.1.9.1", "fd00:10:1::1", "10.1.9.2"];
const HOSTS: [&str; 3] = ["172.16.1.1", "172.16.1.2", "172.16.1.3"];
const LABELS: [&str; 3] = ["a", "b", "c"];

fn cluster() -> ClusterRef {
    let id = ClusterId::new(1, ClusterIdWidth::Bits8).unwrap();
    ClusterRef { name: ClusterName::parse("us-east").unwrap(), id }
}

/// One object of the keyspace; several with the same key replace each other.
#[derive(Clone, Debug)]
enum Object {
    Namespace { name: &'static str, label: &'static str },
    Service { key: ServiceKey, label: &'static str, ips: BTreeSet<IpAddr> },
    Slice { key: SliceKey, of: &'static str, ips: BTreeSet<IpAddr> },
    Exported { key: ServiceKey },
    Pod { ip: IpAddr, namespace: &'static str, identity: u16, host: Option<IpAddr> },
    Identity { id: u16, label: &'static str },
    Node { name: &'static str, address: IpAddr, cidrs: Vec<&'static str> },
    Broken { ip: IpAddr },
}

fn labels(label: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("tier".to_owned(), label.to_owned())])
}

fn identity(id: u16) -> IdentityId {
    IdentityId::new(cluster().id, ClusterIdWidth::Bits8, id.into()).unwrap()
}

impl Object {
    fn entry(&self) -> Option<Entry> {
        let cluster = cluster();
        Some(match self.clone() {
            Self::Service { key, label, ips } => Entry::Service(SharedService {
                cluster,
                key,
                frontends: PortMap::new(),
                backends: ips.into_iter().map(|ip| (ip, BTreeMap::new())).collect(),
                draining: Default::default(),
                hostnames: BTreeMap::new(),
                zones: BTreeMap::new(),
                labels: labels(label),
                selector: BTreeMap::new(),
                include_external: true,
                shared: true,
            }),
            Self::Slice { key, of, ips } => Entry::Slice(EndpointSlice {
                cluster,
                key,
                labels: BTreeMap::from([(EndpointSlice::SERVICE_LABEL.to_owned(), of.to_owned())]),
                annotations: BTreeMap::new(),
                family: AddressFamily::V4,
                endpoints: vec![SliceEndpoint {
                    addresses: ips.into_iter().filter(IpAddr::is_ipv4).collect(),
                    ..SliceEndpoint::default()
                }],
                ports: Vec::new(),
            }),
            Self::Pod { ip, namespace, identity: id, host } => Entry::Endpoint(Endpoint {
                ip,
                host,
                identity: identity(id),
                encryption_key: 255,
                namespace: namespace.to_owned(),
                pod: "pod".to_owned(),
                service_account: String::new(),
                named_ports: BTreeMap::new(),
                left_out: false,
            }),
            Self::Identity { id, label } => {
                let mut labels = Labels::default();
                labels.insert(Labels::K8S, "tier", label);
                labels.insert(Labels::K8S, Labels::CLUSTER_KEY, "us-east");
                Entry::Identity(Identity { id: identity(id), labels })
            }
            Self::Node { name, address, cidrs } => Entry::Node(Node {
                cluster,
                name: NodeName::parse(name).unwrap(),
                addresses: vec![NodeAddress { kind: AddressKind::InternalIp, ip: address }],
                pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
                boot_id: None,
                wireguard_key: None,
                labels: BTreeMap::new(),
                annotations: BTreeMap::new(),
            }),
            Self::Namespace { .. } | Self::Exported { .. } | Self::Broken { .. } => return None,
        })
    }

    fn key(&self) -> String {
        match (self, self.entry()) {
            (_, Some(entry)) => entry.key(&cluster()).to_string(),
            (Self::Namespace { name, .. }, _) => namespace_key(name),
            (Self::Exported { key }, _) => format!("cilium/state/serviceexports/v1/us-east/{key}"),
            (Self::Broken { ip }, _) => format!("cilium/state/ip/v1/default/{ip}"),
            (object, None) => panic!("{object:?}"),
        }
    }

    fn value(&self) -> Bytes {
        match (self, self.entry()) {
            (_, Some(entry)) => entry.encode(),
            (Self::Namespace { label, .. }, _) => encode_namespace(&labels(label)),
            (Self::Exported { key }, _) => Bytes::from(format!(
                r#"{{"cluster":"us-east","namespace":"{}","name":"{}","exportCreationTimestamp":"2026-11-20T08:00:00Z","type":"ClusterSetIP","sessionAffinity":"None"}}"#,
                key.namespace(),
                key.name()
            )),
            _ => Bytes::from_static(b"{"),
        }
    }
}

type World = BTreeMap<String, Object>;

/// A look at the whole, with no memory and no order.
struct Look<'a> {
    world: &'a World,
    filter: &'a ExportFilter,
}

impl Look<'_> {
    fn any(&self, of: impl Fn(&Object) -> bool) -> bool {
        self.world.values().any(of)
    }

    fn within(&self, namespace: &str) -> bool {
        let selector = match &self.filter.namespaces {
            Namespaces::All => return true,
            Namespaces::Named(names) => return names.contains(namespace),
            Namespaces::Labelled(selector) => selector,
        };
        let mut all = BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), namespace.to_owned())]);
        for object in self.world.values() {
            if let Object::Namespace { name, label } = object
                && *name == namespace
            {
                all.extend(labels(label));
            }
        }
        selector.matches(&all)
    }

    fn service(&self, wanted: &ServiceKey) -> bool {
        self.within(wanted.namespace())
            && self.any(|object| match object {
                Object::Service { key, label, .. } => {
                    key == wanted && self.filter.services.matches(&labels(label))
                }
                _ => false,
            })
    }

    fn slice(&self, key: &SliceKey, of: &str) -> bool {
        self.service(&ServiceKey::new(key.namespace(), of).unwrap())
    }

    fn backs(&self, ip: &IpAddr) -> bool {
        self.any(|object| match object {
            Object::Service { key, ips, .. } => ips.contains(ip) && self.service(key),
            Object::Slice { key, of, ips } => ip.is_ipv4() && ips.contains(ip) && self.slice(key, of),
            _ => false,
        })
    }

    fn selected(&self, id: u16) -> bool {
        self.any(|object| match (object, &self.filter.pods) {
            (Object::Identity { id: known, label }, Some(selector)) => {
                let mut all = labels(label);
                all.insert(Labels::CLUSTER_KEY.to_owned(), "us-east".to_owned());
                *known == id && selector.matches(&all)
            }
            _ => false,
        })
    }

    fn strays(&self, ip: &IpAddr, host: Option<IpAddr>) -> bool {
        let at_host = |object: &Object, covering: bool| match object {
            Object::Node { address, cidrs, .. } if Some(*address) == host => {
                let covers =
                    |cidr: &&str| cidr.parse::<hawser_model::IpNet>().is_ok_and(|cidr| cidr.contains(ip));
                !covering || cidrs.iter().any(covers)
            }
            _ => false,
        };
        self.any(|object| at_host(object, false)) && !self.any(|object| at_host(object, true))
    }

    fn shows(&self, object: &Object) -> bool {
        match object {
            Object::Service { key, .. } => self.service(key),
            Object::Slice { key, of, .. } => self.slice(key, of),
            Object::Exported { key } if self.filter.services.expressions.is_empty() => {
                self.within(key.namespace())
            }
            Object::Exported { key } => self.service(&derived(key)),
            Object::Pod { ip, namespace, identity, host } => {
                let named = || self.selected(*identity) || self.strays(ip, *host);
                self.backs(ip) || (self.within(namespace) && named())
            }
            Object::Identity { id, .. } => self.any(|object| match object {
                Object::Pod { identity, .. } => identity == id && self.shows(object),
                _ => false,
            }),
            Object::Node { .. } => true,
            Object::Namespace { .. } | Object::Broken { .. } => false,
        }
    }
}

fn exported(world: &World, filter: &ExportFilter) -> BTreeSet<String> {
    let look = Look { world, filter };
    world.values().filter(|object| look.shows(object)).map(Object::key).collect()
}

fn ip() -> impl Strategy<Value = IpAddr> {
    select(&ADDRESSES[..]).prop_map(|ip| ip.parse().unwrap())
}

fn ips() -> impl Strategy<Value = BTreeSet<IpAddr>> {
    prop::collection::btree_set(ip(), 0..4)
}

fn host() -> impl Strategy<Value = IpAddr> {
    select(&HOSTS[..]).prop_map(|ip| ip.parse().unwrap())
}

fn service_key() -> impl Strategy<Value = ServiceKey> {
    let key = (select(&NAMESPACES[..]), select(&["cart", "ledger"][..]));
    prop_oneof![
        4 => key.clone().prop_map(|(namespace, name)| ServiceKey::new(namespace, name).unwrap()),
        1 => key.prop_map(|(namespace, name)| derived(&ServiceKey::new(namespace, name).unwrap())),
    ]
}

fn object() -> impl Strategy<Value = Object> {
    let namespace = || select(&NAMESPACES[..]);
    let label = || select(&LABELS[..]);
    let cidrs = prop::collection::vec(select(&["10.1.0.0/24", "10.1.1.0/24", "fd00:10:1::/64"][..]), 0..3);
    prop_oneof![
        1 => (namespace(), label()).prop_map(|(name, label)| Object::Namespace { name, label }),
        4 => (service_key(), label(), ips()).prop_map(|(key, label, ips)| Object::Service { key, label, ips }),
        3 => (namespace(), select(&["x", "y"][..]), select(&["cart", "ledger"][..]), ips())
            .prop_map(|(ns, name, of, ips)| Object::Slice { key: SliceKey::new(ns, name).unwrap(), of, ips }),
        1 => (namespace(), select(&["cart", "ledger"][..]))
            .prop_map(|(ns, name)| Object::Exported { key: ServiceKey::new(ns, name).unwrap() }),
        5 => (ip(), namespace(), 1..5_u16, prop::option::weighted(0.9, host()))
            .prop_map(|(ip, namespace, identity, host)| Object::Pod { ip, namespace, identity, host }),
        2 => (1..5_u16, label()).prop_map(|(id, label)| Object::Identity { id, label }),
        2 => (select(&["node-1", "node-2", "node-3"][..]), host(), cidrs)
            .prop_map(|(name, address, cidrs)| Object::Node { name, address, cidrs }),
        1 => ip().prop_map(|ip| Object::Broken { ip }),
    ]
}

fn selector() -> impl Strategy<Value = Selector> {
    let values = || prop::collection::vec(select(&LABELS[..]).prop_map(str::to_owned), 1..3);
    let key = || "tier".to_owned();
    let expression = prop_oneof![
        3 => values().prop_map(move |values| Expression::In { key: key(), values }),
        1 => values().prop_map(move |values| Expression::NotIn { key: key(), values }),
        1 => Just(Expression::Exists { key: key() }),
    ];
    prop::collection::vec(expression, 0..2).prop_map(|expressions| Selector { expressions })
}

fn filter() -> impl Strategy<Value = ExportFilter> {
    let named = prop::collection::btree_set(select(&NAMESPACES[..]).prop_map(str::to_owned), 0..3);
    let namespaces = prop_oneof![
        Just(Namespaces::All),
        named.prop_map(Namespaces::Named),
        selector().prop_map(Namespaces::Labelled)
    ];
    let services = prop_oneof![Just(Selector::default()), selector()];
    (namespaces, services, prop::option::of(selector()))
        .prop_map(|(namespaces, services, pods)| ExportFilter { namespaces, services, pods })
}

fn context() -> Context {
    Context { cluster: cluster(), width: ClusterIdWidth::Bits8 }
}

fn shown(membership: &Membership, world: &World) -> BTreeSet<String> {
    world.keys().filter(|key| membership.shows(key.as_bytes())).cloned().collect()
}

proptest! {
    #[test]
    fn what_is_exported_follows_every_change(
        filter in filter(),
        // A revision each: objects that come or change, and keys that go.
        revisions in prop::collection::vec(prop::collection::vec((object(), prop::bool::weighted(0.25)), 1..5), 1..40),
    ) {
        let filter = Arc::new(filter);
        let mut membership = Membership::new(Arc::clone(&filter), context());
        let mut world = World::new();
        for changes in revisions {
            let before = exported(&world, &filter);
            let (mut touched, mut own) = (Vec::new(), BTreeSet::new());
            for (object, gone) in changes {
                let key = object.key();
                // etcd changes a key once in a revision.
                if !own.insert(key.clone()) {
                    continue;
                }
                if gone {
                    world.remove(&key);
                    membership.handle_change(&Bytes::from(key), None, &mut touched);
                } else {
                    membership.handle_change(&Bytes::from(key.clone()), Some(&object.value()), &mut touched);
                    world.insert(key, object);
                }
            }
            let after = exported(&world, &filter);
            prop_assert_eq!(&shown(&membership, &world), &after, "by {} in {:?}", filter, world);
            let touched: BTreeSet<String> =
                touched.iter().map(|key| String::from_utf8(key.to_vec()).unwrap()).collect();
            for key in before.symmetric_difference(&after) {
                prop_assert!(own.contains(key) || touched.contains(key), "nobody was told of {}", key);
            }
        }
        // A replica that begins now knows of no history.
        let mut late = Membership::new(Arc::clone(&filter), context());
        for (key, object) in &world {
            late.handle_change(&Bytes::from(key.clone()), Some(&object.value()), &mut Vec::new());
        }
        prop_assert_eq!(shown(&late, &world), exported(&world, &filter));
    }
}

#[test]
fn what_keeps_the_mesh_together_is_exported_by_every_filter_and_what_is_private_by_none() {
    let nothing = ExportFilter { namespaces: Namespaces::Named(BTreeSet::new()), ..ExportFilter::default() };
    let all = ExportFilter { pods: Some(Selector::default()), ..ExportFilter::default() };
    for filter in [nothing, all] {
        let membership = Membership::new(Arc::new(filter), context());
        for key in [
            "cilium/.heartbeat",
            "cilium/cluster-config/us-east",
            "cilium/synced/us-east/cilium/state/ip/v1",
            "cilium/synced/us-east/hawser/state/nodes/v1",
            "cilium/state/nodes/v1/us-east/node-1",
            "hawser/state/nodes/v1/us-east/node-1",
            "hawser/state/trust/v1/us-east",
            "hawser/state/trusted/v1/us-east/eu-west",
        ] {
            let key = key.as_bytes();
            assert!(membership.reads(key) && membership.shows(key), "{}", String::from_utf8_lossy(key));
        }
        for key in [
            "hawser/local/services/v1/us-east/shop/cart",
            "hawser/local/peers/v1/eu-west",
            "hawser/private/tokens/v1/abc",
            "hawser/private/namespaces/v1/shop",
            "cilium/state/of-tomorrow/v1/x",
            "cilium/cache/nodes/v1/us-east/node-1",
        ] {
            let key = key.as_bytes();
            assert!(!membership.reads(key) || !membership.shows(key), "{}", String::from_utf8_lossy(key));
        }
    }
}
