//! Which keys of IPsec are in use, and when others take their place: made before they are broken, and none is begun twice.
//!
//! ```text
//! receiver: installs the new generation ── states it ──────────────> keeps the old one until nothing comes by it ── drops it
//! sender:                                   sees it ── sends by it
//! ```
//! The receiver counts its turns, so no two ends have to agree on a moment, and no clocks are compared. A new secret, a
//! secret that goes, and a key that has been used for long enough are all the same: another generation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use hawser_model::{Epoch, EspEnd, Generation, Time};

use crate::Derivation;
use crate::ipsec::Keyring;

/// Generations that are received by at once: those that are stated, and those that they took the place of.
pub const MOST_RECEIVED: usize = 4;

/// How long a key is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wear {
    pub age: Duration,
    /// Of one association. 2^44 octets are 2^40 blocks: what AES-GCM then gives away is below 2^-47 (NIST SP 800-38D, the
    /// birthday bound over 128 bits).
    pub bytes: u64,
    /// What took its place is stated so long, and nothing has come by it for so long, before it is dropped.
    pub rest: Duration,
}

impl Wear {
    pub const DEFAULT: Self =
        Self { age: Duration::from_secs(24 * 3600), bytes: 1 << 44, rest: Duration::from_secs(300) };
}

/// By what this node is sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receiving {
    own: Vec<Own>,
    last_turn: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Own {
    of: Generation,
    since: Time,
    /// Another one has taken its place since then.
    leaving: Option<Time>,
    /// The busiest association's.
    bytes: u64,
    /// Of all of them together, and when that last changed.
    total: u64,
    heard: Time,
}

/// What associations of one generation have carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    pub most: u64,
    pub total: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the mesh secret of epoch {epoch} is still in use by peers, and a node holds at most two. fix: leave its line until `hawser status` says that nobody uses it"
)]
pub struct StillInUse {
    pub epoch: Epoch,
}

impl Receiving {
    pub fn begin(keyring: &Keyring, now: Time) -> Self {
        let mut receiving = Self { own: Vec::new(), last_turn: 0 };
        keyring.iter().for_each(|secret| receiving.add(secret.epoch(), secret.derivation(), now));
        receiving
    }

