//! The seam for durability: a write is acknowledged when the writer says so, and not before.

use super::keyspaces::SharedKeyspace;
use hawser_kvstore::{Op, OpError, Reply};
use std::error::Error;
use std::sync::{Arc, Weak};

/// Carries out the writes of one keyspace, in an order of its own choosing.
///
/// When `write` returns `Ok`, the operation is as durable as this writer makes it, **and** it is published in the shared
/// keyspace, so that whoever was told sees it when reading. When it returns `Err`, no reader has seen anything of it; only
/// after [`WriteError::Unavailable`] may it turn out, later, to have happened.
/// A writer over a [`hawser_kvstore::Keyspace`] executes a batch, makes its records durable, publishes, and answers; it also
/// revokes expired leases (`poll_deadline`, `handle_time`). A future that is dropped may still carry out its write.
#[tonic::async_trait]
pub trait Writer: Send + Sync + 'static {
    async fn write(&self, op: Op) -> Result<Reply, WriteError>;
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The operation itself is at fault.
    #[error(transparent)]
    Refused(#[from] OpError),
    /// A mirror: only its origin is written.
    #[error(
        "the keyspace of cluster {cluster} is a mirror and cannot be written here. fix: write to {cluster}'s own API server"
    )]
    Mirror { cluster: String },
    /// The store does not keep such keys.
    #[error("{0}")]
    Elsewhere(#[source] Box<dyn Error + Send + Sync>),
    /// The store cannot make anything durable now; whether this write happened is not known.
    #[error("the store cannot write: {0}")]
    Unavailable(#[source] Box<dyn Error + Send + Sync>),
}

/// In memory only: for tests, and for state that may be forgotten.
#[derive(Debug)]
pub struct MemoryWriter {
    keyspace: SharedKeyspace,
}

impl MemoryWriter {
    /// Must be called in a tokio runtime: a task that expires leases runs until the writer is dropped.
    pub fn spawn(keyspace: SharedKeyspace) -> Arc<Self> {
        let writer = Arc::new(Self { keyspace });
        tokio::spawn(expire(Arc::downgrade(&writer)));
        writer
    }
}

#[tonic::async_trait]
impl Writer for MemoryWriter {
    async fn write(&self, op: Op) -> Result<Reply, WriteError> {
        let now = self.keyspace.now();
        let executed = self.keyspace.update(|keyspace| {
            let executed = keyspace.execute(&op, now)?;
            keyspace.publish();
            Ok::<_, OpError>(executed)
        })?;
        Ok(executed.reply)
    }
}

async fn expire(writer: Weak<MemoryWriter>) {
    // A new lease is noticed within a second at most: leases are granted in whole seconds, two at least.
    const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(500);
    while let Some(writer) = writer.upgrade() {
        let now = writer.keyspace.now();
        let due = writer.keyspace.read(hawser_kvstore::Keyspace::poll_deadline).map(|deadline| deadline.at());
        if due.is_some_and(|due| due <= now) {
            writer.keyspace.update(|keyspace| {
                keyspace.handle_time(now);
                keyspace.publish();
            });
        }
        drop(writer);
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// For mirrors: refuses everything.
#[derive(Clone, Debug)]
pub struct ReadOnlyWriter {
    cluster: String,
}

impl ReadOnlyWriter {
    pub fn new(cluster: &str) -> Arc<Self> {
        Arc::new(Self { cluster: cluster.to_owned() })
    }
}

#[tonic::async_trait]
impl Writer for ReadOnlyWriter {
    async fn write(&self, _op: Op) -> Result<Reply, WriteError> {
        Err(WriteError::Mirror { cluster: self.cluster.clone() })
    }
}
