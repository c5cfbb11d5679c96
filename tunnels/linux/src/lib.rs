//! Tunnels in Linux: carries out what `hawser-tunnels` planned, and decides nothing.
//!
//! ```text
//!               Op                                 ┌─ generic netlink ──> the kernel's WireGuard
//! hawser-tunnels ──> WireguardDriver ──wireguard-control
//!                          │                        └─ get=1, set=1 ──> uapi ──> engine ── TUN (persistent)
//!                          │                          (the `wg` tool speaks both)     └── UDP (marked)
//!                          └──netlink──> link, addresses, routes, rules
//! ```
//! Stop is not remove: dropping a driver leaves device, routes and rules in place, and the next start adopts them.

mod clock;
mod driver;
mod engine;
mod esp;
mod key;
mod net;
mod noise;
mod offload;
mod tun;
mod uapi;
mod user_ipsec;
mod wg;
mod wireguard;
mod xfrm;

pub use driver::{Driver, DriverError, KeysInUse, PeerStats, Stats};
pub use engine::{
    AssociateError, Engine, EngineError, EngineSettings, MAX_MTU, MOST_INBOUND, MOST_LANES, Protocol,
};
pub use key::{KeyError, PrivateKey};
pub use net::Kind;
pub use uapi::{SetDevice, SetPeer, parse_set};
pub use user_ipsec::UserIpsecDriver;
pub use wireguard::{Choice, ConfigError, WireguardConfig, WireguardDriver, kernel_listens};
pub use xfrm::{IpsecConfig, IpsecDriver, IpsecLeftovers};
