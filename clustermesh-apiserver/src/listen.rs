//! The one listener: TLS always, a role for every connection, etcd, Agent and Admin behind it.
//!
//! TLS proves that the client holds its key; whether the certificate means anything here is for `TrustStore::role`, so
//! that a client is told in a sentence what is wrong with it instead of with an alert number. A client without a
//! certificate is let as far as `Agent.Join`; one whose certificate means nothing gets no further. Both are guests, who
//! leave after a while and take no place of anybody else's (`places`).

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hawser_pki::Role;
use hawser_pki::session::LABEL;
use hawser_telemetry::{News, span};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tracing::Instrument as _;

use crate::authorize::Caller;
use crate::exports::{ExportFilter, Exports};
use crate::limits::Readers;
use crate::places::{Guest, Places, raise_open_files};
use crate::session::Session;
use crate::trust::{Certificates, Trust, now};

/// Until a client has said who it is.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A client that is gone is noticed after these two together.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may stay that shows no certificate, or one that means nothing: enough to join, or to be told.
const GUEST: Duration = Duration::from_secs(30);
/// What a request's headers may take.
const HEADERS: u32 = 16 << 10;
/// RPCs of one connection: agents watch every cluster, and there are up to 511.
const STREAMS: u32 = 2_000;
/// And of another cluster's: more of its requests wait at its own end.
const REMOTE_STREAMS: u32 = 100;
/// And of a guest's.
const GUEST_STREAMS: u32 = 16;
/// How long open RPCs may take when the server is told to stop.
const GRACE: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(
        "{address} is in use by another process; fix: stop it, or choose another `listen` (see `ss -ltnp`)"
    )]
    InUse { address: SocketAddr },
    #[error("cannot listen on {address}: {source}; fix: choose an address of this machine")]
    Bind {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

pub async fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse { address },
        _ => ListenError::Bind { address, source },
    })
}

/// How the listener speaks TLS.
pub fn tls(
    certificates: &Certificates,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<ServerConfig>, ListenError> {
    let verifier = Arc::new(HoldsItsKey(provider.signature_verification_algorithms));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificates.server());
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A resumed session would bring a certificate that was looked at under an older trust.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Accepts until told to stop; then lets open RPCs end for a moment.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    trust: Trust,
    readers: Readers,
    exports: watch::Receiver<Arc<Exports>>,
    routes: Routes,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Places::within(raise_open_files());
    let tasks = TaskTracker::new();
    let news = Arc::new(News::default());
    let routes = routes.prepare();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if news.is_new(&error.to_string(), Instant::now()) {
                    tracing::warn!(%error, "a connection could not be accepted");
                }
                // Out of file descriptors, most likely: it takes a moment until some are free.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let connection = Connection {
            news: Arc::clone(&news),
            places: places.clone(),
            acceptor: acceptor.clone(),
            trust: trust.clone(),
            readers: readers.clone(),
            exports: exports.clone(),
            routes: routes.clone(),
            stop: stop.clone(),
        };
        tasks.spawn(connection.run(stream, from));
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(GRACE, tasks.wait()).await.is_err() {
        tracing::debug!("connections were still open at the end");
    }
}

/// Says a refusal once, with its fix; a peer that is connected on one side alone comes again every few seconds.
fn tell_refusal(news: &News, from: SocketAddr, why: &str) {
    if news.is_new(why, Instant::now()) {
        tracing::warn!(%from, why, "a client's certificate is refused; the same is said once an hour");
    } else {
        tracing::debug!(%from, why, "a client's certificate is refused");
    }
}

struct Connection {
    news: Arc<News>,
    places: Places,
    acceptor: TlsAcceptor,
    trust: Trust,
    readers: Readers,
    exports: watch::Receiver<Arc<Exports>>,
    routes: Routes,
    stop: CancellationToken,
}

/// Whether a connection's requests count against limits.
#[derive(Clone)]
enum Counted {
    No,
    Connection(Arc<hawser_etcd::server::Connection>),
    /// There are too many: it is told so, whatever it asks.
    Exhausted(tonic::Status),
}

impl Counted {
    fn count<B>(&self, request: &mut http::Request<B>) -> Result<(), tonic::Status> {
        match self {
            Self::No => Ok(()),
            Self::Exhausted(why) => Err(why.clone()),
            Self::Connection(connection) => {
                connection.request()?;
                request.extensions_mut().insert(Arc::clone(connection));
                Ok(())
            }
        }
    }
}

/// What a connection holds while it lasts.
enum Place {
    Guest(Guest),
    Certified { _permit: OwnedSemaphorePermit },
}

impl Place {
    /// Returns when a guest has been here for long enough; never for a certified client.
    async fn over(&self) {
        match self {
            Self::Certified { .. } => std::future::pending().await,
            Self::Guest(guest) => tokio::select! {
                () = tokio::time::sleep(GUEST) => {}
                () = guest.asked_to_go() => {}
            },
        }
    }
}

