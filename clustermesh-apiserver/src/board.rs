//! What `hawser status` is told: written by the tasks, read by the Admin service.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};
use std::time::Instant;

use hawser_model::NodeName;

#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub source_problems: Vec<String>,
    pub export_problems: Vec<String>,
    /// The heartbeat is written even when nothing is exported: a store that fails is seen there within a minute.
    pub heartbeat_problem: Option<String>,
    pub identities: u32,
    pub endpoints: u32,
    pub services: u32,
    /// The nodes of the source: index, and when their agent last spoke.
    pub nodes: BTreeMap<NodeName, NodeFacts>,
}

#[derive(Clone, Debug, Default)]
pub struct NodeFacts {
    pub index: u16,
    pub mesh_ipv4: String,
    pub reported: Option<Instant>,
}

#[derive(Debug, Default)]
pub struct Board(RwLock<Facts>);

impl Board {
    pub fn read(&self) -> Facts {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn update<R>(&self, f: impl FnOnce(&mut Facts) -> R) -> R {
        f(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }
}
