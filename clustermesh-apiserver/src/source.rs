//! Where the cluster's objects come from, as configured; and the Kubernetes API behind it, for what else is asked there.

use std::fmt;

use hawser_sources::{ConnectError, DirSource, KubeSource, Pace, Source, WatchError, connect};
use kube::Client;

use crate::config::{Config, SourceConfig};
use crate::tokenreview::Reviewer;

#[derive(Debug, thiserror::Error)]
pub enum OpenSourceError {
    #[error(transparent)]
    Dir(#[from] WatchError),
    #[error("source.kubernetes: {0}")]
    Kubernetes(#[from] ConnectError),
}

/// The Kubernetes API of a cluster whose source it is.
pub struct Kubernetes {
    pub client: Client,
    /// Where `agents` is configured.
    pub reviewer: Option<Reviewer>,
}

impl fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kubernetes").field("reviewer", &self.reviewer).finish_non_exhaustive()
    }
}

/// Starts the source. An API server that does not answer is no error: it is waited for, and told in status.
pub async fn open(config: &Config) -> Result<(Source, Option<Kubernetes>), OpenSourceError> {
    match &config.source {
        SourceConfig::Dir(dir) => Ok((Source::Dir(DirSource::start(dir)?), None)),
        SourceConfig::Kubernetes(options) => {
            let client = connect(options).await?;
            let source = Source::Kube(KubeSource::start(&client, Pace::default(), config.service_exports));
            let agents = config.agents.clone();
            let reviewer = agents.map(|agents| Reviewer::new(client.clone(), agents));
            Ok((source, Some(Kubernetes { client, reviewer })))
        }
    }
}
