//! Role: what a client may be, from the CA that signed its certificate and the name in it (contracts.md, Roles).
//!
//! The TLS layer accepts the union of all CAs; which of them signed is decided here, by verifying the signature, so that a
//! peer's CA can make nobody but `remote-<that peer>`.

use std::collections::BTreeMap;
use std::fmt;

use hawser_model::{ClusterName, NodeName, Timestamp, TrustNotice};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::X509Certificate;

use crate::ca_set::CaSet;
use crate::cert::{CaCert, CertError, common_name, parse, text_of};
use crate::name::{CommonName, UserName};
use crate::notice::{NoticeError, heed};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Everything in the own keyspace; signed by the own CA.
    Admin(UserName),
    /// One node of the own cluster; signed by the own CA.
    Agent { node: NodeName },
    /// Another cluster, proven by the CA it was admitted with; one on Cilium also by a certificate of the own CA made for it.
    Remote(ClusterName),
    /// Cilium's agents in the own cluster: they read what it mirrors, in the cached layout. Signed by the own CA.
    Local,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin(user) => write!(f, "admin {user}"),
            Self::Agent { node } => write!(f, "agent of node {node}"),
            Self::Remote(cluster) => write!(f, "remote cluster {cluster}"),
            Self::Local => f.write_str("Cilium in this cluster"),
        }
    }
}

/// The CAs a cluster believes, and for whom.
#[derive(Clone, Debug)]
pub struct TrustStore {
    cluster: ClusterName,
    own: CaSet,
    peers: BTreeMap<ClusterName, Believed>,
}

#[derive(Clone, Debug)]
struct Believed {
    cas: CaSet,
    /// Its CA may be shared with other clusters on Cilium, and may name it `remote`.
    cilium: bool,
}

impl TrustStore {
    pub fn new(cluster: ClusterName, own: impl Into<CaSet>) -> Self {
        Self { cluster, own: own.into(), peers: BTreeMap::new() }
    }

    /// In place of those before.
    pub fn set_own(&mut self, own: CaSet) {
        self.own = own;
    }

    /// Believes these CAs for exactly one name. They replace the peer's former ones.
    pub fn insert_peer(&mut self, peer: ClusterName, cas: impl Into<CaSet>) {
        self.peers.insert(peer, Believed { cas: cas.into(), cilium: false });
    }

    /// The same of a cluster on Cilium, for `remote` too, as Cilium names all of them where it does not tell them apart.
    pub fn insert_cilium(&mut self, peer: ClusterName, cas: impl Into<CaSet>) {
        self.peers.insert(peer, Believed { cas: cas.into(), cilium: true });
    }

    pub fn remove_peer(&mut self, peer: &ClusterName) {
        self.peers.remove(peer);
    }

    pub fn own(&self) -> &CaSet {
        &self.own
    }

    pub fn peer(&self, peer: &ClusterName) -> Option<&CaSet> {
        self.peers.get(peer).map(|believed| &believed.cas)
    }

    /// What a peer's notice changes; none when all of it is believed already. A CA that speaks for somebody else is refused: by it,
    /// neither could be told from the other. Cost: two signature verifications, when the notice says something new.
    pub fn heed(&self, peer: &ClusterName, notice: &TrustNotice) -> Result<Option<CaSet>, NoticeError> {
        let Some(Believed { cas: believed, cilium: false }) = self.peers.get(peer) else { return Ok(None) };
        if believed.pem() == notice.cas {
            return Ok(None);
        }
        let cas = heed(peer, notice, believed)?;
        let others = self.peers.iter().filter(|(name, _)| *name != peer);
        let others = others.map(|(name, believed)| (name, &believed.cas));
        for (other, theirs) in std::iter::once((&self.cluster, &self.own)).chain(others) {
            if cas.iter().any(|ca| theirs.holds(ca)) {
                return Err(NoticeError::Shared { cluster: peer.clone(), other: other.clone() });
            }
        }
        Ok((cas != *believed).then_some(cas))
    }

    /// The union, for the TLS layer.
    pub fn roots(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.own.iter().chain(self.peers.values().flat_map(|peer| peer.cas.iter())).map(CaCert::der)
    }

