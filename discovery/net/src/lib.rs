//! Liveness on the wire: [`hawser_discovery`]'s cores with their sockets. Decides nothing.

mod bfd;
mod prober;
mod socket;

use std::sync::Arc;
use std::time::Duration;

use hawser_model::Time;

pub use bfd::{Bfd, BfdChange, BfdConfig, BfdGone, BfdSession, BfdSnapshot, Intervals, MAX_PEERS, spawn_bfd};
pub use prober::{Counters, Prober, ProberConfig, ProberGone, ProberSnapshot, Verdict, spawn_prober};
pub use socket::BindError;

/// Where a task takes the time from; the agent has one clock.
pub type Clock = Arc<dyn Fn() -> Time + Send + Sync>;

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
