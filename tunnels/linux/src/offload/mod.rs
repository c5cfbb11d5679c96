//! Segmentation and coalescing between a TUN with `IFF_VNET_HDR` and a tunnel's MTU: arithmetic on bytes, no IO.
//!
//! One read of the TUN can be 64 KiB of one TCP stream; [`split`] makes of it the packets that the tunnel carries.
//! What arrives in small packets is laid together again by [`join`], so that one write carries it to the kernel.
//! Without both, system calls and soft interrupts cost ten times what the cipher does (`tunnel-engine.md`).

mod checksum;
pub(crate) mod join;
pub(crate) mod packet;
pub(crate) mod split;
#[cfg(test)]
mod tests;
pub(crate) mod too_big;
pub(crate) mod vnet;
