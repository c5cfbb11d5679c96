//! What differs between what is held and what should be: the only thing that is ever written.

use bytes::Bytes;
use hawser_kvstore::SharedKv;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Put { key: String, value: Bytes },
    Delete { key: String },
}

impl Step {
    /// Bytes of key and value.
    pub fn size(&self) -> usize {
        match self {
            Self::Put { key, value } => key.len() + value.len(),
            Self::Delete { key } => key.len(),
        }
    }
}

/// What the keyspace holds of a section, and which of it was asked for. Two words a key; the bytes are the keyspace's.
#[derive(Debug)]
pub struct Held {
    /// By key.
    kvs: Vec<SharedKv>,
    wanted: Vec<bool>,
}

impl Held {
    pub fn of(kvs: impl IntoIterator<Item = SharedKv>) -> Self {
        let mut kvs: Vec<_> = kvs.into_iter().collect();
        kvs.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        let wanted = vec![false; kvs.len()];
        Self { kvs, wanted }
    }

    /// Of these entries those that are not held so. Of a key that is asked for twice the first counts.
    /// Cost: a binary search for each.
    pub fn puts(&mut self, entries: Vec<(String, Bytes)>) -> Vec<Step> {
        let differs = |(key, value): (String, Bytes)| {
            let Ok(at) = self.kvs.binary_search_by(|kv| (*kv.key).cmp(key.as_bytes())) else {
                return Some(Step::Put { key, value });
            };
            let again = std::mem::replace(&mut self.wanted[at], true);
            (!again && self.kvs[at].value != value).then_some(Step::Put { key, value })
        };
        entries.into_iter().filter_map(differs).collect()
    }

    /// What is held and was not asked for: to be deleted after everything is put, so that what moved is never away (an
    /// address that changes hands is PUT before the old one goes).
    pub fn deletes(self) -> impl Iterator<Item = Step> {
        let unwanted = self.kvs.into_iter().zip(self.wanted).filter(|(_, wanted)| !wanted);
        unwanted.map(|(kv, _)| Step::Delete { key: String::from_utf8_lossy(&kv.key).into_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawser_kvstore::KeyValue;

    fn entry(key: &str, value: &str) -> (String, Bytes) {
        (key.to_owned(), Bytes::copy_from_slice(value.as_bytes()))
    }

    fn put(key: &str, value: &str) -> Step {
        let (key, value) = entry(key, value);
        Step::Put { key, value }
    }

    fn held() -> Held {
        let kv = |(key, value): (&'static str, &'static str)| {
            SharedKv::new(&KeyValue { key: key.into(), value: value.into(), ..KeyValue::default() })
        };
        Held::of([("c", "3"), ("a", "1"), ("b", "2")].map(kv))
    }

    #[test]
    fn only_differences_are_written_and_what_nobody_asks_for_goes() {
        let mut held = held();
        assert_eq!(held.puts(vec![entry("a", "1"), entry("b", "9")]), [put("b", "9")]);
        assert_eq!(
            held.puts(vec![entry("d", "4"), entry("a", "8")]),
            [put("d", "4")],
            "a was asked for before"
        );
        assert_eq!(held.deletes().collect::<Vec<_>>(), [Step::Delete { key: "c".into() }]);
    }

    #[test]
    fn what_is_held_already_is_no_step() {
        let mut held = held();
        assert_eq!(held.puts(vec![entry("a", "1"), entry("b", "2"), entry("c", "3")]), []);
        assert_eq!(held.deletes().count(), 0);
    }
}
