//! How large a packet the path to a peer carries, found out by probes (RFC 8899): the base is carried everywhere, what is larger
//! counts only while it is answered.
//!
//! ```text
//! base ──probe of the device's MTU answered──> it     ──not──> halves, down to [`GRAIN`]
//! more than base ──every [`CONFIRM`] a probe of it── three lost: a black hole ──> base, and the search again
//! ```
//! A probe is an inner packet that is no IP packet, so that whoever does not know it drops it: such a peer stays at the base.

use std::sync::atomic::Ordering;
use std::time::Duration;

use hawser_tunnels::DEFAULT_MTU;

use super::peer::{Context, Control, Peer};
use crate::clock::Millis;

/// From a lost probe to the next.
const PATIENCE: Duration = Duration::from_secs(1);
/// Lost one after the other: the path does not carry it.
const TRIES: u8 = 3;
/// While it is used, what is larger than the base is asked for again so often.
const CONFIRM: Duration = Duration::from_secs(2);
/// A path that carries less than the device is asked for more so often (RFC 8899's PMTU_RAISE_TIMER).
const RAISE: Duration = Duration::from_secs(600);
/// After a black hole, until more than the base is tried again.
const REST: Duration = Duration::from_secs(30);
/// A path that nobody uses is not asked about.
const IDLE: Duration = Duration::from_secs(30);
/// The search ends when this is all that is in doubt.
const GRAIN: u16 = 64;

/// The first nibble is no IP version.
const MARK: u8 = 0x0d;
const ASKS: u8 = 1;
const ANSWERS: u8 = 2;
/// Of an answer; a probe has zeros behind it.
pub(crate) const LENGTH: usize = 4;

/// What stands in a packet between two engines that is nobody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Of so many bytes, this packet.
    Asks(u16),
    /// One of so many bytes was received.
    Answers(u16),
}

impl Word {
    /// None of an IP packet, and of what is not understood.
    pub(crate) fn read(packet: &[u8]) -> Option<Self> {
        let [MARK, kind, high, low] = *packet.first_chunk::<LENGTH>()? else { return None };
        let size = u16::from_be_bytes([high, low]);
        match kind {
            // It proves no more than what has come.
            ASKS if packet.len() >= usize::from(size) => Some(Self::Asks(size)),
            ANSWERS => Some(Self::Answers(size)),
            _ => None,
        }
    }

    pub(crate) fn bytes(self) -> [u8; LENGTH] {
        let (kind, size) = match self {
            Self::Asks(size) => (ASKS, size),
            Self::Answers(size) => (ANSWERS, size),
        };
        let [high, low] = size.to_be_bytes();
        [MARK, kind, high, low]
    }
}

/// One peer's path.
#[derive(Clone, Debug, Default)]
pub(crate) struct PathMtu {
    /// Larger than the base, and answered.
    proven: Option<u16>,
    /// Larger than what is proven, and not answered.
    refused: Option<u16>,
    asked: Option<Asked>,
    next: Millis,
    /// When what was refused is tried again.
    raise: Option<Millis>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    size: u16,
    tries: u8,
    at: Millis,
}

impl PathMtu {
    pub(crate) fn mtu(&self, base: u16) -> u16 {
        self.proven.unwrap_or(base)
    }

    /// The size of a probe that is due, which is then under way. `most` is the device's MTU. O(1).
    pub(crate) fn poll(&mut self, base: u16, most: u16, now: Millis) -> Option<u16> {
        if most <= base || self.proven.is_some_and(|proven| proven > most) {
            *self = Self::default();
        }
        if most <= base {
            return None;
        }
        if let Some(asked) = &mut self.asked {
            if now.since(asked.at) < PATIENCE {
                return None;
            }
            if asked.tries < TRIES {
                *asked = Asked { tries: asked.tries + 1, at: now, ..*asked };
                return Some(asked.size);
            }
            let size = asked.size;
            self.lost(size, base, most, now);
        }
        if self.raise.is_some_and(|at| at <= now) {
            (self.raise, self.refused) = (None, None);
        } else if now < self.next {
            return None;
        }
        let size = match self.refused {
            None if self.proven != Some(most) => most,
            Some(refused) if self.is_searching(base) => self.mtu(base) + (refused - self.mtu(base)) / 2,
            _ => self.proven?,
        };
        self.asked = Some(Asked { size, tries: 1, at: now });
        Some(size)
    }

    fn is_searching(&self, base: u16) -> bool {
        self.refused.is_some_and(|refused| refused.saturating_sub(self.mtu(base)) > GRAIN)
    }

    fn lost(&mut self, size: u16, base: u16, most: u16, now: Millis) {
        self.asked = None;
        if self.proven == Some(size) {
            // A black hole: what was carried is not any more.
            *self = Self { next: now + REST, ..Self::default() };
            return;
        }
        self.refused = Some(size);
        self.settle(base, most, now);
    }

    /// Takes the answer to a probe of this size; one that was not asked for says nothing.
    pub(crate) fn answered(&mut self, size: u16, base: u16, most: u16, now: Millis) {
        if self.asked.take_if(|asked| asked.size == size).is_some() {
            self.proven = Some(size);
            self.settle(base, most, now);
        }
    }

    fn settle(&mut self, base: u16, most: u16, now: Millis) {
        if self.is_searching(base) {
            self.next = now;
            return;
        }
        self.next = now + CONFIRM;
        if self.mtu(base) < most {
            self.raise.get_or_insert(now + RAISE);
        }
    }
}

