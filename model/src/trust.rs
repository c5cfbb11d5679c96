//! What clusters tell each other about the CAs they are believed by; `pki` decides whether it is heeded.

use std::collections::BTreeSet;

use crate::cluster::ClusterName;
use crate::timestamp::Timestamp;

/// `hawser/state/trust/v1/<cluster>`: the CAs that a cluster wants to be believed by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustNotice {
    /// PEM, one certificate after the other.
    pub cas: String,
    pub issued: Timestamp,
    /// By one of the CAs that are believed already.
    pub signature: Vec<u8>,
}

/// `hawser/state/trusted/v1/<cluster>/<peer>`: the CAs that a cluster believes a peer by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustReceipt {
    pub peer: ClusterName,
    /// SHA-256 fingerprints.
    pub cas: BTreeSet<String>,
}
