//! TLS on loopback between the parts, as the product speaks it: rustls with aws-lc-rs, HTTP/2, one certificate for all.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as TaskContext, Poll};

use anyhow::{Context, Result};
use hawser_etcd::server::{AllowAll, EtcdServer, Keyspaces};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::transport::{Channel, Endpoint, Uri};

/// Where the certificate and its key are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Pki(PathBuf);

impl Pki {
    pub(super) fn make(dir: &Path) -> Result<Self> {
        let names = vec!["*.mesh.hawser.io".to_owned(), "localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names)?;
        fs::write(dir.join("server.crt"), made.cert.pem())?;
        fs::write(dir.join("server.key"), made.signing_key.serialize_pem())?;
        Ok(Self(dir.to_owned()))
    }

    pub(super) fn certificate(&self) -> PathBuf {
        self.0.join("server.crt")
    }

    pub(super) fn key(&self) -> PathBuf {
        self.0.join("server.key")
    }

    fn server(&self) -> Result<ServerConfig> {
        let certificate = CertificateDer::from_pem_file(self.certificate())?;
        let key = PrivateKeyDer::from_pem_file(self.key())?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    pub(super) fn client(&self) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.certificate())?)?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Serves `keyspaces` from now on, at the address it gives.
pub(super) async fn serve(pki: &Pki, keyspaces: Keyspaces) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let acceptor = TlsAcceptor::from(Arc::new(pki.server()?));
    let routes = EtcdServer::new(keyspaces, Arc::new(AllowAll), vec![]).routes().prepare();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, service) = (acceptor.clone(), TowerToHyperService::new(routes.clone()));
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .max_concurrent_streams(2_000)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    Ok(address)
}

/// A connection of its own; `authority` chooses the keyspace.
pub(super) fn channel(address: SocketAddr, authority: &str, tls: Arc<ClientConfig>) -> Result<Channel> {
    let uri = Uri::builder().scheme("https").authority(authority).path_and_query("/").build()?;
    let dial = tower::service_fn(move |_: Uri| connect(address, Arc::clone(&tls)));
    Ok(Endpoint::from(uri).connect_with_connector_lazy(dial))
}

async fn connect(address: SocketAddr, tls: Arc<ClientConfig>) -> io::Result<TokioIo<TlsStream<Counted>>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
    Ok(TokioIo::new(TlsConnector::from(tls).connect(name, Counted(stream)).await?))
}

static RECEIVED: AtomicU64 = AtomicU64::new(0);

/// Bytes that this process has received as a client, TLS included, headers of TCP and IP not.
pub(super) fn received() -> u64 {
    RECEIVED.load(Ordering::Relaxed)
}

/// A connection whose incoming bytes are counted.
struct Counted(TcpStream);

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.0).poll_read(cx, buffer);
        RECEIVED.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

/// Thousands of connections need as many file descriptors; children inherit it.
pub(super) fn raise_open_files() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the number of open files")
}
