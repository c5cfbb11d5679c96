//! Which EndpointSlices should stand for other clusters' endpoints, and the fewest writes that lead there. Pure.
//!
//! A slice is of one service, one source cluster, one address family and one set of ports. An endpoint stays in the slice
//! it is in; what is new fills slices that are written anyway, then room, then new slices.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hawser_model::{AddressFamily, ClusterName, PortName, ServiceKey, ServicePort, SharedService};

/// What kube-proxy and the EndpointSlice controller keep to as well.
pub const MAX_ENDPOINTS: usize = 100;

/// What slices are kept apart by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    pub service: ServiceKey,
    pub cluster: ClusterName,
    pub family: AddressFamily,
    pub ports: BTreeMap<PortName, ServicePort>,
}

/// By their addresses.
pub type Endpoints = BTreeMap<IpAddr, Endpoint>;

/// What is said of an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    pub hostname: Option<String>,
    /// About to end: it serves what it has, and takes what is new only where nobody else is ready (KEP-1672).
    pub draining: bool,
}

/// A slice as it is, or as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    pub name: String,
    /// The uid of the Service that it belongs to.
    pub owner: String,
    pub group: Group,
    pub endpoints: Endpoints,
}

/// A slice that carries our label, at a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub namespace: String,
    pub name: String,
    pub version: String,
    /// None: it is none that we would have written.
    pub slice: Option<Slice>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Create(Slice),
    Update { slice: Slice, version: String },
    Delete { namespace: String, name: String, version: String },
}

/// What another cluster's word is worth now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remote {
    /// These are its services, of those that were asked for.
    Says(Vec<SharedService>),
    /// It is connected and has not been heard whole since the start: its slices stay as they are.
    Waiting,
}

/// What there should be.
#[derive(Debug, Default)]
pub struct Wanted {
    /// The services that ask for it, with their uids.
    pub services: BTreeMap<ServiceKey, String>,
    /// The connected clusters.
    pub remotes: BTreeMap<ClusterName, Remote>,
    /// Names that somebody else's slices have.
    pub taken: BTreeSet<(String, String)>,
}

/// The writes that lead from what is held to what is wanted, deletions last. Planned again after them, there are none.
/// Cost: the endpoints on both sides.
pub fn plan(wanted: &Wanted, held: &[Held]) -> Vec<Op> {
    let mut desired = desired(wanted);
    let mut names = wanted.taken.clone();
    names.extend(held.iter().map(|held| (held.namespace.clone(), held.name.clone())));
    let mut groups: BTreeMap<&Group, Vec<(&Held, &Slice)>> = BTreeMap::new();
    let (mut ops, mut deletes) = (Vec::new(), Vec::new());
    for held in held {
        match &held.slice {
            Some(slice) if wanted.services.contains_key(&slice.group.service) => {
                if wanted.remotes.get(&slice.group.cluster) != Some(&Remote::Waiting) {
                    groups.entry(&slice.group).or_default().push((held, slice));
                }
            }
            _ => deletes.push(delete(held)),
        }
    }
    for (group, slices) in groups {
        let endpoints = desired.remove(group).unwrap_or_default();
        let owner = &wanted.services[&group.service];
        let left = reassign(owner, endpoints, &slices, &mut ops, &mut deletes);
        create(owner, group, left, &mut names, &mut ops);
    }
    for (group, endpoints) in desired {
        let owner = &wanted.services[&group.service];
        create(owner, &group, endpoints, &mut names, &mut ops);
    }
    ops.append(&mut deletes);
    ops
}

fn delete(held: &Held) -> Op {
    let Held { namespace, name, version, .. } = held;
    Op::Delete { namespace: namespace.clone(), name: name.clone(), version: version.clone() }
}

fn desired(wanted: &Wanted) -> BTreeMap<Group, Endpoints> {
    let mut desired: BTreeMap<Group, Endpoints> = BTreeMap::new();
    for (cluster, remote) in &wanted.remotes {
        let Remote::Says(services) = remote else { continue };
        for service in services {
            if !service.shared || !wanted.services.contains_key(&service.key) {
                continue;
            }
            for (ip, ports) in service.backends.iter().filter(|(ip, _)| ordinary(**ip)) {
                let group = Group {
                    service: service.key.clone(),
                    cluster: cluster.clone(),
                    family: AddressFamily::of(*ip),
                    ports: ports.clone(),
                };
                let hostname = service.hostnames.get(ip).filter(|name| label(name)).cloned();
                let endpoint = Endpoint { hostname, draining: service.draining.contains(ip) };
                desired.entry(group).or_default().insert(*ip, endpoint);
            }
        }
    }
    desired
}

/// Kubernetes refuses a slice with any other.
fn ordinary(ip: IpAddr) -> bool {
    let local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(local || ip.is_loopback() || ip.is_multicast() || ip.is_unspecified())
}

/// RFC 1123.
fn label(text: &str) -> bool {
    let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(inside)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Endpoints that are there stay where they are; gives what found no room.
fn reassign(
    owner: &str,
    mut missing: Endpoints,
    slices: &[(&Held, &Slice)],
    ops: &mut Vec<Op>,
    deletes: &mut Vec<Op>,
) -> Endpoints {
    // Whether it is written anyway, and what it holds then.
    let mut next: Vec<(bool, Endpoints)> = Vec::new();
    for (_, slice) in slices {
        let mut kept = Endpoints::new();
        for ip in slice.endpoints.keys() {
            if let Some(endpoint) = missing.remove(ip) {
                kept.insert(*ip, endpoint);
            }
        }
        next.push((kept != slice.endpoints || slice.owner != owner, kept));
    }
    // Those that are written anyway first, then those with the most room, so that few are written.
    let mut order: Vec<usize> = (0..next.len()).filter(|at| next[*at].1.len() < MAX_ENDPOINTS).collect();
    order.sort_by_key(|at| (!next[*at].0, next[*at].1.len()));
    for at in order {
        let (written, kept) = &mut next[at];
        while kept.len() < MAX_ENDPOINTS
            && let Some((ip, endpoint)) = missing.pop_first()
        {
            kept.insert(ip, endpoint);
            *written = true;
        }
    }
    for ((held, slice), (written, endpoints)) in slices.iter().zip(next) {
        if endpoints.is_empty() {
            deletes.push(delete(held));
        } else if written {
            let slice = Slice { owner: owner.into(), endpoints, ..(*slice).clone() };
            ops.push(Op::Update { slice, version: held.version.clone() });
        }
    }
    missing
}

/// New slices for what is left, under names that nobody has.
fn create(
    owner: &str,
    group: &Group,
    mut left: Endpoints,
    names: &mut BTreeSet<(String, String)>,
    ops: &mut Vec<Op>,
) {
    let namespace = group.service.namespace();
    let mut number = 0;
    while !left.is_empty() {
        let rest = left.keys().nth(MAX_ENDPOINTS).copied().map(|ip| left.split_off(&ip)).unwrap_or_default();
        let name = loop {
            number += 1;
            let name = format!("{}-{}-{number}", group.service.name(), group.cluster);
            if names.insert((namespace.to_owned(), name.clone())) {
                break name;
            }
        };
        ops.push(Op::Create(Slice { name, owner: owner.into(), group: group.clone(), endpoints: left }));
        left = rest;
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
