//! What a handshake message must show before it costs a curve operation (§5.3, §5.4.4, §5.4.7): that its sender knows our
//! public key (mac1), and while many come, that it receives at the address and port it sends from (mac2, a cookie), and
//! does not ask too often.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hawser_model::PublicKey;

use super::primitives::{Forged, hash, mac, random, same, xopen, xseal};
use super::{COOKIE, COOKIE_LENGTH, MACS};
use crate::clock::Millis;

const MAC1: &[u8] = b"mac1----";
const LABEL: &[u8] = b"cookie--";
/// How long a cookie counts, at both ends.
const COOKIE_TIME: Duration = Duration::from_secs(120);

/// Handshake messages per second before cookies are asked for: a mesh of a thousand nodes may start at once.
const PER_SECOND: u32 = 1000;
const SECOND: Duration = Duration::from_secs(1);

/// Of one source under load, as the kernel has it (`ratelimiter.c`).
const SOURCE_INTERVAL: Duration = Duration::from_millis(50);
const SOURCE_BURST: u32 = 5;
/// Sources remembered at once. Who is not remembered has sent nothing for a while.
const SOURCES: usize = 8192;

/// Guards one key of ours.
pub(crate) struct Guard {
    mac1_key: [u8; 32],
    cookie_key: [u8; 32],
    load: Mutex<Load>,
}

struct Load {
    /// What cookies are made of, and since when.
    secret: [u8; 32],
    since: Millis,
    second: Millis,
    count: u32,
    loaded_until: Millis,
    sources: Sources,
}

/// A refusal that has an answer or a name of its own.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Its sender does not know whom it is talking to.
    Stranger,
    /// To be sent back.
    ShowCookie([u8; COOKIE_LENGTH]),
    TooOften,
}

impl Guard {
    pub(crate) fn new(own: &PublicKey, now: Millis) -> Result<Self, Forged> {
        let load = Load {
            secret: random()?,
            since: now,
            second: now,
            count: 0,
            loaded_until: Millis::default(),
            sources: Sources::default(),
        };
        let key = |label| hash(&[label, own.as_bytes()]);
        Ok(Self { mac1_key: key(MAC1), cookie_key: key(LABEL), load: Mutex::new(load) })
    }

    /// `message` is a whole handshake message. Two keyed hashes, at most four.
    pub(crate) fn check(&self, message: &[u8], from: SocketAddr, now: Millis) -> Result<(), Refused> {
        let (body, mac1, mac2) = parts(message).ok_or(Refused::Stranger)?;
        if !same(&mac(&self.mac1_key, &[body]), mac1) {
            return Err(Refused::Stranger);
        }
        let mut load = self.lock();
        if !load.is_heavy(now) {
            return Ok(());
        }
        let cookie = load.cookie(from, now).map_err(|Forged| Refused::Stranger)?;
        if !same(&mac(&cookie, &[body, mac1]), mac2) {
            let reply = self.reply(message, mac1, cookie).map_err(|Forged| Refused::Stranger)?;
            return Err(Refused::ShowCookie(reply));
        }
        if load.sources.allows(from.ip(), now) { Ok(()) } else { Err(Refused::TooOften) }
    }

    fn reply(
        &self,
        message: &[u8],
        mac1: &[u8],
        mut cookie: [u8; 16],
    ) -> Result<[u8; COOKIE_LENGTH], Forged> {
        let nonce = random::<24>()?;
        let tag = xseal(&self.cookie_key, &nonce, mac1, &mut cookie)?;
        let mut reply = [0; COOKIE_LENGTH];
        reply[0] = COOKIE;
        reply[4..8].copy_from_slice(message.get(4..8).ok_or(Forged)?);
        reply[8..32].copy_from_slice(&nonce);
        reply[32..48].copy_from_slice(&cookie);
        reply[48..].copy_from_slice(&tag);
        Ok(reply)
    }

    fn lock(&self) -> MutexGuard<'_, Load> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Load {
    /// Counts this message. Heavy for a second after the last second that was.
    fn is_heavy(&mut self, now: Millis) -> bool {
        if now.since(self.second) >= SECOND {
            (self.second, self.count) = (now, 0);
        }
        self.count = self.count.saturating_add(1);
        if self.count > PER_SECOND {
            self.loaded_until = now + SECOND;
        }
        now < self.loaded_until
    }

