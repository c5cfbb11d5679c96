//! What a source says.

use std::fmt;

use crate::{Object, ObjectRef};

/// One step of a source. Events about the same object come in order.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceEvent {
    /// The object is there, as given, whether it was before or not.
    Upsert(Object),
    /// The object is gone: somebody removed it. Never sent because a source failed.
    Remove(ObjectRef),
    /// Everything that was there at the start has been sent.
    Synced,
    /// A part of the source cannot be read. It replaces an earlier problem of the same file.
    Problem(Problem),
    /// The file is fine again, or gone.
    Healed { file: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file's name, or the directory's path when it is the directory.
    pub file: String,
    /// Counted from 1; 0 when the file as a whole is meant.
    pub line: u64,
    pub reason: String,
    /// Nothing good of this file is known since the start, so what it used to hold must not be taken for removed.
    pub blind: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.reason),
            line => write!(f, "{}:{line}: {}", self.file, self.reason),
        }
    }
}
