//! Which addresses and identities are exported: those behind an exported service, those that a selector names, and those
//! without which no answer would find its way back.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use hawser_model::{Endpoint, IdentityId, IpNet, Node, NodeName};
use hawser_wire::Key;

/// Everything that is known of pods, exported or not: about 150 bytes an address.
#[derive(Debug, Default)]
pub(super) struct Pods {
    /// How often exported services and slices name an address.
    backing: HashMap<IpAddr, u32>,
    pods: HashMap<IpAddr, Pod>,
    /// The identities that a selector names, and the addresses of each: without a selector both are empty.
    selected: HashSet<IdentityId>,
    by_identity: Option<HashMap<IdentityId, BTreeSet<IpAddr>>>,
    /// How many exported addresses have it.
    shown: HashMap<IdentityId, u32>,
    nodes: BTreeMap<NodeName, Ranges>,
    /// By address of a node: the pod CIDRs of the nodes that state it, and the pods that say they are there.
    hosts: HashMap<IpAddr, Host>,
    names: HashSet<Arc<str>>,
}

#[derive(Debug)]
struct Pod {
    identity: IdentityId,
    namespace: Arc<str>,
    host: Option<IpAddr>,
    /// Its namespace is exported.
    within: bool,
    shown: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Ranges {
    addresses: BTreeSet<IpAddr>,
    pod_cidrs: Vec<IpNet>,
}

#[derive(Debug, Default)]
struct Host {
    nodes: BTreeSet<NodeName>,
    pods: BTreeSet<IpAddr>,
}

fn ip_key(ip: IpAddr) -> Bytes {
    Bytes::from(Key::ip(ip).to_string())
}

impl Pods {
    /// `by_label`: whether a selector names pods at all.
    pub(super) fn new(by_label: bool) -> Self {
        Self { by_identity: by_label.then(HashMap::new), ..Self::default() }
    }

    pub(super) fn shows_ip(&self, ip: IpAddr) -> bool {
        self.pods.get(&ip).is_some_and(|pod| pod.shown)
    }

    pub(super) fn shows_identity(&self, identity: IdentityId) -> bool {
        self.shown.contains_key(&identity)
    }

    /// An exported service names the address.
    pub(super) fn back(&mut self, ip: IpAddr, touched: &mut Vec<Bytes>) {
        let count = self.backing.entry(ip).or_default();
        *count += 1;
        if *count == 1 {
            self.reckon(ip, touched);
        }
    }

    /// It no longer does.
    pub(super) fn unback(&mut self, ip: IpAddr, touched: &mut Vec<Bytes>) {
        let Some(count) = self.backing.get_mut(&ip) else { return };
        *count -= 1;
        if *count == 0 {
            self.backing.remove(&ip);
            self.reckon(ip, touched);
        }
    }

    pub(super) fn set_pod(
        &mut self,
        ip: IpAddr,
        said: Option<&Endpoint>,
        within: bool,
        touched: &mut Vec<Bytes>,
    ) {
        if let Some(before) = self.pods.remove(&ip) {
            if before.shown {
                self.count_identity(before.identity, false, touched);
            }
            if let Some(host) = before.host {
                self.change_host(host, |host| host.pods.remove(&ip));
            }
            if let Some(by_identity) = &mut self.by_identity
                && let Some(addresses) = by_identity.get_mut(&before.identity)
            {
                addresses.remove(&ip);
                if addresses.is_empty() {
                    by_identity.remove(&before.identity);
                }
            }
        }
        let Some(said) = said else { return };
        let namespace = self.name(&said.namespace);
        if let Some(host) = said.host {
            self.change_host(host, |host| host.pods.insert(ip));
        }
        if let Some(by_identity) = &mut self.by_identity {
            by_identity.entry(said.identity).or_default().insert(ip);
        }
        let pod = Pod { identity: said.identity, namespace, host: said.host, within, shown: false };
        self.pods.insert(ip, pod);
        self.reckon(ip, touched);
    }

