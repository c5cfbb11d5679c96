//! What must never be forgotten while counters run: the node's key, by which generations it is sent to, and every pair that
//! has sent under it. A pair whose states are gone has lost its counters, so its keys are used up.
//!
//! Lines that are only ever added to, and the last one of a peer counts; each start writes them anew, and so does whoever
//! has added many. They need not reach the disk at once: a machine that goes down takes counters and boot id with it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hawser_model::{
    BootId, ClusterId, ClusterIdWidth, ClusterName, ClusterRef, Epoch, EspEnd, Generation, NodeName,
    PublicKey, Time,
};
use hawser_tunnels::{PeerName, Receiving, Sending};
use zeroize::Zeroizing;

use crate::{KeyError, PrivateKey};

/// Lines that are added before all is written anew.
const MOST_ADDED: usize = 1 << 14;

/// Keys count under these circumstances alone; under others it is a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Circumstances {
    pub(super) boot_id: String,
    /// Of outgoing packets.
    pub(super) mark: String,
}

/// Keys that have been in use with a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) name: PeerName,
    pub(super) boot_id: Option<BootId>,
    /// The peer's UDP port: ESP has none, but where a peer is is said with one.
    pub(super) port: u16,
    /// False once it was removed: its states stay, so that they count on if it comes back.
    pub(super) present: bool,
    pub(super) stated: EspEnd,
    pub(super) sending: Sending,
    /// SPIs of the states that are there, of one or two generations that are left, too.
    pub(super) out: BTreeMap<Generation, u32>,
    pub(super) into: BTreeMap<Generation, u32>,
}

impl Pair {
    /// What its packets leave by.
    pub(super) fn spi_out(&self) -> Option<u32> {
        self.out.get(&self.sending.current()?).copied()
    }

    pub(super) fn spis(&self) -> impl Iterator<Item = u32> + '_ {
        self.out.values().chain(self.into.values()).copied()
    }
}

#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    pub(super) key: PrivateKey,
    pub(super) circumstances: Circumstances,
    /// Of the mesh secrets that keys were made of.
    pub(super) secrets: BTreeMap<Epoch, String>,
    pub(super) receiving: Receiving,
    pub(super) pairs: BTreeMap<PublicKey, Pair>,
    added: usize,
}

