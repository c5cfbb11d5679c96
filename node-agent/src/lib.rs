//! The node agent: drivers that feed `hawser-agent-core` and carry out what it says.

pub mod api;
pub mod clock;
pub mod config;
pub mod interfaces;
pub mod join;
pub mod preflight;
pub mod state;
