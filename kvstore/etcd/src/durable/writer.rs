//! The embedded store's writer: executes a batch, makes it durable with one sync, publishes it, answers.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hawser_kvstore::{ApplyError, Executed, Identity, Keyspace, Limits, Op, OpError, Record, Reply};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::codec::{self, CodecError};
use super::disk::{Directory, Disk, TakeError};
use super::log::{AppendError, Log, OpenError, write_snapshot};
use crate::server::{SharedKeyspace, WriteError, Writer};

/// Writes that wait while a batch is being synced; the next one waits in its caller.
const QUEUE: usize = 1024;
/// A batch is not made longer than this, so that its first writer does not wait for the rest.
const BATCH_OPS: usize = 1024;
const BATCH_BYTES: usize = 4 << 20;

/// Sizes of an embedded store.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddedConfig {
    pub limits: Limits,
    /// Log bytes after which a snapshot is written: what a restart replays, and what the disk holds beside it.
    pub snapshot_after: u64,
}

impl Default for EmbeddedConfig {
    fn default() -> Self {
        Self { limits: Limits::default(), snapshot_after: 64 << 20 }
    }
}

/// Why an embedded store does not open.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    #[error(transparent)]
    Take(#[from] TakeError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(
        "the store {place} was read whole, but {what} cannot be understood: {why}. \
         fix: start the version of Hawser that wrote it"
    )]
    Codec { place: String, what: &'static str, why: CodecError },
    #[error(
        "the store {place} was read whole, but does not fit together: {why}. \
         fix: restore the directory from a backup, and report this"
    )]
    Apply { place: String, why: ApplyError },
}

/// An open embedded store.
#[derive(Debug)]
pub struct Embedded {
    pub keyspace: SharedKeyspace,
    pub writer: Arc<EmbeddedWriter>,
    pub lineage: u64,
}

/// The handle that the server writes through. When the last one is gone, the store closes.
#[derive(Debug)]
pub struct EmbeddedWriter {
    queue: mpsc::Sender<Job>,
}

#[derive(Debug)]
struct Job {
    op: Op,
    answer: oneshot::Sender<Result<Reply, WriteError>>,
}

/// The store failed while this write waited, or its task is gone.
#[derive(Debug, thiserror::Error)]
#[error("the store is shutting down")]
struct Closed;

