//! Who of a cluster's nodes watches which remote node for the others: rendezvous hashing over those that share.
//!
//! A node that joins or leaves moves only the part that it gets or had. Everybody who knows the same members comes to the same
//! division; while two know others, a node is watched twice or not at all, for as long as a word takes.

use std::collections::BTreeSet;

use hawser_model::NodeName;

use crate::NodeId;

/// More than so many divide nothing: the others listen. 25,400 nodes are then a hundred for each.
pub const MOST_SHARERS: usize = 256;

/// The members, from the point of view of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sharers {
    own: u64,
    /// The others.
    others: BTreeSet<u64>,
    is_member: bool,
}

impl Sharers {
    /// Beyond [`MOST_SHARERS`] nobody is listened to, and nobody is a member.
    pub fn new<'a>(own: &NodeName, members: impl IntoIterator<Item = &'a NodeName>) -> Self {
        let mut others: BTreeSet<u64> =
            members.into_iter().take(MOST_SHARERS).map(|name| hash(name.as_str().as_bytes())).collect();
        let own = hash(own.as_str().as_bytes());
        let is_member = others.remove(&own);
        Self { own, others, is_member }
    }

    /// How many divide it.
    pub fn len(&self) -> usize {
        self.others.len() + usize::from(self.is_member)
    }

    /// Nobody shares.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether this node watches `node` for the others. O(members).
    pub fn is_mine(&self, node: NodeId) -> bool {
        let node = mixed(u64::from(node.cluster.get()) << 32 | u64::from(node.index.get()));
        let weight = |member: u64| (mixed(member ^ node), member);
        let own = weight(self.own);
        self.is_member && self.others.iter().all(|other| weight(*other) < own)
    }
}

/// FNV-1a, the same in every version: its nodes divide the work among each other.
fn hash(text: &[u8]) -> u64 {
    let hash = text.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mixed(hash)
}

/// The finalizer of splitmix64: every bit of the input changes half of the output's.
fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}
