//! Who is who: the CAs this cluster believes, and the certificates it shows, both replaced while connections live.

use std::sync::{Arc, PoisonError, RwLock};

use hawser_model::{ClusterName, Timestamp};
use hawser_pki::{Ca, CaCert, CaError, IssuedWithKey, Leaf, TrustStore};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub fn now() -> Timestamp {
    Timestamp::from_system(hawser_etcd::clock::wall())
}

/// The CAs believed now. Connections watch it and end when their role changes.
#[derive(Clone, Debug)]
pub struct Trust(Arc<watch::Sender<Arc<TrustStore>>>);

impl Trust {
    pub fn new(store: TrustStore) -> Self {
        Self(Arc::new(watch::Sender::new(Arc::new(store))))
    }

    pub fn current(&self) -> Arc<TrustStore> {
        self.0.borrow().clone()
    }

    pub fn subscribe(&self) -> watch::Receiver<Arc<TrustStore>> {
        self.0.subscribe()
    }

    pub fn insert_peer(&self, peer: ClusterName, ca: CaCert) {
        self.0.send_modify(|store| Arc::make_mut(store).insert_peer(peer, ca));
    }

    pub fn remove_peer(&self, peer: &ClusterName) {
        self.0.send_modify(|store| Arc::make_mut(store).remove_peer(peer));
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CertifyError {
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error("TLS refuses the key of our own certificate: {0}")]
    Tls(#[from] rustls::Error),
}

/// The server's own two certificates: for its listener, and for itself as a client of peers. Issued at start, renewed
/// before they end, never written anywhere.
#[derive(Debug)]
pub struct Certificates {
    ca: Ca,
    hosts: Vec<String>,
    provider: Arc<CryptoProvider>,
    server: Arc<Slot>,
    remote: Arc<Slot>,
}

impl Certificates {
    pub fn issue(ca: Ca, hosts: Vec<String>, provider: Arc<CryptoProvider>) -> Result<Self, CertifyError> {
        let (server, _) = certify(&provider, &ca.issue_server(&refs(&hosts), now())?)?;
        let (remote, _) = certify(&provider, &ca.issue_remote(now())?)?;
        Ok(Self { ca, hosts, provider, server: Slot::new(server), remote: Slot::new(remote) })
    }

    pub fn ca(&self) -> &Ca {
        &self.ca
    }

    pub fn server(&self) -> Arc<dyn ResolvesServerCert> {
        self.server.clone()
    }

    pub fn remote(&self) -> Arc<dyn ResolvesClientCert> {
        self.remote.clone()
    }

    /// When the certificates end that others see: the listener's, the one shown to peers, and the CA that signed both.
    pub fn ends(&self) -> [(&'static str, Option<Timestamp>); 3] {
        let of = |slot: &Slot| {
            slot.get().cert.first().and_then(|der| Leaf::from_der(der).ok()).map(|leaf| leaf.not_after)
        };
        [("server", of(&self.server)), ("remote", of(&self.remote)), ("ca", Some(self.ca.cert().not_after()))]
    }

    fn renew(&self) -> Result<Timestamp, CertifyError> {
        let (server, first) = certify(&self.provider, &self.ca.issue_server(&refs(&self.hosts), now())?)?;
        let (remote, second) = certify(&self.provider, &self.ca.issue_remote(now())?)?;
        self.server.put(server);
        self.remote.put(remote);
        Ok(first.min(second))
    }

    /// Renews both at two thirds of their lives, for as long as the process lives.
    pub async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        // A suspended machine wakes up late: the clock is looked at now and then instead of slept towards.
        const LOOK: std::time::Duration = std::time::Duration::from_secs(600);
        let mut due = None;
        loop {
            if due.is_none_or(|due| now() >= due) {
                match self.renew() {
                    Ok(at) => due = Some(at),
                    Err(error) => tracing::error!(%error, "our own certificates could not be renewed"),
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}

fn refs(hosts: &[String]) -> Vec<&str> {
    hosts.iter().map(String::as_str).collect()
}

fn certify(
    provider: &CryptoProvider,
    issued: &IssuedWithKey,
) -> Result<(CertifiedKey, Timestamp), CertifyError> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(issued.key_der.clone()));
    let key = provider.key_provider.load_private_key(key)?;
    Ok((CertifiedKey::new(vec![issued.cert.der.clone()], key), issued.cert.renew_at()))
}

/// A certificate that handshakes read and renewal replaces.
#[derive(Debug)]
struct Slot(RwLock<Arc<CertifiedKey>>);

impl Slot {
    fn new(key: CertifiedKey) -> Arc<Self> {
        Arc::new(Self(RwLock::new(Arc::new(key))))
    }

    fn put(&self, key: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
    }

    fn get(&self) -> Arc<CertifiedKey> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Slot {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

impl ResolvesClientCert for Slot {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
