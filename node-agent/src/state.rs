//! The state directory: who this node is, and what it remembers over a restart. One agent at a time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hawser_model::Encryption;
use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// `cluster.json`: what the API server said last about the cluster and this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClusterFile {
    pub cluster: String,
    pub cluster_id: u32,
    pub node: String,
    pub servers: Vec<String>,
    /// None before the first report was answered.
    #[serde(default)]
    pub place: Option<PlaceFile>,
}

/// This node's place in the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PlaceFile {
    pub index: u32,
    pub max_connected_clusters: u32,
    pub mesh_ula: String,
    pub mesh_ipv4: String,
    /// Empty from a server that knows no other than WireGuard.
    #[serde(default)]
    pub encryption: String,
}

impl PlaceFile {
    pub(crate) fn named(&self) -> &str {
        if self.encryption.is_empty() { Encryption::Wireguard.as_str() } else { &self.encryption }
    }

    /// WireGuard when it is none that is known: what is kept was parsed before.
    pub(crate) fn encryption(&self) -> Encryption {
        Encryption::parse(self.named()).unwrap_or_default()
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("cannot {doing} {}: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "another hawser-node-agent is running on {} (it holds {}). fix: stop it, or give this one another `state`",
        dir.display(), lock.display()
    )]
    Locked { dir: PathBuf, lock: PathBuf },
    #[error("{} is not what was written there: {reason}. fix: remove the file; the agent makes it again", path.display())]
    Malformed { path: PathBuf, reason: String },
}

/// The directory, locked while this value lives.
#[derive(Debug)]
pub(crate) struct StateDir {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl StateDir {
    /// Makes the directory (mode 0700) if it is missing, and takes it for this process.
    pub(crate) fn open(dir: &Path) -> Result<Self, StateError> {
        let io = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io { doing, path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("make", dir))?;
        let path = dir.join("lock");
        let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = open.map_err(io("open", &path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { dir: dir.into(), _lock: lock }),
            Err((_, nix::Error::EAGAIN)) => Err(StateError::Locked { dir: dir.into(), lock: path }),
            Err((_, error)) => Err(io("lock", &path)(error.into())),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn read(&self, name: &str) -> Result<Option<String>, StateError> {
        let path = self.path(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Io { doing: "read", path, source }),
        }
    }

    pub(crate) fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        let Some(text) = self.read(name)? else { return Ok(None) };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| StateError::Malformed { path: self.path(name), reason: error.to_string() })
    }

    /// Replaces the file as a whole, mode 0600, on disk when this returns: a crash leaves the old one or the new one.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> Result<(), StateError> {
        let path = self.path(name);
        let new = self.path(&format!("{name}.new"));
        let write = || {
            let mut file =
                OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|source| StateError::Io { doing: "write", path: path.clone(), source })
    }

    pub(crate) fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        let text = serde_json::to_vec_pretty(value)
            .map_err(|error| StateError::Malformed { path: self.path(name), reason: error.to_string() })?;
        self.write(name, &text)
    }

    /// Removes what an agent remembers of the mesh; its certificate and keys stay.
    pub(crate) fn forget(&self, name: &str) -> Result<(), StateError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StateError::Io { doing: "remove", path, source: error })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_agent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        let first = StateDir::open(&path).unwrap();
        let error = StateDir::open(&path).unwrap_err();
        assert!(matches!(error, StateError::Locked { .. }), "{error}");
        drop(first);
        assert!(StateDir::open(&path).is_ok(), "a dead agent holds nothing");
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert_eq!(state.read("agent.crt").unwrap(), None);
        state.write("agent.crt", b"one").unwrap();
        state.write("agent.crt", b"two").unwrap();
        assert_eq!(state.read("agent.crt").unwrap().as_deref(), Some("two"));
        state.write("cluster.json", b"{").unwrap();
        assert!(matches!(state.read_json::<ClusterFile>("cluster.json"), Err(StateError::Malformed { .. })));
    }
}