    /// Of an address and a port: behind one address there may be many, and a cookie of one is none of another's.
    fn cookie(&mut self, from: SocketAddr, now: Millis) -> Result<[u8; 16], Forged> {
        if now.since(self.since) >= COOKIE_TIME {
            (self.secret, self.since) = (random()?, now);
        }
        let port = from.port().to_be_bytes();
        Ok(match from.ip() {
            IpAddr::V4(ip) => mac(&self.secret, &[&ip.octets(), &port]),
            IpAddr::V6(ip) => mac(&self.secret, &[&ip.octets(), &port]),
        })
    }
}

/// A token bucket for each source.
#[derive(Default)]
struct Sources(HashMap<IpAddr, Bucket>);

struct Bucket {
    /// When the bucket was, or will be, as empty as it can be.
    empty_at: Millis,
}

impl Sources {
    fn allows(&mut self, from: IpAddr, now: Millis) -> bool {
        let full = SOURCE_INTERVAL * SOURCE_BURST;
        // A host has 2^64 addresses of IPv6.
        let source = match from {
            IpAddr::V4(_) => from,
            IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) & !u128::from(u64::MAX)).into()),
        };
        if self.0.len() >= SOURCES && !self.0.contains_key(&source) {
            self.0.retain(|_, bucket| now.since(bucket.empty_at) < full);
            if self.0.len() >= SOURCES {
                return false;
            }
        }
        let bucket = self.0.entry(source).or_insert(Bucket { empty_at: Millis::default() });
        let earliest = Millis(now.0.saturating_sub(full.as_millis() as u64));
        let next = bucket.empty_at.max(earliest) + SOURCE_INTERVAL;
        let allowed = next <= now;
        if allowed {
            bucket.empty_at = next;
        }
        allowed
    }
}

/// The other end of it: the MACs of our handshake messages to one peer.
pub(crate) struct Jar {
    mac1_key: [u8; 32],
    cookie_key: [u8; 32],
    /// Of the last message, while no cookie has come for it.
    last: Option<[u8; 16]>,
    cookie: Option<([u8; 16], Millis)>,
}

impl Jar {
    pub(crate) fn new(peer: &PublicKey) -> Self {
        let key = |label| hash(&[label, peer.as_bytes()]);
        Self { mac1_key: key(MAC1), cookie_key: key(LABEL), last: None, cookie: None }
    }

    /// Fills in both MACs of a handshake message.
    pub(crate) fn stamp(&mut self, message: &mut [u8], now: Millis) {
        let Some(at) = message.len().checked_sub(MACS) else { return };
        let (body, macs) = message.split_at_mut(at);
        let mac1 = mac(&self.mac1_key, &[body]);
        let fresh = self.cookie.filter(|(_, since)| now.since(*since) < COOKIE_TIME);
        let mac2 = fresh.map_or([0; 16], |(cookie, _)| mac(&cookie, &[body, &mac1]));
        macs[..16].copy_from_slice(&mac1);
        macs[16..].copy_from_slice(&mac2);
        self.last = Some(mac1);
    }

    /// Takes in a cookie reply, which is bound to our last message.
    pub(crate) fn take(&mut self, reply: &[u8; COOKIE_LENGTH], now: Millis) -> Result<(), Forged> {
        let last = self.last.ok_or(Forged)?;
        let (nonce, rest) = reply[8..].split_first_chunk::<24>().ok_or(Forged)?;
        let (cookie, tag) = rest.split_first_chunk::<16>().ok_or(Forged)?;
        let mut cookie = *cookie;
        xopen(&self.cookie_key, nonce, &last, &mut cookie, tag.try_into().map_err(|_| Forged)?)?;
        self.cookie = Some((cookie, now));
        self.last = None;
        Ok(())
    }
}

