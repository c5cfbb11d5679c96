//! What differs between what is held and what should be: the only thing that is ever written.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use hawser_wire::prefix;

use crate::exports::NAMESPACES;

/// What the own keyspace holds of what export owns.
pub type Held = BTreeMap<Bytes, Bytes>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Put { key: String, value: Bytes },
    Delete { key: String },
}

impl Step {
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }

    /// Bytes of key and value.
    pub fn size(&self) -> usize {
        match self {
            Self::Put { key, value } => key.len() + value.len(),
            Self::Delete { key } => key.len(),
        }
    }
}

/// What export writes and deletes, whoever wrote it before. Peers, tokens, canaries and what Cilium may add are not.
pub const PREFIXES: [&str; 9] = [
    prefix::NODES,
    prefix::IDENTITIES,
    prefix::IPS,
    prefix::SERVICES,
    prefix::ENDPOINT_SLICES,
    prefix::SERVICE_EXPORTS,
    prefix::TUNNEL_NODES,
    prefix::LOCAL_SERVICES,
    NAMESPACES,
];

/// Puts first, so that what moved is never away (an address that changes hands is PUT before the old one goes).
/// Cost: both sides once.
pub fn diff<'a>(held: &Held, wanted: impl Iterator<Item = (&'a str, &'a Bytes)>) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut seen = BTreeSet::new();
    for (key, value) in wanted {
        seen.insert(key);
        if held.get(key.as_bytes()) != Some(value) {
            steps.push(Step::Put { key: key.to_owned(), value: value.clone() });
        }
    }
    let gone = held.keys().map(|key| String::from_utf8_lossy(key)).filter(|key| !seen.contains(&**key));
    steps.extend(gone.map(|key| Step::Delete { key: key.into_owned() }));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    #[test]
    fn only_differences_are_written_and_puts_come_first() {
        let held: Held = [("a", "1"), ("b", "2"), ("c", "3")].map(|(k, v)| (k.into(), bytes(v))).into();
        let (one, nine, four) = (bytes("1"), bytes("9"), bytes("4"));
        let wanted = [("a", &one), ("b", &nine), ("d", &four)];
        assert_eq!(
            diff(&held, wanted.into_iter()),
            [
                Step::Put { key: "b".into(), value: nine.clone() },
                Step::Put { key: "d".into(), value: four.clone() },
                Step::Delete { key: "c".into() },
            ]
        );
        let same = held.iter().map(|(k, v)| (std::str::from_utf8(k).unwrap(), v));
        assert!(diff(&held, same).is_empty());
    }
}
