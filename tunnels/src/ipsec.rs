//! Security associations as values: two nodes that hold the mesh secret come to the same keys and SPIs without a word
//! between them.
//!
//! ```text
//! mesh secret ‖ X25519(own, peer) ── HKDF-SHA256 over (epoch, turn, sender, receiver) ──> key 32 ‖ salt 4 ‖ SPI 4
//!                                     the receiver's turn; cluster, node, boot id and public key of each
//! ```
//! One association carries one direction of one pair. AES-GCM forgives no counter that is used twice under one key (RFC
//! 4106 §2), so a node has a new public key whenever its counters begin anew: [`End::public_key`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use aws_lc_rs::digest::{SHA256, SHA512, digest};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use hawser_model::{BootId, Epoch, EspEnd, PublicKey};
use zeroize::Zeroizing;

use crate::PeerName;

/// AES-256.
const KEY: usize = 32;
/// The part of a nonce that is fixed for a key (RFC 4106 §4).
pub const SALT: usize = 4;
const SPI: usize = 4;
/// SPIs below are reserved (RFC 4303 §2.1).
pub const SMALLEST_SPI: u32 = 256;
/// What a secret needs to be worth its name.
pub const MIN_SECRET: usize = 32;
const MAX_SECRET: usize = 256;

/// One direction of one pair: ESP with AES-GCM and a tag of 16 octets, extended sequence numbers.
#[derive(Clone, PartialEq, Eq)]
pub struct Sa {
    pub spi: u32,
    pub key: EspKey,
}

impl fmt::Debug for Sa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SPI {:#010x}", self.spi)
    }
}

/// An AES key of 16, 24 or 32 octets and the salt behind it, as RFC 4106 §8.1 and the kernel have them. Never printed, wiped
/// when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct EspKey(Zeroizing<Vec<u8>>);

impl EspKey {
    /// None unless it is a key of AES and a salt.
    pub fn new(material: &[u8]) -> Option<Self> {
        matches!(material.len(), 20 | 28 | 36).then(|| Self(Zeroizing::new(material.to_vec())))
    }

    /// Key and salt.
    pub fn material(&self) -> &[u8] {
        &self.0
    }

    pub fn aes(&self) -> &[u8] {
        &self.0[..self.0.len() - SALT]
    }

    pub fn salt(&self) -> [u8; SALT] {
        let mut salt = [0; SALT];
        salt.copy_from_slice(&self.0[self.0.len() - SALT..]);
        salt
    }
}

impl fmt::Debug for EspKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a key of {} bits", self.aes().len() * 8)
    }
}

/// What goes into the keys of one of both nodes.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    pub name: &'a PeerName,
    /// Made anew at every boot, and whenever counters may have been lost.
    pub public_key: &'a PublicKey,
    pub boot_id: Option<&'a BootId>,
    /// Its address on the underlay.
    pub address: IpAddr,
}

/// The secrets that a node holds: the one that is, and the next or the last one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyring(BTreeMap<Epoch, MeshSecret>);

impl Keyring {
    /// One line for each secret, as [`MeshSecret::parse`] has it.
    pub fn parse(text: &str) -> Result<Self, ParseSecretError> {
        let mut secrets = BTreeMap::new();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        for line in lines {
            let secret = MeshSecret::parse(line)?;
            let epoch = secret.epoch();
            if secrets.insert(epoch, secret).is_some() {
                return Err(ParseSecretError::Twice { epoch });
            }
        }
        match secrets.len() {
            0 => Err(ParseSecretError::Shape),
            1..=EspEnd::MOST => Ok(Self(secrets)),
            count => Err(ParseSecretError::TooMany { count }),
        }
    }

    pub fn get(&self, epoch: Epoch) -> Option<&MeshSecret> {
        self.0.get(&epoch)
    }

    /// In the order of their epochs.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &MeshSecret> {
        self.0.values()
    }
}

/// What every node of the mesh has, and nobody else.
#[derive(Clone, PartialEq, Eq)]
pub struct MeshSecret {
    epoch: Epoch,
    bytes: Zeroizing<Vec<u8>>,
    derivation: Derivation,
}

/// How keys come out of the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Derivation {
    Hawser,
    /// Cilium's, over boot ids and addresses alone: for a mesh whose secret is Cilium's.
    Cilium,
}

