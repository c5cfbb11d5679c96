//! Where a key of the state layout is in the cached one (cilium-facts §1.2).

use hawser_kvstore::KeyRange;
use hawser_model::ClusterName;
use hawser_wire::{Key, Resource, prefix};

/// What Cilium knows; our own resources are not in its layouts.
pub(super) const RESOURCES: [Resource; 6] = [
    Resource::Nodes,
    Resource::Identities,
    Resource::Ips,
    Resource::Services,
    Resource::EndpointSlices,
    Resource::ServiceExports,
];

/// What a key of a mirror is to the cached layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The same value, under this key.
    Data(String),
    /// Rewritten: its own data lies elsewhere here.
    Config,
    Canary(Resource),
    /// A heartbeat, our own resources.
    Nowhere,
}

/// Where `key` of `cluster`'s mirror goes. Mirrors hold what was admitted, so nothing is checked again. Cost: one text.
pub(super) fn place(cluster: &ClusterName, key: &[u8]) -> Place {
    let Ok(key) = str::from_utf8(key) else { return Place::Nowhere };
    if key.starts_with(prefix::STATE) {
        // The prefixes of a resource in both layouts differ in their heads alone.
        let cached = |resource: Resource| {
            let rest = key.strip_prefix(resource.prefix(cluster).as_str())?;
            Some(resource.cached_prefix(cluster) + rest)
        };
        return RESOURCES.into_iter().find_map(cached).map_or(Place::Nowhere, Place::Data);
    }
    match Key::parse(key.as_bytes()) {
        Ok(Key::ClusterConfig(name)) if name == *cluster => Place::Config,
        Ok(Key::Synced { cluster: of, resource }) if of == *cluster && RESOURCES.contains(&resource) => {
            Place::Canary(resource)
        }
        _ => Place::Nowhere,
    }
}

pub(super) fn config(cluster: &ClusterName) -> String {
    Key::ClusterConfig(cluster.clone()).to_string()
}

/// `cilium/synced/<cluster>/cilium/cache/...`
pub(super) fn canary(cluster: &ClusterName, resource: Resource) -> String {
    let state = resource.canary();
    let cached = state.replacen(prefix::STATE, prefix::CACHE, 1);
    format!("{}{cluster}/{cached}", prefix::SYNCED)
}

/// All that the layout has of a cluster, its config apart.
pub(super) fn ranges(cluster: &ClusterName) -> Vec<KeyRange> {
    let synced = KeyRange::prefix(format!("{}{cluster}/", prefix::SYNCED));
    let data = RESOURCES.iter().map(|resource| KeyRange::prefix(resource.cached_prefix(cluster)));
    std::iter::once(synced).chain(data).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a real KVStoreMesh wrote of a real Cilium's keys: the same keys, from what it read.
    #[test]
    fn keys_go_where_kvstoremesh_puts_them() {
        let fixture = include_str!("../../../model/wire/testdata/cilium-keyspace.txt");
        let (c1, rest) = fixture.split_once("##### c2 etcd").unwrap();
        let (c2, _) = rest.split_once("##### kvstoremesh API").unwrap();
        let keys = |text: &'static str| text.lines().filter_map(|line| line.strip_prefix("KEY   "));
        let cluster = ClusterName::parse("c1").unwrap();
        let mut ours: Vec<String> = keys(c1)
            .filter_map(|key| match place(&cluster, key.as_bytes()) {
                Place::Data(key) => Some(key),
                Place::Config => Some(config(&cluster)),
                Place::Canary(resource) => Some(canary(&cluster, resource)),
                Place::Nowhere => None,
            })
            .collect();
        ours.sort();
        assert_eq!(ours, keys(c2).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_ours_or_another_clusters_goes_nowhere() {
        let cluster = ClusterName::parse("c1").unwrap();
        for key in [
            "cilium/.heartbeat",
            "cilium/state/nodes/v1/c10/n",
            "cilium/state/later/v1/c1/x",
            "cilium/cluster-config/c10",
            "cilium/synced/c10/cilium/state/nodes/v1",
            "cilium/synced/c1/hawser/state/nodes/v1",
            "hawser/state/nodes/v1/c1/n",
            "hawser/local/peers/v1/c1",
        ] {
            assert_eq!(place(&cluster, key.as_bytes()), Place::Nowhere, "{key}");
        }
    }
}
