//! What must never be forgotten while counters run: the node's key, and every pair that has sent under it. A pair whose
//! states are gone has lost its counters, so its keys are used up.
//!
//! Lines that are only ever added to, until a new key begins a new file. They need not reach the disk at once: a machine
//! that goes down takes counters and boot id with it.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hawser_model::PublicKey;
use zeroize::Zeroizing;

use crate::{KeyError, PrivateKey};

/// Keys count under these circumstances alone; under others it is a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Circumstances {
    pub(super) boot_id: String,
    /// Of the mesh secret and how it is used.
    pub(super) secret: String,
    /// Of outgoing packets.
    pub(super) mark: String,
}

/// Keys that have been in use with a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) spi_out: u32,
    pub(super) spi_in: u32,
    /// The peer's UDP port: ESP has none, but where a peer is is said with one.
    pub(super) port: u16,
    /// False once it was removed: its states stay, so that they count on if it comes back.
    pub(super) present: bool,
}

#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    pub(super) key: PrivateKey,
    pub(super) circumstances: Circumstances,
    pub(super) pairs: BTreeMap<PublicKey, Pair>,
}

impl Ledger {
    /// None where there is none.
    pub(super) fn load(path: &Path) -> Result<Option<Self>, KeyError> {
        let read = |source| KeyError::Read { path: path.into(), source };
        let mode = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found.map_err(read)?.mode() & 0o7777,
        };
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.into(), mode });
        }
        let text = Zeroizing::new(fs::read_to_string(path).map_err(read)?);
        let (mut key, mut boot_id, mut secret, mut mark) = (None, None, None, None);
        let mut pairs = BTreeMap::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["boot", id] => boot_id = Some(id.to_owned()),
                ["secret", print] => secret = Some(print.to_owned()),
                ["mark", text] => mark = Some(text.to_owned()),
                ["key", text] => key = key_of(text),
                ["pair", peer, out, into, port, present] => {
                    if let Some((peer, pair)) = pair(peer, out, into, port, present) {
                        pairs.insert(peer, pair);
                    }
                }
                // Half a line, when the process was killed: what it announced was not done.
                _ => {}
            }
        }
        let malformed = || KeyError::Malformed { path: path.into() };
        let circumstances = Circumstances {
            boot_id: boot_id.ok_or_else(malformed)?,
            secret: secret.ok_or_else(malformed)?,
            mark: mark.ok_or_else(malformed)?,
        };
        Ok(Some(Self { path: path.into(), key: key.ok_or_else(malformed)?, circumstances, pairs }))
    }

    /// A new key in a new file, which takes the place of the old one in one step.
    pub(super) fn begin(path: &Path, circumstances: Circumstances) -> Result<Self, KeyError> {
        let write = |source| KeyError::Write { path: path.into(), source };
        let mut bytes = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(&mut bytes[..]).map_err(|error| write(io::Error::other(error)))?;
        let key = PrivateKey::from_bytes(*bytes).ok_or_else(|| KeyError::Malformed { path: path.into() })?;
        let Circumstances { boot_id, secret, mark } = &circumstances;
        let text = Zeroizing::new(format!(
            "boot {boot_id}\nsecret {secret}\nmark {mark}\nkey {}\n",
            Zeroizing::new(STANDARD.encode(&bytes[..])).as_str()
        ));
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let temporary = path.with_file_name(name);
        let written = (|| {
            let _ = fs::remove_file(&temporary);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        })();
        written.map_err(write)?;
        Ok(Self { path: path.into(), key, circumstances, pairs: BTreeMap::new() })
    }

    /// Before the kernel is told. What is known already costs nothing.
    pub(super) fn note(&mut self, peer: PublicKey, pair: Pair) -> Result<(), KeyError> {
        if self.pairs.get(&peer) == Some(&pair) {
            return Ok(());
        }
        let Pair { spi_out, spi_in, port, present } = pair;
        let peer_key = STANDARD.encode(peer.as_bytes());
        // It begins on a line of its own, whatever was left of the last one.
        let line = format!("\npair {peer_key} {spi_out:08x} {spi_in:08x} {port} {}\n", u8::from(present));
        let appended = OpenOptions::new().append(true).open(&self.path).and_then(|mut file| {
            // One call, so one line.
            file.write_all(line.as_bytes())
        });
        appended.map_err(|source| KeyError::Write { path: self.path.clone(), source })?;
        self.pairs.insert(peer, pair);
        Ok(())
    }
}

fn key_of(text: &str) -> Option<PrivateKey> {
    let bytes = Zeroizing::new(STANDARD.decode(text).ok()?);
    PrivateKey::from_bytes(bytes.as_slice().try_into().ok()?)
}

fn pair(peer: &str, out: &str, into: &str, port: &str, present: &str) -> Option<(PublicKey, Pair)> {
    let peer = PublicKey::new(STANDARD.decode(peer).ok()?.try_into().ok()?).ok()?;
    let spi = |text| u32::from_str_radix(text, 16).ok();
    let present = match present {
        "0" => false,
        "1" => true,
        _ => return None,
    };
    Some((peer, Pair { spi_out: spi(out)?, spi_in: spi(into)?, port: port.parse().ok()?, present }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circumstances() -> Circumstances {
        Circumstances { boot_id: "b".into(), secret: "s".into(), mark: "0x1/0xf".into() }
    }

    #[test]
    fn what_was_noted_is_there_again_and_half_a_line_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipsec.state");
        assert!(Ledger::load(&path).unwrap().is_none());
        let mut ledger = Ledger::begin(&path, circumstances()).unwrap();
        let peer = PublicKey::new([7; 32]).unwrap();
        let pair = Pair { spi_out: 0x1234, spi_in: 0x5678, port: 51871, present: true };
        ledger.note(peer, pair).unwrap();
        let size = fs::metadata(&path).unwrap().len();
        ledger.note(peer, pair).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), size, "nothing new is nothing written");
        ledger.note(peer, Pair { present: false, ..pair }).unwrap();
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"pair AAAA 12").unwrap();
        ledger.note(PublicKey::new([8; 32]).unwrap(), pair).unwrap();

        let again = Ledger::load(&path).unwrap().unwrap();
        assert_eq!(again.pairs, ledger.pairs);
        assert_eq!(again.pairs[&peer], Pair { present: false, ..pair });
        assert_eq!(again.circumstances, circumstances());
        assert_eq!(again.key.public(), ledger.key.public());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    }

    #[test]
    fn each_beginning_has_a_key_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipsec.state");
        let first = Ledger::begin(&path, circumstances()).unwrap().key.public();
        let second = Ledger::begin(&path, circumstances()).unwrap();
        assert_ne!(second.key.public(), first);
        assert!(second.pairs.is_empty());
    }
}