impl Embedded {
    /// Opens or creates the store in `path`. Reads all of it, so call it off the async threads. The writer's task
    /// runs on `runtime`.
    pub fn open(
        path: &Path,
        cluster: &str,
        config: EmbeddedConfig,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Self, EmbeddedError> {
        Self::open_on(Arc::new(Directory::take(path)?), cluster, config, runtime)
    }

    /// The same on any disk.
    pub fn open_on(
        disk: Arc<dyn Disk>,
        cluster: &str,
        config: EmbeddedConfig,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Self, EmbeddedError> {
        let (log, keyspace) = load(disk, cluster, config.limits)?;
        let lineage = log.lineage();
        let keyspace = SharedKeyspace::new(keyspace);
        let (queue, jobs) = mpsc::channel(QUEUE);
        let task = Task { log: Some(log), keyspace: keyspace.clone(), jobs, snapshot: None, config };
        runtime.spawn(task.run());
        Ok(Self { keyspace, writer: Arc::new(EmbeddedWriter { queue }), lineage })
    }
}

fn load(disk: Arc<dyn Disk>, cluster: &str, limits: Limits) -> Result<(Log, Keyspace), EmbeddedError> {
    let place = disk.place();
    let (log, found) = Log::open(disk, || {
        let lineage = rand::random();
        let empty = Keyspace::new(Identity::new(cluster, lineage, 0), limits);
        (lineage, codec::encode_state(empty.snapshot()))
    })?;
    if let Some(bytes) = found.cut {
        tracing::warn!(
            store = place,
            bytes,
            "the last write before the store stopped was torn; nobody was told of it, it is cut"
        );
    }
    let identity = Identity::new(cluster, found.lineage, 0);
    let not_understood = |what| {
        let place = place.clone();
        move |why| EmbeddedError::Codec { place, what, why }
    };
    let state = codec::decode_state(found.snapshot, identity).map_err(not_understood("the snapshot"))?;
    let apply = |why| EmbeddedError::Apply { place: place.clone(), why };
    let mut keyspace = Keyspace::restore(&state, limits, Duration::ZERO).map_err(apply)?;
    for bytes in found.records {
        let record = codec::decode_record(bytes).map_err(not_understood("a record"))?;
        keyspace.apply(&record, Duration::ZERO).map_err(apply)?;
    }
    tracing::info!(
        store = place,
        lineage = format!("{:016x}", found.lineage),
        revision = keyspace.revision(),
        created = found.created,
        "embedded store is open"
    );
    Ok((log, keyspace))
}

#[tonic::async_trait]
impl Writer for EmbeddedWriter {
    async fn write(&self, op: Op) -> Result<Reply, WriteError> {
        let (answer, answered) = oneshot::channel();
        let closed = || WriteError::Unavailable(Box::new(Closed));
        self.queue.send(Job { op, answer }).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }
}

struct Task {
    /// `None` only while a batch is being written.
    log: Option<Log>,
    keyspace: SharedKeyspace,
    jobs: mpsc::Receiver<Job>,
    snapshot: Option<JoinHandle<()>>,
    config: EmbeddedConfig,
}

/// An answer that is owed, and what it will be if the batch becomes durable.
type Owed = (oneshot::Sender<Result<Reply, WriteError>>, Result<Reply, OpError>);

/// What one batch executed: the answers it owes and the records that come first.
#[derive(Default)]
struct Batch {
    answers: Vec<Owed>,
    records: Vec<Bytes>,
    bytes: usize,
}

impl Batch {
    fn add(&mut self, record: Option<&Record>) {
        if let Some(record) = record {
            let bytes = codec::encode_record(record);
            self.bytes += bytes.len();
            self.records.push(bytes);
        }
    }

    fn is_full(&self) -> bool {
        self.answers.len() >= BATCH_OPS || self.bytes >= BATCH_BYTES
    }
}

impl Task {
    async fn run(mut self) {
        loop {
            let expiry = self.keyspace.read(Keyspace::poll_deadline).map(|deadline| deadline.at());
            let batch = tokio::select! {
                job = self.jobs.recv() => match job {
                    Some(job) => self.execute(job),
                    None => break,
                },
                () = sleep_until(&self.keyspace, expiry) => self.expire(),
            };
            self.commit(batch).await;
            self.snapshot_if_due().await;
        }
        if let Some(snapshot) = self.snapshot.take() {
            let _ = snapshot.await;
        }
    }

    /// Executes `first` and whatever else waits already. Nothing of it is visible yet.
    fn execute(&mut self, first: Job) -> Batch {
        let now = self.keyspace.now();
        let mut batch = Batch::default();
        let mut next = Some(first);
        while let Some(job) = next {
            let executed = self.keyspace.update(|keyspace| keyspace.execute(&job.op, now));
            if let Ok(Executed { record, .. }) = &executed {
                batch.add(record.as_ref());
            }
            batch.answers.push((job.answer, executed.map(|executed| executed.reply)));
            next = if batch.is_full() { None } else { self.jobs.try_recv().ok() };
        }
        batch
    }

    fn expire(&mut self) -> Batch {
        let now = self.keyspace.now();
        let mut batch = Batch::default();
        for executed in self.keyspace.update(|keyspace| keyspace.handle_time(now)) {
            batch.add(executed.record.as_ref());
        }
        batch
    }

    /// Durable, then visible, then answered; or undone and refused.
    async fn commit(&mut self, batch: Batch) {
        let written = match batch.records.is_empty() {
            true => Ok(()),
            false => self.append(batch.records).await,
        };
        match &written {
            Ok(()) => self.keyspace.update(Keyspace::publish),
            Err(error) => {
                tracing::error!(%error, writes = batch.answers.len(), "writes were refused: they could not be made durable");
                let now = self.keyspace.now();
                self.keyspace.update(|keyspace| keyspace.roll_back(now));
                // An expiry that cannot be written is tried again, but not at once.
                if batch.answers.is_empty() {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        }
        for (answer, reply) in batch.answers {
            // What was refused on its own account was judged on a state that may have been rolled back since.
            let result = match &written {
                Ok(()) => reply.map_err(WriteError::Refused),
                Err(error) => Err(WriteError::Unavailable(Box::new(error.clone()))),
            };
            // Its caller has gone; the write stands.
            let _ = answer.send(result);
        }
    }

    async fn append(&mut self, records: Vec<Bytes>) -> Result<(), AppendError> {
        let stopped = |why: &str| AppendError::Stopped { place: "(closed)".to_owned(), why: why.to_owned() };
        let Some(mut log) = self.log.take() else { return Err(stopped("its writer panicked")) };
        let (log, result) = tokio::task::spawn_blocking(move || {
            let result = log.append(&records).map(|_| ());
            (log, result)
        })
        .await
        .map_err(|error| stopped(&error.to_string()))?;
        self.log = Some(log);
        result
    }

    /// Everything executed is published here, so the snapshot holds acknowledged writes only.
    async fn snapshot_if_due(&mut self) {
        let due = self.log.as_ref().is_some_and(|log| log.behind_snapshot() >= self.config.snapshot_after);
        if !due || self.snapshot.as_ref().is_some_and(|running| !running.is_finished()) {
            return;
        }
        let Some(mut log) = self.log.take() else { return };
        let rotated = tokio::task::spawn_blocking(move || {
            let at = log.rotate();
            (log, at)
        });
        let Ok((log, at)) = rotated.await else { return };
        let (disk, lineage) = (log.disk(), log.lineage());
        self.log = Some(log);
        let at = match at {
            Ok(at) => at,
            Err(error) => return tracing::error!(%error, "no snapshot was taken; the log goes on growing"),
        };
        let state = self.keyspace.read(Keyspace::snapshot);
        self.snapshot = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = write_snapshot(&*disk, lineage, at, &codec::encode_state(state)) {
                tracing::error!(store = disk.place(), %error, "a snapshot could not be written; the log before it stays");
            }
        }));
    }
}

async fn sleep_until(keyspace: &SharedKeyspace, at: Option<Duration>) {
    match at {
        Some(at) => tokio::time::sleep(at.saturating_sub(keyspace.now())).await,
        None => std::future::pending().await,
    }
}
