//! The views that peers read: one for each distinct filter, made when its first reader comes, shared by all with that filter.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use hawser_etcd::server::{KeyspaceHandle, ServedView};
use hawser_model::ClusterName;
use hawser_wire::Context;

use super::{Exports, Membership};
use crate::config::Config;

#[derive(Clone, Debug)]
pub struct Views(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    own: KeyspaceHandle,
    exports: Exports,
    context: Context,
    made: Mutex<BTreeMap<u64, ServedView>>,
}

impl Views {
    pub fn new(own: KeyspaceHandle, config: &Config) -> Self {
        let context = Context { cluster: config.cluster.clone(), width: config.width };
        let exports = config.exports.clone();
        Self(Arc::new(Inner { own, exports, context, made: Mutex::default() }))
    }

    /// Must be called in a tokio runtime. Cost: of the first call for a filter, that of the whole keyspace, elsewhere.
    pub fn of(&self, peer: &ClusterName) -> ServedView {
        let Inner { own, exports, context, made } = &*self.0;
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

    pub fn exports(&self) -> &Exports {
        &self.0.exports
    }
}