impl Ledger {
    /// None where there is none.
    pub(super) fn load(path: &Path, now: Time) -> Result<Option<Self>, KeyError> {
        let read = |source| KeyError::Read { path: path.into(), source };
        let mode = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found.map_err(read)?.mode() & 0o7777,
        };
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.into(), mode });
        }
        let text = Zeroizing::new(fs::read_to_string(path).map_err(read)?);
        let (mut key, mut boot_id, mut mark, mut receiving) = (None, None, None, None);
        let (mut secrets, mut pairs) = (BTreeMap::new(), BTreeMap::new());
        for (kind, rest) in text.lines().filter_map(|line| line.split_once(' ')) {
            match kind {
                "boot" => boot_id = Some(rest.to_owned()),
                "mark" => mark = Some(rest.to_owned()),
                "key" => key = key_of(rest),
                // Half a line, when the process was killed: what it announced was not done.
                "secret" => secrets.extend(secret(rest)),
                "receives" => {
                    let whole = rest.strip_suffix(" .");
                    receiving = whole.and_then(|text| Receiving::import(text, now)).or(receiving);
                }
                "peer" => pairs.extend(pair(rest)),
                _ => {}
            }
        }
        // Of another version, or of nobody: what it knows of is gone with it, and a new key begins.
        let (Some(boot_id), Some(mark), Some(key)) = (boot_id, mark, key) else {
            return Err(KeyError::Malformed { path: path.into() });
        };
        let Some(receiving) = receiving else { return Ok(None) };
        let circumstances = Circumstances { boot_id, mark };
        let path = path.into();
        Ok(Some(Self { path, key, circumstances, secrets, receiving, pairs, added: 0 }))
    }

    /// A new key in a new file.
    pub(super) fn begin(
        path: &Path,
        circumstances: Circumstances,
        secrets: BTreeMap<Epoch, String>,
        receiving: Receiving,
    ) -> Result<Self, KeyError> {
        let failed = |source| KeyError::Write { path: path.into(), source };
        let mut bytes = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(&mut bytes[..]).map_err(|error| failed(io::Error::other(error)))?;
        let key = PrivateKey::from_bytes(*bytes).ok_or_else(|| KeyError::Malformed { path: path.into() })?;
        let mut ledger = Self {
            path: path.into(),
            key,
            circumstances,
            secrets,
            receiving,
            pairs: BTreeMap::new(),
            added: 0,
        };
        ledger.rewrite()?;
        Ok(ledger)
    }

    /// All of it in a new file, which takes the place of the old one in one step.
    pub(super) fn rewrite(&mut self) -> Result<(), KeyError> {
        let Circumstances { boot_id, mark } = &self.circumstances;
        let bytes = Zeroizing::new(self.key.to_bytes());
        let key = Zeroizing::new(STANDARD.encode(&bytes[..]));
        let mut text = Zeroizing::new(format!("boot {boot_id}\nmark {mark}\nkey {}\n", key.as_str()));
        for (epoch, print) in &self.secrets {
            // To a string, which cannot fail.
            let _ = writeln!(text, "secret {epoch} {print}");
        }
        let _ = writeln!(text, "receives {} .", self.receiving.export());
        for (peer, pair) in &self.pairs {
            let _ = writeln!(text, "{}", line(peer, pair));
        }
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let temporary = self.path.with_file_name(name);
        let written = (|| {
            let _ = fs::remove_file(&temporary);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &self.path)
        })();
        written.map_err(|source| KeyError::Write { path: self.path.clone(), source })?;
        self.added = 0;
        Ok(())
    }

    /// Before the kernel is told. What is known already costs nothing.
    pub(super) fn note(&mut self, peer: PublicKey, pair: Pair) -> Result<(), KeyError> {
        if self.pairs.get(&peer) == Some(&pair) {
            return Ok(());
        }
        self.append(&line(&peer, &pair))?;
        self.pairs.insert(peer, pair);
        Ok(())
    }

    /// Before any peer is told.
    pub(super) fn note_receiving(
        &mut self,
        receiving: Receiving,
        secrets: BTreeMap<Epoch, String>,
    ) -> Result<(), KeyError> {
        if self.receiving.export() != receiving.export() || self.secrets != secrets {
            let mut lines = format!("receives {} .", receiving.export());
            for (epoch, print) in secrets.iter().filter(|(epoch, _)| !self.secrets.contains_key(epoch)) {
                let _ = write!(lines, "\nsecret {epoch} {print}");
            }
            self.append(&lines)?;
        }
        (self.receiving, self.secrets) = (receiving, secrets);
        Ok(())
    }

    fn append(&mut self, line: &str) -> Result<(), KeyError> {
        if self.added >= MOST_ADDED.max(2 * self.pairs.len()) {
            self.rewrite()?;
        }
        // It begins on a line of its own, whatever was left of the last one; and one call, so one line.
        let text = format!("\n{line}\n");
        let opened = OpenOptions::new().append(true).open(&self.path);
        let appended = opened.and_then(|mut file| file.write_all(text.as_bytes()));
        appended.map_err(|source| KeyError::Write { path: self.path.clone(), source })?;
        self.added += 1;
        Ok(())
    }
}

fn key_of(text: &str) -> Option<PrivateKey> {
    let bytes = Zeroizing::new(STANDARD.decode(text).ok()?);
    PrivateKey::from_bytes(bytes.as_slice().try_into().ok()?)
}

fn secret(text: &str) -> Option<(Epoch, String)> {
    let (epoch, print) = text.split_once(' ')?;
    Some((Epoch::new(epoch.parse().ok()?)?, print.to_owned()))
}

fn line(peer: &PublicKey, pair: &Pair) -> String {
    let Pair { name, boot_id, port, present, stated, sending, out, into } = pair;
    let states = |of: &BTreeMap<Generation, u32>| {
        let words: Vec<_> = of.iter().map(|(generation, spi)| format!("{generation}={spi:08x}")).collect();
        if words.is_empty() { "-".to_owned() } else { words.join(",") }
    };
    let stated_words: Vec<_> = stated.receives().map(|of| of.to_string()).collect();
    format!(
        "peer {} {} {} {} {} {port} {} {} {} {} {} {} .",
        STANDARD.encode(peer.as_bytes()),
        name.cluster.name,
        name.cluster.id.get(),
        name.node,
        boot_id.as_ref().map_or("-", BootId::as_str),
        u8::from(*present),
        u8::from(stated.in_udp),
        stated_words.join(","),
        sending.export(),
        states(out),
        states(into),
    )
}

