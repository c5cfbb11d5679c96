//! What the CA signs, and what it refuses to.

use super::*;
use crate::cert::{Leaf, common_name, parse};

fn now() -> Timestamp {
    Timestamp::parse("2026-11-20T21:44:55Z").unwrap()
}

fn east() -> ClusterName {
    ClusterName::parse("us-east").unwrap()
}

fn ca() -> Ca {
    Ca::create(&east(), now()).unwrap()
}

fn node() -> NodeName {
    NodeName::parse("node-1").unwrap()
}

fn csr(subject: &str, key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    params.is_ca = IsCa::NoCa;
    params.serialize_request(key).unwrap().der().to_vec()
}

#[test]
fn a_ca_survives_the_disk() {
    let made = ca();
    let read = Ca::from_pem(&made.cert().pem(), &made.key_pem()).unwrap();
    assert_eq!((read.cluster(), read.cert()), (&east(), made.cert()));
    let admin = read.issue_admin(&UserName::parse("root").unwrap(), now()).unwrap();
    assert!(made.cert().signed(&parse(&admin.cert.der).unwrap()));
    let years = made.cert().not_after().since(now()).as_secs() / 86_400 / 365;
    assert_eq!(years, 10);
}

#[test]
fn a_ca_with_anothers_key_or_name_is_refused() {
    let (one, two) = (ca(), ca());
    let other = Ca::from_pem(&one.cert().pem(), &two.key_pem()).unwrap_err();
    assert!(matches!(&other, CaError::OtherKey { name } if name == "CN=ca-us-east"), "{other}");
    assert!(matches!(Ca::from_pem(&one.cert().pem(), "no key"), Err(CaError::Key(_))));
    assert!(matches!(Ca::from_pem("no cert", &one.key_pem()), Err(CaError::Cert(CertError::Pem))));
    let two_certs = one.cert().pem() + &two.cert().pem();
    assert!(matches!(Ca::from_pem(&two_certs, &one.key_pem()), Err(CaError::Cert(CertError::Pem))));
    let leaf = one.issue_remote(now()).unwrap();
    let not_ca = Ca::from_pem(&leaf.cert.pem(), &leaf.key_pem);
    assert!(matches!(not_ca, Err(CaError::Cert(CertError::NotCa { .. }))));

    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let cert = params.self_signed(&key).unwrap();
    let stranger = Ca::from_pem(&cert.pem(), &key.serialize_pem());
    assert!(matches!(stranger, Err(CaError::Name { .. })));
}

#[test]
fn an_agent_gets_its_own_name_whatever_its_request_says() {
    let ca = ca();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let issued = ca.issue_agent(&csr("admin-evil", &key), &node(), now()).unwrap();
    let cert = parse(&issued.der).unwrap();
    assert_eq!(common_name(&cert), Some("agent-us-east-node-1"));
    assert!(cert.subject_alternative_name().unwrap().is_none(), "its names are not taken over either");
    assert_eq!(&*cert.public_key().subject_public_key.data, key.der_bytes());
    assert!(!cert.is_ca());
    let usage = cert.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth);
}

#[test]
fn a_request_that_does_not_hold_is_refused() {
    let ca = ca();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut forged = csr("x", &key);
    let last = forged.len() - 3;
    forged[last] ^= 1;
    assert!(matches!(ca.issue_agent(&forged, &node(), now()), Err(CaError::Request(_))));
    assert!(matches!(ca.issue_agent(b"junk", &node(), now()), Err(CaError::Request(_))));
    assert!(matches!(ca.issue_agent(&[0; 9000], &node(), now()), Err(CaError::LargeRequest { len: 9000 })));
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    assert!(matches!(ca.issue_agent(&csr("x", &p384), &node(), now()), Err(CaError::RequestKey)));
}

#[test]
fn a_server_is_named_by_its_mesh_names_and_hosts() {
    let issued = ca().issue_server(&["172.16.1.11", "api.example", "localhost", "fd00::1"], now()).unwrap();
    let cert = parse(&issued.cert.der).unwrap();
    let names = &cert.subject_alternative_name().unwrap().unwrap().value.general_names;
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let has = |part: &str| names.iter().any(|name| name.contains(part));
    assert_eq!(names.len(), 6, "{names:?}");
    assert!(
        has("us-east.mesh.hawser.io") && has("us-east.mesh.cilium.io") && has("(localhost)"),
        "{names:?}"
    );
    assert!(has("api.example"), "{names:?}");
    assert!(matches!(ca().issue_server(&["a b"], now()), Err(CaError::Host { .. })));
}

#[test]
fn leaves_are_short_lived_renewed_in_time_and_never_outlive_their_ca() {
    let ca = ca();
    let issued = ca.issue_remote(now()).unwrap().cert;
    assert_eq!(issued.not_after, now().plus(Duration::from_secs(86_400)));
    let renew = issued.renew_at(0);
    assert!(renew > now().plus(Duration::from_secs(15 * 3_600)));
    assert!(renew <= now().plus(Duration::from_secs(16 * 3_600)));
    let leaf = Leaf::from_pem(&issued.pem()).unwrap();
    assert_eq!((leaf.name.as_str(), leaf.renew_at(0)), ("remote-us-east", renew));

    let mut brief = self::ca();
    brief.set_lifetime(Lifetime::new(Duration::from_secs(9)).unwrap());
    let issued = brief.issue_remote(now()).unwrap().cert;
    assert_eq!((issued.not_before, issued.not_after), (now(), now().plus(Duration::from_secs(9))));
    assert_eq!(Lifetime::new(Duration::from_secs(4)), None);
    assert_eq!(Lifetime::parse("24h"), Some(Lifetime::DEFAULT));
    assert!(["9s", "30m", "90d"].iter().all(|text| Lifetime::parse(text).is_some()));
    assert!(
        ["", "h", "24", "4s", "91d", "1.5h", "-1h", "24 h"]
            .iter()
            .all(|text| Lifetime::parse(text).is_none())
    );

    let late = ca.cert().not_after().minus(Duration::from_secs(3600));
    assert_eq!(ca.issue_remote(late).unwrap().cert.not_after, ca.cert().not_after());
    let error = ca.issue_remote(ca.cert().not_after()).unwrap_err();
    assert!(matches!(error, CaError::Expired { .. }), "{error}");
}

#[test]
fn an_admin_keeps_the_key_when_the_certificate_is_renewed() {
    let (ca, user) = (ca(), UserName::parse("root").unwrap());
    let first = ca.issue_admin(&user, now()).unwrap();
    let again = ca.renew_admin(&user, &first.key_pem, now().plus(Duration::from_secs(60))).unwrap();
    let key = |der: &[u8]| parse(der).unwrap().public_key().subject_public_key.data.to_vec();
    assert_eq!(key(&first.cert.der), key(&again.der));
    assert!(again.not_after > first.cert.not_after);
    assert!(matches!(ca.renew_admin(&user, "no key", now()), Err(CaError::Key(_))));
}

#[test]
fn serials_are_random_and_keys_are_not_printed() {
    let ca = ca();
    let serial = || {
        let issued = ca.issue_remote(now()).unwrap();
        assert!(!format!("{issued:?} {ca:?}").contains("PRIVATE"));
        parse(&issued.cert.der).unwrap().raw_serial().to_vec()
    };
    let (one, two) = (serial(), serial());
    assert_ne!(one, two);
    assert_eq!(one.len(), 16);
}
