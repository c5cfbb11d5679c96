//! The etcd v3 API over many keyspaces, as services for a tonic router.

mod authorize;
mod keyspaces;
mod writer;

pub use authorize::{Access, AccessRequest, AllowAll, Authorize, Denied};
pub use keyspaces::{KeyspaceHandle, Keyspaces, SharedKeyspace, Stats};
pub use writer::{MemoryWriter, ReadOnlyWriter, WriteError, Writer};