/// None for half a line: a whole one ends with a full stop.
fn pair(text: &str) -> Option<(PublicKey, Pair)> {
    let words: Vec<&str> = text.split(' ').collect();
    let [peer, cluster, id, node, boot, port, present, udp, stated, sending, out, into, "."] = words[..]
    else {
        return None;
    };
    let peer = PublicKey::new(STANDARD.decode(peer).ok()?.try_into().ok()?).ok()?;
    let id = ClusterId::new(id.parse().ok()?, ClusterIdWidth::Bits9).ok()?;
    let cluster = ClusterRef { name: ClusterName::parse(cluster).ok()?, id };
    let flag = |text| match text {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    };
    let stated: Option<Vec<_>> = stated.split(',').map(Generation::parse).collect();
    let states = |text: &str| {
        let words = text.split(',').filter(|word| *word != "-");
        let state = |word: &str| {
            let (generation, spi) = word.split_once('=')?;
            Some((Generation::parse(generation)?, u32::from_str_radix(spi, 16).ok()?))
        };
        words.map(state).collect::<Option<BTreeMap<_, _>>>()
    };
    let pair = Pair {
        name: PeerName { cluster, node: NodeName::parse(node).ok()? },
        boot_id: if boot == "-" { None } else { Some(BootId::parse(boot).ok()?) },
        port: port.parse().ok()?,
        present: flag(present)?,
        stated: EspEnd::new(stated?, flag(udp)?)?,
        sending: Sending::import(sending)?,
        out: states(out)?,
        into: states(into)?,
    };
    Some((peer, pair))
}

#[cfg(test)]
mod tests {
    use hawser_tunnels::Keyring;

    use super::*;

    fn circumstances() -> Circumstances {
        Circumstances { boot_id: "b".into(), mark: "0x1/0xf".into() }
    }

    fn begin(path: &Path) -> Ledger {
        let keyring = Keyring::parse(&format!("1 {}", "00".repeat(32))).unwrap();
        let secrets = BTreeMap::from([(Epoch::FIRST, "print".to_owned())]);
        Ledger::begin(path, circumstances(), secrets, Receiving::begin(&keyring, Time::ZERO)).unwrap()
    }

    fn a_pair() -> Pair {
        let of = |text| Generation::parse(text).unwrap();
        let stated = EspEnd::new([of("1.4"), of("2.5")], true).unwrap();
        let mut sending = Sending::default();
        sending.handle_stated(&EspEnd::new([of("1.3")], true).unwrap(), |_| true);
        sending.handle_stated(&stated, |_| true);
        let cluster = ClusterRef {
            name: ClusterName::parse("eu-west").unwrap(),
            id: ClusterId::new(2, ClusterIdWidth::Bits9).unwrap(),
        };
        Pair {
            name: PeerName { cluster, node: NodeName::parse("node-1").unwrap() },
            boot_id: None,
            port: 51871,
            present: true,
            stated,
            sending,
            out: [(of("1.3"), 0x1234), (of("2.5"), 0x1235)].into(),
            into: [(of("1.1"), 0x5678)].into(),
        }
    }

    #[test]
    fn what_was_noted_is_there_again_and_half_a_line_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipsec.state");
        assert!(Ledger::load(&path, Time::ZERO).unwrap().is_none());
        let mut ledger = begin(&path);
        let (peer, pair) = (PublicKey::new([7; 32]).unwrap(), a_pair());
        assert_eq!(pair.spi_out(), Some(0x1235));
        ledger.note(peer, pair.clone()).unwrap();
        let size = fs::metadata(&path).unwrap().len();
        ledger.note(peer, pair.clone()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), size, "nothing new is nothing written");
        ledger.note(peer, Pair { present: false, ..pair.clone() }).unwrap();
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        let half = line(&peer, &pair);
        file.write_all(&half.as_bytes()[..half.len() - 5]).unwrap();
        ledger.note(PublicKey::new([8; 32]).unwrap(), pair.clone()).unwrap();

        let mut again = Ledger::load(&path, Time::ZERO).unwrap().unwrap();
        assert_eq!(again.pairs, ledger.pairs);
        assert_eq!(again.pairs[&peer], Pair { present: false, ..pair });
        again.rewrite().unwrap();
        let again = Ledger::load(&path, Time::ZERO).unwrap().unwrap();
        assert_eq!((&again.pairs, &again.secrets), (&ledger.pairs, &ledger.secrets));
        assert_eq!(again.receiving.export(), ledger.receiving.export());
        assert_eq!(again.circumstances, circumstances());
        assert_eq!(again.key.public(), ledger.key.public());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    }

    #[test]
    fn each_beginning_has_a_key_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipsec.state");
        let first = begin(&path).key.public();
        let second = begin(&path);
        assert_ne!(second.key.public(), first);
        assert!(second.pairs.is_empty());
    }
}
