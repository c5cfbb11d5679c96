//! Mirrors on disk, one snapshot each, so that what a cluster said last outlives this process.
//!
//! Layout: a snapshot of `durable` (version, checksum) whose lineage is the origin's cluster id.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hawser_kvstore::{ApplyError, Identity, Revision};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::Shown;
use crate::durable::codec::{self, CodecError, KeptMirror};
use crate::durable::{Directory, Disk, TakeError, snapshot};

/// A mirror that changes is written at most so often: what a kill loses is asked of the origin again.
const EVERY: Duration = Duration::from_secs(30);
/// Where a store's snapshot has its frame number; so that neither is taken for the other.
const FORMAT: u64 = u64::from_be_bytes(*b"mirror 1");
const ENDING: &str = ".snapshot";
const SEAL: &str = ".sealed";
/// It has its header and a revision.
const MOST_SEAL: u64 = 256;

/// A directory of mirrors' snapshots. Clones are the same directory; of all its mirrors one is written at a time, so
/// that many never hold many copies.
#[derive(Clone)]
pub struct MirrorDir(Arc<Inner>);

struct Inner {
    disk: Arc<dyn Disk>,
    every: Duration,
    turn: Semaphore,
    /// Held while a file is written or removed, also by one whose mirror has ended meanwhile.
    files: Mutex<()>,
}

impl std::fmt::Debug for MirrorDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("MirrorDir").field(&self.place()).finish()
    }
}

/// Why a snapshot is not used. The origin is listed instead.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("it has {len} bytes, and a mirror of this quota at most {most}")]
    TooLarge { len: u64, most: u64 },
    #[error("it is damaged, or of another version: it {0}")]
    Damaged(String),
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("it is of cluster {0:?}")]
    Foreign(String),
    #[error("it does not fit together: {0}")]
    Apply(#[from] ApplyError),
}

impl MirrorDir {
    /// Takes the directory for this process, made if absent (mode 0700).
    pub fn take(path: &Path) -> Result<Self, TakeError> {
        Ok(Self::on(Arc::new(Directory::take(path)?), EVERY))
    }

    /// The same on any disk, written at most once per `every` and mirror.
    pub fn on(disk: Arc<dyn Disk>, every: Duration) -> Self {
        Self(Arc::new(Inner { disk, every, turn: Semaphore::new(1), files: Mutex::new(()) }))
    }

    pub fn place(&self) -> String {
        self.0.disk.place()
    }

    /// Removes every snapshot but those of `clusters`, and what a kill left half written. Of mirrors that run, name all.
    pub fn retain(&self, clusters: &[&str]) {
        let _alone = self.alone();
        let both = |cluster: &&str| [file_name(cluster), seal_name(cluster)];
        let wanted: Vec<String> = clusters.iter().flat_map(both).collect();
        let names = self.0.disk.list().unwrap_or_default();
        let ours = |name: &String| {
            let name = name.strip_suffix(snapshot::TEMPORARY).unwrap_or(name);
            name.ends_with(ENDING) || name.ends_with(SEAL)
        };
        for name in names.iter().filter(|name| ours(name) && !wanted.contains(name)) {
            self.remove(name);
        }
    }

    /// What is kept of `cluster`. Cost: the file, read in one piece; its entries share it.
    pub(super) fn load(&self, cluster: &str, quota: usize) -> Result<Option<KeptMirror>, Unusable> {
        let disk = &self.0.disk;
        let name = file_name(cluster);
        let len = match disk.len(&name) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            len => len?,
        };
        // What an entry counts against the quota is at least a third of what it takes here.
        let most = (quota as u64).saturating_mul(3).saturating_add(1 << 20);
        if len > most {
            return Err(Unusable::TooLarge { len, most });
        }
        let bytes = Bytes::from(disk.read(&name)?);
        let (cluster_id, state) = snapshot::decode(&bytes, FORMAT).map_err(Unusable::Damaged)?;
        let kept = codec::decode_mirror(state, Identity::adopted(cluster_id))?;
        match kept.cluster == cluster {
            true => Ok(Some(kept)),
            false => Err(Unusable::Foreign(kept.cluster)),
        }
    }

    pub(super) fn write(&self, mirror: KeptMirror, ended: &AtomicBool) -> io::Result<()> {
        let _alone = self.alone();
        if ended.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (name, cluster_id) = (file_name(&mirror.cluster), mirror.state.identity.cluster_id);
        let state = codec::encode_mirror(mirror);
        let written = snapshot::write(&*self.0.disk, &name, cluster_id, FORMAT, &state);
        if written.is_err() {
            // On a full disk its bytes are wanted; the snapshot before it stays.
            let _ = self.0.disk.remove(&format!("{name}{}", snapshot::TEMPORARY));
        }
        written
    }

    /// Says that nobody was shown anything beyond what is on disk. Of a mirror that counts its own revisions.
    pub(super) fn seal(&self, cluster: &str, cluster_id: u64, revision: Revision) -> io::Result<()> {
        let _alone = self.alone();
        let name = seal_name(cluster);
        snapshot::write(&*self.0.disk, &name, cluster_id, FORMAT, &revision.to_le_bytes().to_vec().into())
    }

    /// What the seal said; from here on it is broken. One that cannot be removed counts for nothing.
    pub(super) fn unseal(&self, cluster: &str) -> Option<(u64, Revision)> {
        let _alone = self.alone();
        let (disk, name) = (&self.0.disk, seal_name(cluster));
        if disk.len(&name).ok()? > MOST_SEAL {
            return None;
        }
        let bytes = Bytes::from(disk.read(&name).ok()?);
        disk.remove(&name).and_then(|()| disk.sync_dir()).ok()?;
        let (cluster_id, revision) = snapshot::decode(&bytes, FORMAT).ok()?;
        Some((cluster_id, Revision::from_le_bytes(revision[..].try_into().ok()?)))
    }

    /// For good: a write that is under way is waited for, a later one of the same mirror does nothing.
    pub(super) fn forget(&self, cluster: &str, ended: &AtomicBool) {
        let _alone = self.alone();
        ended.store(true, Ordering::Relaxed);
        self.remove(&file_name(cluster));
        if self.0.disk.len(&seal_name(cluster)).is_ok() {
            self.remove(&seal_name(cluster));
        }
    }

    fn remove(&self, name: &str) {
        let disk = &self.0.disk;
        if let Err(error) = disk.remove(name).and_then(|()| disk.sync_dir()) {
            tracing::warn!(dir = self.place(), file = name, %error, "a mirror's snapshot stays for now");
        }
    }

    fn alone(&self) -> MutexGuard<'_, ()> {
        self.0.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A cluster's name is a DNS label; whatever else is given stays within the directory.
