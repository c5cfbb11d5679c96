//! Dialling a peer's API server: its name is proven whatever address is dialled, and ours is shown.
//!
//! A Hawser server is `<cluster>.mesh.hawser.io`. One of Cilium's is what its client configuration dials, where
//! `cilium-host-aliases` may stand for DNS, and is shown the certificate that was given for it (cilium-facts §2).

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use hawser_api::session::PresentRequest;
use hawser_api::session::session_client::SessionClient;
use hawser_model::{CiliumPeer, Peer, PeerKind, ServerUrl};
use hawser_pki::session::{Binding, LABEL};
use hawser_pki::{CaSet, CertError};
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::trust::Certificates;

const CONNECT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("the CA of cluster {cluster} cannot be used: {source}; fix: connect it again with a new bundle")]
    Ca {
        cluster: String,
        #[source]
        source: CertError,
    },
    #[error("TLS to cluster {cluster} cannot be set up: {source}")]
    Tls {
        cluster: String,
        #[source]
        source: rustls::Error,
    },
    #[error("{name:?} cannot be a server's name")]
    Name { name: String },
}

/// The way to a peer: whom it has to be, and who we are, can both change while it is in use.
#[derive(Clone, Debug)]
pub struct Line {
    channel: Channel,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    cluster: String,
    /// The authority: it chooses the keyspace at the other end, the peer's own.
    authority: Uri,
    /// What the server's certificate has to name; none: the host that is dialled.
    name: Option<ServerName<'static>>,
    /// Of a peer on Cilium.
    cilium: Option<CiliumPeer>,
    shown: Arc<dyn ResolvesClientCert>,
    endpoints: Box<[ServerUrl]>,
    next: AtomicUsize,
    provider: Arc<CryptoProvider>,
    certificates: Arc<Certificates>,
    tls: RwLock<Arc<ClientConfig>>,
    /// Of the connection that was made last.
    binding: Mutex<Option<Binding>>,
}

impl Line {
    /// It connects when it is used, at each of the peer's endpoints in turn. `shown`: what to show instead of our own
    /// certificate for peers.
    pub fn new(
        peer: &Peer,
        shown: Option<Arc<dyn ResolvesClientCert>>,
        certificates: &Arc<Certificates>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, DialError> {
        let cluster = peer.cluster.name.to_string();
        let shown = shown.unwrap_or_else(|| certificates.remote());
        let tls = RwLock::new(Arc::new(config(&cluster, &peer.ca, Arc::clone(&shown), &provider)?));
        let bad = |name: &str| DialError::Name { name: name.to_owned() };
        let server = |name: &String| ServerName::try_from(name.clone()).map_err(|_| bad(name));
        let (domain, name, cilium) = match &peer.kind {
            PeerKind::Hawser => ("hawser", Some(server(&format!("{cluster}.mesh.hawser.io"))?), None),
            PeerKind::Cilium(reach) => {
                ("cilium", reach.server_name.as_ref().map(server).transpose()?, Some(reach.clone()))
            }
        };
        let host = format!("{cluster}.mesh.{domain}.io");
        let uri = Uri::builder().scheme("https").authority(host.as_str()).path_and_query("/").build();
        let inner = Arc::new(Inner {
            cluster,
            authority: uri.map_err(|_| bad(&host))?,
            name,
            cilium,
            shown,
            endpoints: peer.endpoints.clone().into(),
            next: AtomicUsize::new(0),
            provider,
            certificates: Arc::clone(certificates),
            tls,
            binding: Mutex::default(),
        });
        Ok(Self { channel: open(&inner), inner })
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Another connection, to the endpoint whose turn it is.
    pub fn another(&self) -> Channel {
        open(&self.inner)
    }

    /// From the next connection on, the peer is who one of these CAs says.
    pub fn believe(&self, cas: &str) -> Result<(), DialError> {
        let inner = &self.inner;
        let config = config(&inner.cluster, cas, Arc::clone(&inner.shown), &inner.provider)?;
        *inner.tls.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        Ok(())
    }

    /// Shows our newest certificate on the connection that there is, so that the peer need not end it. A peer that cannot be told is
    /// shown it by the next connection.
    pub async fn present(&self) {
        if self.inner.cilium.is_some() {
            return;
        }
        let binding = *self.inner.binding.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(binding) = binding else { return };
        let Some((certificate, proof)) = self.inner.certificates.remote_shown().prove(&binding) else {
            return;
        };
        let mut client = SessionClient::new(self.channel());
        let presented = client.present(PresentRequest { certificate, proof });
        let cluster = &self.inner.cluster;
        match tokio::time::timeout(CONNECT, presented).await {
            Ok(Ok(_)) => tracing::debug!(cluster, "the connection goes on with our new certificate"),
            Ok(Err(status)) => {
                tracing::debug!(
                    cluster,
                    why = status.message(),
                    "our new certificate waits for the next connection"
                );
            }
            Err(_) => tracing::debug!(cluster, "no answer to our new certificate"),
        }
    }
}

fn open(inner: &Arc<Inner>) -> Channel {
    let dialler = Arc::clone(inner);
    Endpoint::from(inner.authority.clone())
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(tower::service_fn(move |_: Uri| Arc::clone(&dialler).connect()))
}

fn config(
    cluster: &str,
    cas: &str,
    shown: Arc<dyn ResolvesClientCert>,
    provider: &Arc<CryptoProvider>,
) -> Result<ClientConfig, DialError> {
    let cas = CaSet::from_pem(cas).map_err(|source| DialError::Ca { cluster: cluster.to_owned(), source })?;
    let tls_error = |source| DialError::Tls { cluster: cluster.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for ca in cas.iter() {
        roots.add(ca.der().clone()).map_err(tls_error)?;
    }
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(tls_error)?
        .with_root_certificates(roots)
        .with_client_cert_resolver(shown);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

impl Inner {
    /// One try at the endpoint whose turn it is. The caller tries again, and then it is the next one's.
    async fn connect(self: Arc<Self>) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let Some(endpoint) = self.endpoints.get(turn % self.endpoints.len().max(1)) else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the peer has no endpoint"));
        };
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{endpoint}: {error}"));
        let timeout = || at(io::Error::new(io::ErrorKind::TimedOut, "no answer in 5 s"));
        let tls = self.tls.read().unwrap_or_else(PoisonError::into_inner).clone();
        let name = match &self.name {
            Some(name) => name.clone(),
            None => ServerName::try_from(endpoint.host().to_owned())
                .map_err(|error| at(io::Error::new(io::ErrorKind::InvalidInput, error)))?,
        };
        let dial = async {
            let stream = self.reach(endpoint).await?;
            stream.set_nodelay(true)?;
            TlsConnector::from(tls).connect(name, stream).await
        };
        let stream = tokio::time::timeout(CONNECT, dial).await.map_err(|_| timeout())?.map_err(at)?;
        let binding = stream.get_ref().1.export_keying_material([0; 32], LABEL, None).ok();
        *self.binding.lock().unwrap_or_else(PoisonError::into_inner) = binding;
        Ok(TokioIo::new(stream))
    }

    /// At the first of its addresses that answers.
    async fn reach(&self, endpoint: &ServerUrl) -> io::Result<TcpStream> {
        let (host, port) = (endpoint.host(), endpoint.port());
        let alias = self.cilium.as_ref().and_then(|cilium| cilium.aliases.get(host));
        let Some(ips) = alias else { return TcpStream::connect((host, port)).await };
        let sockets: Vec<_> = ips.iter().map(|ip: &IpAddr| (*ip, port).into()).collect();
        TcpStream::connect(&sockets[..]).await
    }
}
