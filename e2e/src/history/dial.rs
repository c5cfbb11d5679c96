//! Clients of an API server: mutual TLS as an administrator, to whichever address is the target just now.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use hawser_etcd::client::Client;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};

const CONNECT: Duration = Duration::from_secs(2);

/// A server as a client knows it.
#[derive(Clone)]
pub struct Door {
    pub name: String,
    pub address: SocketAddr,
    /// None: a real etcd in clear text.
    tls: Option<(ServerName<'static>, Arc<ClientConfig>)>,
    /// The keyspace to ask for; its own without.
    keyspace: Option<String>,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door")
            .field("name", &self.name)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Door {
    /// As the administrator of `cluster`, with what `hawser ca init` wrote into `pki`.
    pub fn new(name: &str, address: SocketAddr, cluster: &str, pki: &Path) -> Result<Self> {
        let read = |file: &str| fs::read(pki.join(file)).with_context(|| format!("reading {file}"));
        let chain = CertificateDer::pem_slice_iter(&read("admin.crt")?).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&read("admin.key")?).context("admin.key")?;
        Self::showing(name, address, cluster, pki, (chain, key))
    }

    /// As the API server of `peer`, by a certificate of its CA in `peer_pki`: who reads so has the view that its mirror has.
    pub fn as_peer(
        name: &str,
        address: SocketAddr,
        (cluster, pki): (&str, &Path),
        (peer, peer_pki): (&str, &Path),
    ) -> Result<Self> {
        let read =
            |file: &str| fs::read_to_string(peer_pki.join(file)).with_context(|| format!("reading {file}"));
        let issuer =
            rcgen::Issuer::from_ca_cert_pem(&read("ca.crt")?, rcgen::KeyPair::from_pem(&read("ca.key")?)?)?;
        let key = rcgen::KeyPair::generate()?;
        let mut shown = rcgen::CertificateParams::default();
        shown.distinguished_name = rcgen::DistinguishedName::new();
        shown.distinguished_name.push(rcgen::DnType::CommonName, format!("remote-{peer}"));
        shown.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let chain = vec![shown.signed_by(&key, &issuer)?.der().clone()];
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Self::showing(name, address, cluster, pki, (chain, key))
    }

    fn showing(
        name: &str,
        address: SocketAddr,
        cluster: &str,
        pki: &Path,
        (chain, key): (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
    ) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        let cas = fs::read(pki.join("ca.crt")).context("reading ca.crt")?;
        for ca in CertificateDer::pem_slice_iter(&cas) {
            roots.add(ca.context("ca.crt")?).context("ca.crt")?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let server = ServerName::try_from(format!("{cluster}.mesh.hawser.io"))?;
        Ok(Self { name: name.to_owned(), address, tls: Some((server, Arc::new(tls))), keyspace: None })
    }

    /// A real etcd on loopback.
    pub fn etcd(name: &str, address: SocketAddr) -> Self {
        Self { name: name.to_owned(), address, tls: None, keyspace: None }
    }

    /// The same server, asked for its mirror of `cluster`.
    pub fn mirror_of(mut self, cluster: &str) -> Self {
        self.keyspace = Some(cluster.to_owned());
        self
    }

    pub fn keyspace(&self) -> Option<&str> {
        self.keyspace.as_deref()
    }

    /// A connection of its own, made when it is first used.
    pub fn channel(&self) -> Channel {
        let endpoint = |uri: Uri| {
            Endpoint::from(uri)
                .connect_timeout(CONNECT)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(Duration::from_secs(1))
                .keep_alive_timeout(Duration::from_secs(2))
                .keep_alive_while_idle(true)
        };
        let address = self.address;
        let Some((server, tls)) = self.tls.clone() else {
            let uri =
                Uri::builder().scheme("http").authority(address.to_string()).path_and_query("/").build();
            return endpoint(uri.unwrap_or_default()).connect_lazy();
        };
        let dial = tower::service_fn(move |_: Uri| connect(address, server.clone(), tls.clone()));
        endpoint(Uri::from_static("https://api-server")).connect_with_connector_lazy(dial)
    }

    pub fn client(&self) -> Result<Client> {
        match &self.keyspace {
            Some(cluster) => Ok(Client::for_cluster(self.channel(), cluster)?),
            None => Ok(Client::new(self.channel())),
        }
    }
}

async fn connect(
    address: SocketAddr,
    server: ServerName<'static>,
    tls: Arc<ClientConfig>,
) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(tls).connect(server, stream).await
    };
    let stream = tokio::time::timeout(CONNECT, connecting).await.map_err(|_| io::ErrorKind::TimedOut)??;
    Ok(TokioIo::new(stream))
}
