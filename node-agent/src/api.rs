//! The way to the own cluster's API server: one HTTP/2 connection over TLS, to whichever of the servers answers.
//!
//! The server is verified as `<cluster>.mesh.hawser.io` whatever address was dialled (contracts.md). A renewed
//! certificate is used from the next connection on, so renewal cuts no watch.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use hawser_model::{ClusterName, ServerUrl};
use hawser_pki::CaSet;
use hawser_pki::session::{Binding, LABEL};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};

const CONNECT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error(
        "the certificate or key of this node is not PEM: {0}. fix: remove agent.crt and agent.key and join again"
    )]
    Pem(#[from] rustls_pki_types::pem::Error),
    #[error(
        "the certificate or key of this node cannot be used: {0}. fix: remove agent.crt and agent.key and join again"
    )]
    Tls(#[from] rustls::Error),
    #[error("{name} is no name of a server: {source}")]
    Name { name: String, source: rustls_pki_types::InvalidDnsNameError },
    #[error("no server is known. fix: name one in `servers` of the join file")]
    NoServers,
}

/// A node's certificate chain and key, PEM.
#[derive(Clone)]
pub(crate) struct Identity {
    pub certificate: String,
    pub key: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(..)")
    }
}

/// Dials the servers in turn, with the newest certificate.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    servers: Vec<ServerUrl>,
    next: AtomicUsize,
    name: ServerName<'static>,
    trusted: RwLock<CaSet>,
    identity: RwLock<Option<Identity>>,
    tls: RwLock<Arc<ClientConfig>>,
    /// Of the connection that was made last.
    binding: Mutex<Option<Binding>>,
}

impl Dialer {
    /// Without an identity the server will only let us join.
    pub(crate) fn new(
        cluster: &ClusterName,
        servers: Vec<ServerUrl>,
        ca: CaSet,
        identity: Option<&Identity>,
    ) -> Result<Self, ApiError> {
        if servers.is_empty() {
            return Err(ApiError::NoServers);
        }
        let name = format!("{cluster}.mesh.hawser.io");
        let server = ServerName::try_from(name.clone()).map_err(|source| ApiError::Name { name, source })?;
        let tls = RwLock::new(Arc::new(tls(&ca, identity)?));
        let inner = Inner {
            servers,
            next: AtomicUsize::new(0),
            name: server,
            trusted: RwLock::new(ca),
            identity: RwLock::new(identity.cloned()),
            tls,
            binding: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// From the next connection on.
    pub(crate) fn use_identity(&self, identity: &Identity) -> Result<(), ApiError> {
        self.change(self.trusted(), Some(identity.clone()))
    }

    /// From the next connection on, the server is who one of these CAs says.
    pub(crate) fn believe(&self, cas: CaSet) -> Result<(), ApiError> {
        let identity = self.inner.identity.read().unwrap_or_else(PoisonError::into_inner).clone();
        self.change(cas, identity)
    }

    pub(crate) fn trusted(&self) -> CaSet {
        self.inner.trusted.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What binds the two ends of the connection that was made last.
    pub(crate) fn binding(&self) -> Option<Binding> {
        *self.inner.binding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, cas: CaSet, identity: Option<Identity>) -> Result<(), ApiError> {
        let config = Arc::new(tls(&cas, identity.as_ref())?);
        let inner = &self.inner;
        *inner.tls.write().unwrap_or_else(PoisonError::into_inner) = config;
        *inner.trusted.write().unwrap_or_else(PoisonError::into_inner) = cas;
        *inner.identity.write().unwrap_or_else(PoisonError::into_inner) = identity;
        Ok(())
    }

    /// Connects when first used, and again whenever the connection is gone. A peer that vanished is noticed in 15 s.
    pub(crate) fn channel(&self) -> Channel {
        Endpoint::from(Uri::from_static("https://api-server"))
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(self.clone())
    }

    async fn dial(self) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let inner = &self.inner;
        let server = &inner.servers[inner.next.fetch_add(1, Ordering::Relaxed) % inner.servers.len()];
        let failed = |error: io::Error| io::Error::new(error.kind(), format!("{server}: {error}"));
        let tcp = TcpStream::connect(server.authority()).await.map_err(failed)?;
        tcp.set_nodelay(true)?;
        let config = inner.tls.read().unwrap_or_else(PoisonError::into_inner).clone();
        let tls = TlsConnector::from(config).connect(inner.name.clone(), tcp).await.map_err(failed)?;
        let binding = tls.get_ref().1.export_keying_material([0; 32], LABEL, None).ok();
        *inner.binding.lock().unwrap_or_else(PoisonError::into_inner) = binding;
        Ok(TokioIo::new(tls))
    }
}

impl tower::Service<Uri> for Dialer {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().dial())
    }
}

fn tls(cas: &CaSet, identity: Option<&Identity>) -> Result<ClientConfig, ApiError> {
    let mut roots = RootCertStore::empty();
    for ca in cas.iter() {
        roots.add(ca.der().clone())?;
    }
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes());
            let chain = chain.collect::<Result<Vec<_>, _>>()?;
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?)?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// A gRPC status and what lies under it, in one line: tonic's own text stops at "transport error".
pub(crate) fn explain(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let deeper = error.to_string();
        if !text.contains(&deeper) {
            text = if text.is_empty() { deeper } else { format!("{text}: {deeper}") };
        }
        source = error.source();
    }
    format!("{text} ({:?})", status.code())
}
