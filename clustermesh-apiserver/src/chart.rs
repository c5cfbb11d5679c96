//! How a cluster on Cilium is read (cilium-facts §1.11): what its config and canaries say of the rest. No IO.

use bytes::Bytes;
use hawser_etcd::mirror::{Chart, Plan, Signs, Source};
use hawser_kvstore::KeyRange;
use hawser_model::{ClusterConfig, ClusterIdWidth, ClusterRef, ExportMode};
use hawser_wire::{Context, Entry, Key, Resource, decode, encode_cluster_config, prefix};

/// What Cilium publishes, in the order of its agents' start.
const KINDS: [Resource; 6] = [
    Resource::Nodes,
    Resource::Identities,
    Resource::Ips,
    Resource::Services,
    Resource::EndpointSlices,
    Resource::ServiceExports,
];
/// Readers look only at a canary's being there.
const CANARY: &str = "1970-01-01T00:00:00Z";

/// A cluster on Cilium as it was admitted.
#[derive(Clone, Debug)]
pub struct CiliumChart {
    pub cluster: ClusterRef,
    pub width: ClusterIdWidth,
}

impl CiliumChart {
    fn config_key(&self) -> Key {
        Key::ClusterConfig(self.cluster.name.clone())
    }

    /// What its cluster-config says. It has to be the cluster that was admitted, of a mesh as wide as this one: other
    /// clusters, this one included, are told apart by the id, and it was taken from them when it was connected.
    fn config(&self, value: &[u8]) -> Result<ClusterConfig, String> {
        let context = Context { cluster: self.cluster.clone(), width: self.width };
        let name = &self.cluster.name;
        match decode(&self.config_key(), value, &context) {
            Ok(Entry::ClusterConfig(config)) => Ok(config),
            Ok(_) => Err(format!("{} is no cluster-config", self.config_key())),
            Err(error) => Err(format!(
                "cluster {name} is not read: {error}; fix: make cluster.id and maxConnectedClusters there and what was said here (`hawser connect --cilium FILE --id N`) the same"
            )),
        }
    }
}

fn is_published(kind: Resource, config: &ClusterConfig) -> bool {
    match kind {
        Resource::Services => config.endpoint_slices != ExportMode::SlicesOnly,
        Resource::EndpointSlices => config.endpoint_slices != ExportMode::ServicesOnly,
        Resource::ServiceExports => config.service_exports == Some(true),
        _ => true,
    }
}

fn name(kind: Resource) -> &'static str {
    match kind {
        Resource::Nodes => "nodes",
        Resource::Identities => "identities",
        Resource::Ips => "addresses",
        Resource::Services => "services",
        Resource::EndpointSlices => "endpoint slices",
        Resource::ServiceExports => "service exports",
        Resource::TunnelNodes => "tunnel nodes",
    }
}

impl Chart for CiliumChart {
    fn signs(&self) -> Vec<KeyRange> {
        vec![
            KeyRange::key(prefix::HEARTBEAT),
            KeyRange::key(self.config_key().to_string()),
            KeyRange::prefix(format!("{}{}/", prefix::SYNCED, self.cluster.name)),
        ]
    }

    fn heartbeat(&self) -> Bytes {
        prefix::HEARTBEAT.into()
    }

    fn plan(&self, signs: &Signs) -> Plan {
        let cluster = &self.cluster.name;
        let key = self.config_key().to_string();
        let Some(value) = signs.get(key.as_bytes()) else {
            return Plan::Wait(format!(
                "{key} is not there; fix: see that {cluster} is the cluster.name there, and that its clustermesh-apiserver runs"
            ));
        };
        let config = match self.config(value) {
            Ok(config) => config,
            Err(why) => return Plan::Refuse(why),
        };
        let source = |kind: Resource| {
            let (from, base) = match config.cached {
                true => {
                    (kind.cached_prefix(cluster), kind.canary().replacen(prefix::STATE, prefix::CACHE, 1))
                }
                false => (kind.prefix(cluster), kind.canary().to_owned()),
            };
            let said = format!("{}{cluster}/{base}", prefix::SYNCED);
            Source {
                name: name(kind),
                from: from.into(),
                to: kind.prefix(cluster).into(),
                published: is_published(kind, &config),
                complete: !config.synced_canaries || signs.contains_key(said.as_bytes()),
                canary: (Key::synced(cluster, kind).to_string().into(), CANARY.into()),
            }
        };
        let here = ClusterConfig { cached: false, synced_canaries: true, ..config.clone() };
        let stated = vec![(Bytes::from(key), encode_cluster_config(&here))];
        let layout = if config.cached { "cache" } else { "state" };
        Plan::Follow { layout, sources: KINDS.into_iter().map(source).collect(), stated }
    }
}

#[cfg(test)]
mod tests {
    use hawser_model::{ClusterId, ClusterName};

    use super::*;

