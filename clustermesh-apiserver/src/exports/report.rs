//! What `hawser export` shows: who is exported what, and how much of it stays home.

use std::collections::BTreeSet;

use hawser_api::admin::{ExportCount, ExportedService, ExportsReply, PeerExport};
use hawser_etcd::server::KeyspaceHandle;
use hawser_kvstore::{KeyRange, RangeQuery};
use hawser_model::ClusterName;
use hawser_wire::Resource;

use super::Views;

/// Services named in one answer.
const MOST_SERVICES: usize = 10_000;

/// Of one peer, its services by name, or of every peer that is connected or has a filter of its own. None: no such peer.
/// Cost: the keys of the own keyspace, for each.
pub async fn report(
    views: &Views,
    connected: &BTreeSet<ClusterName>,
    one: Option<&ClusterName>,
) -> Option<ExportsReply> {
    let exports = views.exports();
    let known: BTreeSet<_> = connected.iter().chain(exports.named()).collect();
    let mut reply = ExportsReply { cluster: views.cluster().to_string(), ..Default::default() };
    match one {
        Some(peer) if !known.contains(peer) => return None,
        Some(peer) => {
            let export = of(views, peer, connected.contains(peer)).await;
            (reply.services, reply.services_left_out) = services(views, peer).await;
            reply.peers.push(export);
        }
        None => {
            for peer in known {
                reply.peers.push(of(views, peer, connected.contains(peer)).await);
            }
        }
    }
    Some(reply)
}

async fn of(views: &Views, peer: &ClusterName, connected: bool) -> PeerExport {
    let exports = views.exports();
    let filter = exports.of(peer);
    let shown = views.of(peer).ready().await;
    let count = |resource: Resource| {
        let keys = KeyRange::prefix(resource.prefix(views.cluster()));
        let visible = shown.as_ref().map_or(0, |shown| count(shown, &keys));
        // The own keyspace may be a change ahead of the view.
        Some(ExportCount { visible, hidden: count(views.own(), &keys).saturating_sub(visible) })
    };
    PeerExport {
        peer: peer.to_string(),
        connected,
        filter: exports.place_of(peer),
        selects: filter.to_string(),
        view: format!("{:016x}", filter.view()),
        services: count(Resource::Services),
        endpoints: count(Resource::Ips),
        identities: count(Resource::Identities),
        nodes: count(Resource::Nodes),
    }
}

fn count(keyspace: &KeyspaceHandle, keys: &KeyRange) -> u32 {
    let query = RangeQuery { count_only: true, ..RangeQuery::new(keys.clone()) };
    let counted = keyspace.keyspace().read(|keyspace| keyspace.range(&query));
    counted.map_or(0, |reply| u32::try_from(reply.count).unwrap_or(u32::MAX))
}

/// `namespace/name` of what a keyspace holds.
fn names(keyspace: &KeyspaceHandle, prefix: &str) -> BTreeSet<String> {
    let query = RangeQuery::new(KeyRange::prefix(prefix.to_owned()));
    let kvs = keyspace.keyspace().read(|keyspace| keyspace.range(&query)).map(|reply| reply.kvs);
    let name = |key: &[u8]| String::from_utf8_lossy(key.get(prefix.len()..).unwrap_or_default()).into_owned();
    kvs.unwrap_or_default().iter().map(|kv| name(&kv.key)).collect()
}

async fn services(views: &Views, peer: &ClusterName) -> (Vec<ExportedService>, u32) {
    let prefix = Resource::Services.prefix(views.cluster());
    let shown = views.of(peer).ready().await.map(|shown| names(&shown, &prefix)).unwrap_or_default();
    let all = names(views.own(), &prefix);
    let left_out = u32::try_from(all.len().saturating_sub(MOST_SERVICES)).unwrap_or(u32::MAX);
    let service = |service: String| ExportedService { visible: shown.contains(&service), service };
    (all.into_iter().take(MOST_SERVICES).map(service).collect(), left_out)
}
