//! Who is used, seen and heard: asked of the tunnels, the probing task and users' connections, and told on.

use std::collections::{BTreeMap, BTreeSet};

use hawser_discovery::NodeId;
use hawser_model::{Encryption, PublicKey};
use hawser_tunnels::Peer;
use hawser_tunnels_linux::{Driver as _, Stats};
use tokio::sync::mpsc;

use super::{Done, Driver, Now};
use crate::answers;
use crate::used;

impl Driver {
    /// Asks the tunnels what they carried; and, where they know no session, the probing task who answers.
    pub(super) fn count(&self, now: &Now, done: &mpsc::Sender<Done>, regular: bool) {
        let (tunnels, done, clock) = (self.tunnels.clone(), done.clone(), self.clock);
        let sessions = self.agent.config().encryption == Encryption::Wireguard;
        let wanted = !sessions || self.agent.meets_at_gateways();
        let prober = now.prober.as_ref().filter(|_| wanted).map(|(prober, _)| prober.clone());
        tokio::spawn(async move {
            let stats = tokio::task::spawn_blocking(move || tunnels.stats().ok()).await;
            let seen = match prober {
                Some(prober) => prober.snapshot().await.ok(),
                None => None,
            };
            let answering = seen.as_ref().filter(|_| !sessions);
            let answering = answering.map(|seen| used::answering(seen, clock.now()));
            let heard = seen.map(|seen| used::heard(&seen)).unwrap_or_default();
            let stats = stats.ok().flatten();
            let _ = done.send(Done::Counted { stats, answering, heard, regular }).await;
        });
    }

    pub(super) fn keys_of(&self, nodes: &BTreeSet<NodeId>) -> BTreeSet<PublicKey> {
        let ids = answers::node_ids(&self.agent);
        let peers = self.agent.plan().tunnels.iter().flat_map(|desired| &desired.peers);
        let of = |peer: &&Peer| {
            let name = (peer.name.cluster.name.to_string(), peer.name.node.to_string());
            ids.get(&name).is_some_and(|id| nodes.contains(id))
        };
        peers.filter(of).map(|peer| peer.public_key).collect()
    }

    /// Tells the probing task what users' connections came to.
    pub(super) async fn sample(&self, now: &mut Now) {
        let Some((prober, _)) = &now.prober else { return };
        let told = now.users.look(&self.agent, &self.datapath, self.clock.now());
        if !told.is_empty() {
            // A task that ended is started again with the next reconcile.
            let _ = prober.users(told).await;
        }
    }

    pub(super) async fn counted(&self, stats: &Stats, now: &mut Now) {
        let ids = answers::node_ids(&self.agent);
        let peers = self.agent.plan().tunnels.iter().flat_map(|desired| &desired.peers);
        let id = |peer: &Peer| {
            let name = (peer.name.cluster.name.to_string(), peer.name.node.to_string());
            Some((peer.public_key, *ids.get(&name)?))
        };
        let nodes: BTreeMap<_, _> = peers.clone().filter_map(id).collect();
        let gateways = self.agent.own_nodes().chain(nodes.iter().map(|(key, id)| (*key, *id))).collect();
        let mut used = now.used.look(stats, &gateways, &self.config.liveness);
        // What a gateway carries may be for any of those that it carries for.
        let carried =
            peers.filter_map(|peer| Some((*nodes.get(&peer.public_key)?, *gateways.get(&peer.via?)?)));
        used.extend(
            carried.filter(|(_, gateway)| used.contains(gateway)).map(|(node, _)| node).collect::<Vec<_>>(),
        );
        used.retain(|node| node.cluster != self.agent.config().cluster.id);
        if let Some((prober, _)) = now.prober.as_ref().filter(|_| !used.is_empty()) {
            // A task that ended is started again with the next reconcile.
            let _ = prober.used(used).await;
        }
    }
}
