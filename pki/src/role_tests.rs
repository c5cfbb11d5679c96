//! One negative test per rule of who may be what.

use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};

use super::*;
use crate::ca::Ca;

fn now() -> Timestamp {
    Timestamp::parse("2026-11-20T21:44:55Z").unwrap()
}

fn name(text: &str) -> ClusterName {
    ClusterName::parse(text).unwrap()
}

struct World {
    east: Ca,
    west: Ca,
    stranger: Ca,
    trust: TrustStore,
}

/// us-east, which has admitted eu-west, and somebody whose CA also calls itself us-east's.
fn world() -> World {
    let (east, west) =
        (Ca::create(&name("us-east"), now()).unwrap(), Ca::create(&name("eu-west"), now()).unwrap());
    let mut trust = TrustStore::new(name("us-east"), east.cert().clone());
    trust.insert_peer(name("eu-west"), west.cert().clone());
    World { east, west, stranger: Ca::create(&name("us-east"), now()).unwrap(), trust }
}

/// A certificate with any name, as a CA that does not follow our rules would sign it.
fn forged(ca: &Ca, name: &str, usage: Option<ExtendedKeyUsagePurpose>) -> CertificateDer<'static> {
    let key = KeyPair::generate().unwrap();
    let issuer =
        Issuer::from_ca_cert_der(ca.cert().der(), KeyPair::from_pem(&ca.key_pem()).unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages.extend(usage);
    params.signed_by(&key, &issuer).unwrap().der().clone()
}

fn client(ca: &Ca, name: &str) -> CertificateDer<'static> {
    forged(ca, name, Some(ExtendedKeyUsagePurpose::ClientAuth))
}

impl World {
    fn refused(&self, cert: CertificateDer<'static>, now: Timestamp) -> (&'static str, String) {
        let error = self.trust.role(&[cert], now).unwrap_err();
        (error.metric(), error.to_string())
    }
}

#[test]
fn the_three_roles_are_given() {
    let w = world();
    let admin = w.east.issue_admin(&UserName::parse("jo").unwrap(), now()).unwrap().cert.der;
    assert_eq!(w.trust.role(&[admin], now()), Ok(Role::Admin(UserName::parse("jo").unwrap())));
    let node = NodeName::parse("node-1.a-b").unwrap();
    let agent = client(&w.east, "agent-us-east-node-1.a-b");
    assert_eq!(w.trust.role(&[agent], now()), Ok(Role::Agent { node }));
    let remote = w.west.issue_remote(now()).unwrap().cert.der;
    // The rest of a chain is not looked at.
    let chain = [remote, w.west.cert().der().clone()];
    assert_eq!(w.trust.role(&chain, now()), Ok(Role::Remote(name("eu-west"))));
    assert_eq!(w.trust.roots().count(), 2);
}

#[test]
fn a_peers_ca_makes_nobody_but_that_peer() {
    let w = world();
    for forged in
        ["admin-root", "agent-us-east-node-1", "remote-us-east", "remote-ap-south", "remote-eu-west2", ""]
    {
        let (metric, text) = w.refused(client(&w.west, forged), now());
        assert_eq!(metric, "foreign_name", "{forged}");
        assert!(text.contains("remote-eu-west") && text.contains("fix:"), "{text}");
    }
}

#[test]
fn our_own_certificate_for_peers_has_no_role_at_home() {
    let w = world();
    let ours = w.east.issue_remote(now()).unwrap().cert.der;
    let (metric, text) = w.refused(ours, now());
    assert_eq!(metric, "remote_at_home");
    assert!(text.contains("remote-us-east") && text.contains("us-east's own CA"), "{text}");
    // Our CA cannot make a peer either.
    assert_eq!(w.refused(client(&w.east, "remote-eu-west"), now()).0, "remote_at_home");
}

#[test]
fn an_unknown_name_of_our_own_ca_has_no_role() {
    let w = world();
    for odd in
        ["root", "admin-", "agent-eu-west-node-1", "agent-us-east", "ca-us-east", "server-us-east", "Admin-x"]
    {
        let (metric, text) = w.refused(client(&w.east, odd), now());
        assert_eq!(metric, "unknown_name", "{odd}");
        assert!(text.contains("agent-us-east-<node>"), "{text}");
    }
}

#[test]
fn a_ca_that_was_not_admitted_signs_nothing_even_under_our_name() {
    let w = world();
    let same_name = client(&w.stranger, "admin-root");
    let (metric, text) = w.refused(same_name, now());
    assert_eq!(metric, "wrong_ca");
    assert!(text.contains("CN=ca-us-east (own), CN=ca-eu-west"), "{text}");
    let mut trust = w.trust.clone();
    trust.remove_peer(&name("eu-west"));
    let remote = w.west.issue_remote(now()).unwrap().cert.der;
    assert_eq!(trust.role(&[remote], now()).unwrap_err().metric(), "wrong_ca");
}

