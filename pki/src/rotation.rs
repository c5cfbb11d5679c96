//! CA rotation: one CA follows another with overlapping trust, and every step waits until all have taken the one before.
//!
//! The state is one value in one file, `rotation.json`, replaced as a whole; while it is there it alone says which CA signs
//! and which are trusted. What a step writes beside it follows from it, so a step that was cut short is written again.

use std::collections::BTreeSet;

use hawser_model::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ca::{Ca, CaError, Lifetime};
use crate::ca_set::CaSet;

/// Where a rotation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The old CA signs; the new one is trusted beside it.
    Prepare,
    /// The new CA signs, every certificate is made anew; the old one is trusted still.
    Issue,
    /// The old CA is no longer trusted.
    Retire,
    /// Called off: the old CA signs again, until nobody shows a certificate of the new one.
    Abort,
}

impl Phase {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Issue => "issue",
            Self::Retire => "retire",
            Self::Abort => "abort",
        }
    }
}

#[derive(Debug)]
pub struct Rotation {
    phase: Phase,
    old: Ca,
    next: Ca,
    started: Timestamp,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    phase: Phase,
    started: String,
    old: KeyPairFile,
    next: KeyPairFile,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyPairFile {
    certificate: String,
    key: String,
}

#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    #[error("rotation.json is not what `hawser ca rotate` wrote: {why}; fix: restore it, do not remove it")]
    Malformed { why: String },
    #[error("rotation.json: the {which} CA: {source}")]
    Ca {
        which: &'static str,
        #[source]
        source: CaError,
    },
    #[error(
        "rotation.json: the old and the new CA are of different clusters, or one and the same; fix: restore it"
    )]
    Unrelated,
    #[error("the rotation is in its {} phase, so it cannot {what}; fix: `hawser ca rotate --status` says what it waits for", phase.as_str())]
    Order { phase: Phase, what: &'static str },
    #[error("ca.crt and ca.key: {0}")]
    Settled(#[source] CaError),
}

impl Rotation {
    /// A new CA beside the old one. Nothing is signed by it yet.
    pub fn start(old: Ca, now: Timestamp) -> Result<Self, CaError> {
        let next = Ca::create(old.cluster(), now)?;
        Ok(Self { phase: Phase::Prepare, old, next, started: now })
    }

    pub fn from_json(text: &str) -> Result<Self, RotationError> {
        let file: File = serde_json::from_str(text)
            .map_err(|error| RotationError::Malformed { why: error.to_string() })?;
        let malformed = |error: &dyn std::fmt::Display| RotationError::Malformed { why: error.to_string() };
        let started = Timestamp::parse(&file.started).map_err(|error| malformed(&error))?;
        let ca = |which, pair: &KeyPairFile| {
            Ca::from_pem(&pair.certificate, &pair.key).map_err(|source| RotationError::Ca { which, source })
        };
        let (old, next) = (ca("old", &file.old)?, ca("new", &file.next)?);
        if old.cluster() != next.cluster() || old.cert().same_key(next.cert()) {
            return Err(RotationError::Unrelated);
        }
        Ok(Self { phase: file.phase, old, next, started })
    }

    /// For `rotation.json`, mode 0600, and nowhere else: both keys are in it.
    pub fn to_json(&self) -> String {
        let pair = |ca: &Ca| KeyPairFile { certificate: ca.cert().pem(), key: ca.key_pem() };
        let file = File {
            phase: self.phase,
            started: self.started.to_string(),
            old: pair(&self.old),
            next: pair(&self.next),
        };
        serde_json::to_string_pretty(&file).expect("a struct of strings always prints")
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    pub fn started(&self) -> Timestamp {
        self.started
    }

    pub fn old(&self) -> &Ca {
        &self.old
    }

    pub fn next(&self) -> &Ca {
        &self.next
    }

    pub fn issuing(&self) -> &Ca {
        match self.phase {
            Phase::Prepare | Phase::Abort => &self.old,
            Phase::Issue | Phase::Retire => &self.next,
        }
    }

    pub fn trusted(&self) -> CaSet {
        match self.phase {
            Phase::Retire => self.next.cert().clone().into(),
            Phase::Prepare | Phase::Issue | Phase::Abort => {
                CaSet::new(vec![self.old.cert().clone(), self.next.cert().clone()])
                    .expect("two CAs of different keys are a set")
            }
        }
    }

    /// Who vouches for what is trusted: whom those believe who have not heard the news.
    pub(crate) fn voucher(&self) -> &Ca {
        match self.phase {
            Phase::Retire => &self.next,
            Phase::Prepare | Phase::Issue | Phase::Abort => &self.old,
        }
    }

    /// Whether everybody has taken this phase is for the caller to know ([`Rotation::lacks`]). From the last phase of
    /// either way the rotation ends: none is left, and the CA that stays.
    pub fn advance(self) -> Result<Authority, RotationError> {
        let to = |phase, this| Ok(Authority::Changing(Self { phase, ..this }));
        match self.phase {
            Phase::Prepare => to(Phase::Issue, self),
            Phase::Issue => to(Phase::Retire, self),
            Phase::Retire => Ok(Authority::Settled(self.next)),
            Phase::Abort => Ok(Authority::Settled(self.old)),
        }
    }

    /// Possible as long as the old CA is trusted.
    pub fn abort(self) -> Result<Self, RotationError> {
        match self.phase {
            Phase::Retire => Err(RotationError::Order { phase: self.phase, what: "be aborted any more" }),
            Phase::Prepare | Phase::Issue | Phase::Abort => Ok(Self { phase: Phase::Abort, ..self }),
        }
    }

    /// What this member has not done yet of what the phase asks; none when it has done it.
    pub fn lacks(&self, member: &Member) -> Option<&'static str> {
        let trusts = |ca: &Ca| member.trusts.contains(&ca.cert().fingerprint());
        let shows = |ca: &Ca| match member.kind {
            // Its certificates are of its own CA.
            MemberKind::Peer => true,
            MemberKind::Replica | MemberKind::Agent => {
                member.issuer.as_deref() == Some(&ca.cert().fingerprint())
            }
        };
        if member.trusts.is_empty() {
            return Some("has not said which CAs it trusts");
        }
        let done = match self.phase {
            Phase::Prepare => trusts(&self.next) && trusts(&self.old),
            Phase::Issue => trusts(&self.next) && shows(&self.next),
            Phase::Retire => trusts(&self.next) && !trusts(&self.old),
            Phase::Abort => trusts(&self.old) && shows(&self.old),
        };
        let lacking = match self.phase {
            Phase::Prepare => "does not trust the new CA yet",
            Phase::Issue => "still shows a certificate of the old CA",
            Phase::Retire => "still trusts the old CA",
            Phase::Abort => "still shows a certificate of the new CA",
        };
        (!done).then_some(lacking)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberKind {
    Replica,
    Agent,
    Peer,
}

impl MemberKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Replica => "replica",
            Self::Agent => "agent",
            Self::Peer => "peer",
        }
    }
}

