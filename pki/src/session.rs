//! A living connection gets a new certificate: its holder signs what binds the connection's two ends (RFC 9266's
//! `tls-exporter`) with the new key, so that renewal and rotation cut no watch.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, UnparsedPublicKey,
};

use crate::cert::parse;

/// What both ends of a TLS connection derive, and nobody else can (RFC 8446, section 7.5).
pub type Binding = [u8; 32];

/// The exporter's label (RFC 5705 leaves those with this prefix to whoever wants one).
pub const LABEL: &[u8] = b"EXPERIMENTAL hawser session v1";
const CONTEXT: &[u8] = b"hawser session v1: this connection is now mine with this certificate\0";

fn message(binding: &Binding, leaf: &[u8]) -> Vec<u8> {
    [CONTEXT, binding.as_slice(), leaf].concat()
}

/// By the holder of a certificate's key (PKCS#8). None when the key is none of P-256.
pub fn prove(key: &[u8], leaf: &[u8], binding: &Binding) -> Option<Vec<u8>> {
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key).ok()?;
    let signature = key.sign(&SystemRandom::new(), &message(binding, leaf)).ok()?;
    Some(signature.as_ref().to_vec())
}

/// Whether the holder of that certificate's key says so of this connection. What the certificate means is another question.
pub fn proven(leaf: &[u8], binding: &Binding, proof: &[u8]) -> bool {
    let Ok(cert) = parse(leaf) else { return false };
    let key = cert.public_key().subject_public_key.data.to_vec();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key).verify(&message(binding, leaf), proof).is_ok()
}

#[cfg(test)]
mod tests {
    use hawser_model::{ClusterName, Timestamp};

    use super::*;
    use crate::ca::Ca;

    #[test]
    fn only_the_holder_of_the_key_and_only_this_connection_count() {
        let now = Timestamp::parse("2026-11-21T04:00:00Z").unwrap();
        let ca = Ca::create(&ClusterName::parse("us-east").unwrap(), now).unwrap();
        let issue = || ca.issue_remote(now).unwrap();
        let (mine, other) = (issue(), issue());
        let proof = prove(&mine.key_der, &mine.cert.der, &[1; 32]).unwrap();
        assert!(proven(&mine.cert.der, &[1; 32], &proof));
        assert!(!proven(&mine.cert.der, &[2; 32], &proof), "another connection");
        assert!(!proven(&other.cert.der, &[1; 32], &proof), "another's certificate");
        assert!(!proven(b"junk", &[1; 32], &proof) && !proven(&mine.cert.der, &[1; 32], b"junk"));
        assert_eq!(prove(b"no key", &mine.cert.der, &[1; 32]), None);
    }
}
