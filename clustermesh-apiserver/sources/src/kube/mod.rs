//! A Kubernetes API server as a source: one list-and-watch for each kind, the same events as the directory source.
//!
//! `follow` decides what to ask and what an answer means, with no IO; `split` and `decode` cut and read what comes;
//! `ask` speaks HTTP; `connect` finds the API server.

mod ask;
mod connect;
mod decode;
mod follow;
mod resource;
mod source;
mod split;

pub use connect::{ConnectError, KubeOptions, connect};
pub(crate) use follow::Failure;
pub use follow::Pace;
pub use source::KubeSource;
pub(crate) use split::ListSplitter;
