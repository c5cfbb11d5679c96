//! A connection and the certificate it counts for, which its client may replace while it lives (pki, session).

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hawser_api::session::{PresentReply, PresentRequest, session_server};
use hawser_model::Timestamp;
use hawser_pki::session::{Binding, proven};
use hawser_pki::{CaCert, CaSet, Leaf, Role};
use rustls::pki_types::CertificateDer;
use tokio::sync::Notify;
use tonic::{Request, Response, Status};

use crate::authorize::Caller;
use crate::trust::{Trust, now};

/// In every request's extensions, beside the caller.
#[derive(Debug)]
pub struct Session {
    binding: Binding,
    /// None of a client without a certificate.
    shown: RwLock<Option<CertificateDer<'static>>>,
    news: Notify,
}

impl Session {
    pub fn new(binding: Binding, shown: Option<CertificateDer<'static>>) -> Arc<Self> {
        Arc::new(Self { binding, shown: RwLock::new(shown), news: Notify::new() })
    }

    pub fn shown(&self) -> Option<CertificateDer<'static>> {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The fingerprint of the CA that signed what is shown, if it is one of these.
    pub fn issuer(&self, cas: &CaSet) -> Option<String> {
        cas.signer_of(&self.shown()?).map(CaCert::fingerprint)
    }

    fn show(&self, certificate: CertificateDer<'static>) {
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = Some(certificate);
        self.news.notify_waiters();
    }

    fn not_after(&self) -> Option<Timestamp> {
        self.shown().and_then(|der| Leaf::from_der(&der).ok()).map(|leaf| leaf.not_after)
    }

    /// Returns when what is shown has expired; never without a certificate.
    pub async fn expired(&self) {
        /// The clock may be set, and a machine suspended.
        const LOOK: Duration = Duration::from_secs(60);
        loop {
            let news = self.news.notified();
            let Some(not_after) = self.not_after() else { return std::future::pending().await };
            let left = not_after.since(now());
            if left.is_zero() {
                return;
            }
            tokio::select! {
                () = news => {}
                () = tokio::time::sleep(left.min(LOOK)) => {}
            }
        }
    }
}

#[derive(Debug)]
pub struct SessionService {
    pub trust: Trust,
}

#[tonic::async_trait]
impl session_server::Session for SessionService {
    async fn present(&self, request: Request<PresentRequest>) -> Result<Response<PresentReply>, Status> {
        let caller = Caller::of(request.extensions());
        let Caller::Known(role) = &caller else {
            return Err(caller.refuse("Session.Present", "clients with a certificate that counts here"));
        };
        let denied = |why: &str| {
            Status::permission_denied(format!("{role} may not change to this certificate: {why}"))
        };
        let session = request.extensions().get::<Arc<Session>>().cloned();
        let session = session.ok_or_else(|| denied("the connection is not known"))?;
        let PresentRequest { certificate, proof } = request.into_inner();
        if !proven(&certificate, &session.binding, &proof) {
            return Err(denied("its key did not sign for this connection"));
        }
        let certificate = CertificateDer::from(certificate);
        match self.trust.current().role(std::slice::from_ref(&certificate), now()) {
            Ok(same) if same == *role => {}
            Ok(other) => return Err(denied(&format!("it is of another role, {other}"))),
            Err(error) => return Err(denied(&error.to_string())),
        }
        session.show(certificate);
        if let Role::Agent { .. } | Role::Remote(_) = role {
            tracing::debug!(%role, "a connection goes on with a new certificate");
        }
        Ok(Response::new(PresentReply {}))
    }
}