impl Peer {
    /// What is carried to it in one packet, on a device of this MTU. One load.
    pub(super) fn mtu(&self, device: usize) -> usize {
        device.min(usize::from(self.carries.load(Ordering::Relaxed).max(DEFAULT_MTU)))
    }

    /// Asks, if that is due, for what the path may carry beyond the base: while there is a session that is used.
    pub(super) fn probe_path(&self, context: &mut Context<'_>, most: u16) {
        let mut control = self.lock();
        if self.is_idle(IDLE, context.now) {
            return;
        }
        if let Some(size) = control.path_mtu.poll(DEFAULT_MTU, most, context.now) {
            let mut probe = vec![0; usize::from(size)];
            probe[..LENGTH].copy_from_slice(&Word::Asks(size).bytes());
            self.say(&control, context, &probe);
        }
        self.carry(&control);
    }

    /// What this engine cannot take out of its device, it does not answer.
    pub(super) fn hear(&self, context: &mut Context<'_>, word: Word, most: u16) {
        let mut control = self.lock();
        match word {
            Word::Asks(size) if size <= most => self.say(&control, context, &Word::Answers(size).bytes()),
            Word::Asks(_) => {}
            Word::Answers(size) => {
                control.path_mtu.answered(size, DEFAULT_MTU, most, context.now);
                self.carry(&control);
            }
        }
    }

    /// Nobody's data: it keeps no session alive.
    fn say(&self, control: &Control, context: &mut Context<'_>, packet: &[u8]) {
        self.seal_as(control, context, packet, false);
    }

    /// It is another one from here on.
    pub(super) fn forget_path(&self, control: &mut Control) {
        if control.esp.is_none() {
            control.path_mtu = PathMtu::default();
            self.carry(control);
        }
    }

    fn carry(&self, control: &Control) {
        self.carries.store(control.path_mtu.mtu(DEFAULT_MTU), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u16 = 1420;
    const MOST: u16 = 8920;

    /// A path that answers at once, looked at as often as the timers do. Gives how long it took.
    fn walk(path: &mut PathMtu, now: &mut Millis, seconds: u64, carries: u16) -> u32 {
        let mut probes = 0;
        for _ in 0..seconds * 4 {
            *now = *now + Duration::from_millis(250);
            if let Some(size) = path.poll(BASE, MOST, *now) {
                probes += 1;
                if size <= carries {
                    path.answered(size, BASE, MOST, *now);
                }
            }
            assert!(path.mtu(BASE) >= BASE && path.mtu(BASE) <= MOST);
        }
        probes
    }

    #[test]
    fn a_path_of_any_width_is_found_and_never_overestimated() {
        for carries in [1420, 1421, 1500, 2000, 4000, 8900, 8919, 8920, 9000] {
            let (mut path, mut now) = (PathMtu::default(), Millis(1));
            walk(&mut path, &mut now, 60, carries);
            let found = path.mtu(BASE);
            assert!(found <= carries && carries.min(MOST) - found <= GRAIN, "{found} of {carries}");
        }
    }

    #[test]
    fn a_path_that_shrinks_goes_back_to_the_base_in_seconds_and_grows_again() {
        let (mut path, mut now) = (PathMtu::default(), Millis(1));
        walk(&mut path, &mut now, 5, MOST);
        assert_eq!(path.mtu(BASE), MOST);
        walk(&mut path, &mut now, 6, 1450);
        assert_eq!(path.mtu(BASE), BASE, "two seconds until it is asked, and three lost");
        walk(&mut path, &mut now, 700, MOST);
        assert_eq!(path.mtu(BASE), MOST);
    }

    #[test]
    fn a_peer_that_knows_no_probes_is_left_at_the_base_and_asked_rarely() {
        let (mut path, mut now) = (PathMtu::default(), Millis(1));
        let probes = walk(&mut path, &mut now, 3600, 0);
        assert_eq!(path.mtu(BASE), BASE);
        assert!(probes < 6 * 8 * 4, "{probes} in an hour");
    }

    #[test]
    fn an_answer_that_nobody_asked_for_says_nothing() {
        let (mut path, now) = (PathMtu::default(), Millis(1));
        path.answered(MOST, BASE, MOST, now);
        assert_eq!(path.mtu(BASE), BASE);
        assert_eq!(path.poll(BASE, MOST, now), Some(MOST));
        path.answered(MOST - 1, BASE, MOST, now);
        assert_eq!(path.mtu(BASE), BASE);
        assert_eq!(path.poll(BASE, BASE, now), None, "a device of the base asks for nothing");
    }

    #[test]
    fn a_word_is_read_as_it_was_written_and_nothing_else_is_one() {
        let mut probe = vec![0; 2000];
        probe[..LENGTH].copy_from_slice(&Word::Asks(2000).bytes());
        assert_eq!(Word::read(&probe), Some(Word::Asks(2000)));
        assert_eq!(Word::read(&probe[..1999]), None, "cut on its way");
        assert_eq!(Word::read(&Word::Answers(2000).bytes()), Some(Word::Answers(2000)));
        for other in [&b""[..], b"\x0d\x02\x00", b"\x45\x00\x00\x14", b"\x0d\x07\x00\x00"] {
            assert_eq!(Word::read(other), None);
        }
    }
}
