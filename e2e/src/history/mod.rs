//! The history checker: writers, watchers and faults against the real processes, and a judge of what was recorded.
//!
//! What it proves: every acknowledged write is seen exactly once and in order by every watcher that asked from before
//! it. [`check`] is a pure function of a [`record::History`]; everything else makes histories.

pub mod check;
#[cfg(test)]
mod check_tests;
pub mod cluster;
pub mod dial;
pub mod disk;
pub mod faults;
pub mod record;
pub mod soak;
pub mod story;
pub mod violation;
pub mod watchers;
pub mod wire;
pub mod world;
pub mod writers;

pub use soak::{Options, Round, round, run};
pub use world::Store;
