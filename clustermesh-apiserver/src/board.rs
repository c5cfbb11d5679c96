//! What `hawser status` is told: written by the tasks, read by the Admin service.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};
use std::time::Instant;

use hawser_model::NodeName;
use hawser_telemetry::Watchdog;

#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// This replica leads: it is the one that exports.
    pub leads: bool,
    /// The source was read whole and is in the keyspace: by this process.
    pub exported: bool,
    pub source_problems: Vec<String>,
    pub export_problems: Vec<String>,
    /// The heartbeat is written even when nothing is exported: a store that fails is seen there within a minute.
    pub heartbeat_problem: Option<String>,
    /// Other clusters' endpoints cannot be written back to Kubernetes.
    pub writeback_problem: Option<String>,
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
pub struct Board {
    facts: RwLock<Facts>,
    watchdog: Watchdog,
}

impl Board {
    pub fn read(&self) -> Facts {
        self.facts.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where tasks say that they turn.
    pub fn watchdog(&self) -> &Watchdog {
        &self.watchdog
    }

    pub fn update<R>(&self, f: impl FnOnce(&mut Facts) -> R) -> R {
        f(&mut self.facts.write().unwrap_or_else(PoisonError::into_inner))
    }
}
