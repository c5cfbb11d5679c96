//! Who is who: the CAs this cluster believes, and the certificates it shows, both replaced while connections live.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use hawser_model::{ClusterName, Peer, PeerKind, Timestamp};
use hawser_pki::session::{self, Binding};
use hawser_pki::{Authority, CaError, CaSet, IssuedWithKey, TrustStore, retry_after};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::pki_dir::{self, PkiError, Stamp};

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

    /// Believes these CAs for that peer, and for nobody else.
    pub fn admit(&self, peer: &Peer, cas: CaSet) {
        let name = peer.cluster.name.clone();
        self.0.send_modify(|store| {
            let store = Arc::make_mut(store);
            match peer.kind {
                PeerKind::Hawser => store.insert_peer(name, cas),
                PeerKind::Cilium(_) => store.insert_cilium(name, cas),
            }
        });
    }

    pub fn set_own(&self, cas: CaSet) {
        self.0.send_modify(|store| Arc::make_mut(store).set_own(cas));
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
/// before they end and when another CA signs, never written anywhere.
#[derive(Debug)]
pub struct Certificates {
    config: Arc<Config>,
    authority: RwLock<Arc<Authority>>,
    hosts: Vec<String>,
    provider: Arc<CryptoProvider>,
    server: Arc<Slot>,
    remote: Arc<Slot>,
    /// What was read of the directory last, and why it could not be taken over.
    read: Mutex<(Stamp, Option<String>)>,
    /// Counts new certificates and new CAs.
    changes: watch::Sender<u64>,
}

impl Certificates {
    /// Reads the CA and issues both.
    pub fn open(
        config: Arc<Config>,
        hosts: Vec<String>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, PkiError> {
        let (authority, stamp) = pki_dir::read(&config)?;
        let both = issue(&authority, &hosts, &provider);
        let (server, remote) =
            both.map_err(|source| PkiError::Certify { dir: config.pki.clone(), source })?;
        Ok(Self {
            config,
            authority: RwLock::new(Arc::new(authority)),
            hosts,
            provider,
            server: Slot::new(server),
            remote: Slot::new(remote),
            read: Mutex::new((stamp, None)),
            changes: watch::Sender::new(0),
        })
    }

    /// Which CA signs and which are trusted, now.
    pub fn authority(&self) -> Arc<Authority> {
        self.authority.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn server(&self) -> Arc<dyn ResolvesServerCert> {
        self.server.clone()
    }

    pub fn remote(&self) -> Arc<dyn ResolvesClientCert> {
        self.remote.clone()
    }

    /// What is shown to peers, with its key.
    pub fn remote_shown(&self) -> Arc<Shown> {
        self.remote.get()
    }

    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Why what lies in the directory is not what is used.
    pub fn problem(&self) -> Option<String> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// When the certificates end that others see: the listener's, the one shown to peers, and the CA that signed both.
    pub fn ends(&self) -> [(&'static str, Option<Timestamp>); 3] {
        let of = |slot: &Slot| Some(slot.get().not_after);
        let ca = self.authority().issuing().cert().not_after();
        [("server", of(&self.server)), ("remote", of(&self.remote)), ("ca", Some(ca))]
    }

    fn renew(&self) -> Result<(), CertifyError> {
        let (server, remote) = issue(&self.authority(), &self.hosts, &self.provider)?;
        self.server.put(server);
        self.remote.put(remote);
        self.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Takes over what the directory says, when it has changed. What cannot be taken over is said once.
    fn look(&self, trust: &Trust) {
        let stamp = Stamp::of(&self.config.pki);
        if self.read.lock().unwrap_or_else(PoisonError::into_inner).0 == stamp {
            return;
        }
        let taken = pki_dir::read(&self.config).and_then(|(authority, stamp)| {
            self.take(authority, trust)?;
            Ok(stamp)
        });
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        *read = match taken {
            Ok(stamp) => (stamp, None),
            // A Secret that is in the middle of its change is read again with the next look.
            Err(error) => {
                let error = error.to_string();
                if read.1.as_ref() != Some(&error) {
                    tracing::error!(
                        error,
                        "the CA on disk cannot be taken over, the server goes on with the one it has"
                    );
                }
                (read.0.clone(), Some(error))
            }
        };
    }

    fn take(&self, authority: Authority, trust: &Trust) -> Result<(), PkiError> {
        let before = self.authority();
        let known = before.trusted();
        if !authority.trusted().iter().any(|ca| known.holds(ca)) {
            return Err(PkiError::Replaced { dir: self.config.pki.clone() });
        }
        let phase = authority.rotation().map_or("settled", |rotation| rotation.phase().as_str());
        let issuer = authority.issuing().cert().fingerprint();
        let reissue = !authority.issuing().cert().same_key(before.issuing().cert());
        let trusted = authority.trusted();
        *self.authority.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(authority);
        if reissue {
            let dir = self.config.pki.clone();
            self.renew().map_err(|source| PkiError::Certify { dir, source })?;
        }
        // What is shown changes before what is believed: nobody is left with a certificate that counts no more.
        trust.set_own(trusted);
        self.changes.send_modify(|count| *count += 1);
        tracing::info!(phase, issuer, "the CA on disk changed and is taken over");
        Ok(())
    }

    /// Renews both at two thirds of their lives and follows the directory, for as long as the process lives.
    pub async fn keep_fresh(self: Arc<Self>, trust: Trust, stop: CancellationToken) {
        /// The clock is looked at instead of slept towards: a suspended machine wakes up late.
        const LOOK: Duration = Duration::from_millis(500);
        let draw = rand::random();
        let mut failed_until = None;
        loop {
            self.look(&trust);
            let ends = [self.server.get(), self.remote.get()];
            let due = ends.iter().any(|shown| now() >= shown.renew_at(draw));
            if due && failed_until.is_none_or(|until| now() >= until) {
                failed_until = self.renew().err().map(|error| {
                    let not_after = ends[0].not_after.min(ends[1].not_after);
                    tracing::error!(%error, %not_after, "our own certificates could not be renewed, trying again");
                    now().plus(retry_after(not_after, now()))
                });
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

fn issue(
    authority: &Authority,
    hosts: &[String],
    provider: &CryptoProvider,
) -> Result<(Shown, Shown), CertifyError> {
    let ca = authority.issuing();
    let server = Shown::new(provider, ca.issue_server(&refs(hosts), now())?)?;
    Ok((server, Shown::new(provider, ca.issue_remote(now())?)?))
}

/// A certificate with its key.
#[derive(Debug)]
pub struct Shown {
    certified: Arc<CertifiedKey>,
    issued: IssuedWithKey,
    not_after: Timestamp,
}

impl Shown {
    fn new(provider: &CryptoProvider, issued: IssuedWithKey) -> Result<Self, CertifyError> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(issued.key_der.clone()));
        let key = provider.key_provider.load_private_key(key)?;
        let certified = Arc::new(CertifiedKey::new(vec![issued.cert.der.clone()], key));
        Ok(Self { certified, not_after: issued.cert.not_after, issued })
    }

    fn renew_at(&self, draw: u16) -> Timestamp {
        self.issued.cert.renew_at(draw)
    }

    /// The certificate, and that its holder is at the end of this connection.
    pub fn prove(&self, binding: &Binding) -> Option<(Vec<u8>, Vec<u8>)> {
        let der = self.issued.cert.der.to_vec();
        let proof = session::prove(&self.issued.key_der, &der, binding)?;
        Some((der, proof))
    }
}

/// A certificate that handshakes read and renewal replaces.
#[derive(Debug)]
struct Slot(RwLock<Arc<Shown>>);

impl Slot {
    fn new(key: Shown) -> Arc<Self> {
        Arc::new(Self(RwLock::new(Arc::new(key))))
    }

    fn put(&self, key: Shown) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
    }

    fn get(&self) -> Arc<Shown> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Slot {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.get().certified))
    }
}

impl ResolvesClientCert for Slot {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.get().certified))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
