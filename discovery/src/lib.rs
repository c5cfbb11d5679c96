//! Which peers answer, and where: liveness and the choice of an endpoint as state machines that are handed the time and
//! never open a socket.
//!
//! Between Hawser nodes it is seamless BFD over the mesh addresses ([`Liveness`]); with others plain BFD ([`bfd`]). Words
//! that the datapath reads are written from these verdicts, so a verdict never rests on our own sleep: silence counts only
//! while we really asked.

pub mod bfd;
mod budget;
mod damping;
mod endpoint;
mod grey;
mod liveness;
mod path;
mod peer;
mod sbfd;
mod sharers;

pub use budget::{Budget, FOR_OTHERS, FOR_WATCHED, MOST_PACKETS, RECENTLY, WATCHED_CLUSTERS, budget};
pub use damping::DampingConfig;
pub use endpoint::{EndpointChoice, MOST_ENDPOINTS, PATIENCE, PATIENCE_MOST, PeerSeen};
pub use grey::{Greyness, LEAST as LEAST_FAILURES, REST, STEPS, Users, WINDOW, Why};
pub use liveness::{
    About, Deadline, LARGE_EVERY, Liveness, MOST_FOUND, Output, SAMPLE, SHARING_STALE, Shared, SharingCounts,
    Timer, Transition,
};
pub use path::multiplier;
pub use peer::{Because, LivenessConfig, NodeId, PeerSnapshot, Reflector};
pub use sbfd::{PORT as REFLECTOR_PORT, discriminator_of};
pub use sharers::{MOST_SHARERS, Sharers};

#[cfg(test)]
mod tests;
