//! The node agent: drivers that feed `hawser-agent-core` and carry out what it says.

mod answers;
mod api;
pub mod causes;
mod clock;
pub mod config;
mod datapath;
mod driver;
mod follow;
mod interfaces;
mod join;
mod local_api;
mod memory;
mod metrics;
mod namespaces;
mod place;
mod preflight;
mod probes;
mod reconcile;
mod renewal;
pub mod run;
mod sock_diag;
mod state;
mod succession;
mod sweep;
mod used;
mod way;
