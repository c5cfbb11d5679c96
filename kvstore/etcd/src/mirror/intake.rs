//! How much an origin can make a replica hold, and how fast it is heard.

use hawser_kvstore::KeyValue;

use super::Refusal;
use crate::client::{IntakeRate, Meter};
use crate::limits::Rate;

/// Limits of one origin. What is beyond the first three is refused, and what the key held before stays; what is faster
/// than the last two is read later. docs/src/reference/limits.md says where the defaults come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intake {
    pub keys: usize,
    /// Of keys, values and their revisions.
    pub bytes: usize,
    pub value_bytes: usize,
    pub events_per_second: u64,
    pub bytes_per_second: u64,
}

impl Default for Intake {
    fn default() -> Self {
        Self {
            keys: 1_000_000,
            bytes: 1 << 30,
            // etcd's own (`--max-request-bytes`).
            value_bytes: 3 << 19,
            events_per_second: 20_000,
            bytes_per_second: 64 << 20,
        }
    }
}

/// Names of the refusals by a limit, where they are counted.
pub const KEY_LIMIT: &str = "key_limit";
pub const BYTE_LIMIT: &str = "byte_limit";
pub const VALUE_LIMIT: &str = "value_limit";

/// How much there is, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) keys: usize,
    pub(crate) bytes: usize,
}

impl Held {
    pub(crate) fn add(&mut self, kv: &KeyValue) {
        self.keys += 1;
        self.bytes += kv.encoded_len();
    }
}

impl Intake {
    /// The burst is all that may be held, so that no list is slowed, however large.
    pub(super) fn meter(&self) -> Meter {
        let rate = |per_second, most: usize| Rate { per_second, burst: most as u64 };
        Meter::new(IntakeRate {
            events: rate(self.events_per_second, self.keys),
            bytes: rate(self.bytes_per_second, self.bytes),
        })
    }

    /// Whether so much may be held, with `kv` among it.
    pub(super) fn room(&self, cluster: &str, kv: &KeyValue, held: Held) -> Result<(), Refusal> {
        let refuse = |reason, what: String| {
            let mut key = kv.key.escape_ascii().to_string();
            key.truncate(256);
            Err(Refusal { reason, detail: format!("{key}: {what}") })
        };
        let (keys, bytes, value) = (self.keys, self.bytes, self.value_bytes);
        if kv.value.len() > value {
            let has = kv.value.len();
            return refuse(
                VALUE_LIMIT,
                format!(
                    "its value has {has} bytes, and one of cluster {cluster} may have {value}; fix: shorten it there, or raise limits.peers.{cluster}.valueBytes"
                ),
            );
        }
        if held.keys > keys {
            return refuse(
                KEY_LIMIT,
                format!(
                    "the mirror of {cluster} may hold {keys} keys, and has them; fix: export less there, or raise limits.peers.{cluster}.keys"
                ),
            );
        }
        if held.bytes > bytes {
            return refuse(
                BYTE_LIMIT,
                format!(
                    "the mirror of {cluster} may hold {bytes} bytes, and would have {}; fix: export less there, or raise limits.peers.{cluster}.bytes",
                    held.bytes
                ),
            );
        }
        Ok(())
    }

    /// Whether what was refused for want of room may find some now. Well below the limit, so that it is not asked for
    /// again and again.
    pub(super) fn has_room(&self, held: Held) -> bool {
        held.keys < self.keys / 10 * 9 && held.bytes < self.bytes / 10 * 9
    }
}
