//! The trust notice: which CAs a cluster wants to be believed by, vouched for by a CA that its readers believe already.

use hawser_model::{ClusterName, Timestamp, TrustNotice};
use serde::Serialize;

use crate::ca::CaError;
use crate::ca_set::CaSet;
use crate::cert::CertError;
use crate::rotation::Authority;

#[derive(Serialize)]
struct Signed<'a> {
    kind: &'static str,
    cluster: &'a str,
    cas: &'a str,
    issued: String,
}

fn canonical(cluster: &ClusterName, cas: &str, issued: Timestamp) -> Vec<u8> {
    let kind = "hawser.io/v1 TrustNotice";
    let signed = Signed { kind, cluster: cluster.as_str(), cas, issued: issued.to_string() };
    serde_json::to_vec(&signed).expect("a struct of strings always prints")
}

/// Signed by the oldest CA that is still trusted: who has heard nothing yet believes that one.
pub fn announce(authority: &Authority, now: Timestamp) -> Result<TrustNotice, CaError> {
    let voucher = authority.voucher();
    let cas = authority.trusted().pem();
    let signature = voucher.sign_bytes(&canonical(voucher.cluster(), &cas, now))?;
    Ok(TrustNotice { cas, issued: now, signature })
}

/// The CAs of a notice, once its signature by one that is believed holds. Cost: two signature verifications.
pub fn heed(cluster: &ClusterName, notice: &TrustNotice, believed: &CaSet) -> Result<CaSet, NoticeError> {
    let message = canonical(cluster, &notice.cas, notice.issued);
    if !believed.iter().any(|ca| ca.verifies(&message, &notice.signature)) {
        return Err(NoticeError::Signature { cluster: cluster.clone() });
    }
    CaSet::from_pem(&notice.cas).map_err(|source| NoticeError::Ca { cluster: cluster.clone(), source })
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoticeError {
    #[error(
        "cluster {cluster} announces CAs that no CA believed of it vouches for; fix: if its CA was really made anew, \
         `hawser disconnect {cluster}` and connect it with a new bundle"
    )]
    Signature { cluster: ClusterName },
    #[error("cluster {cluster} announces a CA that cannot be used: {source}")]
    Ca {
        cluster: ClusterName,
        #[source]
        source: CertError,
    },
    #[error(
        "cluster {cluster} announces a CA that is cluster {other}'s, so neither could be told from the other"
    )]
    Shared { cluster: ClusterName, other: ClusterName },
}

#[cfg(test)]
#[path = "notice_tests.rs"]
mod tests;
