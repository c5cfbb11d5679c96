//! The etcd v3 API over many keyspaces, as services for a tonic router.

mod authorize;
mod cluster;
pub(crate) mod convert;
mod keyspaces;
mod kv;
mod lease;
mod reader;
mod service;
pub(crate) mod status;
mod view;
mod watch;
mod writer;

pub use authorize::{Access, AccessRequest, AllowAll, Authorize, Denied};
pub use keyspaces::{KeyspaceHandle, Keyspaces, SharedKeyspace, Stats};
pub use reader::{Connection, Exhausted, Reader, ReaderLimits, ReaderStatus};
pub use service::{ETCD_VERSION, EtcdServer};
pub use view::ServedView;
pub(crate) use watch::PROGRESS_METADATA;
pub use writer::{MemoryWriter, ReadOnlyWriter, WriteError, Writer};
