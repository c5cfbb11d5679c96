//! An etcd v3 client for both kinds of server, real etcd and ours, over a channel that the caller made.
//!
//! The caller owns addresses, TLS and HTTP/2 settings. Recommended on the channel, so that a peer that vanished is
//! noticed below us too: `http2_keep_alive_interval(10 s)`, `keep_alive_timeout(5 s)`, `keep_alive_while_idle(true)`,
//! `connect_timeout(5 s)`, `tcp_nodelay(true)`. [`Client::follow`] asks for progress by itself and so notices
//! a peer that takes bytes and never answers.

mod bounded;
mod error;
mod follow;
mod members;
mod rpc;

pub use error::{CallError, Trouble};
pub use follow::{
    Follow, FollowConfig, FollowConfigError, FollowEvent, FollowState, FollowStatus, HeldBy, IntakeRate,
    Meter, Order, Pace, Relist, ResetReason, Resume,
};
pub use rpc::{Client, ClientConfigError};

/// No reply may be larger; a list page that would be is asked for again, smaller.
pub(crate) const MAX_MESSAGE: usize = 64 << 20;
