//! The probe: 24 bytes, the same length in both directions, so that an answer never amplifies.
//!
//! ```text
//!  0        4         5      6      7    8         10      12        14      16      24
//!  "HwEc"   version   kind   flags  0    sender            addressee         nonce
//!                                        cluster   index   cluster   index           (all big-endian)
//! ```

use hawser_model::{ClusterId, ClusterIdWidth, NodeIndex};

use crate::NodeId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    Request,
    Reply,
}

/// One echo request or reply. The shell compares the sender with the source address; this type only names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub kind: ProbeKind,
    pub sender: NodeId,
    pub addressee: NodeId,
    /// The sender does not hold the addressee down. Without it a request proves only half of the path (BFD says the
    /// same with its remote session state, RFC 5880 §6.8.6).
    pub hears_you: bool,
    pub nonce: u64,
}

impl Probe {
    pub const LEN: usize = 24;
    const MAGIC: [u8; 4] = *b"HwEc";
    const VERSION: u8 = 1;
    const HEARS_YOU: u8 = 1;

    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&Self::MAGIC);
        bytes[4] = Self::VERSION;
        bytes[5] = match self.kind {
            ProbeKind::Request => 1,
            ProbeKind::Reply => 2,
        };
        bytes[6] = if self.hears_you { Self::HEARS_YOU } else { 0 };
        for (at, node) in [(8, self.sender), (12, self.addressee)] {
            bytes[at..at + 2].copy_from_slice(&node.cluster.get().to_be_bytes());
            bytes[at + 2..at + 4].copy_from_slice(&node.index.get().to_be_bytes());
        }
        bytes[16..].copy_from_slice(&self.nonce.to_be_bytes());
        bytes
    }

    /// Exactly [`Probe::LEN`] bytes of a known version; unknown flags are ignored, so that later ones can be added.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseProbeError> {
        let bytes: &[u8; Self::LEN] =
            bytes.try_into().map_err(|_| ParseProbeError::Length { bytes: bytes.len() })?;
        if bytes[..4] != Self::MAGIC {
            return Err(ParseProbeError::Magic);
        }
        if bytes[4] != Self::VERSION {
            return Err(ParseProbeError::Version { version: bytes[4] });
        }
        let kind = match bytes[5] {
            1 => ProbeKind::Request,
            2 => ProbeKind::Reply,
            kind => return Err(ParseProbeError::Kind { kind }),
        };
        let node = |at: usize| {
            let number = |at: usize| u32::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
            let cluster = ClusterId::new(number(at), ClusterIdWidth::Bits9);
            match (cluster, NodeIndex::new(number(at + 2))) {
                (Ok(cluster), Some(index)) => Ok(NodeId { cluster, index }),
                _ => Err(ParseProbeError::Node),
            }
        };
        let mut nonce = [0; 8];
        nonce.copy_from_slice(&bytes[16..]);
        Ok(Self {
            kind,
            sender: node(8)?,
            addressee: node(12)?,
            hears_you: bytes[6] & Self::HEARS_YOU != 0,
            nonce: u64::from_be_bytes(nonce),
        })
    }

    /// The answer to a request: same nonce, same length, ends swapped.
    #[must_use]
    pub fn reply(&self, hears_you: bool) -> Self {
        Self {
            kind: ProbeKind::Reply,
            sender: self.addressee,
            addressee: self.sender,
            hears_you,
            nonce: self.nonce,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseProbeError {
    #[error("a probe has {} bytes, not {bytes}", Probe::LEN)]
    Length { bytes: usize },
    #[error("no probe of ours")]
    Magic,
    #[error("probe version {version} is not known here")]
    Version { version: u8 },
    #[error("probe kind {kind} is neither request nor reply")]
    Kind { kind: u8 },
    #[error("a cluster id or node index is out of range")]
    Node,
}
