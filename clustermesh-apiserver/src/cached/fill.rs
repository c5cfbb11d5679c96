//! One cluster of the cached layout: what its mirror holds and tells, as operations on the cache. Pure.
//!
//! The config first, so that a reader knows to wait for canaries; these last, and never taken back (readers ignore that too).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use hawser_kvstore::{DeleteRange, Event, EventKind, KeyRange, Op, Put, SharedKv};
use hawser_model::{ClusterConfig, ExportMode, Timestamp};
use hawser_wire::{Context, Entry, Key, Resource, decode, encode_synced};

use super::layout::{self, Place, RESOURCES};

#[derive(Debug)]
pub(super) struct Fill {
    context: Context,
    config: Option<ClusterConfig>,
    /// Canaries of the mirror, and those that are written here.
    synced: BTreeSet<Resource>,
    told: BTreeSet<Resource>,
}

fn put(key: impl Into<Bytes>, value: Bytes) -> Op {
    Op::Put(Put::new(key, value))
}

fn delete(key: impl Into<Bytes>) -> Op {
    Op::DeleteRange(DeleteRange::new(KeyRange::key(key.into())))
}

impl Fill {
    pub(super) fn new(context: Context) -> Self {
        Self { context, config: None, synced: BTreeSet::new(), told: BTreeSet::new() }
    }

    /// All that the mirror holds, against all that the cache has of the cluster: the differences. Cost: both.
    pub(super) fn handle_list(&mut self, mirror: &[SharedKv], cache: &[SharedKv], now: Timestamp) -> Vec<Op> {
        let cluster = self.context.cluster.name.clone();
        let mut had: HashMap<Bytes, Bytes> =
            cache.iter().map(|kv| (kv.key.clone(), kv.value.clone())).collect();
        (self.config, self.synced) = (None, BTreeSet::new());
        self.told = RESOURCES
            .into_iter()
            .filter(|kind| had.remove(layout::canary(&cluster, *kind).as_bytes()).is_some())
            .collect();
        let was_config = had.remove(layout::config(&cluster).as_bytes());
        let mut data = Vec::new();
        for kv in mirror {
            match layout::place(&cluster, &kv.key) {
                Place::Data(key) => match had.remove(key.as_bytes()) {
                    Some(value) if value == kv.value => {}
                    _ => data.push(put(key, kv.value.clone())),
                },
                Place::Config => self.read_config(&kv.value),
                Place::Canary(resource) => _ = self.synced.insert(resource),
                Place::Nowhere => {}
            }
        }
        let mut ops = Vec::with_capacity(data.len() + had.len() + 1);
        match (self.write_config(), was_config) {
            (Some(value), Some(was)) if value == was => {}
            (Some(value), _) => ops.push(put(layout::config(&cluster), value)),
            (None, Some(_)) => ops.push(delete(layout::config(&cluster))),
            (None, None) => {}
        }
        ops.extend(data);
        ops.extend(had.into_keys().map(delete));
        ops.extend(self.canaries(now));
        ops
    }

    /// Cost: the events.
    pub(super) fn handle_events(&mut self, events: &[Arc<Event>], now: Timestamp) -> Vec<Op> {
        let cluster = self.context.cluster.name.clone();
        let mut ops = Vec::with_capacity(events.len());
        for event in events {
            let is_put = event.kind() == EventKind::Put;
            match layout::place(&cluster, &event.kv().key) {
                Place::Data(key) if is_put => ops.push(put(key, event.kv().value.clone())),
                Place::Data(key) => ops.push(delete(key)),
                Place::Config => {
                    self.config = None;
                    if is_put {
                        self.read_config(&event.kv().value);
                    }
                    let key = layout::config(&cluster);
                    ops.push(match self.write_config() {
                        Some(value) => put(key, value),
                        None => delete(key),
                    });
                }
                Place::Canary(resource) if is_put => _ = self.synced.insert(resource),
                Place::Canary(_) | Place::Nowhere => {}
            }
        }
        ops.extend(self.canaries(now));
        ops
    }

    /// The cluster is disconnected: nobody begins to read it any more.
    pub(super) fn handle_gone(&mut self) -> Op {
        self.config = None;
        delete(layout::config(&self.context.cluster.name))
    }

    /// And what was read of it goes.
    pub(super) fn drain(&self) -> Vec<Op> {
        let all = layout::ranges(&self.context.cluster.name).into_iter();
        all.map(|keys| Op::DeleteRange(DeleteRange::new(keys))).collect()
    }

    fn read_config(&mut self, value: &[u8]) {
        let key = Key::ClusterConfig(self.context.cluster.name.clone());
        if let Ok(Entry::ClusterConfig(config)) = decode(&key, value, &self.context) {
            self.config = Some(config);
        }
    }

    /// As the cluster says it, its data lying here.
    fn write_config(&self) -> Option<Bytes> {
        let config = self.config.clone()?;
        Some(Entry::ClusterConfig(ClusterConfig { synced_canaries: true, cached: true, ..config }).encode())
    }

    /// Those that are due and were not written: also of what the cluster does not publish, so that no reader waits for ever.
    fn canaries(&mut self, now: Timestamp) -> Vec<Op> {
        let Some(config) = &self.config else { return Vec::new() };
        let published = |resource| match resource {
            Resource::Services => config.endpoint_slices != ExportMode::SlicesOnly,
            Resource::EndpointSlices => config.endpoint_slices != ExportMode::ServicesOnly,
            Resource::ServiceExports => config.service_exports.is_some(),
            _ => true,
        };
        // Whoever writes none is complete once a list of his is.
        let due = |resource: &Resource| {
            !config.synced_canaries || self.synced.contains(resource) || !published(*resource)
        };
        // Of what nobody publishes only after something that is: the list is whole then.
        let begun = !config.synced_canaries || !self.synced.is_empty();
        let due: Vec<Resource> =
            RESOURCES.into_iter().filter(|kind| begun && due(kind) && !self.told.contains(kind)).collect();
        self.told.extend(&due);
        let cluster = &self.context.cluster.name;
        due.into_iter().map(|kind| put(layout::canary(cluster, kind), encode_synced(now))).collect()
    }
}

#[cfg(test)]
#[path = "fill_tests.rs"]
mod tests;
