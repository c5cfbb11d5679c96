//! Fuzz targets as plain functions: any bytes, no panic, and what is read is written and read the same.

use hawser_model::{ClusterName, NodeName, Timestamp};
use rustls_pki_types::CertificateDer;

use crate::{Bundle, Ca, CiliumConfig, JoinFile, StoredToken, Token, TrustStore};

/// A bundle from anyone.
pub fn fuzz_bundle(text: &[u8]) {
    let (Ok(text), Ok(reader)) = (str::from_utf8(text), ClusterName::parse("eu-west")) else { return };
    let now = Timestamp::from_unix(1_800_000_000);
    if let Ok(bundle) = Bundle::read(text, &reader, now) {
        let again = Bundle::read(&bundle.to_yaml(), &reader, now);
        assert_eq!(again.ok(), Some(bundle), "what we write is what we read");
    }
}

/// A join file, the token in it, and the file that describes a Cilium cluster, from anyone.
pub fn fuzz_join(text: &[u8]) {
    let Ok(text) = str::from_utf8(text) else { return };
    if let Ok(token) = Token::parse(text) {
        assert_eq!(token.reveal(), text.trim_end(), "a token has one spelling");
    }
    if let Ok(stored) = StoredToken::from_json(text.as_bytes()) {
        let again = StoredToken::from_json(&stored.to_json());
        assert_eq!(again, Ok(stored), "what we store is what we read");
    }
    if let Ok(config) = CiliumConfig::read(text) {
        assert_eq!(CiliumConfig::read(&config.to_yaml()), Ok(config), "what we write is what we read");
    }
    if let Ok(join) = JoinFile::from_yaml(text) {
        assert_eq!(JoinFile::from_yaml(&join.to_yaml()), Ok(join), "what we write is what we read");
    }
}

/// A client's certificate or signing request, from anyone.
pub fn fuzz_certificate(trust: &TrustStore, ca: &Ca, node: &NodeName, der: &[u8]) {
    let now = Timestamp::from_unix(1_800_000_000);
    // The result is the caller's; here it only has to come back.
    let _ = trust.role(&[CertificateDer::from(der)], now);
    let _ = ca.issue_agent(der, node, now);
}
