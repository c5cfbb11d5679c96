//! The datapath's loader: programs in, links and maps pinned, differences written, counters read. It decides nothing.
//!
//! ```text
//! <bpffs>/hawser/v<ABI>/<device>/maps/<map>          every map, adopted by the next agent
//!                               /links/<program>-<ifindex | cgroup id>
//! ```
//! Stop is not remove: dropping a [`Datapath`] leaves everything pinned and working; [`uninstall`] takes it away.

mod attach;
mod clsact;
mod error;
mod load;
mod lru;
mod maps;
mod runs;
mod sys;
mod table;

pub use attach::{Attachments, Hook};
pub use error::{AttachError, LoadError, MapError, UninstallError};
pub use load::{Datapath, LoadConfig, TcKind, can_set_keep_alive, retire, uninstall};
pub use lru::{LruSizes, LruUse};
pub use maps::{Connection, Maps, SyncReport, Words};
pub use runs::{Run, RunAllocator};
pub use sys::own_netns_cookie;
