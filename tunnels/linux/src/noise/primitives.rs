//! The primitives that WireGuard names (§5.4), each from a library: X25519 and ChaCha20-Poly1305 from aws-lc, BLAKE2s,
//! HMAC and XChaCha20-Poly1305 from RustCrypto, which aws-lc-rs does not offer.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, UnparsedPublicKey, X25519};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use chacha20poly1305::XChaCha20Poly1305;
use chacha20poly1305::aead::AeadInPlace;
use hmac::SimpleHmac;
use zeroize::Zeroizing;

use super::TAG;

/// Wiped when it is dropped.
pub(crate) type Key = Zeroizing<[u8; 32]>;

/// Not authentic, or not a key at all. Says no more on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forged;

impl From<aws_lc_rs::error::Unspecified> for Forged {
    fn from(_: aws_lc_rs::error::Unspecified) -> Self {
        Self
    }
}

pub(crate) fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Blake2s256::new();
    parts.iter().for_each(|part| Digest::update(&mut hash, part));
    hash.finalize().into()
}

/// Keyed BLAKE2s of 16 bytes. Keys are 16 or 32 bytes long.
pub(crate) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    // A longer key than BLAKE2s takes is none of ours; its MAC would fit nothing.
    let Ok(mut mac) = Blake2sMac::<U16>::new_from_slice(key) else { return [0; 16] };
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize_fixed().into()
}

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> Key {
    let hmac = <SimpleHmac<Blake2s256> as KeyInit>::new_from_slice(key);
    let mut hmac = hmac.expect("HMAC takes keys of every length");
    parts.iter().for_each(|part| hmac.update(part));
    Zeroizing::new(hmac.finalize_fixed().into())
}

/// `KDF_n`: as many keys as the caller takes, three at most.
pub(crate) fn kdf<const N: usize>(chain: &Key, input: &[u8]) -> [Key; N] {
    const { assert!(N <= 3) };
    let secret = hmac(chain, &[input]);
    let mut last: Option<Key> = None;
    std::array::from_fn(|at| {
        let before: &[u8] = last.as_ref().map_or(&[], |key| key.as_slice());
        let key = hmac(&secret, &[before, &[at as u8 + 1]]);
        last = Some(key.clone());
        key
    })
}

pub(crate) fn aead(key: &Key) -> Result<LessSafeKey, Forged> {
    Ok(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key.as_slice())?))
}

/// Four zeros and the counter (§5.4.6).
pub(crate) fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// Writes `plain` and its tag over `out`, under a key that is used this once.
pub(crate) fn seal_once(key: &Key, plain: &[u8], hash: &[u8; 32], out: &mut [u8]) -> Result<(), Forged> {
    let (text, tag) = out.split_at_mut_checked(plain.len()).ok_or(Forged)?;
    text.copy_from_slice(plain);
    let made = aead(key)?.seal_in_place_separate_tag(nonce(0), Aad::from(hash), text)?;
    tag.copy_from_slice(made.as_ref());
    Ok(())
}

/// The plain text of `sealed`, as long as it is without its tag.
pub(crate) fn open_once<const N: usize>(
    key: &Key,
    sealed: &[u8],
    hash: &[u8; 32],
) -> Result<Zeroizing<[u8; N]>, Forged> {
    let mut text = Zeroizing::new([0; N]);
    let (cipher, tag) = sealed.split_at_checked(N).filter(|(_, tag)| tag.len() == TAG).ok_or(Forged)?;
    text.copy_from_slice(cipher);
    aead(key)?.open_in_place_separate_tag(nonce(0), Aad::from(hash), tag, &mut text[..])?;
    Ok(text)
}

/// Of a cookie, whose nonce is random.
pub(crate) fn xseal(
    key: &[u8; 32],
    nonce: &[u8; 24],
    bound: &[u8],
    text: &mut [u8],
) -> Result<[u8; TAG], Forged> {
    let cipher = XChaCha20Poly1305::new(key.into());
    cipher.encrypt_in_place_detached(nonce.into(), bound, text).map(Into::into).map_err(|_| Forged)
}

pub(crate) fn xopen(
    key: &[u8; 32],
    nonce: &[u8; 24],
    bound: &[u8],
    text: &mut [u8],
    tag: &[u8; TAG],
) -> Result<(), Forged> {
    let cipher = XChaCha20Poly1305::new(key.into());
    cipher.decrypt_in_place_detached(nonce.into(), bound, text, tag.into()).map_err(|_| Forged)
}

/// In constant time.
pub(crate) fn same(one: &[u8], other: &[u8]) -> bool {
    verify_slices_are_equal(one, other).is_ok()
}

/// Refuses public keys that would make the secret zero.
pub(crate) fn agree(secret: &agreement::PrivateKey, public: &[u8; 32]) -> Result<Key, Forged> {
    agreement::agree(secret, UnparsedPublicKey::new(&X25519, public), Forged, |shared| {
        let mut key = Zeroizing::new([0; 32]);
        key.get_mut(..shared.len()).ok_or(Forged)?.copy_from_slice(shared);
        Ok(key)
    })
}

pub(crate) fn ephemeral() -> Result<(agreement::PrivateKey, [u8; 32]), Forged> {
    let secret = agreement::PrivateKey::generate(&X25519)?;
    let public = secret.compute_public_key()?.as_ref().try_into().map_err(|_| Forged)?;
    Ok((secret, public))
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], Forged> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes)?;
    Ok(bytes)
}
