//! A cluster's own CA: made once, signs everything of its cluster, and nothing for anyone else.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use hawser_model::{ClusterName, NodeName, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};

use crate::cert::{CaCert, CertError, pem};
use crate::name::{CommonName, UserName};
use crate::renewal::renew_at;

/// A clock that is a little behind ours still finds a new certificate valid.
const BACKDATED: Duration = Duration::from_secs(300);
const CA_LIFETIME: Duration = Duration::from_secs(3652 * 86_400);
/// A request for a P-256 key is about 250 bytes.
const MAX_CSR: usize = 8 << 10;

/// How long the certificates live that renew themselves: `server-`, `remote-`, `agent-`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime(Duration);

impl Lifetime {
    pub const DEFAULT: Self = Self(Duration::from_secs(86_400));
    /// Below that, a clock that is a little off is always wrong; above, a stolen key is good for long.
    pub const MIN: Duration = Duration::from_secs(5);
    pub const MAX: Duration = Duration::from_secs(90 * 86_400);

    pub fn new(life: Duration) -> Option<Self> {
        (Self::MIN..=Self::MAX).contains(&life).then_some(Self(life))
    }

    /// `90s`, `30m`, `24h`, `7d`.
    pub fn parse(text: &str) -> Option<Self> {
        let unit = match text.as_bytes().last()? {
            b's' => 1,
            b'm' => 60,
            b'h' => 3_600,
            b'd' => 86_400,
            _ => return None,
        };
        let number: u32 = text[..text.len() - 1].parse().ok()?;
        Self::new(Duration::from_secs(u64::from(number) * unit))
    }
}

/// What a certificate is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    pub lifetime: Duration,
    /// `serverAuth`, `clientAuth`.
    pub server: bool,
    pub client: bool,
}

impl Profile {
    pub const ADMIN: Self = Self { lifetime: Duration::from_secs(365 * 86_400), server: false, client: true };

    /// Nothing renews what lies in a Secret of a Cilium cluster: as long as Cilium's own.
    pub const CILIUM: Self = Self::ADMIN;

    pub const fn server(lifetime: Lifetime) -> Self {
        Self { lifetime: lifetime.0, server: true, client: false }
    }

    pub const fn client(lifetime: Lifetime) -> Self {
        Self { lifetime: lifetime.0, server: false, client: true }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("the CA certificate: {0}")]
    Cert(#[from] CertError),
    #[error("the CA key is no ECDSA P-256 key in PKCS#8 PEM: {0}")]
    Key(#[source] rcgen::Error),
    #[error(
        "the CA certificate {name:?} belongs to another key; fix: put the ca.key beside the ca.crt made with it"
    )]
    OtherKey { name: String },
    #[error("the CA is named {name:?}, not ca-<cluster>; fix: make one with `hawser ca init`")]
    Name { name: String },
    #[error(
        "the CA of {cluster} expired at {not_after}, and it is {now}; fix: make a new one with `hawser ca init`"
    )]
    Expired { cluster: ClusterName, not_after: Timestamp, now: Timestamp },
    #[error("the signing request is {len} bytes long, more than {MAX_CSR}")]
    LargeRequest { len: usize },
    #[error("the signing request is not PKCS#10 signed by its own key: {0}")]
    Request(#[source] rcgen::Error),
    #[error("the signing request holds a key that is not ECDSA P-256")]
    RequestKey,
    #[error("{host:?} is neither a host name nor an address, so it cannot stand in a server certificate")]
    Host { host: String },
    #[error("no randomness from the operating system")]
    Random,
    #[error("signing failed: {0}")]
    Sign(#[source] rcgen::Error),
}

/// A signed certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    pub der: CertificateDer<'static>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

impl Issued {
    pub fn pem(&self) -> String {
        pem("CERTIFICATE", &self.der)
    }

    /// At two thirds of its life or a little before; `draw` is random.
    pub fn renew_at(&self, draw: u16) -> Timestamp {
        renew_at(self.not_before, self.not_after, draw)
    }
}

/// A certificate with the fresh key made for it.
pub struct IssuedWithKey {
    pub cert: Issued,
    /// PKCS#8, PEM.
    pub key_pem: String,
    /// PKCS#8, DER.
    pub key_der: Vec<u8>,
}

impl fmt::Debug for IssuedWithKey {
    /// Never the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedWithKey").field("cert", &self.cert).finish_non_exhaustive()
    }
}

