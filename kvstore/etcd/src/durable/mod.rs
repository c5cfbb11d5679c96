//! The embedded store: an append-only log behind snapshots in one directory; acknowledged means on disk.

pub(crate) mod codec;
mod disk;
mod frame;
mod log;
mod repair;
pub(crate) mod snapshot;
mod writer;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
pub(crate) mod fault;
#[cfg(test)]
mod repair_tests;
#[cfg(test)]
mod writer_tests;

pub use codec::CodecError;
pub(crate) use codec::from_wire;
pub use disk::{Directory, Disk, DiskFile, TakeError};
pub use log::{AppendError, Log, OpenError, Recovered, write_snapshot};
pub use repair::{Damage, RepairError, Salvage, salvage};
pub use writer::{Embedded, EmbeddedConfig, EmbeddedError, EmbeddedWriter};
