//! The whole server, put together in the order in which it can still be refused: configuration, CA, port, store.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hawser_api::admin::admin_server::AdminServer;
use hawser_api::agent::agent_server::AgentServer;
use hawser_etcd::server::{EtcdServer, Keyspaces};
use hawser_etcd::store::{OpenStoreError, OwnStore, open_store};
use hawser_pki::{Ca, CaError, TrustStore};
use hawser_sources::{DirSource, WatchError};
use rustls::crypto::CryptoProvider;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::admin::AdminService;
use crate::agent::AgentService;
use crate::authorize::Roles;
use crate::board::Board;
use crate::config::Config;
use crate::exporter::Exporter;
use crate::listen::{self, ListenError};
use crate::metrics::Commits;
use crate::mirrors::Mirrors;
use crate::own::Own;
use crate::probes::{Open, Probes, watch_lock};
use crate::trust::{Certificates, CertifyError, Trust, now};
use crate::{export, heartbeat, peers};

/// What agents and admins may have waiting at the exporter.
const COMMANDS: usize = 256;
/// Addresses that the serving certificate names beside those that are advertised.
const LOOPBACK: [&str; 2] = ["127.0.0.1", "::1"];

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error(
        "cannot read {path}: {source}; fix: `hawser ca init --cluster {cluster} --id {id}`, or set `pki` in the configuration"
    )]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
        cluster: String,
        id: u16,
    },
    #[error("the CA in {dir}: {source}{}", if source.to_string().contains("fix:") { "" } else { "; fix: restore ca.crt and ca.key as `hawser ca init` wrote them" })]
    Ca {
        dir: PathBuf,
        #[source]
        source: CaError,
    },
    #[error(
        "the CA in {dir} is cluster {ca}'s, and the configuration is cluster {cluster}'s; fix: set `pki` to the CA of \
         {cluster}, or `cluster.name` to {ca}"
    )]
    Other { dir: PathBuf, ca: String, cluster: String },
    #[error("our own certificates cannot be issued from the CA in {dir}: {source}")]
    Certify {
        dir: PathBuf,
        #[source]
        source: CertifyError,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Metrics(#[from] hawser_telemetry::ListenError),
    #[error(transparent)]
    Store(#[from] OpenStoreError),
    #[error(transparent)]
    Source(#[from] WatchError),
}

/// Reads the CA and issues the server's own certificates.
pub fn certificates(config: &Config, provider: Arc<CryptoProvider>) -> Result<Certificates, PkiError> {
    let dir = &config.pki;
    let ca = Ca::from_pem(&read(config, &dir.join("ca.crt"))?, &read(config, &dir.join("ca.key"))?)
        .map_err(|source| PkiError::Ca { dir: dir.clone(), source })?;
    if *ca.cluster() != config.cluster.name {
        let (ca, cluster) = (ca.cluster().to_string(), config.cluster.name.to_string());
        return Err(PkiError::Other { dir: dir.clone(), ca, cluster });
    }
    let not_after = ca.cert().not_after();
    if now() > not_after {
        let source = CaError::Expired { cluster: config.cluster.name.clone(), not_after, now: now() };
        return Err(PkiError::Ca { dir: dir.clone(), source });
    }
    // This machine itself, for `etcdctl` with the admin's certificate; then where others dial.
    let here = LOOPBACK.map(str::to_owned).into_iter();
    let hosts = here.chain(config.advertise.iter().map(|url| url.host().to_owned())).collect();
    Certificates::issue(ca, hosts, provider).map_err(|source| PkiError::Certify { dir: dir.clone(), source })
}

fn read(config: &Config, path: &Path) -> Result<String, PkiError> {
    std::fs::read_to_string(path).map_err(|source| PkiError::Read {
        path: path.to_owned(),
        source,
        cluster: config.cluster.name.to_string(),
        id: config.cluster.id.get(),
    })
}

/// A server whose port is bound and whose store is open, and that has not begun to serve.
#[derive(Debug)]
pub struct Server {
    config: Arc<Config>,
    provider: Arc<CryptoProvider>,
    certificates: Arc<Certificates>,
    listener: TcpListener,
    store: OwnStore,
    source: DirSource,
    accept_mass_delete: bool,
    board: Arc<Board>,
    probes: Arc<Probes>,
}

impl Server {
    /// Refuses in the order in which nothing has been changed yet.
    pub async fn open(
        config: Config,
        provider: Arc<CryptoProvider>,
        accept_mass_delete: bool,
    ) -> Result<Self, StartError> {
        let certificates = Arc::new(certificates(&config, Arc::clone(&provider))?);
        let listener = listen::bind(config.listen).await?;
        let board = Arc::new(Board::default());
        let probes = Probes::new(Arc::clone(&board));
        if let Some(address) = config.metrics {
            let metrics = hawser_telemetry::bind(address).await?;
            // For as long as the process lives: whoever probes wants to know why the store does not open, too.
            tokio::spawn(hawser_telemetry::serve(metrics, probes.clone()));
        }
        let store = open_store(&config.store, config.cluster.name.as_str()).await?;
        let source = DirSource::start(&config.source_dir)?;
        Ok(Self {
            config: Arc::new(config),
            provider,
            certificates,
            listener,
            store,
            source,
            accept_mass_delete,
            board,
            probes,
        })
    }

    pub fn local_addr(&self) -> std::io::Result<std::net::SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until told to stop.
    pub async fn run(self, stop: CancellationToken) -> Result<(), ListenError> {
        let Self {
            config,
            provider,
            certificates,
            listener,
            store,
            source,
            accept_mass_delete,
            board,
            probes,
        } = self;
        let describe = store.describe().to_owned();
        let commits = Commits::default();
        let handle = commits.around(&store.handle);
        let keyspaces = Keyspaces::new(handle.clone());
        let own = Own::new(handle);
        let trust =
            Trust::new(TrustStore::new(config.cluster.name.clone(), certificates.ca().cert().clone()));
        let mirrors = Mirrors::new(
            Arc::clone(&config),
            own.clone(),
            keyspaces.clone(),
            trust.clone(),
            Arc::clone(&certificates),
            Arc::clone(&provider),
        );
        // Before the first connection, so that an admitted peer is never taken for a stranger.
        mirrors.follow_list();
        let (exporter, commands) = mpsc::channel(COMMANDS);
        let agent = AgentService {
            config: Arc::clone(&config),
            own: own.clone(),
            certificates: Arc::clone(&certificates),
            exporter: exporter.clone(),
        };
        let admin = AdminService {
            config: Arc::clone(&config),
            own: own.clone(),
            store: describe.clone(),
            certificates: Arc::clone(&certificates),
            exporter,
            mirrors: mirrors.clone(),
            board: Arc::clone(&board),
            admitting: Mutex::default(),
        };
        probes.opened(Open {
            store: describe.clone(),
            announced: export::cluster_config(&config).key(&config.cluster).to_string(),
            keyspaces: keyspaces.clone(),
            own: own.clone(),
            mirrors: mirrors.clone(),
            certificates: Arc::clone(&certificates),
            commits,
            counted: Default::default(),
        });
        let advertise = config.advertise.iter().map(ToString::to_string).collect();
        let etcd = EtcdServer::new(keyspaces, Arc::new(Roles::new(config.cluster.name.clone())), advertise);
        let routes = Routes::new(AgentServer::new(agent)).add_service(AdminServer::new(admin));
        let routes = etcd.add_to(routes);
        let tls = listen::tls(&certificates, provider)?;
        let peers = peers::admitted(&own, &config).len();
        tracing::info!(cluster = %config.cluster, listen = %config.listen, store = describe, peers, "serving");
        let mut tasks = JoinSet::new();
        let exports = Exporter::new(Arc::clone(&config), own.clone(), Arc::clone(&board), accept_mass_delete);
        tasks.spawn(exports.run(source, commands, stop.clone()));
        tasks.spawn(watch_lock(own.clone(), board.watchdog().clone(), stop.clone()));
        tasks.spawn(heartbeat::run(own, Arc::clone(&board), stop.clone()));
        tasks.spawn(mirrors.run(stop.clone()));
        tasks.spawn(certificates.keep_fresh(stop.clone()));
        tasks.spawn(listen::serve(listener, tls, trust, routes, stop.clone()));
        // None of them ends before it is told to: if one does, the process must not go on half alive.
        while let Some(ended) = tasks.join_next().await {
            if !stop.is_cancelled() {
                tracing::error!(error = ?ended.err(), "a task of the server ended; the server stops");
                stop.cancel();
            }
        }
        drop(store);
        Ok(())
    }
}