pub struct Ca {
    cluster: ClusterName,
    lifetime: Lifetime,
    cert: CaCert,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Ca {
    /// Never the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca").field("cluster", &self.cluster).field("cert", &self.cert).finish_non_exhaustive()
    }
}

impl Ca {
    /// A new CA for one cluster: ECDSA P-256, ten years, signs leaves only.
    pub fn create(cluster: &ClusterName, now: Timestamp) -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Sign)?;
        let until = now.plus(CA_LIFETIME);
        let mut params = params(&CommonName::Ca(cluster.clone()), now.minus(BACKDATED), until)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params.self_signed(&key).map_err(CaError::Sign)?;
        Ok(Self {
            cluster: cluster.clone(),
            lifetime: Lifetime::DEFAULT,
            cert: CaCert::from_der(cert.der().clone())?,
            issuer: Issuer::new(params, key),
        })
    }

    /// The CA as it lies on disk.
    pub fn from_pem(cert: &str, key: &str) -> Result<Self, CaError> {
        let cert = CaCert::from_pem(cert)?;
        let key =
            KeyPair::from_pkcs8_pem_and_sign_algo(key, &PKCS_ECDSA_P256_SHA256).map_err(CaError::Key)?;
        if key.der_bytes() != cert.public_key() {
            return Err(CaError::OtherKey { name: cert.name().to_owned() });
        }
        let name = cert.name().strip_prefix("CN=ca-").and_then(|name| ClusterName::parse(name).ok());
        let cluster = name.ok_or_else(|| CaError::Name { name: cert.name().to_owned() })?;
        let issuer = Issuer::from_ca_cert_der(cert.der(), key).map_err(CaError::Sign)?;
        Ok(Self { cluster, lifetime: Lifetime::DEFAULT, cert, issuer })
    }

    /// Of the certificates that renew themselves.
    pub fn set_lifetime(&mut self, lifetime: Lifetime) {
        self.lifetime = lifetime;
    }

    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    pub fn cert(&self) -> &CaCert {
        &self.cert
    }

    /// PKCS#8, PEM. For `ca.key`, mode 0600, and nowhere else.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// For a node that asked. Of the request only the key counts: the subject and every extension are ours to say.
    pub fn issue_agent(&self, csr: &[u8], node: &NodeName, now: Timestamp) -> Result<Issued, CaError> {
        if csr.len() > MAX_CSR {
            return Err(CaError::LargeRequest { len: csr.len() });
        }
        let csr = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
            .map_err(CaError::Request)?;
        if *csr.public_key.algorithm() != PKCS_ECDSA_P256_SHA256 {
            return Err(CaError::RequestKey);
        }
        let name = CommonName::Agent { cluster: self.cluster.clone(), node: node.clone() };
        self.sign(&name, Profile::client(self.lifetime), Vec::new(), &csr.public_key, now)
    }

    /// For our own listener: the names it is reached by in the mesh, `localhost`, and the advertised hosts.
    pub fn issue_server(&self, hosts: &[&str], now: Timestamp) -> Result<IssuedWithKey, CaError> {
        let mut names =
            vec![dns(&server_name(&self.cluster))?, dns(&cilium_name(&self.cluster))?, dns("localhost")?];
        for host in hosts {
            let name = match host.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => dns(host)?,
            };
            if !names.contains(&name) {
                names.push(name);
            }
        }
        self.with_key(&CommonName::Server(self.cluster.clone()), Profile::server(self.lifetime), names, now)
    }

    /// For ourselves as a client of other clusters.
    pub fn issue_remote(&self, now: Timestamp) -> Result<IssuedWithKey, CaError> {
        self.with_key(
            &CommonName::Remote(self.cluster.clone()),
            Profile::client(self.lifetime),
            Vec::new(),
            now,
        )
    }

    /// For a cluster on Cilium that reads this one.
    pub fn issue_cilium_remote(&self, peer: &ClusterName, now: Timestamp) -> Result<IssuedWithKey, CaError> {
        self.with_key(&CommonName::Remote(peer.clone()), Profile::CILIUM, Vec::new(), now)
    }

    /// For Cilium's agents in this very cluster, which read what it mirrors.
    pub fn issue_cilium_local(&self, now: Timestamp) -> Result<IssuedWithKey, CaError> {
        self.with_key(&CommonName::Local(self.cluster.clone()), Profile::CILIUM, Vec::new(), now)
    }

    pub fn issue_admin(&self, user: &UserName, now: Timestamp) -> Result<IssuedWithKey, CaError> {
        self.with_key(&CommonName::Admin(user.clone()), Profile::ADMIN, Vec::new(), now)
    }

    /// A new certificate for the key that an admin has: one file changes, and it fits whatever becomes of the writing.
    pub fn renew_admin(&self, user: &UserName, key_pem: &str, now: Timestamp) -> Result<Issued, CaError> {
        let key =
            KeyPair::from_pkcs8_pem_and_sign_algo(key_pem, &PKCS_ECDSA_P256_SHA256).map_err(CaError::Key)?;
        self.sign(&CommonName::Admin(user.clone()), Profile::ADMIN, Vec::new(), &key, now)
    }

    fn with_key(
        &self,
        name: &CommonName,
        profile: Profile,
        sans: Vec<SanType>,
        now: Timestamp,
    ) -> Result<IssuedWithKey, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Sign)?;
        let cert = self.sign(name, profile, sans, &key, now)?;
        Ok(IssuedWithKey { cert, key_pem: key.serialize_pem(), key_der: key.serialize_der() })
    }

    fn sign(
        &self,
        name: &CommonName,
        profile: Profile,
        sans: Vec<SanType>,
        key: &impl PublicKeyData,
        now: Timestamp,
    ) -> Result<Issued, CaError> {
        if now >= self.cert.not_after() {
            let not_after = self.cert.not_after();
            return Err(CaError::Expired { cluster: self.cluster.clone(), not_after, now });
        }
        // Of a short life only a little lies in the past: renewal counts from there.
        let backdated = BACKDATED.min(profile.lifetime / 10);
        let not_before = now.minus(backdated).max(self.cert.not_before());
        // A leaf that outlives its CA would fail in a way that names the wrong one.
        let not_after = now.plus(profile.lifetime).min(self.cert.not_after());
        let mut params = params(name, not_before, not_after)?;
        params.subject_alt_names = sans;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let usages = [
            profile.server.then_some(ExtendedKeyUsagePurpose::ServerAuth),
            profile.client.then_some(ExtendedKeyUsagePurpose::ClientAuth),
        ];
        params.extended_key_usages = usages.into_iter().flatten().collect();
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(key, &self.issuer).map_err(CaError::Sign)?;
        Ok(Issued { der: cert.into(), not_before, not_after })
    }

    /// ECDSA P-256 with SHA-256 over the message, ASN.1.
    pub(crate) fn sign_bytes(&self, message: &[u8]) -> Result<Vec<u8>, CaError> {
        let key = self.issuer.key().serialize_der();
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key).map_err(|_| CaError::Random)?;
        let signature = key.sign(&SystemRandom::new(), message).map_err(|_| CaError::Random)?;
        Ok(signature.as_ref().to_vec())
    }
}

/// What TLS clients of a cluster's API server verify it as, whatever address they dialled.
pub(crate) fn server_name(cluster: &ClusterName) -> String {
    format!("{cluster}.mesh.hawser.io")
}

/// What Cilium's clients dial.
pub(crate) fn cilium_name(cluster: &ClusterName) -> String {
    format!("{cluster}.mesh.cilium.io")
}

fn dns(host: &str) -> Result<SanType, CaError> {
    let bad = || CaError::Host { host: host.chars().take(120).collect() };
    let ok = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    if host.is_empty() || host.len() > 253 || !host.bytes().all(ok) {
        return Err(bad());
    }
    Ok(SanType::DnsName(host.try_into().map_err(|_| bad())?))
}

fn params(name: &CommonName, from: Timestamp, until: Timestamp) -> Result<CertificateParams, CaError> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| CaError::Random)?;
    // Positive and not zero (RFC 5280 §4.1.2.2).
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name.to_string());
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |time: Timestamp| epoch + Duration::from_secs(u64::try_from(time.unix()).unwrap_or(0));
    params.not_before = at(from);
    params.not_after = at(until);
    Ok(params)
}

#[cfg(test)]
#[path = "ca_tests.rs"]
mod tests;
