//! The embedded store: an append-only log behind snapshots in one directory; acknowledged means on disk.

mod disk;
mod frame;
mod log;
mod snapshot;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod fault;

pub use disk::{Directory, Disk, DiskFile, TakeError};
pub use log::{AppendError, Log, OpenError, Recovered, write_snapshot};
