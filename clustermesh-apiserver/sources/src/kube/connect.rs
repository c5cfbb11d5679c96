//! Finding the API server: from within the cluster, or by a kubeconfig.

use std::path::PathBuf;

use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

/// `source: {kubernetes: {...}}`. Without a file: the pod's own service account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubeOptions {
    pub kubeconfig: Option<PathBuf>,
    /// A context of the file; none: its current one.
    pub context: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(
        "this is no pod with a service account: {0}; fix: run it in the cluster, or set source.kubernetes.kubeconfig"
    )]
    InCluster(#[source] InClusterError),
    #[error("the kubeconfig {path}: {source}; fix: see that `kubectl --kubeconfig {path} get nodes` works")]
    Kubeconfig {
        path: PathBuf,
        #[source]
        source: KubeconfigError,
    },
    #[error(
        "no client for the Kubernetes API can be made: {0}; fix: see that its CA and credentials are readable"
    )]
    Client(#[source] kube::Error),
}

/// A client for the API server. Nothing is asked of it yet.
pub async fn connect(options: &KubeOptions) -> Result<Client, ConnectError> {
    let mut config = match &options.kubeconfig {
        None => Config::incluster().map_err(ConnectError::InCluster)?,
        Some(path) => {
            let failed = |source| ConnectError::Kubeconfig { path: path.clone(), source };
            let file = Kubeconfig::read_from(path).map_err(failed)?;
            let choice = KubeConfigOptions { context: options.context.clone(), ..Default::default() };
            Config::from_custom_kubeconfig(file, &choice).await.map_err(failed)?
        }
    };
    // Ours are paced by what the server says, and told while they last.
    config.default_retry = false;
    Client::try_from(config).map_err(ConnectError::Client)
}
