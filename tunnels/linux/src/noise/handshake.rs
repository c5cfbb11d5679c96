//! Noise_IKpsk2 as WireGuard uses it (§5.4.2, §5.4.3): one message each way, then two keys.
//!
//! ```text
//! initiator                              responder
//! initiate ──── static, timestamp ────> open, then verify (whose is it? is it new?)
//! finish   <──────── nothing ────────── respond
//! ```
//! The preshared key is an argument of the second message, so that a new one counts from the next handshake on and costs
//! no session.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::agreement;
use hawser_model::PublicKey;
use zeroize::Zeroizing;

use super::primitives::{Forged, Key, agree, ephemeral, hash, kdf, open_once, seal_once};
use super::{INITIATION, INITIATION_LENGTH, RESPONSE, RESPONSE_LENGTH};
use crate::PrivateKey;

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
const LANE: &[u8] = b"Hawser v1 lane";

/// TAI64N, of which a peer accepts only newer ones (§5.1). Compares as its bytes do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp([u8; 12]);

impl Stamp {
    /// As the kernel and wireguard-go count, so that who encrypts can change on a node whose key stays.
    const EPOCH: u64 = (1 << 62) + 10;
    /// Nanoseconds below this tell too much about the machine (`tai64n_now` of the kernel).
    const BLUR: u32 = (1 << 24) - 1;

    /// Of `now`, but after `last` even when the clock was set back.
    pub(crate) fn after(last: Self, now: SystemTime) -> Self {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let stamp = Self::of(Self::EPOCH.saturating_add(since.as_secs()), since.subsec_nanos() & !Self::BLUR);
        if stamp > last { stamp } else { last.next() }
    }

    fn of(seconds: u64, nanos: u32) -> Self {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&seconds.to_be_bytes());
        bytes[8..].copy_from_slice(&nanos.to_be_bytes());
        Self(bytes)
    }

    pub(crate) fn from_bytes(bytes: [u8; 12]) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8; 12] {
        &self.0
    }

    fn next(self) -> Self {
        let [a, b, c, d, e, f, g, h, nanos @ ..] = self.0;
        let (seconds, nanos) = (u64::from_be_bytes([a, b, c, d, e, f, g, h]), u32::from_be_bytes(nanos));
        match nanos.checked_add(Self::BLUR + 1).filter(|nanos| *nanos < 1_000_000_000) {
            Some(nanos) => Self::of(seconds, nanos),
            None => Self::of(seconds.saturating_add(1), 0),
        }
    }
}

/// What both ends have after a handshake.
pub(crate) struct Keys {
    /// How we name the session, and how the peer does.
    pub(crate) local: u32,
    pub(crate) remote: u32,
    pub(crate) send: Key,
    pub(crate) receive: Key,
}

/// The running state of one end: chaining key and transcript hash.
#[derive(Clone)]
struct Transcript {
    chain: Key,
    hash: [u8; 32],
}

impl Transcript {
    /// The first lane's is WireGuard's. Another lane is bound to its number, so that what was said in one is nothing in
    /// another.
    fn new(responder: &PublicKey, lane: u8) -> Self {
        let chain = hash(&[CONSTRUCTION]);
        let named = hash(&[&chain, IDENTIFIER]);
        let named = if lane > 0 { hash(&[&named, LANE, &[lane]]) } else { named };
        Self { chain: Zeroizing::new(chain), hash: hash(&[&named, responder.as_bytes()]) }
    }

    fn mix_hash(&mut self, data: &[u8]) {
        self.hash = hash(&[&self.hash, data]);
    }

    fn mix_ephemeral(&mut self, public: &[u8; 32]) {
        self.mix_hash(public);
        self.mix_key(public);
    }

    fn mix_key(&mut self, input: &[u8]) {
        let [chain] = kdf(&self.chain, input);
        self.chain = chain;
    }

    /// As [`Self::mix_key`], and a key to seal with.
    fn mix_into_key(&mut self, input: &[u8]) -> Key {
        let [chain, key] = kdf(&self.chain, input);
        self.chain = chain;
        key
    }

    fn seal(&mut self, key: &Key, plain: &[u8], out: &mut [u8]) -> Result<(), Forged> {
        seal_once(key, plain, &self.hash, out)?;
        self.mix_hash(out);
        Ok(())
    }

    fn open<const N: usize>(&mut self, key: &Key, sealed: &[u8]) -> Result<Zeroizing<[u8; N]>, Forged> {
        let plain = open_once(key, sealed, &self.hash)?;
        self.mix_hash(sealed);
        Ok(plain)
    }

    fn mix_preshared(&mut self, preshared: &Key) -> Key {
        let [chain, hash, key] = kdf(&self.chain, preshared.as_slice());
        self.chain = chain;
        self.mix_hash(hash.as_slice());
        key
    }
}

/// What an initiator keeps until the response.
pub(crate) struct Initiated {
    pub(crate) index: u32,
    ephemeral: agreement::PrivateKey,
    transcript: Transcript,
}

