//! The views that peers read: one for each distinct filter, made when its first reader comes, shared by all with that filter.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use hawser_etcd::server::{KeyspaceHandle, ServedView};
use hawser_model::ClusterName;
use hawser_wire::Context;
use tokio::sync::watch;

use super::{Exports, Membership};
use crate::config::Config;

#[derive(Clone, Debug)]
pub struct Views(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    own: KeyspaceHandle,
    exports: watch::Sender<Arc<Exports>>,
    context: Context,
    made: Mutex<BTreeMap<u64, ServedView>>,
    /// Why what is on disk is not what counts.
    problem: Mutex<Option<String>>,
}

impl Views {
    pub fn new(own: KeyspaceHandle, config: &Config) -> Self {
        let context = Context { cluster: config.cluster.clone(), width: config.width };
        let exports = watch::Sender::new(Arc::new(config.exports.clone()));
        Self(Arc::new(Inner { own, exports, context, made: Mutex::default(), problem: Mutex::default() }))
    }

    /// Must be called in a tokio runtime. Cost: of the first call for a filter, that of the whole keyspace, elsewhere.
    pub fn of(&self, peer: &ClusterName) -> ServedView {
        let Inner { own, context, made, .. } = &*self.0;
        let exports = self.exports();
        let filter = exports.of(peer);
        let view = filter.view();
        let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
        let start = || {
            let (filter, context) = (Arc::clone(filter), context.clone());
            ServedView::start(own, view, move || Membership::new(Arc::clone(&filter), context.clone()))
        };
        made.entry(view).or_insert_with(start).clone()
    }

    pub fn cluster(&self) -> &ClusterName {
        &self.0.context.cluster.name
    }

    pub fn own(&self) -> &KeyspaceHandle {
        &self.0.own
    }

    pub fn exports(&self) -> Arc<Exports> {
        self.0.exports.borrow().clone()
    }

    /// Told of other filters, so that connections end that were begun with those before.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Exports>> {
        self.0.exports.subscribe()
    }

    /// From now on these count. Whose filter is another one, `default` among them. Views that nobody has any more end with their
    /// last reader.
    pub fn set(&self, exports: Exports) -> Vec<String> {
        let before = self.exports();
        if *before == exports {
            return Vec::new();
        }
        let filters = exports.filters().map(|filter| filter.view());
        let needed: BTreeSet<u64> = filters.collect();
        let changed = before.changed(&exports);
        self.0.exports.send_replace(Arc::new(exports));
        let mut made = self.0.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.retain(|view, _| needed.contains(view));
        changed
    }

    pub(super) fn note(&self, problem: Option<String>) {
        *self.0.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    pub fn problem(&self) -> Option<String> {
        self.0.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
