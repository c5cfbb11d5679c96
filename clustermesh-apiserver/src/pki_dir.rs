//! The `pki` directory, read whole while somebody else writes it: `hawser ca rotate`, or a mounted Secret that changes.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hawser_pki::{Authority, CA_CERT, CA_KEY, CaError, ROTATION, RotationError};

use crate::config::Config;
use crate::trust::{CertifyError, now};

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error(
        "cannot read {path}: {source}; fix: `hawser ca init --cluster {cluster} --id {id}`, or set `pki` in the configuration"
    )]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
        cluster: String,
        id: u16,
    },
    #[error("the CA in {dir}: {source}{}", if source.to_string().contains("fix:") { "" } else { "; fix: restore ca.crt and ca.key as `hawser ca init` wrote them" })]
    Ca {
        dir: PathBuf,
        #[source]
        source: CaError,
    },
    #[error("the CA in {dir}: {source}")]
    Rotation {
        dir: PathBuf,
        #[source]
        source: RotationError,
    },
    #[error(
        "the CA in {dir} is cluster {ca}'s, and the configuration is cluster {cluster}'s; fix: set `pki` to the CA of \
         {cluster}, or `cluster.name` to {ca}"
    )]
    Other { dir: PathBuf, ca: String, cluster: String },
    #[error("our own certificates cannot be issued from the CA in {dir}: {source}")]
    Certify {
        dir: PathBuf,
        #[source]
        source: CertifyError,
    },
    #[error(
        "the CA in {dir} was replaced by one that is not trusted here, which would part this server from every agent and \
         peer; it goes on with the old one; fix: put ca.crt and ca.key back and use `hawser ca rotate`, or restart the \
         server if that is meant"
    )]
    Replaced { dir: PathBuf },
    #[error("{dir} is being written all the time")]
    Busy { dir: PathBuf },
}

/// Which files lie there: changes whenever one is replaced. Cost: three `stat`s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp([Option<(u64, u64, i64, i64)>; 3]);

impl Stamp {
    pub fn of(dir: &Path) -> Self {
        let stamp = |name: &str| {
            let data = fs::metadata(dir.join(name)).ok()?;
            Some((data.ino(), data.len(), data.mtime(), data.mtime_nsec()))
        };
        Self([CA_CERT, CA_KEY, ROTATION].map(stamp))
    }
}

/// What the directory says, at one moment: read again when it changed meanwhile.
pub fn read(config: &Config) -> Result<(Authority, Stamp), PkiError> {
    const TRIES: usize = 20;
    let dir = &config.pki;
    for _ in 0..TRIES {
        let stamp = Stamp::of(dir);
        let found = once(config);
        if Stamp::of(dir) == stamp {
            return Ok((found?, stamp));
        }
    }
    Err(PkiError::Busy { dir: dir.clone() })
}

fn once(config: &Config) -> Result<Authority, PkiError> {
    let dir = &config.pki;
    let file = |name: &str| {
        let path = dir.join(name);
        fs::read_to_string(&path).map_err(|source| PkiError::Read {
            path,
            source,
            cluster: config.cluster.name.to_string(),
            id: config.cluster.id.get(),
        })
    };
    let rotation = match file(ROTATION) {
        Ok(text) => Some(text),
        Err(PkiError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let read = Authority::read(&file(CA_CERT)?, &file(CA_KEY)?, rotation.as_deref());
    let mut authority = read.map_err(|error| match error {
        RotationError::Settled(source) => PkiError::Ca { dir: dir.clone(), source },
        source => PkiError::Rotation { dir: dir.clone(), source },
    })?;
    let ca = authority.issuing();
    if *ca.cluster() != config.cluster.name {
        let (ca, cluster) = (ca.cluster().to_string(), config.cluster.name.to_string());
        return Err(PkiError::Other { dir: dir.clone(), ca, cluster });
    }
    let not_after = ca.cert().not_after();
    if now() > not_after {
        let source = CaError::Expired { cluster: config.cluster.name.clone(), not_after, now: now() };
        return Err(PkiError::Ca { dir: dir.clone(), source });
    }
    authority.set_lifetime(config.certificate_lifetime);
    Ok(authority)
}