/// An initiation without its MACs. `statics` is what both static keys agree on. Two curve operations.
pub(crate) fn initiate(
    own: &PrivateKey,
    peer: &PublicKey,
    statics: &Key,
    lane: u8,
    index: u32,
    stamp: Stamp,
    out: &mut [u8; INITIATION_LENGTH],
) -> Result<Initiated, Forged> {
    let mut transcript = Transcript::new(peer, lane);
    let (secret, public) = ephemeral()?;
    out.fill(0);
    out[0] = INITIATION;
    out[4..8].copy_from_slice(&index.to_le_bytes());
    out[8..40].copy_from_slice(&public);
    transcript.mix_ephemeral(&public);
    let key = transcript.mix_into_key(agree(&secret, peer.as_bytes())?.as_slice());
    transcript.seal(&key, own.public().as_bytes(), &mut out[40..88])?;
    let key = transcript.mix_into_key(statics.as_slice());
    transcript.seal(&key, &stamp.0, &mut out[88..116])?;
    Ok(Initiated { index, ephemeral: secret, transcript })
}

/// An initiation whose sender has said who it is, and not yet shown it.
pub(crate) struct Opened {
    pub(crate) claims: PublicKey,
    remote: u32,
    ephemeral: [u8; 32],
    stamp: [u8; 28],
    transcript: Transcript,
}

/// One curve operation.
pub(crate) fn open(own: &PrivateKey, message: &[u8; INITIATION_LENGTH], lane: u8) -> Result<Opened, Forged> {
    let mut transcript = Transcript::new(&own.public(), lane);
    let ephemeral = array(message, 8);
    transcript.mix_ephemeral(&ephemeral);
    let key = transcript.mix_into_key(agree(own.secret(), &ephemeral)?.as_slice());
    let claims = transcript.open::<32>(&key, &message[40..88])?;
    let claims = PublicKey::new(*claims).map_err(|_| Forged)?;
    Ok(Opened { claims, remote: index(message, 4), ephemeral, stamp: array(message, 88), transcript })
}

/// An initiation that its sender's static key has sealed.
pub(crate) struct Verified {
    /// Newer than every earlier one, or this is a replay.
    pub(crate) stamp: Stamp,
    claims: PublicKey,
    remote: u32,
    ephemeral: [u8; 32],
    transcript: Transcript,
}

impl Opened {
    pub(crate) fn verify(mut self, statics: &Key) -> Result<Verified, Forged> {
        let key = self.transcript.mix_into_key(statics.as_slice());
        let stamp = Stamp(*self.transcript.open::<12>(&key, &self.stamp)?);
        let Self { claims, remote, ephemeral, transcript, .. } = self;
        Ok(Verified { stamp, claims, remote, ephemeral, transcript })
    }
}

/// A response without its MACs, and the keys. Three curve operations.
pub(crate) fn respond(
    verified: Verified,
    preshared: &Key,
    index: u32,
    out: &mut [u8; RESPONSE_LENGTH],
) -> Result<Keys, Forged> {
    let Verified { claims, remote, ephemeral: theirs, mut transcript, .. } = verified;
    let (secret, public) = ephemeral()?;
    out.fill(0);
    out[0] = RESPONSE;
    out[4..8].copy_from_slice(&index.to_le_bytes());
    out[8..12].copy_from_slice(&remote.to_le_bytes());
    out[12..44].copy_from_slice(&public);
    transcript.mix_ephemeral(&public);
    transcript.mix_key(agree(&secret, &theirs)?.as_slice());
    transcript.mix_key(agree(&secret, claims.as_bytes())?.as_slice());
    let key = transcript.mix_preshared(preshared);
    transcript.seal(&key, &[], &mut out[44..60])?;
    let [receive, send] = kdf(&transcript.chain, &[]);
    Ok(Keys { local: index, remote, send, receive })
}

/// Two curve operations. The state stays, because a forged response must not end the handshake.
pub(crate) fn finish(
    initiated: &Initiated,
    own: &PrivateKey,
    preshared: &Key,
    message: &[u8; RESPONSE_LENGTH],
) -> Result<Keys, Forged> {
    let mut transcript = initiated.transcript.clone();
    let theirs = array(message, 12);
    transcript.mix_ephemeral(&theirs);
    transcript.mix_key(agree(&initiated.ephemeral, &theirs)?.as_slice());
    transcript.mix_key(agree(own.secret(), &theirs)?.as_slice());
    let key = transcript.mix_preshared(preshared);
    transcript.open::<0>(&key, &message[44..60])?;
    let [send, receive] = kdf(&transcript.chain, &[]);
    Ok(Keys { local: initiated.index, remote: index(message, 4), send, receive })
}

/// Offsets are constants within the message.
fn array<const N: usize>(message: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|index| message[at + index])
}

fn index(message: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(message, at))
}
