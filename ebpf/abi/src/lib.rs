//! What the kernel programs and the agent tell each other: every map's name, key and value, and every reason a packet
//! or a connection leaves with.
//!
//! * Addresses are 16 bytes everywhere ([`Addr`]; IPv4 as `::ffff:a.b.c.d`), ports are big-endian ([`Port`]).
//! * Every type is plain old data without padding, asserted at compile time ([`Plain`]).
//! * [`ABI_VERSION`] is part of the pin directory: another layout never meets these maps.
//! * What the agent wants to be in the maps is a [`DesiredDatapath`]: ordered maps keyed by the ABI's own keys. The loader
//!   (`hawser-ebpf`) writes the differences; ids, generations and runs are its business and nobody else's.
#![no_std]

#[cfg(not(target_arch = "bpf"))]
extern crate alloc;

mod addr;
mod blocks;
#[cfg(not(target_arch = "bpf"))]
mod desired;
#[cfg(not(target_arch = "bpf"))]
mod few;
mod layout;
mod maps;
pub mod reason;

pub use addr::{Addr, Port, PrefixKey};
pub use blocks::{BLOCK_WORDS, block, block_v4, block_v6, blocks};
#[cfg(not(target_arch = "bpf"))]
pub use desired::{BackendSpec, DesiredDatapath, ServiceSpec, SliceSpec, maglev_slots};
#[cfg(not(target_arch = "bpf"))]
pub use few::{FewMap, FewSet};
pub use layout::Plain;
pub use maps::*;
pub use reason::{Kind, Reason};

/// Raised with every change of a layout or of a meaning.
pub const ABI_VERSION: u32 = 5;
