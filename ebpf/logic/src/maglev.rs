//! Consistent choice, for the services that ask: a client has always the same slot of a table, and a change of one backend
//! changes the slots that it had or gets, and no others.
//!
//! The tables are Maglev's in their use, and made by rendezvous hashing: each slot is the backend's with the highest draw for it.
//! Maglev's own permutations (Eisenbud et al., NSDI 2016, §3.4) are more even, and move a few per cent more.

use hawser_ebpf_abi::{Addr, Port, ServiceKey};

use crate::random::draw;

/// Which of the backends has a slot; 0 when there are none. O(backends).
pub fn owner(slot: u32, backends: impl Iterator<Item = (Addr, Port)>) -> usize {
    let score = |(addr, port): (Addr, Port)| {
        let [a, b, c, d] = addr.words();
        let name = draw((a as u64) << 32 | b as u64, (c as u64) << 32 | d as u64) as u64;
        draw(name << 16 | port.get() as u64, slot as u64)
    };
    backends.map(score).enumerate().max_by_key(|(_, score)| *score).map_or(0, |(at, _)| at)
}

/// What a client draws with, every time. At a socket there is no source port yet, so a client is its network namespace.
#[inline(always)]
pub fn seed(client: u64, key: &ServiceKey) -> u64 {
    (draw(client, key.check() as u64) as u64) << 32 | draw(!client, key.check() as u64) as u64
}
