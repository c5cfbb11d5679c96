//! Which peers answer: liveness as a state machine that is handed the time and never opens a socket.
//!
//! One small UDP echo per node and half second over the mesh address (BFD, RFC 5880, takes its place later). Words that
//! the datapath reads are written from these verdicts, so a verdict never rests on our own sleep: silence counts only
//! while we really asked.

pub mod bfd;
mod liveness;
mod packet;
mod peer;

pub use liveness::{About, Deadline, Liveness, Output, Timer, Transition};
pub use packet::{ParseProbeError, Probe, ProbeKind};
pub use peer::{Because, LivenessConfig, NodeId, PeerSnapshot};

#[cfg(test)]
mod tests;
