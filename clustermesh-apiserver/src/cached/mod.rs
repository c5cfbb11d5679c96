//! What Cilium's agents in this very cluster read: every mirror at once, in the cached layout, as KVStoreMesh has it.

/// The keyspace's name. No cluster can have it, so nothing but a `local-` certificate leads there, or the metadata of an admin.
pub const KEYSPACE: &str = "_cached";