fn file_name(cluster: &str) -> String {
    format!("{}{ENDING}", cluster.replace('/', "_"))
}

fn seal_name(cluster: &str) -> String {
    format!("{}{SEAL}", cluster.replace('/', "_"))
}

/// What a mirror answers its keeper: its state, and the progress that this state is.
pub(super) type Ask = oneshot::Sender<(KeptMirror, Progress)>;
pub(super) type Progress = (u64, Revision);

/// Writes one mirror's snapshot whenever it has changed, beside the mirror.
pub(super) struct Keeper {
    pub(super) dir: MirrorDir,
    pub(super) cluster: String,
    /// Asks the mirror, which alone knows when its state is one.
    pub(super) asks: mpsc::Sender<Ask>,
    pub(super) changes: watch::Receiver<Progress>,
    /// What is on disk, as far as is known.
    pub(super) kept: Option<Progress>,
    pub(super) shown: watch::Sender<Shown>,
    pub(super) ended: Arc<AtomicBool>,
}

impl Keeper {
    pub(super) async fn run(mut self) {
        // Both the keyspace and the mirror outlive this, or end it.
        while self.changes.wait_for(|progress| Some(*progress) != self.kept).await.is_ok() {
            let Some(kept) = self.keep().await else { return };
            self.kept = kept;
            tokio::time::sleep(self.dir.0.every).await;
        }
    }

    /// What is on disk then: nothing, as far as is known, after a failure. `None` when the mirror has ended.
    async fn keep(&self) -> Option<Option<Progress>> {
        let (progress, written) = keep(&self.dir, &self.asks, &self.ended).await?;
        let kept = written.is_ok().then_some(progress);
        self.tell(progress.1, written);
        Some(kept)
    }

    fn tell(&self, revision: Revision, written: io::Result<()>) {
        let (cluster, dir) = (&self.cluster, self.dir.place());
        let trouble = written.err().map(|error| {
            format!("its state could not be kept in {dir}: {error}; fix: free disk space there, or replace the disk")
        });
        self.shown.send_modify(|shown| {
            match &trouble {
                Some(trouble) if shown.keep_trouble.as_ref() != Some(trouble) => {
                    tracing::warn!(
                        cluster,
                        trouble,
                        "a mirror is not on disk; it is served and followed all the same"
                    );
                }
                None if shown.keep_trouble.is_some() => {
                    tracing::info!(cluster, "the mirror is on disk again")
                }
                _ => {}
            }
            if trouble.is_none() {
                shown.kept_revision = Some(revision);
            }
            shown.keep_trouble = trouble;
        });
    }
}

/// Asks a mirror for its state and writes it, when it is its turn. `None` when the mirror has ended.
pub(super) async fn keep(
    dir: &MirrorDir,
    asks: &mpsc::Sender<Ask>,
    ended: &Arc<AtomicBool>,
) -> Option<(Progress, io::Result<()>)> {
    let _turn = dir.0.turn.acquire().await.ok()?;
    let (ask, answer) = oneshot::channel();
    asks.send(ask).await.ok()?;
    let (mirror, progress) = answer.await.ok()?;
    let (dir, ended) = (dir.clone(), ended.clone());
    let written = tokio::task::spawn_blocking(move || dir.write(mirror, &ended)).await;
    Some((progress, written.unwrap_or_else(|stopped| Err(io::Error::other(stopped)))))
}
