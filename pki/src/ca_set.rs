//! The CAs that speak for one cluster: one, or two of them while it changes from the old to the new.

use std::collections::BTreeSet;

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::X509Certificate;

use crate::cert::{CaCert, CertError, all_pem, parse};

/// Never empty, never more than [`CaSet::MAX`], no key twice; the oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaSet(Vec<CaCert>);

impl CaSet {
    pub const MAX: usize = 2;

    pub fn new(cas: Vec<CaCert>) -> Result<Self, CertError> {
        let twice = |at: usize, ca: &CaCert| cas[..at].iter().any(|other| other.same_key(ca));
        if cas.is_empty() || cas.len() > Self::MAX || cas.iter().enumerate().any(|(at, ca)| twice(at, ca)) {
            return Err(CertError::Count { count: cas.len() });
        }
        Ok(Self(cas))
    }

    /// One certificate after the other.
    pub fn from_pem(text: &str) -> Result<Self, CertError> {
        Self::new(all_pem(text)?.into_iter().map(CaCert::from_der).collect::<Result<_, _>>()?)
    }

    pub fn pem(&self) -> String {
        self.0.iter().map(CaCert::pem).collect()
    }

    pub fn iter(&self) -> impl Iterator<Item = &CaCert> {
        self.0.iter()
    }

    /// The newest: the one that a settled cluster has.
    pub fn newest(&self) -> &CaCert {
        self.0.last().unwrap_or_else(|| unreachable!("a set of CAs is never empty"))
    }

    pub fn holds(&self, ca: &CaCert) -> bool {
        self.0.iter().any(|other| other.same_key(ca))
    }

    pub fn fingerprints(&self) -> BTreeSet<String> {
        self.0.iter().map(CaCert::fingerprint).collect()
    }

    /// Which of them signed that certificate. Cost: one signature verification for each of the issuer's name.
    pub(crate) fn signer(&self, cert: &X509Certificate<'_>) -> Option<&CaCert> {
        self.0.iter().find(|ca| ca.signed(cert))
    }

    /// The same, of a certificate as it travels.
    pub fn signer_of(&self, leaf: &CertificateDer<'_>) -> Option<&CaCert> {
        parse(leaf).ok().and_then(|cert| self.signer(&cert))
    }
}

impl CaSet {
    /// Whether one of them signed the first certificate of that text.
    pub fn signed_pem(&self, leaf: &str) -> bool {
        all_pem(leaf).is_ok_and(|certs| certs.first().is_some_and(|leaf| self.signer_of(leaf).is_some()))
    }
}

impl From<CaCert> for CaSet {
    fn from(ca: CaCert) -> Self {
        Self(vec![ca])
    }
}
