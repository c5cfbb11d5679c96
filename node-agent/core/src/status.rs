//! What the agent knows, for people: the snapshot behind `hawser status` and `hawser service list`.

use hawser_discovery::{About, Greyness, NodeId, Transition};
use hawser_model::{ClusterHealth, ClusterRef, Time};

use crate::agent::Agent;
use crate::eligible::{BackendStatus, backends};
use crate::services::MergedService;
use crate::verdicts::{Standing, Verdicts, combine};
use crate::view::{ClusterView, QUIET};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterStatus {
    pub cluster: ClusterRef,
    pub own: bool,
    pub revision: i64,
    pub synced: bool,
    pub control_plane: ControlPlane,
    pub data_plane: ClusterHealth,
    pub since: Option<Time>,
    /// Why it is not synced or cannot be read, else why the data plane's verdict is what it is.
    pub reason: String,
    pub data_plane_reason: String,
    /// What both come to, with the nodes'.
    pub standing: Standing,
    pub heard: Option<Time>,
    pub nodes: usize,
    pub services: usize,
    pub endpoints: usize,
    pub identities: usize,
    pub refused: u64,
}

/// What changed in what is known of a node or cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noted {
    Verdict(Transition),
    /// A node that is up weighs less or more than before.
    Grey {
        grey: Greyness,
        before: u16,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceStatus {
    pub service: MergedService,
    /// By port, in the order of the service's ports.
    pub backends: Vec<Vec<BackendStatus>>,
}

impl Agent {
    /// The own cluster first, then the admitted ones by name. O(clusters).
    pub fn clusters(&self, now: Time) -> Vec<ClusterStatus> {
        let own = self.cluster_status(&self.config.cluster, true, Some(self.view.own()), now);
        let peers = self.view.peers();
        let peers = peers.map(|(peer, view)| self.cluster_status(&peer.cluster, false, view, now));
        std::iter::once(own).chain(peers).collect()
    }

    fn cluster_status(
        &self,
        cluster: &ClusterRef,
        own: bool,
        view: Option<&ClusterView>,
        now: Time,
    ) -> ClusterStatus {
        let verdict = self.verdicts.get(&About::Cluster(cluster.id));
        let control_plane = ControlPlane::of(view, now);
        let data_plane_reason = verdict.map(|transition| transition.because.to_string()).unwrap_or_default();
        let reason = match control_plane.reason.as_str() {
            "" => data_plane_reason.clone(),
            reason => reason.to_owned(),
        };
        // This node is in its own cluster: a packet to ourselves always arrives.
        let data_plane = if own { ClusterHealth::Up } else { verdict.map(|t| t.to).unwrap_or_default() };
        let nodes = self
            .verdicts
            .iter()
            .filter(|(about, _)| matches!(about, About::Node(n) if n.cluster == cluster.id));
        let standing = combine(&Verdicts {
            control_plane: control_plane.verdict,
            data_plane,
            nodes: nodes.clone().count(),
            nodes_down: nodes.filter(|(_, verdict)| verdict.to == ClusterHealth::Down).count(),
            nodes_grey: self.greys.keys().filter(|node| node.cluster == cluster.id).count(),
            cut_off: self.is_cut_off(),
        });
        ClusterStatus {
            cluster: cluster.clone(),
            own,
            revision: view.map_or(0, |view| view.revision),
            synced: view.is_some_and(ClusterView::is_synced),
            data_plane,
            since: verdict.map(|t| t.at),
            reason,
            data_plane_reason,
            standing,
            control_plane,
            heard: view.and_then(|view| view.heard),
            nodes: view.map_or(0, |view| view.nodes.len()),
            services: view.map_or(0, |v| if own { v.local_services.len() } else { v.service_count() }),
            endpoints: view.map_or(0, |view| view.endpoints.len()),
            identities: view.map_or(0, |view| view.identities.len()),
            refused: view.map_or(0, |view| view.refused.count),
        }
    }

    /// By namespace and name. O(backends).
    pub fn services(&self) -> Vec<ServiceStatus> {
        let status = |service: &MergedService| ServiceStatus {
            service: service.clone(),
            backends: backends(service, &self.config.cluster, &self.health),
        };
        self.services.iter().map(status).collect()
    }

    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// Of the last reconcile and the newest plan, and what clusters said that was kept out.
    pub fn problems(&self) -> Vec<String> {
        let refused = |view: &ClusterView| {
            let last = view.refused.last.as_deref()?;
            Some(format!(
                "{} entries of {} were refused, the last one: {last}",
                view.refused.count, view.name
            ))
        };
        let mut problems = self.problems.clone();
        problems.extend(self.plan().notes.iter().cloned());
        problems.extend(self.view.clusters().filter_map(refused));
        problems
    }

    /// The verdict about a node, with since when and why; none before the first.
    pub fn node_verdict(&self, node: NodeId) -> Option<&Transition> {
        self.verdicts.get(&About::Node(node))
    }

    /// Why a node that is up weighs less than it could, if it does.
    pub fn node_grey(&self, node: NodeId) -> Option<&Greyness> {
        self.greys.get(&node)
    }

    /// Verdicts that changed, oldest first.
    pub fn transitions(&self) -> impl Iterator<Item = &Noted> {
        self.transitions.iter()
    }
}

/// Whether a cluster's keyspace can be read. A cluster that cannot be read keeps its last state and its traffic
/// (decision 8): no word follows from this verdict, only what people are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPlane {
    pub verdict: ClusterHealth,
    pub since: Option<Time>,
    /// Empty when all is well.
    pub reason: String,
}

impl ControlPlane {
    pub fn of(view: Option<&ClusterView>, now: Time) -> Self {
        let unknown = |reason| Self { verdict: ClusterHealth::Unknown, since: None, reason };
        let Some(view) = view else { return unknown("its keyspace is not followed yet".into()) };
        if !view.is_synced() {
            return unknown(view.waits_for());
        }
        let down = |since, reason| Self { verdict: ClusterHealth::Down, since, reason };
        if let Some(interrupted) = &view.interrupted {
            let reason = format!("its keyspace cannot be read, its last state is kept: {interrupted}");
            return down(view.heard, reason);
        }
        match view.heard {
            Some(heard) if now.since(heard) >= QUIET => {
                let silent = now.since(heard).as_secs();
                let reason = format!("its keyspace was not heard for {silent} s, its last state is kept");
                down(Some(heard + QUIET), reason)
            }
            _ => Self { verdict: ClusterHealth::Up, since: view.read_since, reason: String::new() },
        }
    }
}