    /// Decides who presented this chain. Only the first certificate counts: every one of ours is signed by its CA
    /// itself. Cost: one signature verification per connection, not per request.
    pub fn role(&self, chain: &[CertificateDer<'_>], now: Timestamp) -> Result<Role, RoleError> {
        let leaf = chain.first().ok_or(RoleError::NoCertificate)?;
        let cert = parse(leaf)?;
        let name =
            common_name(&cert).map_or_else(|| text_of(cert.subject()), |n| n.chars().take(300).collect());
        let signer = self.signer(&cert).ok_or_else(|| RoleError::WrongCa {
            name: name.clone(),
            issuer: text_of(cert.issuer()),
            trusted: self.trusted(),
        })?;
        let (ca, whose) = match signer {
            Signer::Own(ca) => (ca, &self.cluster),
            Signer::Peer(peer, ca) => (ca, peer),
        };
        if now > ca.not_after() {
            return Err(RoleError::CaExpired { cluster: whose.clone(), not_after: ca.not_after(), now });
        }
        check_validity(&cert, &name, whose, now)?;
        check_usage(&cert, &name)?;
        match signer {
            Signer::Own(_) => self.own_role(name),
            Signer::Peer(peer, ca) => self.peer_role(name, peer, ca),
        }
    }

    fn peer_role(&self, name: String, peer: &ClusterName, ca: &CaCert) -> Result<Role, RoleError> {
        // One CA for all of its clusters is Cilium's default, so the first that has it need not be the one that came.
        let same = |believed: &Believed| believed.cilium && believed.cas.holds(ca);
        let sharing = self.peers.iter().filter(|(_, believed)| same(believed)).map(|(peer, _)| peer);
        let mut candidates: Vec<&ClusterName> =
            std::iter::once(peer).chain(sharing.filter(|other| *other != peer)).collect();
        if let Some(named) =
            candidates.iter().find(|other| name == CommonName::Remote((**other).clone()).to_string())
        {
            return Ok(Role::Remote((*named).clone()));
        }
        let legacy = name == CILIUM_REMOTE && self.peers.get(peer).is_some_and(|believed| believed.cilium);
        match (legacy, candidates.len()) {
            (true, 1) => Ok(Role::Remote(peer.clone())),
            (true, _) => {
                candidates.sort_unstable();
                let peers = candidates.iter().map(|peer| peer.as_str()).collect::<Vec<_>>().join(", ");
                Err(RoleError::Ambiguous { peers })
            }
            (false, _) => Err(RoleError::ForeignName { name, peer: peer.clone() }),
        }
    }

    fn own_role(&self, name: String) -> Result<Role, RoleError> {
        match CommonName::parse(&name, &self.cluster) {
            Some(CommonName::Admin(user)) => Ok(Role::Admin(user)),
            Some(CommonName::Agent { node, .. }) => Ok(Role::Agent { node }),
            // Cilium's clusters have no CA of ours; what stands in for it was made for one of them.
            Some(CommonName::Remote(peer)) if self.peers.get(&peer).is_some_and(|peer| peer.cilium) => {
                Ok(Role::Remote(peer))
            }
            Some(CommonName::Local(cluster)) if cluster == self.cluster => Ok(Role::Local),
            // Ours is for use at peers. Even a peer's name in a certificate of our CA proves nothing about the peer.
            Some(CommonName::Remote(_)) => Err(RoleError::RemoteAtHome { name, own: self.cluster.clone() }),
            _ => Err(RoleError::UnknownName { name, own: self.cluster.clone() }),
        }
    }

    fn signer(&self, cert: &X509Certificate<'_>) -> Option<Signer<'_>> {
        if let Some(ca) = self.own.signer(cert) {
            return Some(Signer::Own(ca));
        }
        self.peers.iter().find_map(|(peer, believed)| Some(Signer::Peer(peer, believed.cas.signer(cert)?)))
    }

    fn trusted(&self) -> String {
        let own = self.own.iter().map(|ca| format!("{} (own)", ca.name()));
        let peers = self.peers.values().flat_map(|peer| peer.cas.iter()).map(|ca| ca.name().to_owned());
        own.chain(peers).take(8).collect::<Vec<_>>().join(", ")
    }
}

/// The common name of every peer's certificate in Cilium's modes `legacy` and `migration`.
const CILIUM_REMOTE: &str = "remote";

#[derive(Clone, Copy)]
enum Signer<'a> {
    Own(&'a CaCert),
    Peer(&'a ClusterName, &'a CaCert),
}

fn check_validity(
    cert: &X509Certificate<'_>,
    name: &str,
    whose: &ClusterName,
    now: Timestamp,
) -> Result<(), RoleError> {
    let not_before = Timestamp::from_unix(cert.validity().not_before.timestamp());
    let not_after = Timestamp::from_unix(cert.validity().not_after.timestamp());
    let (name, cluster) = (name.to_owned(), whose.clone());
    if now < not_before {
        return Err(RoleError::NotYetValid { name, cluster, not_before, now });
    }
    if now > not_after {
        return Err(RoleError::Expired { name, cluster, not_after, now });
    }
    Ok(())
}

fn check_usage(cert: &X509Certificate<'_>, name: &str) -> Result<(), RoleError> {
    if cert.is_ca() {
        return Err(RoleError::IsCa { name: name.to_owned() });
    }
    match cert.extended_key_usage() {
        Ok(Some(usage)) if usage.value.client_auth => Ok(()),
        _ => Err(RoleError::NotForClients { name: name.to_owned() }),
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoleError {
    #[error(
        "the client presented no certificate, so it may only join; fix: dial with the certificate of its role"
    )]
    NoCertificate,
    #[error(transparent)]
    Cert(#[from] CertError),
    #[error(
        "certificate {name:?} is signed by {issuer:?}, and this cluster trusts {trusted}; \
         fix: `hawser connect` the cluster it comes from, or use a certificate of a trusted CA"
    )]
    WrongCa { name: String, issuer: String, trusted: String },
    #[error(
        "certificate {name:?} of cluster {cluster} expired at {not_after}, and here it is {now}; \
         fix: renew it (an agent that was down for long needs a new join token), or set the clocks"
    )]
    Expired { name: String, cluster: ClusterName, not_after: Timestamp, now: Timestamp },
    #[error(
        "certificate {name:?} of cluster {cluster} is valid from {not_before} on, and here it is {now}; \
         fix: set the clocks of both sides"
    )]
    NotYetValid { name: String, cluster: ClusterName, not_before: Timestamp, now: Timestamp },
    #[error(
        "the CA of cluster {cluster} expired at {not_after}, and here it is {now}; \
         fix: make a new CA there and connect it again with a new bundle"
    )]
    CaExpired { cluster: ClusterName, not_after: Timestamp, now: Timestamp },
    #[error(
        "certificate {name:?} is a CA's, and a CA is no client; fix: dial with the certificate of a role"
    )]
    IsCa { name: String },
    #[error(
        "certificate {name:?} is not for clients (no clientAuth in its extended key usage); \
         fix: dial with the certificate of a role, not with a server's"
    )]
    NotForClients { name: String },
    #[error(
        "certificate {name:?} is signed by cluster {own}'s own CA, but its name is no role: \
         admin-<user> or agent-{own}-<node>; fix: issue it with `hawser ca`"
    )]
    UnknownName { name: String, own: ClusterName },
    #[error(
        "certificate {name:?} is signed by cluster {own}'s own CA and is for use at peers; at home it has no role; \
         fix: dial {own} with an admin or agent certificate"
    )]
    RemoteAtHome { name: String, own: ClusterName },
    #[error(
        "certificate {name:?} is signed by the CA of cluster {peer}, which is trusted for the name remote-{peer} alone; \
         fix: dial with {peer}'s certificate for peers"
    )]
    ForeignName { name: String, peer: ClusterName },
    #[error(
        "certificate \"remote\" does not say which of {peers} it is: they share a CA; \
         fix: set clustermesh.apiserver.tls.authMode=cluster there, or mount what `hawser cilium config --for CLUSTER` makes"
    )]
    Ambiguous { peers: String },
}

impl RoleError {
    /// A short steady name for metrics.
    pub fn metric(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Cert(_) => "malformed",
            Self::WrongCa { .. } => "wrong_ca",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::CaExpired { .. } => "ca_expired",
            Self::IsCa { .. } => "is_ca",
            Self::NotForClients { .. } => "not_for_clients",
            Self::UnknownName { .. } => "unknown_name",
            Self::RemoteAtHome { .. } => "remote_at_home",
            Self::ForeignName { .. } => "foreign_name",
            Self::Ambiguous { .. } => "ambiguous_name",
        }
    }
}

#[cfg(test)]
#[path = "role_tests.rs"]
mod tests;
