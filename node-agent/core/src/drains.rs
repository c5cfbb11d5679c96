//! Backends that were withdrawn, and are still served to those that use them: `drain-grace`.
//!
//! A client that keeps its backend (a UDP socket, session affinity) stays there for the Service's grace. The backend's own
//! node lets established connections in for [`CLOSING`] at least: what the pod answers meanwhile is remembered as a flow, and
//! goes on after it.
//!
//! Cost: one look at every backend per plan. An agent that starts anew is told of them ([`Draining`]): their grace goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use hawser_discovery::NodeId;
use hawser_model::{ClusterRef, NodeName, PortName, Protocol, ServiceKey, Time};

use crate::services::{MergedBackend, MergedService, State};
use crate::slots::NodeSlots;

/// How long the node of a withdrawn backend lets established connections in, at least: Kubernetes' own grace for pods.
pub(crate) const CLOSING: Duration = Duration::from_secs(30);
/// Beyond, nothing is remembered: a cluster that withdraws a great many at once takes no memory.
const MOST: usize = 8_192;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    service: ServiceKey,
    name: PortName,
    protocol: Protocol,
    cluster: ClusterRef,
    ip: IpAddr,
    port: u16,
}

#[derive(Clone, Debug)]
struct Withdrawn {
    at: Time,
    /// For how long it had been so by then: in an earlier run.
    before: Duration,
    backend: MergedBackend,
}

impl Withdrawn {
    /// Until when clients keep it, and until when its node lets them in.
    fn ends(&self, service: &MergedService, here: bool) -> [Time; 2] {
        graces(service, here).map(|grace| self.at + grace.saturating_sub(self.before))
    }
}

/// A withdrawn backend in its grace, as the next run is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draining {
    pub service: ServiceKey,
    pub name: PortName,
    pub protocol: Protocol,
    pub cluster: ClusterRef,
    pub ip: IpAddr,
    pub port: u16,
    pub node: Option<(NodeId, NodeName)>,
    pub elsewhere: bool,
    /// Since it was withdrawn.
    pub age: Duration,
}

/// Of the own cluster: address, port, protocol.
pub(crate) type Closing = BTreeSet<(IpAddr, u16, Protocol)>;

#[derive(Clone, Debug, Default)]
pub(crate) struct Drains {
    withdrawn: BTreeMap<Place, Withdrawn>,
    next: Option<Time>,
}

impl Drains {
    /// Of an earlier run. O(what it gives).
    pub(crate) fn restore(&mut self, earlier: impl IntoIterator<Item = Draining>, now: Time) {
        for known in earlier.into_iter().take(MOST) {
            let Draining { service, name, protocol, cluster, ip, port, node, elsewhere, age } = known;
            let backend = MergedBackend { ip, port, node, slot: 0, state: State::Ready, elsewhere };
            let place = Place { service, name, protocol, cluster, ip, port };
            self.withdrawn.insert(place, Withdrawn { at: now, before: age, backend });
        }
    }

    pub(crate) fn all(&self, now: Time) -> impl Iterator<Item = Draining> {
        self.withdrawn.iter().map(move |(place, withdrawn)| Draining {
            service: place.service.clone(),
            name: place.name.clone(),
            protocol: place.protocol,
            cluster: place.cluster.clone(),
            ip: place.ip,
            port: place.port,
            node: withdrawn.backend.node.clone(),
            elsewhere: withdrawn.backend.elsewhere,
            age: withdrawn.before + now.since(withdrawn.at),
        })
    }

    /// Remembers what `before` had and `services` have no longer, of clusters that are still connected, and gives those in
    /// their grace back to `services`. Returns which backends of the own cluster are closing.
    pub(crate) fn apply(
        &mut self,
        own: &ClusterRef,
        before: &[MergedService],
        services: &mut [MergedService],
        connected: &BTreeSet<ClusterRef>,
        slots: &NodeSlots,
        now: Time,
    ) -> Closing {
        for service in services.iter() {
            if let Ok(at) = before.binary_search_by(|known| known.key.cmp(&service.key)) {
                self.remember(own, &before[at], service, connected, now);
            }
        }
        let mut closing = Closing::new();
        self.next = None;
        let mut next = Vec::new();
        self.withdrawn.retain(|place, withdrawn| {
            let Ok(at) = services.binary_search_by(|known| known.key.cmp(&place.service)) else {
                return false;
            };
            let service = &mut services[at];
            let here = place.cluster == *own;
            let [served, admitted] = withdrawn.ends(service, here);
            let Some(port) = service.ports.get_mut(&place.name) else { return false };
            let mut known = port.slices.get(&place.cluster).into_iter().flatten();
            let back = known.any(|backend| (backend.ip, backend.port) == (place.ip, place.port));
            let over = served.max(admitted) <= now;
            if over || back || port.port.protocol != place.protocol || !connected.contains(&place.cluster) {
                return false;
            }
            next.extend([served, admitted].into_iter().filter(|at| *at > now));
            if served > now {
                let slot = withdrawn.backend.node.as_ref().map_or(0, |(node, _)| slots.get(*node));
                let backend = MergedBackend { state: State::Withdrawn, slot, ..withdrawn.backend.clone() };
                port.slices.or_default(place.cluster.clone()).push(backend);
            }
            if here && service.shared {
                closing.insert((place.ip, place.port, place.protocol));
            }
            true
        });
        self.next = next.into_iter().min();
        closing
    }

    fn remember(
        &mut self,
        own: &ClusterRef,
        before: &MergedService,
        after: &MergedService,
        connected: &BTreeSet<ClusterRef>,
        now: Time,
    ) {
        for (name, port) in &after.ports {
            let Some(old) = before.ports.get(name).filter(|old| old.port == port.port) else { continue };
            for (cluster, backends) in old.slices.iter().filter(|(cluster, _)| connected.contains(*cluster)) {
                if graces(after, cluster == own).into_iter().all(|grace| grace.is_zero()) {
                    continue;
                }
                let left = port.slices.get(cluster).map(Vec::as_slice).unwrap_or_default();
                let left: BTreeSet<_> = left.iter().map(|backend| (backend.ip, backend.port)).collect();
                let gone = backends.iter().filter(|backend| {
                    backend.state != State::Withdrawn && !left.contains(&(backend.ip, backend.port))
                });
                for backend in gone.take(MOST.saturating_sub(self.withdrawn.len())) {
                    let place = Place {
                        service: after.key.clone(),
                        name: name.clone(),
                        protocol: port.port.protocol,
                        cluster: cluster.clone(),
                        ip: backend.ip,
                        port: backend.port,
                    };
                    self.withdrawn.insert(
                        place,
                        Withdrawn { at: now, before: Duration::ZERO, backend: backend.clone() },
                    );
                }
            }
        }
    }

    /// When the next of them is over.
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.next
    }

    /// Says so once.
    pub(crate) fn is_due(&mut self, now: Time) -> bool {
        self.next.take_if(|at| *at <= now).is_some()
    }
}

/// For how long clients keep what is withdrawn, and its node lets them in.
fn graces(service: &MergedService, here: bool) -> [Duration; 2] {
    let grace = Duration::from_secs(service.routing.drain_grace_seconds.into());
    [grace, if here { grace.max(CLOSING) } else { Duration::ZERO }]
}