impl Connection {
    async fn run(self, stream: TcpStream, from: SocketAddr) {
        let _ = stream.set_nodelay(true);
        let guest = self.places.guest();
        let handshake = tokio::time::timeout(HANDSHAKE, self.acceptor.accept(stream));
        let handshake = tokio::select! {
            handshake = handshake => handshake,
            () = guest.asked_to_go() => return tracing::debug!(%from, "too many clients in their handshakes"),
        };
        let stream = match handshake {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%from, %error, "TLS handshake failed"),
            Err(_) => return tracing::debug!(%from, "no TLS handshake"),
        };
        // Watched from before the role is decided, so that no change falls between.
        let mut changes = self.trust.subscribe();
        let tls = stream.get_ref().1;
        let shown = tls.peer_certificates().unwrap_or_default().first().cloned();
        let session = match tls.export_keying_material([0; 32], LABEL, None) {
            Ok(binding) => Session::new(binding, shown),
            Err(error) => return tracing::debug!(%from, %error, "TLS exports no keys"),
        };
        let caller = identify(&self.trust, &session);
        match &caller {
            Caller::Refused(why) => tell_refusal(&self.news, from, why),
            caller => tracing::debug!(%from, ?caller, "connected"),
        }
        let counted = self.counted(&caller);
        if let Counted::Exhausted(why) = &counted
            && self.news.is_new(why.message(), Instant::now())
        {
            tracing::warn!(%from, why = why.message(), "a cluster has too many connections; the same is said once an hour");
        }
        let place = match &caller {
            // It is told so, as a guest.
            Caller::Known(_) if matches!(counted, Counted::Exhausted(_)) => Place::Guest(guest),
            Caller::Known(_) => match self.places.certified() {
                Some(_permit) => Place::Certified { _permit },
                None => {
                    if self.news.is_new("too many connections", Instant::now()) {
                        tracing::warn!(%from, ?caller, "too many connections; this one is closed");
                    }
                    return;
                }
            },
            Caller::Anonymous | Caller::Refused(_) => Place::Guest(guest),
        };
        let mut exports = self.exports.clone();
        let filter = filter(&caller, &exports.borrow_and_update());
        let mut over = pin!(place.over());
        let end = CancellationToken::new();
        let mut serve = pin!(self.serve(stream, caller.clone(), counted, Arc::clone(&session), end.clone()));
        loop {
            tokio::select! {
                () = &mut serve => return,
                () = &mut over => return tracing::debug!(%from, ?caller, "connection ended: a guest's time is over"),
                // A refused one may have expired long ago, and is still to be told so.
                () = session.expired(), if matches!(caller, Caller::Known(_)) => return tracing::info!(%from, ?caller, "connection ended: its certificate expired"),
                // The trust lives as long as the listener.
                _ = changes.changed() => if identify(&self.trust, &session) != caller {
                    return tracing::info!(%from, ?caller, "connection ended: its role changed");
                },
                // It begins anew, with a list of what it is exported now.
                Ok(()) = exports.changed() => if self::filter(&caller, &exports.borrow_and_update()) != filter {
                    return tracing::info!(%from, ?caller, "connection ended: it is exported something else");
                },
                () = self.stop.cancelled(), if !end.is_cancelled() => end.cancel(),
            }
        }
    }

    /// The connections of other clusters are counted; the own cluster's are not.
    fn counted(&self, caller: &Caller) -> Counted {
        match caller {
            Caller::Known(Role::Remote(cluster)) => match self.readers.get(cluster).connect() {
                Ok(connection) => Counted::Connection(connection),
                Err(why) => Counted::Exhausted(why.into()),
            },
            _ => Counted::No,
        }
    }

    async fn serve(
        &self,
        stream: TlsStream<TcpStream>,
        caller: Caller,
        counted: Counted,
        session: Arc<Session>,
        end: CancellationToken,
    ) {
        let streams = match (&caller, &counted) {
            (_, Counted::Connection(_)) => REMOTE_STREAMS,
            (Caller::Known(_), Counted::No) => STREAMS,
            _ => GUEST_STREAMS,
        };
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let routes = self.routes.clone();
        let service = tower::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(caller.clone());
            request.extensions_mut().insert(Arc::clone(&session));
            if let Err(exhausted) = counted.count(&mut request) {
                return futures::future::Either::Left(std::future::ready(Ok(exhausted.into_http())));
            }
            let mut routes = routes.clone();
            let span = span!("rpc", method = request.uri().path(), caller = ?caller);
            let answer = async move {
                tower::Service::call(&mut routes, request).await.map_err(|never: Infallible| never)
            };
            futures::future::Either::Right(answer.instrument(span))
        });
        let service = TowerToHyperService::new(service);
        let io = TokioIo::new(stream);
        if !h2 {
            // `GET /version` alone: nothing to wait for at the end.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(io, service)
                .await;
            return;
        }
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .max_header_list_size(HEADERS)
            .max_concurrent_streams(streams)
            .serve_connection(io, service);
        let mut connection = pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = end.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "connection ended");
        }
    }
}

fn identify(trust: &Trust, session: &Session) -> Caller {
    let Some(shown) = session.shown() else { return Caller::Anonymous };
    match trust.current().role(std::slice::from_ref(&shown), now()) {
        Ok(role) => Caller::Known(role),
        Err(error) => Caller::Refused(error.to_string()),
    }
}

/// What a peer is exported; none for whoever has no filter.
fn filter(caller: &Caller, exports: &Exports) -> Option<Arc<ExportFilter>> {
    match caller {
        Caller::Known(Role::Remote(peer)) => Some(Arc::clone(exports.of(peer))),
        _ => None,
    }
}

/// Lets every client in that proves to hold the key of whatever certificate it shows, or shows none.
#[derive(Debug)]
struct HoldsItsKey(WebPkiSupportedAlgorithms);

impl ClientCertVerifier for HoldsItsKey {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        // What it means is decided by `TrustStore::role`: signature, validity, usage and name.
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
