//! Services of which only the backends change, and remote pods that come: their entries are flipped at once; the plan that
//! follows does the rest.
//!
//! What a flip leaves to the plan: the grace of what was withdrawn, wishes of `reset-after`, what status says. A service for
//! which any of it decides about connections waits for the plan, and so does whatever is more than backends.
//!
//! Cost of a flip: the service's backends times clusters; of a pod O(log endpoints). At most [`MOST`] within [`DEBOUNCE`]; the rest is one plan.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use hawser_ebpf_abi::{DesiredDatapath, Exported, IP_REMOTE, IpEntry, ServiceKey as Frontend, ServiceSpec};
use hawser_model::{ClusterName, ClusterRef, OnLoss, PublicKey, ServiceKey, Time};
use hawser_tunnels::PeerName;

use crate::agent::DEBOUNCE;
use crate::budget::{BACKENDS_SHARE, costs};
use crate::config::AgentConfig;
use crate::kept::KeptGlobal;
use crate::plan_datapath::{plan_service, reached_at};
use crate::services::{MergedService, merge_service};
use crate::slots::NodeSlots;
use crate::topology::{Ends, Origin};
use crate::view::MeshView;

pub(crate) const MOST: usize = 128;
/// From the first flip to the plan that knows of it.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// Entries to be written, each in place of what is there. Nothing is taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flip {
    pub services: BTreeMap<Frontend, ServiceSpec>,
    /// Before the services.
    pub exported: BTreeMap<Frontend, Exported>,
    /// Before anything that may lead to them.
    pub pods: BTreeMap<IpAddr, Newcomer>,
}

/// A pod of a remote cluster that has just come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newcomer {
    pub node: PeerName,
    pub public_key: PublicKey,
    /// None of its node's CIDRs covers it: the tunnel has to be told.
    pub stray: bool,
    pub entry: IpEntry,
}

impl Flip {
    /// Takes in a newer one.
    pub fn follow(&mut self, newer: Self) {
        self.services.extend(newer.services);
        self.exported.extend(newer.exported);
        self.pods.extend(newer.pods);
    }

    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.exported.is_empty() && self.pods.is_empty()
    }
}

/// What the last plan was made of, and what the view says now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World<'a> {
    pub config: &'a AgentConfig,
    pub view: &'a MeshView,
    pub slots: &'a NodeSlots,
    pub unread: &'a BTreeSet<ClusterName>,
    /// By key.
    pub services: &'a [MergedService],
    /// Of this node.
    pub pods: &'a BTreeSet<IpAddr>,
}

#[derive(Debug, Default)]
pub(crate) struct Flips {
    /// Of the connected clusters.
    ends: BTreeMap<ClusterName, Ends>,
    /// Slots of `backends`, by cluster.
    used: BTreeMap<ClusterRef, usize>,
    /// The first that no plan knows.
    since: Option<Time>,
    window: Option<(Time, usize)>,
}

impl Flips {
    pub(crate) fn planned(&mut self, ends: BTreeMap<ClusterName, Ends>, used: BTreeMap<ClusterRef, usize>) {
        *self = Self { ends, used, since: None, window: self.window };
    }

    /// When there has to be a plan.
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.since.map(|at| at + AFTERWARDS)
    }

    /// None when it is a matter for the plan.
    pub(crate) fn flip(&mut self, world: World<'_>, key: &ServiceKey, now: Time) -> Option<Flip> {
        let own = &world.config.cluster;
        // What only others have is nobody's here.
        let Some(service) = world.view.own().local_services.get(key) else { return Some(Flip::default()) };
        let at = world.services.binary_search_by(|known| known.key.cmp(key)).ok()?;
        let before = &world.services[at];
        if !is_alike(before, service) || !self.is_one_more(now) {
            return None;
        }
        let origin = |(name, ends)| {
            let peer = world.view.own().peers.get(name)?;
            Some(Origin { peer, view: world.view.cluster(name)?, ends })
        };
        let origins: Vec<_> = self.ends.iter().filter_map(origin).collect();
        let after =
            merge_service(world.config, world.view, &origins, world.slots, world.unread, key, service);
        let was = costs(own, before);
        for (cluster, cost) in costs(own, &after) {
            let grown = cost.saturating_sub(was.get(&cluster).copied().unwrap_or(0));
            let used = self.used.entry(cluster).or_default();
            if *used + grown > BACKENDS_SHARE {
                return None;
            }
            *used += grown;
        }
        let mut desired = DesiredDatapath::default();
        plan_service(
            own,
            &after,
            |ip| reached_at(world.config, world.view, world.pods.contains(&ip), ip),
            &mut desired,
        );
        self.since.get_or_insert(now);
        Some(Flip { services: desired.services, exported: desired.exported, ..Flip::default() })
    }

    /// None when it is a matter for the plan.
    pub(crate) fn pod(
        &mut self,
        world: World<'_>,
        cluster: &ClusterName,
        ip: IpAddr,
        now: Time,
    ) -> Option<Flip> {
        let ends = self.ends.get(cluster)?;
        let (peer, view) = (world.view.own().peers.get(cluster)?, world.view.cluster(cluster)?);
        let endpoint = view.endpoints.get(&ip)?;
        let origin = Origin { peer, view, ends };
        let (id, name) = origin.admits_pod(ip).then(|| origin.node_of(ip).cloned())??;
        let end = view.tunnel_nodes.get(&name)?.wireguard?;
        let stray = !view.nodes.get(&name)?.pod_cidrs.iter().any(|cidr| cidr.contains(&ip));
        if !self.is_one_more(now) {
            return None;
        }
        self.since.get_or_insert(now);
        let entry = IpEntry {
            identity: endpoint.identity.get(),
            node: world.slots.get(id),
            cluster: peer.cluster.id.get(),
            flags: IP_REMOTE,
        };
        let node = PeerName { cluster: peer.cluster.clone(), node: name };
        let newcomer = Newcomer { node, public_key: end.public_key, stray, entry };
        Some(Flip { pods: BTreeMap::from([(ip, newcomer)]), ..Flip::default() })
    }

    fn is_one_more(&mut self, now: Time) -> bool {
        let (began, flips) =
            self.window.filter(|(began, _)| now.since(*began) < DEBOUNCE).unwrap_or((now, 0));
        self.window = Some((began, flips + 1));
        flips < MOST
    }
}

/// But for backends, and nothing about it remembers those that go.
fn is_alike(before: &MergedService, service: &KeptGlobal) -> bool {
    let ports = before.ports.iter().map(|(name, port)| (name, &port.port));
    let routing = &service.routing;
    before.routing == *routing
        && before.shared == service.shared
        && before.cluster_ips == service.cluster_ips
        && before.outside == service.outside
        && ports.eq(&service.ports)
        && routing.drain_grace_seconds == 0
        && routing.reset_after.is_none()
        && routing.on_data_plane_loss == OnLoss::Drain
}
