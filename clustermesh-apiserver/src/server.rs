//! The whole server, put together in the order in which it can still be refused: configuration, CA, port, store.

use std::sync::Arc;

use hawser_api::admin::admin_server::AdminServer;
use hawser_api::agent::agent_server::AgentServer;
use hawser_api::session::session_server::SessionServer;
use hawser_etcd::server::{EtcdServer, Keyspaces};
use hawser_etcd::store::{OpenStoreError, OwnStore, StoreUri, open_store};
use hawser_pki::TrustStore;
use hawser_sources::Source;
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
use crate::cached::Cached;
use crate::config::Config;
use crate::events::Events;
use crate::exporter::{Command, Exporter};
use crate::exports::{self, Views};
use crate::leader::{self, Leader, Leading};
use crate::listen::{self, ListenError};
use crate::metrics::Commits;
use crate::mirrors::Mirrors;
use crate::own::Own;
use crate::pki_dir::PkiError;
use crate::probes::{Open, Probes, watch_lock};
use crate::replicas::Replica;
use crate::rotation::Rotating;
use crate::session::SessionService;
use crate::sharing::Sharing;
use crate::source::{self, Kubernetes, OpenSourceError};
use crate::tokenreview::Reviewer;
use crate::trust::{Certificates, Trust};
use crate::writeback::Writeback;
use crate::{export, heartbeat, peers};

/// What agents and admins may have waiting at the exporter.
const COMMANDS: usize = 256;
/// Addresses that the serving certificate names beside those that are advertised.
const LOOPBACK: [&str; 2] = ["127.0.0.1", "::1"];

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
    Source(#[from] OpenSourceError),
}

/// Reads the CA and issues the server's own certificates.
pub fn certificates(config: Arc<Config>, provider: Arc<CryptoProvider>) -> Result<Certificates, PkiError> {
    // This machine itself, for `etcdctl` with the admin's certificate; then where others dial.
    let here = LOOPBACK.map(str::to_owned).into_iter();
    let hosts = here.chain(config.advertise.iter().map(|url| url.host().to_owned())).collect();
    Certificates::open(config, hosts, provider)
}

