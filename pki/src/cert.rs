//! Certificates read: bounded, one subject name, and a CA that is proven to have signed what it signed.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hawser_model::Timestamp;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

use crate::renewal::renew_at;

/// A certificate of ours is under 1 KiB; RSA ones of Cilium's CAs stay under 4.
pub(crate) const MAX_DER: usize = 16 << 10;
/// The same as text, with some room for comments around it.
pub(crate) const MAX_PEM: usize = 32 << 10;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    #[error("the certificate is {len} bytes long, more than {MAX_DER}")]
    TooLarge { len: usize },
    #[error("it is no PEM text with one certificate in it; fix: give one BEGIN CERTIFICATE block")]
    Pem,
    #[error("the certificate is not X.509: {why}")]
    Malformed { why: &'static str },
    #[error("certificate {name:?} is not a CA; fix: give the ca.crt that `hawser ca init` made")]
    NotCa { name: String },
    #[error("CA {name:?} is not signed by its own key; fix: give a root, not an intermediate")]
    NotSelfSigned { name: String },
    #[error("{count} CA certificates, or one twice; fix: give one, or the old and the new one of a rotation")]
    Count { count: usize },
}

/// The public half of a CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaCert {
    der: CertificateDer<'static>,
    subject: Vec<u8>,
    /// The subject as people read it.
    name: String,
    /// The key's bytes as they stand in the certificate.
    public_key: Vec<u8>,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl CaCert {
    /// One self-signed CA certificate, nothing else.
    pub fn from_pem(text: &str) -> Result<Self, CertError> {
        Self::from_der(one_pem(text)?)
    }

    pub fn from_der(der: CertificateDer<'static>) -> Result<Self, CertError> {
        let cert = parse(&der)?;
        let name = text_of(cert.subject());
        if !cert.is_ca() {
            return Err(CertError::NotCa { name });
        }
        if cert.subject() != cert.issuer() || cert.verify_signature(None).is_err() {
            return Err(CertError::NotSelfSigned { name });
        }
        Ok(Self {
            subject: cert.subject().as_raw().to_vec(),
            name,
            public_key: cert.public_key().subject_public_key.data.to_vec(),
            not_before: Timestamp::from_unix(cert.validity().not_before.timestamp()),
            not_after: Timestamp::from_unix(cert.validity().not_after.timestamp()),
            der: der.clone(),
        })
    }

    /// For the TLS layer's root store.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    pub fn pem(&self) -> String {
        pem("CERTIFICATE", &self.der)
    }

    /// The subject, like `CN=ca-us-east`.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn not_before(&self) -> Timestamp {
        self.not_before
    }

    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// SHA-256 of the certificate in hex pairs, to compare by voice.
    pub fn fingerprint(&self) -> String {
        let digest = Sha256::digest(&self.der);
        let pairs: Vec<String> = digest.iter().map(|byte| format!("{byte:02X}")).collect();
        pairs.join(":")
    }

    /// Whether both stand for the same key, whatever else the certificates say.
    pub fn same_key(&self, other: &Self) -> bool {
        self.public_key == other.public_key
    }

    pub(crate) fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// Whether this CA's key made that signature over the message: ECDSA P-256, SHA-256, as in RFC 3279.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.public_key).verify(message, signature).is_ok()
    }

    /// Whether this CA's key signed that certificate, and the certificate says so. Cost: one signature verification
    /// when the issuer's name fits, none otherwise.
    pub(crate) fn signed(&self, cert: &X509Certificate<'_>) -> bool {
        cert.issuer().as_raw() == self.subject
            && parse(&self.der).is_ok_and(|ca| cert.verify_signature(Some(ca.public_key())).is_ok())
    }
}

/// A certificate as its holder reads it: whom it names and when it wants renewing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The common name, or the whole subject where there is not exactly one.
    pub name: String,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

impl Leaf {
    /// The first certificate of a PEM text.
    pub fn from_pem(text: &str) -> Result<Self, CertError> {
        let der = all_pem(text)?.into_iter().next().ok_or(CertError::Pem)?;
        Self::from_der(&der)
    }

    pub fn from_der(der: &[u8]) -> Result<Self, CertError> {
        let cert = parse(der)?;
        Ok(Self {
            name: common_name(&cert).map_or_else(|| text_of(cert.subject()), str::to_owned),
            not_before: Timestamp::from_unix(cert.validity().not_before.timestamp()),
            not_after: Timestamp::from_unix(cert.validity().not_after.timestamp()),
        })
    }

    /// At two thirds of its life or a little before; `draw` is random.
    pub fn renew_at(&self, draw: u16) -> Timestamp {
        renew_at(self.not_before, self.not_after, draw)
    }
}

pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertError> {
    if der.len() > MAX_DER {
        return Err(CertError::TooLarge { len: der.len() });
    }
    match X509Certificate::from_der(der) {
        Ok(([], cert)) => Ok(cert),
        Ok(_) => Err(CertError::Malformed { why: "bytes follow it" }),
        Err(_) => Err(CertError::Malformed { why: "it does not follow RFC 5280" }),
    }
}

/// The one common name of a subject; none when there is none or more than one.
pub(crate) fn common_name<'a>(cert: &'a X509Certificate<'_>) -> Option<&'a str> {
    let mut names = cert.subject().iter_common_name();
    match (names.next(), names.next()) {
        (Some(name), None) => name.as_str().ok(),
        _ => None,
    }
}

/// A name in a certificate may be anything: what is shown of it is short.
pub(crate) fn text_of(name: &X509Name<'_>) -> String {
    name.to_string().chars().take(120).collect()
}

pub(crate) fn all_pem(text: &str) -> Result<Vec<CertificateDer<'static>>, CertError> {
    if text.len() > MAX_PEM {
        return Err(CertError::TooLarge { len: text.len() });
    }
    CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().map_err(|_| CertError::Pem)
}

fn one_pem(text: &str) -> Result<CertificateDer<'static>, CertError> {
    let mut all = all_pem(text)?;
    match (all.pop(), all.is_empty()) {
        (Some(only), true) => Ok(only),
        _ => Err(CertError::Pem),
    }
}

/// RFC 7468, lines of 64.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        text.extend(line.iter().map(|b| char::from(*b)));
        text.push('\n');
    }
    text + "-----END " + label + "-----\n"
}
