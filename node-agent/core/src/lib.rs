//! `MeshView` and the planners: what all clusters say, and what this node's tunnels, maps and words should be for it.
//!
//! ```text
//! keyspaces ──> MeshView ──remotes──> tunnels (hawser_tunnels::Desired)
//!                    │         ├────> datapath (hawser_ebpf_abi::DesiredDatapath)
//!                    │         └────> whom to probe
//! verdicts ─────> HealthWords ───────> single words, at once
//! ```
//! Pure: no IO, no clock, no log. [`Agent`] is the one state machine; the rest are functions of the view.

mod agent;
mod budget;
mod choices;
mod config;
mod drains;
mod eligible;
mod endpoints;
mod flips;
mod gateways;
mod guards;
mod health;
mod kept;
mod output;
mod plan_datapath;
mod plan_tunnels;
mod resets;
mod services;
mod slices;
mod slots;
mod spread;
mod status;
mod topology;
mod verdicts;
mod view;

pub use agent::{Agent, DEBOUNCE, DRAIN, FIRST_PLAN, GATHER, OWN_LOST, OWN_STALE, RESYNC, RETRY};
pub use config::AgentConfig;
pub use drains::Draining;
pub use eligible::{BackendStatus, backends};
pub use flips::{Flip, Newcomer};
pub use guards::GUARD_REST;
pub use health::{HealthWords, WordCounts, WordPlace, WordWrite};
pub use kept::{KeptBackends, KeptEndpoint, KeptService, Served};
pub use output::{Deadline, Output, Plan, Timer};
pub use plan_datapath::Interfaces;
pub use services::{MergedBackend, MergedPort, MergedService, State};
pub use slices::Slices;
pub use slots::{NodeSlots, REST, SLOT_NONE};
pub use status::{ClusterStatus, ControlPlane, Noted, ServiceStatus};
pub use verdicts::{Standing, Verdicts, combine};
pub use view::{Changed, ClusterView, MeshView, Refused};

#[cfg(test)]
mod tests;
