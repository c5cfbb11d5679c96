//! Tunnels in Linux: carries out what `hawser-tunnels` planned, and decides nothing.
//!
//! ```text
//!               Op                        get=1, set=1 (unix socket, the `wg` tool speaks it too)
//! hawser-tunnels ──> UserspaceDriver ──wireguard-control──> uapi ──> engine ── TUN (persistent)
//!                          │                                           └────── UDP (marked)
//!                          └──netlink──> link, addresses, routes, rules
//! ```
//! Stop is not remove: dropping a driver leaves device, routes and rules in place, and the next start adopts them.

mod driver;
mod engine;
mod key;
mod net;
mod offload;
mod tun;
mod uapi;
mod userspace;
mod wg;

pub use driver::{Driver, DriverError, PeerStats, Stats};
pub use engine::{Engine, EngineError, EngineSettings, MAX_MTU};
pub use key::{KeyError, PrivateKey};
pub use uapi::{SetDevice, SetPeer, parse_set};
pub use userspace::{ConfigError, EngineConfig, UserspaceDriver};
