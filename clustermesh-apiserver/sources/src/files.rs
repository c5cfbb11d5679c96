//! Which file says what: a state machine from file contents to events, with no IO.
//!
//! A broken file keeps its last good objects. An object that two files state is the first file's, by name, until that
//! one stops stating it. Cost of a change: the objects of the changed files, whatever else is there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::{ManifestError, Object, ObjectRef, Problem, SourceEvent, manifest};

/// What became of a file.
#[derive(Debug)]
pub enum Change {
    /// Its new text.
    Text(String),
    /// What its new text was read to be.
    Objects(Vec<Object>),
    /// It is there and cannot be read.
    Unreadable(String),
    Gone,
}

#[derive(Debug, Default)]
struct File {
    /// What it states, in order.
    refs: Box<[ObjectRef]>,
    /// Of its last reading; cleared by a good one.
    broken: Option<ManifestError>,
    /// Read well at least once.
    good_once: bool,
    /// What was last said about it.
    reported: Option<Problem>,
}

/// All files of one directory.
#[derive(Debug, Default)]
pub struct Files {
    files: BTreeMap<String, File>,
    objects: BTreeMap<ObjectRef, Statements>,
}

/// Who states an object, in the order of the files' names; the first wins. Nearly always one, in one small allocation.
#[derive(Debug, Default)]
struct Statements(Vec<(Arc<str>, Object)>);

impl Statements {
    fn winner(&self) -> Option<&(Arc<str>, Object)> {
        self.0.first()
    }

    fn files(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(file, _)| &**file)
    }

    fn insert(&mut self, file: &Arc<str>, object: Object) {
        let at = self.0.partition_point(|(known, _)| known < file);
        self.0.reserve_exact(1);
        self.0.insert(at, (Arc::clone(file), object));
    }

    fn remove(&mut self, file: &str) {
        self.0.retain(|(known, _)| &**known != file);
    }
}

impl Files {
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Whether a file that states these objects now is no half of something: it states all that it did, and no other file
    /// states any of it. Cost: these objects.
    pub fn is_plain(&self, name: &str, objects: &[Object]) -> bool {
        let stated: BTreeSet<ObjectRef> = objects.iter().map(Object::reference).collect();
        let lost = self.files.get(name).is_some_and(|file| file.refs.iter().any(|was| !stated.contains(was)));
        let is_elsewhere = |reference| {
            let holders = self.objects.get(reference).into_iter().flat_map(Statements::files);
            holders.into_iter().any(|file| file != name)
        };
        !lost && !stated.iter().any(is_elsewhere)
    }

    /// Takes changes as one step, so that an object that moved from one file to another is never removed.
    pub fn apply(&mut self, changes: Vec<(String, Change)>) -> Vec<SourceEvent> {
        let mut before: BTreeMap<ObjectRef, Option<Object>> = BTreeMap::new();
        let mut touched: BTreeSet<String> = BTreeSet::new();
        for (name, change) in changes {
            touched.insert(name.clone());
            let (gone, objects) = match change {
                Change::Gone => (true, Ok(Vec::new())),
                Change::Unreadable(reason) => (false, Err(ManifestError { line: 0, reason })),
                Change::Text(text) => (false, manifest::parse(&text)),
                Change::Objects(objects) => (false, Ok(objects)),
            };
            match objects {
                Err(error) => self.files.entry(name).or_default().broken = Some(error),
                Ok(objects) => self.restate(&name, gone, objects, &mut before),
            }
        }
        let mut events = Vec::new();
        for (reference, was) in before {
            let holders = self.objects.get(&reference);
            touched.extend(holders.into_iter().flat_map(Statements::files).map(str::to_owned));
            match (was, holders.and_then(Statements::winner).map(|(_, object)| object)) {
                (was, Some(is)) if was.as_ref() != Some(is) => events.push(SourceEvent::Upsert(is.clone())),
                (Some(_), None) => events.push(SourceEvent::Remove(reference)),
                _ => {}
            }
        }
        for name in touched {
            events.extend(self.report(name));
        }
        events
    }

    /// Replaces everything a file states.
    fn restate(
        &mut self,
        name: &str,
        gone: bool,
        objects: Vec<Object>,
        before: &mut BTreeMap<ObjectRef, Option<Object>>,
    ) {
        let file = self.files.entry(name.to_owned()).or_default();
        file.broken = None;
        file.good_once = !gone;
        let mut refs: Box<[_]> = objects.iter().map(Object::reference).collect();
        refs.sort_unstable();
        let old = std::mem::replace(&mut file.refs, refs);
        for reference in old.iter().chain(&file.refs) {
            before.entry(reference.clone()).or_insert_with(|| {
                self.objects.get(reference).and_then(Statements::winner).map(|(_, object)| object.clone())
            });
        }
        for reference in old {
            if let Some(holders) = self.objects.get_mut(&reference) {
                holders.remove(name);
                if holders.0.is_empty() {
                    self.objects.remove(&reference);
                }
            }
        }
        let name = Arc::from(name);
        let stated = |object: Object| {
            let mut statements = Statements::default();
            statements.insert(&name, object);
            statements
        };
        if self.objects.is_empty() {
            // Nodes of a map that is made at once are full: half the memory, where one file states everything.
            self.objects = objects.into_iter().map(|o| (o.reference(), stated(o))).collect();
            return;
        }
        for object in objects {
            self.objects.entry(object.reference()).or_default().insert(&name, object);
        }
    }

    /// What there is to say about a file now, if it is something new.
    fn report(&mut self, name: String) -> Option<SourceEvent> {
        let problem = self.problem_of(&name);
        let file = self.files.get_mut(&name)?;
        let changed = file.reported != problem;
        file.reported = problem.clone();
        if file.refs.is_empty() && !file.good_once && problem.is_none() {
            self.files.remove(&name);
        }
        match problem {
            _ if !changed => None,
            Some(problem) => Some(SourceEvent::Problem(problem)),
            None => Some(SourceEvent::Healed { file: name }),
        }
    }

    fn problem_of(&self, name: &str) -> Option<Problem> {
        let file = self.files.get(name)?;
        if let Some(error) = &file.broken {
            let kept = if file.good_once { "; its last good objects stay" } else { "" };
            return Some(Problem {
                file: name.into(),
                line: error.line,
                reason: format!("{}{kept}", error.reason),
                blind: !file.good_once,
            });
        }
        file.refs.iter().find_map(|reference| {
            let (winner, _) = self.objects.get(reference)?.winner()?;
            (**winner != *name).then(|| Problem {
                file: name.into(),
                line: 0,
                reason: format!("{reference} is also in {winner}, which wins; fix: keep it in one file"),
                blind: false,
            })
        })
    }
}
