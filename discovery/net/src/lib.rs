//! Echo over the mesh: one UDP socket, one task, one [`hawser_discovery::Liveness`]. Decides nothing.

mod echo;
mod socket;

pub use echo::{Clock, Counters, Echo, EchoConfig, EchoGone, EchoSnapshot, spawn};
pub use socket::BindError;

#[cfg(test)]
mod tests;
