//! The task of one cluster: feeds its mirror to [`Fill`], and what that says to the cache.

use std::time::Duration;

use hawser_etcd::server::KeyspaceHandle;
use hawser_kvstore::{Cursor, KeyRange, PullLimits, Pulled, RangeQuery, SharedKv};
use hawser_model::ClusterName;
use hawser_wire::{Context, prefix};

use super::fill::Fill;
use super::{Cached, layout};
use crate::peers;
use crate::trust::now;

/// How often it is looked whether the mirror is still the same one, and the cluster connected.
const LOOK: Duration = Duration::from_secs(1);

/// Follows the mirror of `name` for as long as there is one, and drains the cluster when there is none for a while. The name again,
/// at the end.
pub(super) async fn follow(cached: Cached, name: String) -> String {
    let mut gone = None;
    let mut fill: Option<Fill> = None;
    loop {
        if let Some((mirror, context)) = connected(&cached, &name) {
            gone = None;
            let fill = fill.insert(Fill::new(context));
            mirror_of(&cached, &mirror, fill).await;
            continue;
        }
        // What never was followed left nothing.
        let Some(fill) = &mut fill else { return name };
        let since = *gone.get_or_insert_with(|| {
            cached.apply(vec![fill.handle_gone()]);
            tracing::debug!(cluster = name, "gone from the cached layout; its data stays for a while");
            tokio::time::Instant::now()
        });
        if since.elapsed() >= cached.linger {
            cached.apply(fill.drain());
            return name;
        }
        tokio::time::sleep(LOOK.min(cached.linger)).await;
    }
}

/// The mirror, and whose it is by the list of peers.
fn connected(cached: &Cached, name: &str) -> Option<(KeyspaceHandle, Context)> {
    let mirror = cached.keyspaces.get(name)?;
    let mut peers = peers::admitted(&cached.own, &cached.config).into_iter();
    let (peer, _) = peers.find(|(peer, _)| peer.cluster.name.as_str() == name)?;
    Some((mirror, Context { cluster: peer.cluster, width: cached.config.width }))
}

/// Until it is another one, or none.
async fn mirror_of(cached: &Cached, mirror: &KeyspaceHandle, fill: &mut Fill) {
    let mut changes = mirror.keyspace().subscribe();
    let mut cursor = None;
    loop {
        while pull(cached, mirror, fill, &mut cursor) {
            tokio::task::yield_now().await;
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(LOOK) => {
                if !cached.keyspaces.get(mirror.name()).is_some_and(|now| now.same_keyspace(mirror)) {
                    return;
                }
            }
        }
    }
}

/// Takes what is new, all of it the first time and when too much was; true when there is more.
fn pull(cached: &Cached, mirror: &KeyspaceHandle, fill: &mut Fill, cursor: &mut Option<Cursor>) -> bool {
    let all = KeyRange::all();
    let Some(from) = cursor else {
        let listed = mirror.keyspace().read(|keyspace| {
            let kvs = keyspace.range(&RangeQuery::new(all)).map(|reply| reply.kvs).unwrap_or_default();
            (keyspace.revision(), kvs, keyspace.watch(0).ok())
        });
        let (revision, kvs, watched) = listed;
        if revision == 0 {
            // It has read nothing yet, which is not to have read that there is nothing.
            return false;
        }
        let name = ClusterName::parse(mirror.name()).ok();
        let had = name.map(|name| held(cached, &name)).unwrap_or_default();
        cached.apply(fill.handle_list(&kvs, &had, now()));
        *cursor = watched;
        return false;
    };
    match mirror.keyspace().read(|keyspace| keyspace.pull(from, &all, PullLimits::default())) {
        Pulled::Events { events, more, .. } => {
            cached.apply(fill.handle_events(&events, now()));
            more
        }
        Pulled::FellBehind { .. } | Pulled::Replaced => {
            *cursor = None;
            true
        }
    }
}

/// What the cache has of a cluster. Cost: its keys.
fn held(cached: &Cached, cluster: &ClusterName) -> Vec<SharedKv> {
    let config = KeyRange::key(format!("{}{cluster}", prefix::CLUSTER_CONFIG));
    let ranges = layout::ranges(cluster).into_iter().chain([config]);
    cached.cache.read(|cache| {
        let of = |keys| cache.range(&RangeQuery::new(keys)).map(|reply| reply.kvs).unwrap_or_default();
        ranges.flat_map(of).collect()
    })
}
