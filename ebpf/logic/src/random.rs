//! Many draws from one seed: the kernel is asked for randomness once per connection.

/// A well mixed 32-bit value for each `index` under a `seed` (the finaliser of SplitMix64).
#[inline(always)]
pub const fn draw(seed: u64, index: u64) -> u32 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z >> 32) as u32
}

/// `draw` scaled to `0..bound` without a division; 0 when `bound` is 0.
#[inline(always)]
pub const fn below(draw: u32, bound: u32) -> u32 {
    ((draw as u64 * bound as u64) >> 32) as u32
}
