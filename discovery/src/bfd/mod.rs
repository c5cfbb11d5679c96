//! Bidirectional Forwarding Detection (RFC 5880), asynchronous mode over one hop (RFC 5881): the packet and one session.
//!
//! Left out, each by the RFC's leave: echo (§6.4: Required Min Echo RX is always 0), demand mode as our own wish (§6.6; a
//! peer's is obeyed), authentication (§6.7: the tunnel proves who speaks, and a packet that claims it is discarded).

mod packet;
mod random;
mod session;

pub use packet::{ControlPacket, Diagnostic, Interval, ParseControlError, State};
pub use random::Random;
pub use session::{Admin, Change, Deadline, Discard, Output, Session, SessionConfig, Timer};

/// Of control packets over one hop (RFC 5881 §4).
pub const PORT: u16 = 3784;
/// Source ports begin here (RFC 5881 §4).
pub const FIRST_SOURCE_PORT: u16 = 49_152;
/// What every packet over one hop is sent with, and must still have when it arrives (RFC 5881 §5, RFC 5082).
pub const TTL: u8 = 255;

#[cfg(test)]
mod tests;
