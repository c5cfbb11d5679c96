//! Texts that many values have, as one: a cluster has few namespaces, nodes, zones and port names.

use std::collections::HashSet;
use std::sync::Arc;

/// Texts seen so far. Bounded, so that it holds no more than it saves.
#[derive(Debug, Default)]
pub struct Names(HashSet<Arc<str>>);

impl Names {
    const MOST: usize = 10_000;

    /// Makes `text` the one that was seen before, where it was. Cost: a hash of the text.
    pub fn share(&mut self, text: &mut Arc<str>) {
        if let Some(known) = self.0.get(&**text) {
            *text = Arc::clone(known);
            return;
        }
        if self.0.len() >= Self::MOST {
            self.0.clear();
        }
        self.0.insert(Arc::clone(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_become_one_and_what_is_remembered_is_bounded() {
        let mut names = Names::default();
        let (mut a, mut b): (Arc<str>, Arc<str>) = ("team".into(), "team".into());
        names.share(&mut a);
        names.share(&mut b);
        assert!(Arc::ptr_eq(&a, &b));
        for n in 0..3 * Names::MOST {
            names.share(&mut Arc::from(n.to_string()));
        }
        assert!(names.0.len() <= Names::MOST);
    }
}
