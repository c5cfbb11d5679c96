//! What the agent knows, for people: the snapshot behind `hawser status` and `hawser service list`.

use std::time::Duration;

use hawser_discovery::{About, Transition};
use hawser_model::{ClusterHealth, ClusterRef, Time};

use crate::agent::Agent;
use crate::eligible::{BackendStatus, backends};
use crate::services::MergedService;
use crate::view::ClusterView;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterStatus {
    pub cluster: ClusterRef,
    pub own: bool,
    pub revision: i64,
    pub synced: bool,
    pub data_plane: ClusterHealth,
    pub since: Option<Time>,
    /// Why it is not synced or cannot be read, else why the data plane's verdict is what it is.
    pub reason: String,
    pub heard: Option<Time>,
    pub nodes: usize,
    pub services: usize,
    pub endpoints: usize,
    pub identities: usize,
    pub refused: u64,
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
        ClusterStatus {
            cluster: cluster.clone(),
            own,
            revision: view.map_or(0, |view| view.revision),
            synced: view.is_some_and(ClusterView::is_synced),
            // This node is in it: a packet to ourselves always arrives.
            data_plane: if own { ClusterHealth::Up } else { verdict.map(|t| t.to).unwrap_or_default() },
            since: verdict.map(|t| t.at),
            reason: reason(view, verdict, now),
            heard: view.and_then(|view| view.heard),
            nodes: view.map_or(0, |view| view.nodes.len()),
            services: view.map_or(0, |v| if own { v.local_services.len() } else { v.services.len() }),
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

    /// Verdicts that changed, oldest first.
    pub fn transitions(&self) -> impl Iterator<Item = &Transition> {
        self.transitions.iter()
    }
}

fn reason(view: Option<&ClusterView>, verdict: Option<&Transition>, now: Time) -> String {
    const QUIET: Duration = Duration::from_secs(15);
    let Some(view) = view else { return "its keyspace is not followed yet".into() };
    if !view.is_synced() {
        return view.waits_for();
    }
    if let Some(interrupted) = &view.interrupted {
        return format!("its keyspace cannot be read, its last state is kept: {interrupted}");
    }
    match view.heard {
        Some(heard) if now.since(heard) >= QUIET => {
            format!("its keyspace was not heard for {} s, its last state is kept", now.since(heard).as_secs())
        }
        _ => verdict.map(|transition| transition.because.to_string()).unwrap_or_default(),
    }
}
