//! What the kernel programs decide, as ordinary Rust: no helpers, no maps, no kernel; traits stand for look-ups.
//!
//! Everything here runs twice: in the kernel, where the verifier must be able to follow it (bounded loops, no panics, no
//! large values), and on the host, where the tests compare it with naive models.
#![no_std]

pub mod choice;
pub mod enter;
pub mod gateway;
pub mod guard;
pub mod maglev;
pub mod mss;
pub mod nat;
pub mod packet;
pub mod pin;
pub mod random;
pub mod reflect;
pub mod refuse;
pub mod reset;
pub mod users;
pub mod verdict;

use hawser_ebpf_abi::{HEALTH_FULL_WEIGHT, HEALTH_NO_NEW, HEALTH_WEIGHT_MASK};

/// The weight a health word leaves for new connections, at most full; 0 = takes none. The same rule as
/// `hawser_model::HealthWord`.
#[inline(always)]
pub const fn weight_of(word: u32) -> u32 {
    let weight = word & HEALTH_WEIGHT_MASK;
    if word & HEALTH_NO_NEW != 0 {
        0
    } else if weight > HEALTH_FULL_WEIGHT {
        HEALTH_FULL_WEIGHT
    } else {
        weight
    }
}

/// The same number, of which the verifier knows nothing any more: in a loop it would otherwise walk every value the number
/// can have by then. It does not see that an unknown number is mixed in and out again; the compiler must not see it either.
#[inline(always)]
fn forgotten(value: u32, unknown: u64) -> u32 {
    core::hint::black_box(value ^ unknown as u32) ^ unknown as u32
}
