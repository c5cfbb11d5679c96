//! Associations of ESP: given from outside, made before they are broken, and never begun anew.
//!
//! A number that was used once under a key is not used again, and one that was taken once is not taken again, also when
//! an association goes and comes back: how far it had come is kept for as long as this engine, and its successors, live.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use hawser_model::PublicKey;
use hawser_tunnels::{EspKey, SMALLEST_SPI, Sa};
use zeroize::Zeroizing;

use super::peer::{Control, Peer};
use super::sessions::{Held, Sessions};
use crate::esp::{Inbound, Outbound};
use crate::noise::window::Window;

/// A peer is received by so many at once: the one that is, the next, and room for two ends that change at once.
pub const MOST_INBOUND: usize = 4;
/// Associations that are gone and remembered: 10 MB of them.
const MOST_SPENT: usize = 1 << 17;
/// Left out by whoever goes on with an association: more than threads could have drawn unseen with a way that they had
/// looked up before (each a few hundred), and in the end nothing of 64 bits.
const GAP: u64 = 1 << 13;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssociateError {
    #[error("{peer:?} is no peer of this engine. fix: add it first")]
    UnknownPeer { peer: PublicKey },
    #[error("this engine speaks WireGuard, and makes its keys itself. fix: start it with Protocol::Esp")]
    NotEsp,
    #[error(
        "{count} associations to receive one peer by, and {MOST_INBOUND} are carried. fix: take old ones away first"
    )]
    TooMany { count: usize },
    #[error("SPI {spi:#010x} is reserved (RFC 4303 §2.1)")]
    Reserved { spi: u32 },
    #[error(
        "SPI {spi:#010x} is another association's. fix: start this node's agent again, it begins with a new key and so with other SPIs"
    )]
    Taken { spi: u32 },
    #[error("the key of SPI {spi:#010x} is none that AES-GCM takes")]
    Key { spi: u32 },
    #[error(
        "{MOST_SPENT} associations have come and gone, and whether this one was among them is not known any more. fix: start this node's agent again, it begins with a new key"
    )]
    Forgotten,
}

/// How far associations that are gone had come, by what SPI and key hash to.
#[derive(Default)]
pub(super) struct Spent {
    numbers: HashMap<[u8; 32], u64>,
    overflowed: bool,
}

impl Spent {
    fn note(&mut self, sa: &Sa, number: u64) {
        self.put(print(sa), number);
    }

    fn put(&mut self, print: [u8; 32], number: u64) {
        if self.numbers.len() >= MOST_SPENT && !self.numbers.contains_key(&print) {
            return self.lose();
        }
        let known = self.numbers.entry(print).or_default();
        *known = number.max(*known);
    }

    /// Zero for one that was never here.
    fn of(&self, sa: &Sa) -> Result<u64, AssociateError> {
        match self.numbers.get(&print(sa)) {
            Some(number) => Ok(*number),
            None if self.overflowed => Err(AssociateError::Forgotten),
            None => Ok(0),
        }
    }

    /// For a successor, a line each.
    pub(super) fn export(&self, text: &mut Zeroizing<String>) {
        for (print, number) in &self.numbers {
            let _ = writeln!(text, "spent={} {number:x}", hex(print).as_str());
        }
        if self.overflowed {
            text.push_str("spent=more\n");
        }
    }

    /// Whether one that was used could be taken for a new one.
    pub(super) fn is_lossy(&self) -> bool {
        self.overflowed
    }

    /// With another key of this end, no association is one that was.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// One that may have been used has been lost sight of.
    pub(super) fn lose(&mut self) {
        self.overflowed = true;
    }

    /// A line that cannot be read might have been anyone's.
    pub(super) fn import(&mut self, line: &str) {
        let parsed = line.split_once(' ').and_then(|(print, number)| {
            Some((unhex(print)?.as_slice().try_into().ok()?, u64::from_str_radix(number, 16).ok()?))
        });
        match parsed {
            Some((print, number)) => self.put(print, number),
            None => self.lose(),
        }
    }
}

fn print(sa: &Sa) -> [u8; 32] {
    let mut input = Zeroizing::new(sa.spi.to_be_bytes().to_vec());
    input.extend_from_slice(sa.key.material());
    let mut print = [0; 32];
    print.copy_from_slice(digest(&SHA256, &input).as_ref());
    print
}

/// What one peer is sent by and received by.
#[derive(Default)]
pub(crate) struct Associations {
    pub(super) outbound: Option<Arc<Outbound>>,
    inbound: Vec<Arc<Inbound>>,
}

impl Sessions {
    pub(super) fn spent(&self) -> MutexGuard<'_, Spent> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    /// Makes these the peer's associations. Those that it has already go on as they are; what comes in is understood
    /// before anything goes out by the new one, and the old ones go last.
    pub(super) fn associate(
        self: &Arc<Self>,
        sessions: &Sessions,
        outbound: Option<&Sa>,
        inbound: &[Sa],
    ) -> Result<(), AssociateError> {
        if inbound.len() > MOST_INBOUND {
            return Err(AssociateError::TooMany { count: inbound.len() });
        }
        if let Some(reserved) = inbound.iter().chain(outbound).find(|sa| sa.spi < SMALLEST_SPI) {
            return Err(AssociateError::Reserved { spi: reserved.spi });
        }
        let mut control = self.lock();
        let esp = control.esp.as_mut().ok_or(AssociateError::NotEsp)?;
        for sa in inbound {
            if !esp.inbound.iter().any(|have| have.sa() == sa) {
                let made = Inbound::new(sa.clone(), sessions.spent().of(sa)?);
                let made = Arc::new(made.map_err(|_| AssociateError::Key { spi: sa.spi })?);
                if !sessions.insert(sa.spi, self, Held::Esp(Arc::clone(&made))) {
                    return Err(AssociateError::Taken { spi: sa.spi });
                }
                esp.inbound.push(made);
            }
        }
        if esp.outbound.as_ref().map(|have| have.sa()) != outbound {
            let made = outbound.map(|sa| {
                let made = Outbound::new(sa.clone(), sessions.spent().of(sa)?);
                made.map(Arc::new).map_err(|_| AssociateError::Key { spi: sa.spi })
            });
            let before = std::mem::replace(&mut esp.outbound, made.transpose()?);
            spend(sessions, before);
            self.publish(&control);
        }
        if let Some(esp) = &mut control.esp {
            retain(sessions, &mut esp.inbound, |have| inbound.contains(have.sa()));
        }
        Ok(())
    }

