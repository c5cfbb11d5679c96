//! By which keys a node can be sent to, where the mesh encrypts with IPsec.

use std::fmt;

use crate::Epoch;

/// Keys of one secret and one turn. The secret's epoch is the operator's to count up, the turn the receiver's own: it takes another
/// whenever its keys have been used for long enough, and never one that it has had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation {
    pub epoch: Epoch,
    pub turn: u32,
}

impl Generation {
    /// As `Display` writes it.
    pub fn parse(text: &str) -> Option<Self> {
        let (epoch, turn) = text.split_once('.')?;
        Some(Self { epoch: Epoch::new(epoch.parse().ok()?)?, turn: turn.parse().ok()? })
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.turn)
    }
}

/// What a node states of its end of ESP: one generation of each secret that it holds, and how packets have to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EspEnd {
    first: Generation,
    second: Option<Generation>,
    /// It cannot take ESP but in UDP (RFC 3948).
    pub in_udp: bool,
}

impl EspEnd {
    /// Secrets that a node holds at once: the one that is, and the next.
    pub const MOST: usize = 2;

    /// In the order of their epochs. None where there is none, more than [`Self::MOST`], or one epoch twice.
    pub fn new(generations: impl IntoIterator<Item = Generation>, in_udp: bool) -> Option<Self> {
        let mut generations: Vec<_> = generations.into_iter().take(Self::MOST + 1).collect();
        generations.sort_unstable();
        match generations[..] {
            [first] => Some(Self { first, second: None, in_udp }),
            [first, second] if first.epoch != second.epoch => {
                Some(Self { first, second: Some(second), in_udp })
            }
            _ => None,
        }
    }

    pub fn receives(&self) -> impl Iterator<Item = Generation> + use<> {
        std::iter::once(self.first).chain(self.second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_holds_one_or_two_secrets_and_each_once() {
        let of = |epoch, turn| Generation { epoch: Epoch::new(epoch).unwrap(), turn };
        let both = EspEnd::new([of(2, 1), of(1, 7)], false).unwrap();
        assert_eq!(both.receives().collect::<Vec<_>>(), [of(1, 7), of(2, 1)]);
        assert_eq!(EspEnd::new([], false), None);
        assert_eq!(EspEnd::new([of(1, 1), of(1, 2)], false), None);
        assert_eq!(EspEnd::new([of(1, 1), of(2, 1), of(3, 1)], false), None);
    }
}