    /// All that must be opened.
    pub fn all(&self) -> impl Iterator<Item = Generation> + '_ {
        self.own.iter().map(|own| own.of)
    }

    /// Those that others have taken the place of: dropped when nothing has come by them for long enough.
    pub fn leaving(&self) -> impl Iterator<Item = Generation> + '_ {
        self.own.iter().filter(|own| own.leaving.is_some()).map(|own| own.of)
    }

    pub fn contains(&self, generation: Generation) -> bool {
        self.all().any(|own| own == generation)
    }

    /// What peers are told: the newest generation of each epoch.
    pub fn stated(&self, in_udp: bool) -> EspEnd {
        self.end(in_udp).expect("one or two epochs: more are not taken up")
    }

    fn end(&self, in_udp: bool) -> Option<EspEnd> {
        let mut newest = BTreeMap::<Epoch, Generation>::new();
        for generation in self.all() {
            let of = newest.entry(generation.epoch).or_insert(generation);
            *of = generation.max(*of);
        }
        EspEnd::new(newest.into_values(), in_udp)
    }

    /// Takes up new secrets; those that are not among them are left as soon as no peer needs them. Whether anything changed.
    /// Fails, and changes nothing, when there would be more at once than are carried.
    pub fn handle_keyring(&mut self, keyring: &Keyring, now: Time) -> Result<bool, StillInUse> {
        let wanted: BTreeSet<Epoch> = keyring.iter().map(|secret| secret.epoch()).collect();
        let others = self.all().map(|own| own.epoch).filter(|epoch| !wanted.contains(epoch));
        let others: BTreeSet<Epoch> = others.collect();
        if let Some(epoch) = others.first().filter(|_| others.len() + wanted.len() > EspEnd::MOST) {
            return Err(StillInUse { epoch: *epoch });
        }
        let before = self.clone();
        self.take_up(keyring, &others, now);
        if self.own.len() > MOST_RECEIVED {
            *self = before;
            let leaving = self.own.iter().find(|own| own.leaving.is_some());
            let epoch = leaving.map_or(Epoch::FIRST, |own| own.of.epoch);
            return Err(StillInUse { epoch });
        }
        Ok(*self != before)
    }

    fn take_up(&mut self, keyring: &Keyring, others: &BTreeSet<Epoch>, now: Time) {
        for own in self.own.iter_mut().filter(|own| others.contains(&own.of.epoch)) {
            own.leaving.get_or_insert(now);
        }
        for secret in keyring.iter() {
            if !self.stays(secret.epoch()) {
                self.add(secret.epoch(), secret.derivation(), now);
            }
        }
        // Peers take the newest turn: what they are to leave must not be it.
        let newest = self.own.iter().max_by_key(|own| rank(own.of)).filter(|own| own.leaving.is_some());
        if newest.is_some()
            && let Some(secret) = keyring.iter().next_back()
        {
            self.take_turn(secret.epoch(), secret.derivation(), now);
        }
    }

    /// What associations have carried by now, and the epochs that some peer has nothing else of. Drops what nobody uses any
    /// more, and takes a turn when a key is worn. Whether anything changed.
    pub fn handle_carried(
        &mut self,
        keyring: &Keyring,
        carried: &BTreeMap<Generation, Carried>,
        needed: &BTreeSet<Epoch>,
        wear: &Wear,
        now: Time,
    ) -> bool {
        for own in &mut self.own {
            let Carried { most, total } = carried.get(&own.of).copied().unwrap_or_default();
            if total != own.total {
                (own.total, own.heard) = (total, now);
            }
            own.bytes = most;
        }
        let before: Vec<_> = self.all().collect();
        let newer = |of: Generation| before.iter().any(|own| own.epoch == of.epoch && own.turn > of.turn);
        self.own.retain(|own| {
            let Some(leaving) = own.leaving else { return true };
            let rested = now.since(leaving.max(own.heard)) >= wear.rest;
            !rested || (!newer(own.of) && needed.contains(&own.of.epoch))
        });
        let worn = self.own.iter().filter(|own| own.leaving.is_none()).max_by_key(|own| rank(own.of));
        let worn = worn.filter(|own| now.since(own.since) >= wear.age || own.bytes >= wear.bytes);
        if let Some(epoch) = worn.map(|own| own.of.epoch)
            && let Some(secret) = keyring.get(epoch)
            && self.own.len() < MOST_RECEIVED
        {
            self.take_turn(epoch, secret.derivation(), now);
        }
        !self.all().eq(before)
    }

    /// Of a generation that has begun and was left by nobody.
    fn stays(&self, epoch: Epoch) -> bool {
        self.own.iter().any(|own| own.of.epoch == epoch && own.leaving.is_none())
    }

    fn take_turn(&mut self, epoch: Epoch, derivation: Derivation, now: Time) {
        // Cilium's keys know no turns.
        if derivation == Derivation::Hawser {
            for own in self.own.iter_mut().filter(|own| own.of.epoch == epoch) {
                own.leaving.get_or_insert(now);
            }
            self.add(epoch, derivation, now);
        }
    }

    fn add(&mut self, epoch: Epoch, derivation: Derivation, now: Time) {
        let turn = match derivation {
            Derivation::Hawser => {
                self.last_turn = self.last_turn.saturating_add(1);
                self.last_turn
            }
            Derivation::Cilium => 0,
        };
        let of = Generation { epoch, turn };
        // Cilium's comes back as what it was.
        self.own.retain(|own| own.of != of);
        self.own.push(Own { of, since: now, leaving: None, bytes: 0, total: 0, heard: now });
    }

    /// One line, for the next start of this boot or for a successor.
    pub fn export(&self) -> String {
        let mut text = self.last_turn.to_string();
        for own in &self.own {
            let leaving = own.leaving.map_or("-".to_owned(), |at| at.since_start().as_secs().to_string());
            // To a string, which cannot fail.
            let _ = write!(text, " {}:{}:{leaving}", own.of, own.since.since_start().as_secs());
        }
        text
    }

    /// None for what no version wrote.
    pub fn import(line: &str, now: Time) -> Option<Self> {
        let mut words = line.split(' ');
        let last_turn = words.next()?.parse().ok()?;
        let time = |text: &str| Some(Time::from_millis(text.parse::<u64>().ok()?.checked_mul(1000)?));
        let own = words.take(MOST_RECEIVED).map(|word| {
            let mut parts = word.split(':');
            let of = Generation::parse(parts.next()?).filter(|of| of.turn <= last_turn)?;
            let since = time(parts.next()?)?;
            let leaving = match parts.next()? {
                "-" => None,
                text => Some(time(text)?),
            };
            Some(Own { of, since, leaving, bytes: 0, total: 0, heard: now })
        });
        let receiving = Self { own: own.collect::<Option<_>>()?, last_turn };
        receiving.end(false).is_some().then_some(receiving)
    }
}

/// Later turns first; of Cilium's, which have none, later epochs.
fn rank(of: Generation) -> (u32, Epoch) {
    (of.turn, of.epoch)
}

/// By what a peer is sent to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sending {
    current: Option<Generation>,
    /// Turns up to here were left: what this end counted under them does not begin again.
    left: BTreeMap<Epoch, u32>,
}

impl Sending {
    pub fn current(&self) -> Option<Generation> {
        self.current
    }

    /// Takes the newest generation that the peer states, that this node has the secret of, and that was not left before.
    /// Old news changes nothing. Whether it is another one now, and what was left for it.
    pub fn handle_stated(
        &mut self,
        stated: &EspEnd,
        holds: impl Fn(Epoch) -> bool,
    ) -> Option<Option<Generation>> {
        let fresh = |of: &Generation| {
            Some(*of) == self.current || self.left.get(&of.epoch).is_none_or(|left| of.turn > *left)
        };
        let usable = stated.receives().filter(|of| holds(of.epoch)).filter(fresh);
        let next = usable.max_by_key(|of| rank(*of)).filter(|next| Some(*next) != self.current)?;
        let before = self.current.replace(next);
        if let Some(before) = before {
            self.left.insert(before.epoch, before.turn);
        }
        Some(before)
    }

    /// One word.
    pub fn export(&self) -> String {
        let mut text = self.current.map_or("-".to_owned(), |of| of.to_string());
        for (epoch, turn) in &self.left {
            let _ = write!(text, ",{}", Generation { epoch: *epoch, turn: *turn });
        }
        text
    }

    pub fn import(word: &str) -> Option<Self> {
        let mut parts = word.split(',');
        let current = match parts.next()? {
            "-" => None,
            text => Some(Generation::parse(text)?),
        };
        let left = parts.map(|text| Generation::parse(text).map(|of| (of.epoch, of.turn)));
        Some(Self { current, left: left.collect::<Option<_>>()? })
    }
}

#[cfg(test)]
#[path = "rotation_tests.rs"]
mod tests;