    fn chart(id: u32, width: ClusterIdWidth) -> CiliumChart {
        let cluster = ClusterRef {
            name: ClusterName::parse("c1").unwrap(),
            id: ClusterId::new(id, ClusterIdWidth::Bits9).unwrap(),
        };
        CiliumChart { cluster, width }
    }

    fn signs(pairs: &[(&str, &str)]) -> Signs {
        pairs
            .iter()
            .map(|(key, value)| (Bytes::from((*key).to_owned()), Bytes::from((*value).to_owned())))
            .collect()
    }

    fn config(text: &str) -> Signs {
        signs(&[("cilium/cluster-config/c1", text)])
    }

    /// What a real clustermesh-apiserver and a real KVStoreMesh wrote.
    const STATE: &str = r#"{"id":1,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":true}}"#;
    const CACHE: &str = r#"{"id":1,"capabilities":{"syncedCanaries":true,"cached":true,"maxConnectedClusters":255,"serviceExportsEnabled":true}}"#;

    fn followed(plan: Plan) -> (&'static str, Vec<Source>, Vec<(Bytes, Bytes)>) {
        match plan {
            Plan::Follow { layout, sources, stated } => (layout, sources, stated),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_kind_is_read_when_its_canary_is_there_and_from_where_the_config_says() {
        let chart = chart(1, ClusterIdWidth::Bits8);
        for (text, layout, identities, canary) in [
            (STATE, "state", "cilium/state/identities/v1/id/", "cilium/synced/c1/cilium/state/identities/v1"),
            (
                CACHE,
                "cache",
                "cilium/cache/identities/v1/c1/id/",
                "cilium/synced/c1/cilium/cache/identities/v1",
            ),
        ] {
            let mut signs = config(text);
            let (said, sources, stated) = followed(chart.plan(&signs));
            assert_eq!((said, sources.iter().any(|source| source.complete)), (layout, false));
            signs.insert(canary.into(), "t".into());
            let (_, sources, _) = followed(chart.plan(&signs));
            let complete: Vec<_> = sources.iter().filter(|source| source.complete).collect();
            assert_eq!(complete.len(), 1);
            assert_eq!(
                (&complete[0].from[..], &complete[0].to[..]),
                (identities.as_bytes(), &b"cilium/state/identities/v1/id/"[..])
            );
            // Whoever reads the mirror sees one layout, whatever the cluster has.
            assert_eq!(stated[0].1, Bytes::from(STATE));
        }
    }

    #[test]
    fn a_cluster_without_canaries_is_read_at_once() {
        let (_, sources, _) = followed(chart(1, ClusterIdWidth::Bits8).plan(&config(r#"{"id":1}"#)));
        assert!(sources.iter().all(|source| source.complete));
    }

    #[test]
    fn services_and_slices_are_read_as_the_export_mode_says() {
        let chart = chart(1, ClusterIdWidth::Bits8);
        let names = |mode: &str| {
            let text = format!(r#"{{"id":1,"capabilities":{{"endpointSlicesExportMode":"{mode}"}}}}"#);
            let (_, sources, _) = followed(chart.plan(&config(&text)));
            assert_eq!(sources.len(), 6, "every kind is there, if only for its canary");
            sources
                .iter()
                .skip(3)
                .filter(|source| source.published)
                .map(|source| source.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(""), ["services"]);
        assert_eq!(names("services-and-endpointslices"), ["services", "endpoint slices"]);
        assert_eq!(names("endpointslices-only"), ["endpoint slices"]);
    }

    #[test]
    fn a_config_that_is_another_clusters_or_another_meshs_is_refused_with_a_sentence() {
        for (id, width, text) in [
            (1, ClusterIdWidth::Bits8, r#"{"id":2}"#),
            (1, ClusterIdWidth::Bits8, r#"{"id":0}"#),
            (1, ClusterIdWidth::Bits8, r#"{"id":300}"#),
            (1, ClusterIdWidth::Bits8, r#"{"id":1,"capabilities":{"maxConnectedClusters":511}}"#),
            (1, ClusterIdWidth::Bits9, r#"{"id":1,"capabilities":{"maxConnectedClusters":255}}"#),
            (1, ClusterIdWidth::Bits9, r#"{"id":1}"#),
            (1, ClusterIdWidth::Bits8, r#"{"id":1,"capabilities":{"endpointSlicesExportMode":"some"}}"#),
            (1, ClusterIdWidth::Bits8, "nonsense"),
        ] {
            match chart(id, width).plan(&config(text)) {
                Plan::Refuse(why) => assert!(why.contains("c1") && why.contains("fix: "), "{why}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        let wide = r#"{"id":400,"capabilities":{"maxConnectedClusters":511}}"#;
        followed(chart(400, ClusterIdWidth::Bits9).plan(&config(wide)));
        assert!(matches!(chart(1, ClusterIdWidth::Bits8).plan(&signs(&[])), Plan::Wait(_)));
    }
}
