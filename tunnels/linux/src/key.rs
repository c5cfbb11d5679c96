//! The node's private key: one file, made once, readable by its owner alone, in the form `wg genkey` prints.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::agreement::{self, X25519};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hawser_model::PublicKey;
use zeroize::Zeroizing;

/// A Curve25519 private key. Never printed, wiped when it is dropped.
#[derive(Clone)]
pub struct PrivateKey {
    secret: Arc<agreement::PrivateKey>,
    bytes: Zeroizing<[u8; 32]>,
    public: PublicKey,
}

impl PrivateKey {
    /// Reads the key, or makes it if there is none. Two processes that race to make it both get the same one.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        match Self::load(path) {
            Err(KeyError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                create(path)?;
                Self::load(path)
            }
            loaded => loaded,
        }
    }

    fn load(path: &Path) -> Result<Self, KeyError> {
        let read = |source| KeyError::Read { path: path.into(), source };
        let mode = fs::metadata(path).map_err(read)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.into(), mode });
        }
        let text = Zeroizing::new(fs::read_to_string(path).map_err(read)?);
        let bytes = STANDARD.decode(text.trim()).ok().map(Zeroizing::new);
        let bytes = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes.as_slice()).ok());
        bytes.and_then(Self::from_bytes).ok_or_else(|| KeyError::Malformed { path: path.into() })
    }

    /// None if the bytes are not a key: their public half would be zero.
    pub fn from_bytes(bytes: [u8; 32]) -> Option<Self> {
        if bytes == [0; 32] {
            return None;
        }
        let bytes = Zeroizing::new(bytes);
        let secret = agreement::PrivateKey::from_private_key(&X25519, bytes.as_slice()).ok()?;
        let public = secret.compute_public_key().ok()?;
        let public = PublicKey::new(public.as_ref().try_into().ok()?).ok()?;
        Some(Self { secret: Arc::new(secret), bytes, public })
    }

    pub fn public(&self) -> PublicKey {
        self.public
    }

    pub(crate) fn secret(&self) -> &agreement::PrivateKey {
        &self.secret
    }

    pub(crate) fn to_bytes(&self) -> [u8; 32] {
        *self.bytes
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "private half of {:?}", self.public)
    }
}

/// A temporary file that is linked into place: the name never shows half a key, and an existing key is never replaced.
fn create(path: &Path) -> Result<(), KeyError> {
    let write = |source| KeyError::Write { path: path.into(), source };
    let mut bytes = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(&mut bytes[..]).map_err(|error| write(io::Error::other(error)))?;
    // Clamped as `wg genkey` does (RFC 7748 §5).
    bytes[0] &= 248;
    bytes[31] = bytes[31] & 127 | 64;

    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{:016x}.new", rand::random::<u64>()));
    let temporary = path.with_file_name(name);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(Zeroizing::new(STANDARD.encode(&bytes[..])).as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        match fs::hard_link(&temporary, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => sync_directory(path),
        }
    })();
    let _ = fs::remove_file(&temporary);
    written.map_err(write)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(parent)?.sync_all()
}

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot read the private key {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write the private key {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the private key {} has mode {mode:o}: others may have read it. fix: chmod 600 it, or delete it to get a new one", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("the private key {} is not 32 bytes in base64. fix: delete it to get a new one", path.display())]
    Malformed { path: PathBuf },
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wireguard.key");
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || PrivateKey::load_or_create(&path).unwrap().public())
            })
            .collect();
        let keys: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(keys.iter().all(|key| *key == keys[0]));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn an_exposed_or_broken_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wireguard.key");
        PrivateKey::load_or_create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(PrivateKey::load_or_create(&path), Err(KeyError::Exposed { mode: 0o644, .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "AAAA").unwrap();
        assert!(matches!(PrivateKey::load_or_create(&path), Err(KeyError::Malformed { .. })));
    }
}