#[test]
fn a_certificate_counts_only_within_its_time() {
    let w = world();
    let issued = w.west.issue_remote(now()).unwrap().cert;
    let late = issued.not_after.plus(Duration::from_secs(1));
    let (metric, text) = w.refused(issued.der.clone(), late);
    assert_eq!(metric, "expired");
    let both = [issued.not_after.to_string(), late.to_string(), "eu-west".into(), "remote-eu-west".into()];
    assert!(both.iter().all(|part| text.contains(part)), "{text}");
    let early = issued.not_before.minus(Duration::from_secs(1));
    assert_eq!(w.refused(issued.der.clone(), early).0, "not_yet_valid");
    assert!(w.trust.role(std::slice::from_ref(&issued.der), issued.not_after).is_ok());
    let after_ca = w.west.cert().not_after().plus(Duration::from_secs(1));
    assert_eq!(w.refused(issued.der, after_ca).0, "ca_expired");
}

#[test]
fn a_server_or_a_ca_is_no_client() {
    let w = world();
    let server = w.east.issue_server(&[], now()).unwrap().cert.der;
    assert_eq!(w.refused(server, now()).0, "not_for_clients");
    assert_eq!(w.refused(w.east.cert().der().clone(), now()).0, "is_ca");
    let plain = forged(&w.east, "admin-root", None);
    assert_eq!(w.refused(plain, now()).0, "not_for_clients");
}

#[test]
fn a_subject_with_two_common_names_is_nobody() {
    let w = world();
    let key = KeyPair::generate().unwrap();
    let issuer = KeyPair::from_pem(&w.west.key_pem()).unwrap();
    let issuer = Issuer::from_ca_cert_der(w.west.cert().der(), issuer).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "remote-eu-west");
    params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 3]), "admin-root");
    params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    let cert = params.signed_by(&key, &issuer).unwrap().der().clone();
    assert_eq!(w.refused(cert, now()).0, "foreign_name");
}

#[test]
fn what_is_no_certificate_is_refused() {
    let w = world();
    assert_eq!(w.trust.role(&[], now()), Err(RoleError::NoCertificate));
    assert_eq!(w.refused(CertificateDer::from(b"junk".to_vec()), now()).0, "malformed");
    assert_eq!(w.refused(CertificateDer::from(vec![0x30; 20_000]), now()).0, "malformed");
    let mut tampered = w.east.issue_admin(&UserName::parse("jo").unwrap(), now()).unwrap().cert.der.to_vec();
    let at = tampered.windows(8).position(|w| w == b"admin-jo").unwrap();
    tampered[at + 6] = b'b';
    assert_eq!(w.refused(CertificateDer::from(tampered), now()).0, "wrong_ca");
}

#[test]
fn a_cluster_on_cilium_is_named_as_cilium_names_it() {
    let w = world();
    let (cilium, mut trust) = (Ca::create(&name("cilium"), now()).unwrap(), w.trust.clone());
    trust.insert_cilium(name("c1"), cilium.cert().clone());
    let role = |trust: &TrustStore, cert| trust.role(&[cert], now());
    for cn in ["remote", "remote-c1"] {
        assert_eq!(role(&trust, client(&cilium, cn)), Ok(Role::Remote(name("c1"))), "{cn}");
    }
    for cn in ["remote-c2", "local-c1", "local-us-east", "admin-c1", "root", "remote-eu-west"] {
        assert_eq!(role(&trust, client(&cilium, cn)).unwrap_err().metric(), "foreign_name", "{cn}");
    }
    // A Hawser cluster's CA speaks for its one name alone.
    assert_eq!(role(&trust, client(&w.west, "remote")).unwrap_err().metric(), "foreign_name");
}

#[test]
fn clusters_on_cilium_may_share_a_ca_and_are_told_apart_by_name() {
    let w = world();
    let (cilium, mut trust) = (Ca::create(&name("cilium"), now()).unwrap(), w.trust.clone());
    for peer in ["c1", "c2"] {
        trust.insert_cilium(name(peer), cilium.cert().clone());
    }
    for peer in ["c1", "c2"] {
        let cert = client(&cilium, &format!("remote-{peer}"));
        assert_eq!(trust.role(&[cert], now()), Ok(Role::Remote(name(peer))));
    }
    let error = trust.role(&[client(&cilium, "remote")], now()).unwrap_err();
    assert_eq!(error.metric(), "ambiguous_name");
    assert!(error.to_string().contains("which of c1, c2"), "{error}");
}

#[test]
fn our_ca_makes_a_client_for_a_cluster_on_cilium_and_for_cilium_at_home() {
    let w = world();
    let mut trust = w.trust.clone();
    let made = w.east.issue_cilium_remote(&name("c1"), now()).unwrap().cert.der;
    assert_eq!(trust.role(std::slice::from_ref(&made), now()).unwrap_err().metric(), "remote_at_home");
    let cilium = Ca::create(&name("cilium"), now()).unwrap();
    trust.insert_cilium(name("c1"), cilium.cert().clone());
    assert_eq!(trust.role(std::slice::from_ref(&made), now()), Ok(Role::Remote(name("c1"))));
    trust.remove_peer(&name("c1"));
    assert_eq!(trust.role(&[made], now()).unwrap_err().metric(), "remote_at_home");
    let local = w.east.issue_cilium_local(now()).unwrap().cert.der;
    assert_eq!(trust.role(&[local], now()), Ok(Role::Local));
    assert_eq!(w.refused(client(&w.east, "local-eu-west"), now()).0, "unknown_name");
}