    /// A new authentic datagram of an association came in from `from`: the peer is there, as RFC 7296 §2.23 has it.
    pub(super) fn heard_by_esp(&self, from: SocketAddr) {
        let mut control = self.lock();
        if !control.is_removed() {
            control.last_handshake.get_or_insert_with(SystemTime::now);
            self.relocate(&mut control, from);
        }
    }

    pub(super) fn received(&self) -> Vec<(u32, u64)> {
        let control = self.lock();
        let inbound = control.esp.iter().flat_map(|esp| &esp.inbound);
        inbound.map(|inbound| (inbound.sa().spi, inbound.newest())).collect()
    }

    pub(super) fn dissolve(control: &mut Control, sessions: &Sessions) {
        if let Some(esp) = &mut control.esp {
            spend(sessions, esp.outbound.take());
            retain(sessions, &mut esp.inbound, |_| false);
        }
    }
}

fn spend(sessions: &Sessions, gone: Option<Arc<Outbound>>) {
    if let Some(gone) = gone {
        sessions.spent().note(gone.sa(), gone.sequence().saturating_add(GAP));
    }
}

/// Nobody finds an association any more when its newest number is looked at.
fn retain(sessions: &Sessions, inbound: &mut Vec<Arc<Inbound>>, stays: impl Fn(&Inbound) -> bool) {
    inbound.retain(|have| {
        let stays = stays(have);
        if !stays {
            sessions.remove(have.sa().spi);
            sessions.spent().note(have.sa(), have.newest());
        }
        stays
    });
}

impl Associations {
    /// For a successor, a line each. Nobody may seal any more.
    pub(super) fn export(&self, text: &mut Zeroizing<String>) {
        let sa = |sa: &Sa| Zeroizing::new(format!("{:x} {}", sa.spi, hex(sa.key.material()).as_str()));
        if let Some(outbound) = &self.outbound {
            let _ = writeln!(text, "esp-out={} {:x}", sa(outbound.sa()).as_str(), outbound.sequence());
        }
        for inbound in &self.inbound {
            let _ = write!(text, "esp-in={} {:x}", sa(inbound.sa()).as_str(), inbound.newest());
            for number in inbound.window() {
                let _ = write!(text, " {number:x}");
            }
            text.push('\n');
        }
    }

    /// One line of it.
    pub(super) fn import(
        &mut self,
        peer: &Arc<Peer>,
        sessions: &Sessions,
        key: &str,
        value: &str,
    ) -> Option<()> {
        let mut words = value.split_whitespace();
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let spi = number(words.next()?)?.try_into().ok()?;
        let sa = Sa { spi, key: EspKey::new(&unhex(words.next()?)?)? };
        let newest = number(words.next()?)?;
        if key == "esp-out" {
            self.outbound = Some(Arc::new(Outbound::new(sa, newest.saturating_add(GAP)).ok()?));
            return Some(());
        }
        let window = Window::import(words.map_while(number))?;
        let made = Arc::new(Inbound::with_window(sa, newest, window).ok()?);
        if sessions.insert(spi, peer, Held::Esp(Arc::clone(&made))) {
            self.inbound.push(made);
        }
        Some(())
    }
}

fn hex(bytes: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn unhex(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let byte = |at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (0..text.len()).step_by(2).map(byte).collect::<Option<Vec<u8>>>().map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sa(spi: u32) -> Sa {
        Sa { spi, key: EspKey::new(&[7; 36]).unwrap() }
    }

    fn handed_over(spent: &Spent, and: &str) -> Spent {
        let mut text = Zeroizing::new(String::new());
        spent.export(&mut text);
        text.push_str(and);
        let mut next = Spent::default();
        text.lines().for_each(|line| next.import(line.strip_prefix("spent=").unwrap()));
        next
    }

    #[test]
    fn what_may_have_been_used_and_is_not_remembered_is_not_begun() {
        let mut spent = Spent::default();
        spent.note(&sa(300), 5);
        spent.note(&sa(300), 4);
        assert_eq!((spent.of(&sa(300)), spent.of(&sa(301))), (Ok(5), Ok(0)));
        let unreadable = handed_over(&spent, "spent=of another version\n");
        assert_eq!(
            (unreadable.of(&sa(300)), unreadable.of(&sa(301))),
            (Ok(5), Err(AssociateError::Forgotten))
        );

        for spi in 1000..1000 + MOST_SPENT as u32 {
            spent.note(&sa(spi), 1);
        }
        let next = handed_over(&spent, "");
        for spent in [&spent, &next] {
            assert_eq!(spent.of(&sa(300)), Ok(5));
            assert_eq!(spent.of(&sa(301)), Err(AssociateError::Forgotten));
            assert!(spent.is_lossy());
        }
    }
}