/// Somebody a rotation waits for, as far as is known. CAs by their fingerprints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub kind: MemberKind,
    pub name: String,
    /// Whose certificate it shows.
    pub issuer: Option<String>,
    /// Empty when it never said.
    pub trusts: BTreeSet<String>,
}

/// What a `pki` directory says: a CA, or a rotation from one to another.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a process has one")]
pub enum Authority {
    Settled(Ca),
    Changing(Rotation),
}

/// One change of the directory, to be made in order; each is whole or not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    Put { name: &'static str, text: String, secret: bool },
    Remove { name: &'static str },
}

pub const CA_CERT: &str = "ca.crt";
pub const CA_KEY: &str = "ca.key";
pub const ROTATION: &str = "rotation.json";

impl Authority {
    /// `rotation.json` alone counts while it is there.
    pub fn read(cert: &str, key: &str, rotation: Option<&str>) -> Result<Self, RotationError> {
        match rotation {
            Some(text) => Rotation::from_json(text).map(Self::Changing),
            None => Ca::from_pem(cert, key).map(Self::Settled).map_err(RotationError::Settled),
        }
    }

    /// Of the certificates that renew themselves.
    pub fn set_lifetime(&mut self, lifetime: Lifetime) {
        match self {
            Self::Settled(ca) => ca.set_lifetime(lifetime),
            Self::Changing(rotation) => {
                rotation.old.set_lifetime(lifetime);
                rotation.next.set_lifetime(lifetime);
            }
        }
    }

    pub fn issuing(&self) -> &Ca {
        match self {
            Self::Settled(ca) => ca,
            Self::Changing(rotation) => rotation.issuing(),
        }
    }

    pub fn trusted(&self) -> CaSet {
        match self {
            Self::Settled(ca) => ca.cert().clone().into(),
            Self::Changing(rotation) => rotation.trusted(),
        }
    }

    pub fn rotation(&self) -> Option<&Rotation> {
        match self {
            Self::Settled(_) => None,
            Self::Changing(rotation) => Some(rotation),
        }
    }

    pub(crate) fn voucher(&self) -> &Ca {
        match self {
            Self::Settled(ca) => ca,
            Self::Changing(rotation) => rotation.voucher(),
        }
    }

    /// The changes that bring a directory to this state from the one before it, or from anywhere between the two.
    /// `ca.crt` is for whoever verifies us without knowing of rotations: `etcdctl`, an admin elsewhere.
    pub fn writes(&self) -> Vec<Write> {
        let cert = Write::Put { name: CA_CERT, text: self.trusted().pem(), secret: false };
        match self {
            Self::Changing(rotation) => {
                vec![Write::Put { name: ROTATION, text: rotation.to_json(), secret: true }, cert]
            }
            // The rotation goes last: until then it says the same as what is written here.
            Self::Settled(ca) => vec![
                Write::Put { name: CA_KEY, text: ca.key_pem(), secret: true },
                cert,
                Write::Remove { name: ROTATION },
            ],
        }
    }
}

#[cfg(test)]
#[path = "rotation_tests.rs"]
mod tests;
