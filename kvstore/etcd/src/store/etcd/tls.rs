//! TLS to etcd: whom to believe and what to show, read anew for each connection, so that a mounted Secret may change.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::CALL_TIMEOUT;

/// Files in PEM: the CAs that etcd's members are believed by, and our certificate and key for `--client-cert-auth`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreTls {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Why TLS to etcd cannot be set up from the files.
#[derive(Debug, thiserror::Error)]
pub enum StoreTlsError {
    #[error("storeTLS: {path} cannot be read: {source}. fix: put it there, or correct storeTLS")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("storeTLS: {path} holds no {what} in PEM: {why}. fix: replace the file")]
    Pem { path: PathBuf, what: &'static str, why: String },
    #[error(
        "storeTLS: {cert} and {key} cannot be used together: {source}. fix: give the key of that certificate"
    )]
    Pair {
        cert: PathBuf,
        key: PathBuf,
        #[source]
        source: rustls::Error,
    },
}

impl StoreTls {
    /// Cost: three small files read.
    pub fn check(&self) -> Result<(), StoreTlsError> {
        self.config().map(drop)
    }

    fn config(&self) -> Result<ClientConfig, StoreTlsError> {
        let mut roots = RootCertStore::empty();
        for ca in certificates(&self.ca)? {
            let why = |error: rustls::Error| pem(&self.ca, "CA certificate", &error);
            roots.add(ca).map_err(why)?;
        }
        let chain = certificates(&self.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?)
            .map_err(|error| pem(&self.key, "private key", &error))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let pair = |source| StoreTlsError::Pair { cert: self.cert.clone(), key: self.key.clone(), source };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(pair)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(pair)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, StoreTlsError> {
    std::fs::read(path).map_err(|source| StoreTlsError::Read { path: path.to_owned(), source })
}

fn pem(path: &Path, what: &'static str, why: &dyn std::fmt::Display) -> StoreTlsError {
    StoreTlsError::Pem { path: path.to_owned(), what, why: why.to_string() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, StoreTlsError> {
    let found = CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| pem(path, "certificate", &error))?;
    if found.is_empty() { Err(pem(path, "certificate", &"the file has none")) } else { Ok(found) }
}

/// The way to one member over TLS.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) member: String,
    pub(super) name: ServerName<'static>,
    pub(super) tls: StoreTls,
    /// Why no connection can be made, said when it is another reason than before.
    said: Mutex<String>,
}

impl Door {
    pub(super) fn new(member: &str, tls: &StoreTls) -> Option<Self> {
        let authority: http::uri::Authority = member.parse().ok()?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).ok()?;
        Some(Self { member: member.to_owned(), name, tls: tls.clone(), said: Mutex::default() })
    }

    pub(super) async fn connect(self: Arc<Self>) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let connected = self.dial().await;
        let why = connected.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if *said != why {
            if !why.is_empty() {
                tracing::warn!(why, "no TLS connection to etcd");
            }
            *said = why;
        }
        connected
    }

    async fn dial(&self) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let member = &self.member;
        let config = self.tls.config().map_err(io::Error::other)?;
        let connecting = async {
            let stream = TcpStream::connect(member.as_str()).await?;
            stream.set_nodelay(true)?;
            TlsConnector::from(Arc::new(config)).connect(self.name.clone(), stream).await
        };
        let connected = tokio::time::timeout(CALL_TIMEOUT, connecting).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let named = |error: io::Error| io::Error::new(error.kind(), format!("etcd at {member}: {error}"));
        connected.map(TokioIo::new).map_err(named)
    }
}
