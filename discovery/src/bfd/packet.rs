//! The control packet (RFC 5880 §4.1): 24 octets without authentication, parsed once, discarded by the rules of §6.8.6.
//!
//! ```text
//!  0          1                2             3        4         8         12         16         20
//!  vers diag  Sta P F C A D M  detect mult   length   my disc   your disc desired tx required rx required echo rx
//!   3    5     2  1 1 1 1 1 1                                             (microseconds, big-endian)
//! ```

use std::fmt;
use std::num::{NonZeroU8, NonZeroU32};
use std::time::Duration;

/// Session state (§4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum State {
    AdminDown,
    #[default]
    Down,
    Init,
    Up,
}

impl State {
    pub const ALL: [Self; 4] = [Self::AdminDown, Self::Down, Self::Init, Self::Up];

    const fn bits(self) -> u8 {
        match self {
            Self::AdminDown => 0,
            Self::Down => 1,
            Self::Init => 2,
            Self::Up => 3,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AdminDown => "admin-down",
            Self::Down => "down",
            Self::Init => "init",
            Self::Up => "up",
        })
    }
}

/// Why the sender's session left Up last: five bits, of which those above 8 are reserved and kept as they come (§4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Diagnostic(u8);

impl Diagnostic {
    pub const NONE: Self = Self(0);
    pub const DETECTION_TIME_EXPIRED: Self = Self(1);
    pub const NEIGHBOR_SIGNALED_DOWN: Self = Self(3);
    pub const ADMINISTRATIVELY_DOWN: Self = Self(7);

    pub const fn code(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("no diagnostic"),
            1 => f.write_str("control detection time expired"),
            2 => f.write_str("echo function failed"),
            3 => f.write_str("neighbor signaled session down"),
            4 => f.write_str("forwarding plane reset"),
            5 => f.write_str("path down"),
            6 => f.write_str("concatenated path down"),
            7 => f.write_str("administratively down"),
            8 => f.write_str("reverse concatenated path down"),
            code => write!(f, "diagnostic {code}"),
        }
    }
}

/// Microseconds, as the wire has them: up to 71 minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Interval(u32);

impl Interval {
    pub const ZERO: Self = Self(0);

    pub const fn from_micros(micros: u32) -> Self {
        Self(micros)
    }

    /// The nearest that the wire can say.
    pub fn from_duration(duration: Duration) -> Self {
        Self(u32::try_from(duration.as_micros()).unwrap_or(u32::MAX))
    }

    pub const fn micros(self) -> u32 {
        self.0
    }

    pub const fn duration(self) -> Duration {
        Duration::from_micros(self.0 as u64)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlPacket {
    pub diagnostic: Diagnostic,
    pub state: State,
    pub poll: bool,
    pub is_final: bool,
    pub control_plane_independent: bool,
    pub demand: bool,
    pub detect_mult: NonZeroU8,
    pub my_discriminator: NonZeroU32,
    /// 0: the sender does not know ours yet.
    pub your_discriminator: u32,
    pub desired_min_tx: Interval,
    pub required_min_rx: Interval,
    pub required_min_echo_rx: Interval,
}

const POLL: u8 = 1 << 5;
const FINAL: u8 = 1 << 4;
const INDEPENDENT: u8 = 1 << 3;
const AUTHENTICATED: u8 = 1 << 2;
const DEMAND: u8 = 1 << 1;
const MULTIPOINT: u8 = 1;

impl ControlPacket {
    pub const LEN: usize = 24;
    const LEN_AUTHENTICATED: usize = 26;
    const VERSION: u8 = 1;

    pub fn encode(&self) -> [u8; Self::LEN] {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let mut bytes = [0; Self::LEN];
        bytes[0] = Self::VERSION << 5 | self.diagnostic.0;
        bytes[1] = self.state.bits() << 6
            | flag(self.poll, POLL)
            | flag(self.is_final, FINAL)
            | flag(self.control_plane_independent, INDEPENDENT)
            | flag(self.demand, DEMAND);
        bytes[2] = self.detect_mult.get();
        bytes[3] = Self::LEN as u8;
        let words = [
            self.my_discriminator.get(),
            self.your_discriminator,
            self.desired_min_tx.0,
            self.required_min_rx.0,
            self.required_min_echo_rx.0,
        ];
        for (place, word) in bytes[4..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    /// The discards of §6.8.6 that need no session, in its order. O(1); octets behind the stated length are not looked at.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseControlError> {
        let Some((head, _)) = bytes.split_first_chunk::<{ Self::LEN }>() else {
            return Err(ParseControlError::Short { bytes: bytes.len() });
        };
        let (version, flags, length) = (head[0] >> 5, head[1], usize::from(head[3]));
        if version != Self::VERSION {
            return Err(ParseControlError::Version { version });
        }
        let authenticated = flags & AUTHENTICATED != 0;
        let least = if authenticated { Self::LEN_AUTHENTICATED } else { Self::LEN };
        if length < least {
            return Err(ParseControlError::LengthTooSmall { length, least });
        }
        if length > bytes.len() {
            return Err(ParseControlError::LengthBeyondPayload { length, bytes: bytes.len() });
        }
        let detect_mult = NonZeroU8::new(head[2]).ok_or(ParseControlError::DetectMultZero)?;
        if flags & MULTIPOINT != 0 {
            return Err(ParseControlError::Multipoint);
        }
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let my_discriminator = NonZeroU32::new(word(4)).ok_or(ParseControlError::MyDiscriminatorZero)?;
        let (your_discriminator, state) = (word(8), State::ALL[usize::from(flags >> 6)]);
        if your_discriminator == 0 && !matches!(state, State::Down | State::AdminDown) {
            return Err(ParseControlError::YourDiscriminatorZero { state });
        }
        if authenticated {
            return Err(ParseControlError::Authenticated);
        }
        Ok(Self {
            diagnostic: Diagnostic(head[0] & 0x1f),
            state,
            poll: flags & POLL != 0,
            is_final: flags & FINAL != 0,
            control_plane_independent: flags & INDEPENDENT != 0,
            demand: flags & DEMAND != 0,
            detect_mult,
            my_discriminator,
            your_discriminator,
            desired_min_tx: Interval(word(12)),
            required_min_rx: Interval(word(16)),
            required_min_echo_rx: Interval(word(20)),
        })
    }
}

/// One per rule of RFC 5880 §6.8.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseControlError {
    #[error("a BFD control packet has at least 24 octets, not {bytes}")]
    Short { bytes: usize },
    #[error("BFD version {version} is not 1")]
    Version { version: u8 },
    #[error("the packet says it is {length} octets long, less than the {least} that its flags ask for")]
    LengthTooSmall { length: usize, least: usize },
    #[error("the packet says it is {length} octets long, but {bytes} came")]
    LengthBeyondPayload { length: usize, bytes: usize },
    #[error("detect mult is 0")]
    DetectMultZero,
    #[error("the multipoint bit is set")]
    Multipoint,
    #[error("my discriminator is 0")]
    MyDiscriminatorZero,
    #[error("your discriminator is 0 in state {state}")]
    YourDiscriminatorZero { state: State },
    #[error("the packet is authenticated, but no session here uses authentication")]
    Authenticated,
}
