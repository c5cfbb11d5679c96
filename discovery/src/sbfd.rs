//! Seamless BFD's initiator (RFC 7880 §7.3, RFC 7881): the probe, and which packet answers it. The reflector is the kernel
//! program's (`ebpf/logic`); it has no state, so whoever asks needs nobody's leave.
//!
//! A reflector gives the initiator's discriminator back as it came. Ours holds a number drawn at start and the probe's
//! sequence: so a reply names its probe, and one for an earlier run of this process answers nothing.

use std::net::Ipv4Addr;
use std::num::{NonZeroU8, NonZeroU32};

use crate::bfd::{ControlPacket, Diagnostic, Interval, State};

/// Where reflectors listen (RFC 7881 §3).
pub const PORT: u16 = 7784;

/// What a reflector is asked for: its node's IPv4 mesh address, as a number.
pub fn discriminator_of(node: Ipv4Addr) -> u32 {
    node.into()
}

/// Our discriminator in one probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    /// Never 0, so that no discriminator is.
    salt: u16,
    pub(crate) low: u16,
}

impl Tag {
    pub(crate) fn new(salt: u16, sequence: u32) -> Self {
        Self { salt: salt.max(1), low: sequence as u16 }
    }

    pub(crate) fn parse(discriminator: u32, salt: u16) -> Option<Self> {
        let tag = Self { salt: (discriminator >> 16) as u16, low: discriminator as u16 };
        (tag.salt == salt.max(1)).then_some(tag)
    }

    fn discriminator(self) -> NonZeroU32 {
        let number = u32::from(self.salt) << 16 | u32::from(self.low);
        // The salt is at least 1.
        NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN)
    }
}

/// The probe (RFC 7880 §7.3.2): demand mode, so that no reflector takes it for an answer.
pub(crate) fn probe(
    tag: Tag,
    node: Ipv4Addr,
    up: bool,
    interval: Interval,
    multiplier: u32,
) -> ControlPacket {
    ControlPacket {
        diagnostic: Diagnostic::NONE,
        state: if up { State::Up } else { State::Down },
        poll: false,
        is_final: false,
        control_plane_independent: false,
        demand: true,
        detect_mult: u8::try_from(multiplier).ok().and_then(NonZeroU8::new).unwrap_or(NonZeroU8::MAX),
        my_discriminator: tag.discriminator(),
        your_discriminator: discriminator_of(node),
        desired_min_tx: interval,
        // RFC 7880 §7.3.2: an initiator's session receives answers only.
        required_min_rx: Interval::ZERO,
        required_min_echo_rx: Interval::ZERO,
    }
}

/// What a packet from `node` means to an initiator (RFC 7880 §7.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Up(Tag),
    /// The reflector is out of service on purpose: no sign of a dead path.
    AdminDown(Tag),
}

/// None: no answer of this node to a probe of this run.
pub(crate) fn answer(packet: &ControlPacket, node: Ipv4Addr, salt: u16) -> Option<Answer> {
    let tag = Tag::parse(packet.your_discriminator, salt)?;
    let from_reflector = !packet.demand && packet.my_discriminator.get() == discriminator_of(node);
    match packet.state {
        State::Up if from_reflector => Some(Answer::Up(tag)),
        State::AdminDown if from_reflector => Some(Answer::AdminDown(tag)),
        _ => None,
    }
}
