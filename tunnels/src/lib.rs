//! Tunnels as values: who owns which prefix, the difference between what is and what should be, and the proof that
//! carrying it out opens no hole.
//!
//! ```text
//! Desired ──resolve──> (one owner per key and prefix, Problems)
//!             │              │
//! Observed ───┴─────────── plan ──> [Op, Op, ..] ── check ──> a driver applies them, in order
//!
//! Settled, Desired before ── follow ──> the same, of what changed alone
//! ```
//! No IO, no clock. The kernel is spoken to by `hawser-tunnels-linux`, which knows nothing of clusters.

mod check;
mod desired;
mod gateway;
mod ipsec;
mod keys;
mod mtu;
mod observed;
mod op;
mod owners;
mod plan;
mod prefix;
mod resolve;
mod rotation;
mod settled;

pub use check::{Violation, check};
pub use desired::{Desired, Device, DeviceName, Family, Mark, ParseDeviceNameError, Peer, PeerName, Rule};
pub use gateway::{DWELL, DWELL_MOST, GatewayChoice, MOST_CANDIDATES, PairEnd, rank};
pub use ipsec::{
    Derivation, End, EspKey, Keyring, MIN_SECRET, MeshSecret, ParseSecretError, SALT, SMALLEST_SPI, Sa,
};
pub use mtu::{
    Carrier, DEFAULT_ESP_MTU, DEFAULT_MTU, MIN_MTU_IPV6, inner_mtu, longest, outer_overhead, tcp_mss,
};
pub use observed::{Observed, ObservedDevice, ObservedPeer};
pub use op::Op;
pub use plan::{Plan, plan};
pub use prefix::PrefixTable;
pub use resolve::{Problem, Resolved, resolve};
pub use rotation::{Carried, MOST_RECEIVED, Receiving, Sending, StillInUse, Wear};
pub use settled::Settled;