impl fmt::Debug for MeshSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the mesh secret of epoch {}, {:?}'s derivation", self.epoch, self.derivation)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseSecretError {
    #[error(
        "the mesh secret is not one line. fix: `<epoch> <hex>` with 32 to 256 octets, or Cilium's `<key id>+ rfc4106(gcm(aes)) <hex> 128`"
    )]
    Shape,
    #[error("the mesh secret's epoch {text:?} is not a number from 1 on")]
    Epoch { text: String },
    #[error("the mesh secret is not written in pairs of hexadecimal digits")]
    Hex,
    #[error(
        "the mesh secret has {octets} octets. fix: {MIN_SECRET} to {MAX_SECRET}: `echo \"1 $(openssl rand -hex 32)\"`"
    )]
    Length { octets: usize },
    #[error(
        "two mesh secrets are of epoch {epoch}, and a node could not say which it means. fix: count the epoch up with each new secret (`hawser ipsec rotate` does)"
    )]
    Twice { epoch: Epoch },
    #[error(
        "{count} mesh secrets, and a node holds at most two: the one that is and the next. fix: take the oldest lines away"
    )]
    TooMany { count: usize },
    #[error("Cilium's key has {octets} octets, and AES-GCM takes 20, 28 or 36 with the salt")]
    CiliumLength { octets: usize },
    #[error("Cilium's key id {text:?} is not 1 to 15")]
    CiliumKeyId { text: String },
    #[error("{algorithm:?} with a tag of {bits:?} bits is not carried. fix: rfc4106(gcm(aes)) with 128")]
    CiliumAlgorithm { algorithm: String, bits: String },
}

