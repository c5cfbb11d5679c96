//! Whichever source it is.

use crate::{DirSource, KubeSource, SourceEvent};

/// A running source. Dropping it ends it.
#[derive(Debug)]
pub enum Source {
    Dir(DirSource),
    Kube(KubeSource),
}

impl Source {
    /// None never comes while the source lives: it outlives every failure of what it reads.
    pub async fn next(&mut self) -> Option<SourceEvent> {
        match self {
            Self::Dir(source) => source.next().await,
            Self::Kube(source) => source.next().await,
        }
    }

    /// What is already there, without waiting.
    pub fn try_next(&mut self) -> Option<SourceEvent> {
        match self {
            Self::Dir(source) => source.try_next(),
            Self::Kube(source) => source.try_next(),
        }
    }
}
