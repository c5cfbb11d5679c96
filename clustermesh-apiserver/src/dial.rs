//! Dialling a peer's API server: its name is proven whatever address is dialled, and ours is shown.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hawser_model::{Peer, ServerUrl};
use hawser_pki::{CaCert, CertError};
use http::Uri;
use hyper_util::rt::TokioIo;
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

/// A channel to a peer; it connects when it is used, at each of the peer's endpoints in turn.
pub fn channel(
    peer: &Peer,
    certificates: &Certificates,
    provider: Arc<CryptoProvider>,
) -> Result<Channel, DialError> {
    let cluster = peer.cluster.name.to_string();
    let ca =
        CaCert::from_pem(&peer.ca).map_err(|source| DialError::Ca { cluster: cluster.clone(), source })?;
    let tls_error = |source| DialError::Tls { cluster: cluster.clone(), source };
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).map_err(tls_error)?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(tls_error)?
        .with_root_certificates(roots)
        .with_client_cert_resolver(certificates.remote());
    config.alpn_protocols = vec![b"h2".to_vec()];
    let host = format!("{cluster}.mesh.hawser.io");
    let bad = |name: &str| DialError::Name { name: name.to_owned() };
    let name = ServerName::try_from(host.clone()).map_err(|_| bad(&host))?;
    // The authority chooses the keyspace at the other end: the peer's own.
    let uri = Uri::builder().scheme("https").authority(host.as_str()).path_and_query("/").build();
    let uri = uri.map_err(|_| bad(&host))?;
    let connector = Connector {
        tls: TlsConnector::from(Arc::new(config)),
        name,
        endpoints: peer.endpoints.clone().into(),
        next: Arc::new(AtomicUsize::new(0)),
    };
    Ok(Endpoint::from(uri)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(tower::service_fn(move |_: Uri| connector.clone().connect())))
}

#[derive(Clone)]
struct Connector {
    tls: TlsConnector,
    name: ServerName<'static>,
    endpoints: Arc<[ServerUrl]>,
    next: Arc<AtomicUsize>,
}

impl Connector {
    /// One try at the endpoint whose turn it is. The caller tries again, and then it is the next one's.
    async fn connect(self) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let Some(endpoint) = self.endpoints.get(turn % self.endpoints.len().max(1)) else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the peer has no endpoint"));
        };
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{endpoint}: {error}"));
        let timeout = || at(io::Error::new(io::ErrorKind::TimedOut, "no answer in 5 s"));
        let dial = async {
            let stream = TcpStream::connect((endpoint.host(), endpoint.port())).await?;
            stream.set_nodelay(true)?;
            self.tls.connect(self.name.clone(), stream).await
        };
        let stream = tokio::time::timeout(CONNECT, dial).await.map_err(|_| timeout())?.map_err(at)?;
        Ok(TokioIo::new(stream))
    }
}