    /// Whether the selector names the identity's labels.
    pub(super) fn set_identity(&mut self, identity: IdentityId, selected: bool, touched: &mut Vec<Bytes>) {
        let changed = match selected {
            true => self.selected.insert(identity),
            false => self.selected.remove(&identity),
        };
        let addresses = self.by_identity.as_ref().and_then(|by_identity| by_identity.get(&identity));
        if changed && let Some(addresses) = addresses {
            for ip in addresses.clone() {
                self.reckon(ip, touched);
            }
        }
    }

    /// Only where its addresses or pod CIDRs change there is anything to do: for the pods that say they are there.
    pub(super) fn set_node(&mut self, name: &NodeName, said: Option<&Node>, touched: &mut Vec<Bytes>) {
        let said = said.map(|node| Ranges {
            addresses: node.addresses.iter().map(|address| address.ip).collect(),
            pod_cidrs: node.pod_cidrs.clone(),
        });
        if self.nodes.get(name) == said.as_ref() {
            return;
        }
        let mut hosts = BTreeSet::new();
        if let Some(before) = self.nodes.remove(name) {
            for address in &before.addresses {
                self.change_host(*address, |host| host.nodes.remove(name));
            }
            hosts.extend(before.addresses);
        }
        if let Some(said) = said {
            for address in &said.addresses {
                self.change_host(*address, |host| host.nodes.insert(name.clone()));
            }
            hosts.extend(said.addresses.iter().copied());
            self.nodes.insert(name.clone(), said);
        }
        for host in hosts {
            for ip in self.hosts.get(&host).map(|host| host.pods.clone()).unwrap_or_default() {
                self.reckon(ip, touched);
            }
        }
    }

    /// Cost: all pods.
    pub(super) fn set_namespace(&mut self, namespace: &str, within: bool, touched: &mut Vec<Bytes>) {
        let there = self.pods.iter_mut().filter(|(_, pod)| &*pod.namespace == namespace);
        let there: Vec<IpAddr> = there.map(|(ip, pod)| (*ip, pod.within = within).0).collect();
        for ip in there {
            self.reckon(ip, touched);
        }
    }

    /// One allocation a namespace, not one a pod.
    fn name(&mut self, namespace: &str) -> Arc<str> {
        if let Some(name) = self.names.get(namespace) {
            return Arc::clone(name);
        }
        let name: Arc<str> = namespace.into();
        self.names.insert(Arc::clone(&name));
        name
    }

    fn change_host(&mut self, address: IpAddr, change: impl FnOnce(&mut Host) -> bool) {
        let host = self.hosts.entry(address).or_default();
        change(host);
        if host.nodes.is_empty() && host.pods.is_empty() {
            self.hosts.remove(&address);
        }
    }

    /// Outside the pod CIDRs of its node, as with a CNI that gives nodes none: a peer knows the way back to such a pod by
    /// its own entry alone.
    fn strays(&self, ip: IpAddr, host: Option<IpAddr>) -> bool {
        let Some(host) = host.and_then(|host| self.hosts.get(&host)) else { return false };
        let mut cidrs = host.nodes.iter().filter_map(|name| self.nodes.get(name)).flat_map(|n| &n.pod_cidrs);
        !host.nodes.is_empty() && !cidrs.any(|cidr| cidr.contains(&ip))
    }

    /// Decides anew, and tells what changed by it.
    fn reckon(&mut self, ip: IpAddr, touched: &mut Vec<Bytes>) {
        let Some(pod) = self.pods.get(&ip) else { return };
        let named = || self.selected.contains(&pod.identity) || self.strays(ip, pod.host);
        let shown = self.backing.contains_key(&ip) || (pod.within && named());
        let Some(pod) = self.pods.get_mut(&ip).filter(|pod| pod.shown != shown) else { return };
        pod.shown = shown;
        let identity = pod.identity;
        touched.push(ip_key(ip));
        self.count_identity(identity, shown, touched);
    }

    fn count_identity(&mut self, identity: IdentityId, more: bool, touched: &mut Vec<Bytes>) {
        let count = self.shown.entry(identity).or_default();
        *count = if more { *count + 1 } else { count.saturating_sub(1) };
        let now = *count;
        if now == 0 {
            self.shown.remove(&identity);
        }
        if now <= 1 {
            touched.push(Bytes::from(Key::Identity(identity).to_string()));
        }
    }
}
