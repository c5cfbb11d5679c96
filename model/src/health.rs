//! Health as the datapath reads it: one word per cluster and per node.

use std::fmt;

/// 32 bits: a weight and the flags *no new connections* and *reset*.
///
/// ```text
/// 31      30          29..16                        15..0
/// reset   no new      with reset: since when        weight, 256 = full
/// ```
/// Since when is stamped by whoever writes the word into the kernel; here it is zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HealthWord(u32);

impl HealthWord {
    pub const FULL_WEIGHT: u16 = 256;
    const NO_NEW: u32 = 1 << 30;
    const RESET: u32 = 1 << 31;
    const SINCE: u32 = 0x3fff << 16;

    /// Up, at full weight.
    pub const UP: Self = Self(Self::FULL_WEIGHT as u32);
    /// Down: nothing new goes there. What is established is ended after a while.
    pub const DOWN: Self = Self(Self::NO_NEW | Self::RESET);

    pub const fn up(weight: u16) -> Self {
        Self(weight as u32)
    }

    pub const fn raw(self) -> u32 {
        self.0
    }

    /// As found in the kernel; since when is left out, so that it compares.
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw & !Self::SINCE)
    }

    pub const fn weight(self) -> u16 {
        (self.0 & 0xffff) as u16
    }

    /// Whether a new connection may be sent there while anything healthier exists.
    pub const fn takes_new(self) -> bool {
        self.0 & Self::NO_NEW == 0 && self.weight() > 0
    }

    pub const fn resets(self) -> bool {
        self.0 & Self::RESET != 0
    }
}

impl fmt::Debug for HealthWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.takes_new() { "up" } else { "down" };
        let reset = if self.resets() { ", reset" } else { "" };
        write!(f, "{state}({}{reset})", self.weight())
    }
}

/// The data-plane verdict about one cluster or node, in the words `hawser status` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ClusterHealth {
    /// Not heard of yet: neither up nor down. Traffic is allowed, because refusing would be a guess.
    #[default]
    Unknown,
    Up,
    Down,
}

impl ClusterHealth {
    pub fn word(self) -> HealthWord {
        match self {
            Self::Unknown | Self::Up => HealthWord::UP,
            Self::Down => HealthWord::DOWN,
        }
    }
}

impl fmt::Display for ClusterHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        })
    }
}