/// A server whose port is bound and whose store is open, and that has not begun to serve.
#[derive(Debug)]
pub struct Server {
    config: Arc<Config>,
    provider: Arc<CryptoProvider>,
    certificates: Arc<Certificates>,
    listener: TcpListener,
    store: OwnStore,
    source: Source,
    kubernetes: Option<Kubernetes>,
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
        let config = Arc::new(config);
        let certificates = Arc::new(certificates(Arc::clone(&config), Arc::clone(&provider))?);
        let listener = listen::bind(config.listen).await?;
        let board = Arc::new(Board::default());
        let probes = Probes::new(Arc::clone(&board));
        if let Some(address) = config.metrics {
            let metrics = hawser_telemetry::bind(address).await?;
            // For as long as the process lives: whoever probes wants to know why the store does not open, too.
            tokio::spawn(hawser_telemetry::serve(metrics, probes.clone()));
        }
        let store =
            open_store(&config.store, config.store_tls.as_ref(), config.cluster.name.as_str()).await?;
        let (source, kubernetes) = source::open(&config).await?;
        Ok(Self {
            config,
            provider,
            certificates,
            listener,
            store,
            source,
            kubernetes,
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
        let parts = Parts::of(&self);
        let Self { config, listener, store, source, kubernetes, probes, accept_mass_delete, .. } = self;
        // Before the first connection, so that an admitted peer is never taken for a stranger.
        parts.mirrors.follow_list();
        probes.opened(parts.open());
        let (client, reviewer) = kubernetes.map(|k| (k.client, k.reviewer)).unzip();
        let (exporter, commands) = mpsc::channel(COMMANDS);
        let routes = parts.routes(exporter, reviewer.flatten(), Arc::clone(&probes));
        let tls = listen::tls(&parts.certificates, Arc::clone(&parts.provider))?;
        let leader = leads_by_election(&config).then(|| Leader::new(parts.own.clone(), parts.replica.name()));
        let leading = leader.as_ref().map_or_else(leader::alone, Leader::leading);
        let exports = Exporter::new(
            Arc::clone(&config),
            parts.own.clone(),
            Arc::clone(&parts.board),
            leading.clone(),
            accept_mass_delete,
        );
        let peers = peers::admitted(&parts.own, &config).len();
        tracing::info!(cluster = %config.cluster, listen = %config.listen, store = parts.describe, peers, "serving");
        let mut tasks = JoinSet::new();
        if let Some(client) = client {
            let events = Events {
                client: client.clone(),
                instance: parts.replica.name().to_string(),
                misread: exports.misread(),
                leading: leading.clone(),
            };
            tasks.spawn(events.run(stop.clone()));
            tasks.spawn(parts.writeback(client, &exports, leading.clone()).run(stop.clone()));
        }
        if let Some(leader) = leader {
            tasks.spawn(leader.run(stop.clone()));
            let (own, board) = (parts.own.clone(), Arc::clone(&parts.board));
            tasks.spawn(parts.replica.clone().run(own, board, stop.clone()));
        }
        tasks.spawn(exports.run(source, commands, stop.clone()));
        if config.cached_layout {
            let (own, keyspaces) = (parts.own.clone(), parts.keyspaces.clone());
            let cached = Cached::new(Arc::clone(&config), own, keyspaces, Cached::LINGER);
            tasks.spawn(cached.run(stop.clone()));
        }
        let Parts { own, board, trust, certificates, mirrors, rotating, views, .. } = parts;
        tasks.spawn(watch_lock(own.clone(), board.watchdog().clone(), stop.clone()));
        tasks.spawn(heartbeat::run(own, board, leading, stop.clone()));
        let readers = mirrors.readers().clone();
        tasks.spawn(mirrors.run(stop.clone()));
        tasks.spawn(certificates.keep_fresh(trust.clone(), stop.clone()));
        tasks.spawn(rotating.run(stop.clone()));
        let exports = views.subscribe();
        tasks.spawn(exports::follow_file(config, views, stop.clone()));
        tasks.spawn(listen::serve(listener, tls, trust, readers, exports, routes, stop.clone()));
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

/// Whether other replicas may share the store.
fn leads_by_election(config: &Config) -> bool {
    matches!(config.store.parse(), Ok(StoreUri::Etcd(_) | StoreUri::Etcds(_)))
}

/// What the tasks and services of a server share.
struct Parts {
    config: Arc<Config>,
    provider: Arc<CryptoProvider>,
    /// The store, in words.
    describe: String,
    replica: Replica,
    own: Own,
    keyspaces: Keyspaces,
    commits: Commits,
    trust: Trust,
    certificates: Arc<Certificates>,
    mirrors: Mirrors,
    rotating: Rotating,
    views: Views,
    board: Arc<Board>,
    sharing: Arc<Sharing>,
}

impl Parts {
    fn of(server: &Server) -> Self {
        let Server { config, provider, certificates, store, board, .. } = server;
        let commits = Commits::default();
        let replica = Replica::new(config, leads_by_election(config));
        let handle = commits.around(&store.handle);
        let keyspaces = Keyspaces::new(handle.clone());
        let own = Own::new(handle);
        let trusted = certificates.authority().trusted();
        let trust = Trust::new(TrustStore::new(config.cluster.name.clone(), trusted));
        let mirrors = Mirrors::new(
            Arc::clone(config),
            own.clone(),
            keyspaces.clone(),
            trust.clone(),
            Arc::clone(certificates),
            Arc::clone(provider),
        );
        let rotating = Rotating {
            config: Arc::clone(config),
            own: own.clone(),
            keyspaces: keyspaces.clone(),
            trust: trust.clone(),
            certificates: Arc::clone(certificates),
            mirrors: mirrors.clone(),
            replica: replica.clone(),
        };
        let views = Views::new(keyspaces.own().clone(), config);
        Self {
            config: Arc::clone(config),
            provider: Arc::clone(provider),
            describe: store.describe().to_owned(),
            views,
            replica,
            own,
            keyspaces,
            commits,
            trust,
            certificates: Arc::clone(certificates),
            mirrors,
            rotating,
            board: Arc::clone(board),
            sharing: Arc::default(),
        }
    }

    fn routes(
        &self,
        exporter: mpsc::Sender<Command>,
        reviewer: Option<Reviewer>,
        probes: Arc<Probes>,
    ) -> Routes {
        let agent = AgentService {
            config: Arc::clone(&self.config),
            own: self.own.clone(),
            certificates: Arc::clone(&self.certificates),
            exporter: exporter.clone(),
            reviewer,
            sharing: Arc::clone(&self.sharing),
        };
        let admin = AdminService {
            config: Arc::clone(&self.config),
            own: self.own.clone(),
            store: self.describe.clone(),
            replica: self.replica.clone(),
            certificates: Arc::clone(&self.certificates),
            exporter,
            mirrors: self.mirrors.clone(),
            rotating: self.rotating.clone(),
            board: Arc::clone(&self.board),
            views: self.views.clone(),
            admitting: Mutex::default(),
        };
        let session = SessionService { trust: self.trust.clone() };
        let advertise = self.config.advertise.iter().map(ToString::to_string).collect();
        let roles = Arc::new(Roles::new(self.config.cluster.name.clone()).with_views(self.views.clone()));
        let etcd = EtcdServer::new(self.keyspaces.clone(), roles, advertise);
        let etcd = etcd.with_health(move || probes.unready());
        let routes = Routes::new(AgentServer::new(agent)).add_service(AdminServer::new(admin));
        etcd.add_to(routes.add_service(SessionServer::new(session)))
    }

    fn open(&self) -> Open {
        Open {
            store: self.describe.clone(),
            announced: export::cluster_config(&self.config).key(&self.config.cluster).to_string(),
            keyspaces: self.keyspaces.clone(),
            own: self.own.clone(),
            mirrors: self.mirrors.clone(),
            certificates: Arc::clone(&self.certificates),
            commits: self.commits.clone(),
            counted: Default::default(),
            sharing: Arc::clone(&self.sharing),
        }
    }

    fn writeback(&self, client: kube::Client, exports: &Exporter, leading: Leading) -> Writeback {
        Writeback {
            client,
            config: Arc::clone(&self.config),
            mirrors: self.mirrors.clone(),
            keyspaces: self.keyspaces.clone(),
            board: Arc::clone(&self.board),
            asked: exports.asked(),
            leading,
        }
    }
}