impl MeshSecret {
    /// `<epoch> <hex>`, or a line of Cilium's Secret `cilium-ipsec-keys`, whose form asks for Cilium's derivation.
    pub fn parse(text: &str) -> Result<Self, ParseSecretError> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let (Some(line), None) = (lines.next(), lines.next()) else { return Err(ParseSecretError::Shape) };
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words[..] {
            [epoch, hex] => Self::of_hawser(epoch, hex),
            [id, algorithm, hex, bits] => Self::of_cilium(id, algorithm, hex, bits),
            _ => Err(ParseSecretError::Shape),
        }
    }

    fn of_hawser(epoch: &str, hex: &str) -> Result<Self, ParseSecretError> {
        let refused = || ParseSecretError::Epoch { text: epoch.chars().take(32).collect() };
        let epoch = epoch.parse().ok().and_then(Epoch::new).ok_or_else(refused)?;
        let bytes = octets(hex)?;
        if !(MIN_SECRET..=MAX_SECRET).contains(&bytes.len()) {
            return Err(ParseSecretError::Length { octets: bytes.len() });
        }
        Ok(Self { epoch, bytes, derivation: Derivation::Hawser })
    }

    fn of_cilium(id: &str, algorithm: &str, hex: &str, bits: &str) -> Result<Self, ParseSecretError> {
        let short = |text: &str| text.chars().take(32).collect::<String>();
        let number = id.strip_suffix('+').unwrap_or(id).parse().ok().filter(|id| (1..=15).contains(id));
        let epoch = number.and_then(Epoch::new);
        let epoch = epoch.ok_or_else(|| ParseSecretError::CiliumKeyId { text: short(id) })?;
        if algorithm != "rfc4106(gcm(aes))" || bits != "128" {
            let (algorithm, bits) = (short(algorithm), short(bits));
            return Err(ParseSecretError::CiliumAlgorithm { algorithm, bits });
        }
        let bytes = octets(hex.strip_prefix("0x").unwrap_or(hex))?;
        match EspKey::new(&bytes) {
            Some(_) => Ok(Self { epoch, bytes, derivation: Derivation::Cilium }),
            None => Err(ParseSecretError::CiliumLength { octets: bytes.len() }),
        }
    }

    /// As [`Self::parse`] reads it. None of Cilium's form.
    pub fn line(&self) -> Option<Zeroizing<String>> {
        let hex: Zeroizing<String> =
            Zeroizing::new(self.bytes.iter().map(|octet| format!("{octet:02x}")).collect());
        let line = Zeroizing::new(format!("{} {}", self.epoch, hex.as_str()));
        (self.derivation == Derivation::Hawser).then_some(line)
    }

    /// Tells two secrets apart, and gives nothing away.
    pub fn fingerprint(&self) -> String {
        let mut out = [0; 8];
        expand(&Salt::new(HKDF_SHA256, b"hawser ipsec print").extract(&self.bytes), b"", &mut out);
        let print: String = out.iter().map(|octet| format!("{octet:02x}")).collect();
        format!("{}-{print}-{:?}", self.epoch, self.derivation).to_lowercase()
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub fn derivation(&self) -> Derivation {
        self.derivation
    }

    /// What `from` sends to `to` with in this turn of `to`, the same at both. `shared` is the X25519 secret of both public
    /// keys; Cilium's derivation knows neither. A few microseconds.
    pub fn association(&self, turn: u32, shared: &[u8; 32], from: End<'_>, to: End<'_>) -> Sa {
        match self.derivation {
            Derivation::Hawser => self.hawser(turn, shared, from, to),
            Derivation::Cilium => self.cilium(from, to),
        }
    }

    fn hawser(&self, turn: u32, shared: &[u8; 32], from: End<'_>, to: End<'_>) -> Sa {
        let mut input = Zeroizing::new(self.bytes.to_vec());
        input.extend_from_slice(shared);
        let mut info = self.epoch.get().to_be_bytes().to_vec();
        info.extend_from_slice(&turn.to_be_bytes());
        for end in [from, to] {
            let boot = end.boot_id.map_or("", BootId::as_str);
            let name = end.name;
            let parts =
                [name.cluster.name.as_str().as_bytes(), name.node.as_str().as_bytes(), boot.as_bytes()];
            for part in parts.into_iter().chain([&end.public_key.as_bytes()[..]]) {
                // All of them are shorter than 64 KiB: names by their types, the rest by their size.
                info.extend_from_slice(&(part.len() as u16).to_be_bytes());
                info.extend_from_slice(part);
            }
        }
        let secret = Salt::new(HKDF_SHA256, b"hawser ipsec 1").extract(&input);
        let mut out = Zeroizing::new([0; KEY + SALT + SPI]);
        expand(&secret, &info, &mut out[..]);
        let key = EspKey(Zeroizing::new(out[..KEY + SALT].to_vec()));
        Sa { spi: spi(&out[KEY + SALT..]), key }
    }

    /// Cilium's key to the octet (`pkg/datapath/linux/ipsec`). Its SPI is its key id, by which a receiver does not know senders
    /// apart (Cilium marks packets before they are decrypted), so here the SPI is drawn from the key.
    fn cilium(&self, from: End<'_>, to: End<'_>) -> Sa {
        let mut input = Zeroizing::new(self.bytes.to_vec());
        for end in [from, to] {
            match end.address {
                IpAddr::V4(v4) => input.extend_from_slice(&v4.octets()),
                IpAddr::V6(v6) => input.extend_from_slice(&v6.octets()),
            }
        }
        for end in [from, to] {
            input.extend_from_slice(end.boot_id.map_or("", BootId::as_str).as_bytes());
        }
        let hash = digest(if self.bytes.len() <= 32 { &SHA256 } else { &SHA512 }, &input);
        let key = EspKey(Zeroizing::new(hash.as_ref()[..self.bytes.len()].to_vec()));
        let mut out = [0; SPI];
        expand(&Salt::new(HKDF_SHA256, b"hawser ipsec spi").extract(key.material()), b"", &mut out);
        Sa { spi: spi(&out), key }
    }
}

fn spi(octets: &[u8]) -> u32 {
    let number = octets.iter().fold(0, |number, octet| number << 8 | u32::from(*octet));
    if number < SMALLEST_SPI { number + SMALLEST_SPI } else { number }
}

struct Octets(usize);

impl KeyType for Octets {
    fn len(&self) -> usize {
        self.0
    }
}

fn expand(secret: &Prk, info: &[u8], out: &mut [u8]) {
    let info = [info];
    let filled = secret.expand(&info, Octets(out.len())).and_then(|okm| okm.fill(out));
    filled.expect("HKDF-SHA256 gives up to 8,160 octets (RFC 5869 §2.3)");
}

fn octets(hex: &str) -> Result<Zeroizing<Vec<u8>>, ParseSecretError> {
    let digit = |at: u8| char::from(at).to_digit(16).map(|digit| digit as u8);
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = hex.as_bytes().chunks(2).map(pair).collect();
    bytes.map(Zeroizing::new).ok_or(ParseSecretError::Hex)
}

#[cfg(test)]
#[path = "ipsec_tests.rs"]
mod tests;