/// Of a handshake message: all before the MACs, and each of them.
fn parts(message: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (body, macs) = message.split_at_checked(message.len().checked_sub(MACS)?)?;
    let (mac1, mac2) = macs.split_at(16);
    Some((body, mac1, mac2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PrivateKey;

    const NOW: Millis = Millis(1_000_000);

    fn own() -> PublicKey {
        PrivateKey::from_bytes([7; 32]).unwrap().public()
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn message(jar: &mut Jar, now: Millis) -> Vec<u8> {
        let mut message = vec![9; 148];
        jar.stamp(&mut message, now);
        message
    }

    /// A guard that is asking for cookies, and will for another second.
    fn loaded(now: Millis) -> Guard {
        let guard = Guard::new(&own(), now).unwrap();
        let message = message(&mut Jar::new(&own()), now);
        for _ in 0..PER_SECOND {
            assert_eq!(guard.check(&message, at("192.0.2.1:1"), now), Ok(()));
        }
        guard
    }

    fn reply(guard: &Guard, message: &[u8], from: SocketAddr, now: Millis) -> [u8; COOKIE_LENGTH] {
        match guard.check(message, from, now) {
            Err(Refused::ShowCookie(reply)) => reply,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn who_does_not_know_our_key_costs_one_hash_and_gets_no_answer() {
        let guard = Guard::new(&own(), NOW).unwrap();
        let mut wrong = message(&mut Jar::new(&own()), NOW);
        wrong[0] ^= 1;
        assert_eq!(guard.check(&wrong, at("192.0.2.1:1"), NOW), Err(Refused::Stranger));
        assert_eq!(guard.check(&[], at("192.0.2.1:1"), NOW), Err(Refused::Stranger));
    }

    #[test]
    fn a_cookie_is_of_one_address_and_one_port() {
        let (guard, mut jar) = (loaded(NOW), Jar::new(&own()));
        let asking = message(&mut jar, NOW);
        jar.take(&reply(&guard, &asking, at("192.0.2.1:5000"), NOW), NOW).unwrap();
        let shown = message(&mut jar, NOW);
        assert_eq!(guard.check(&shown, at("192.0.2.1:5000"), NOW), Ok(()));
        reply(&guard, &shown, at("192.0.2.1:5001"), NOW);
        reply(&guard, &shown, at("192.0.2.2:5000"), NOW);
    }

    #[test]
    fn a_source_that_floods_does_not_keep_others_out() {
        let guard = loaded(NOW);
        let (mut flood, mut other) = (Jar::new(&own()), Jar::new(&own()));
        for (jar, from) in [(&mut flood, "192.0.2.1:5000"), (&mut other, "192.0.2.2:5000")] {
            let asking = message(jar, NOW);
            jar.take(&reply(&guard, &asking, at(from), NOW), NOW).unwrap();
        }
        let shown = message(&mut flood, NOW);
        let answers: Vec<_> = (0..20).map(|_| guard.check(&shown, at("192.0.2.1:5000"), NOW)).collect();
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), SOURCE_BURST as usize);
        assert_eq!(answers.last(), Some(&Err(Refused::TooOften)));
        assert_eq!(guard.check(&message(&mut other, NOW), at("192.0.2.2:5000"), NOW), Ok(()));
        let later = NOW + SOURCE_INTERVAL;
        assert_eq!(guard.check(&shown, at("192.0.2.1:5000"), later), Ok(()), "a token comes back");
    }

    #[test]
    fn sources_are_forgotten_and_never_more_than_their_number() {
        let mut sources = Sources::default();
        for n in 0..SOURCES as u32 {
            assert!(sources.allows(IpAddr::from(n.to_be_bytes()), NOW));
        }
        assert!(!sources.allows([10, 0, 0, 1].into(), NOW));
        assert!(sources.allows([10, 0, 0, 1].into(), NOW + Duration::from_secs(1)));
        assert_eq!(sources.0.len(), 1);
        let host = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last]);
        let allowed = (0..100).filter(|last| sources.allows(host(*last), NOW)).count();
        assert_eq!(allowed, SOURCE_BURST as usize, "a host is its /64");
    }

    #[test]
    fn a_cookie_ends_at_both_ends_after_two_minutes_and_a_forged_one_is_none() {
        let (guard, mut jar) = (loaded(NOW), Jar::new(&own()));
        let from = at("[2001:db8::1]:5000");
        let asking = message(&mut jar, NOW);
        let mut good = reply(&guard, &asking, from, NOW);
        good[40] ^= 1;
        assert_eq!(jar.take(&good, NOW), Err(Forged));
        good[40] ^= 1;
        jar.take(&good, NOW).unwrap();
        assert_eq!(jar.take(&good, NOW), Err(Forged), "a reply answers one message");
        assert_eq!(guard.check(&message(&mut jar, NOW), from, NOW), Ok(()));
        let late = NOW + COOKIE_TIME;
        assert_eq!(message(&mut jar, late)[132..], [0; 16]);
    }

    #[test]
    fn load_ends_by_itself() {
        let (guard, mut jar) = (loaded(NOW), Jar::new(&own()));
        let asking = message(&mut jar, NOW);
        reply(&guard, &asking, at("192.0.2.1:1"), NOW);
        let later = NOW + Duration::from_secs(2);
        assert_eq!(guard.check(&asking, at("192.0.2.1:1"), later), Ok(()));
    }
}
