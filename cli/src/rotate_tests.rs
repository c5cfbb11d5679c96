//! What a rotation waits for, and what it leaves in the directory.

use hawser_pki::{Ca, UserName};

use super::*;

fn member(kind: &str, name: &str, lacks: &str) -> CaMember {
    CaMember { kind: kind.into(), name: name.into(), lacks: lacks.into(), ..Default::default() }
}

fn reply(phase: &str, members: Vec<CaMember>) -> CaStatusReply {
    CaStatusReply { phase: phase.into(), members, ..Default::default() }
}

#[test]
fn whoever_has_not_taken_a_phase_is_named_and_can_be_given_up() {
    let late =
        || vec![member("agent", "node-3", "does not trust the new CA yet"), member("peer", "eu-west", "")];
    let prepare = reply("prepare", late());
    assert_eq!(waits(&prepare, Phase::Prepare, &[]), ["agent/node-3 (does not trust the new CA yet)"]);
    assert_eq!(waits(&prepare, Phase::Prepare, &["agent/node-3".into()]), [""; 0]);
    assert_eq!(waits(&prepare, Phase::Issue, &[]), ["the API server to read it"]);
    let stuck = CaStatusReply { problem: "cannot read ca.crt".into(), ..reply("issue", Vec::new()) };
    assert_eq!(waits(&stuck, Phase::Issue, &[]), ["the API server: cannot read ca.crt"]);
}

#[test]
fn the_admin_goes_over_with_the_ca_and_keeps_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let file = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let ca = Ca::create(&ClusterName::parse("us-east").unwrap(), now()).unwrap();
    let admin = ca.issue_admin(&UserName::parse("jo").unwrap(), now()).unwrap();
    put(CA_CERT, &ca.cert().pem());
    put(CA_KEY, &ca.key_pem());
    put(ADMIN_CERT, &admin.cert.pem());
    put(ADMIN_KEY, &admin.key_pem);
    let Authority::Settled(old) = read(dir.path()).unwrap() else { panic!("a rotation") };
    let mut authority = Authority::Changing(Rotation::start(old, now()).unwrap());
    loop {
        write_step(dir.path(), &authority).unwrap();
        let written = read(dir.path()).unwrap();
        assert!(hawser_pki::CaSet::from(written.issuing().cert().clone()).signed_pem(&file(ADMIN_CERT)));
        assert_eq!(file(CA_CERT), written.trusted().pem());
        match written {
            Authority::Changing(rotation) => authority = rotation.advance().unwrap(),
            Authority::Settled(_) => break,
        }
    }
    assert_eq!(file(ADMIN_KEY), admin.key_pem);
    assert!(!dir.path().join(ROTATION).exists());
    let mut names: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [ADMIN_CERT, ADMIN_KEY, CA_CERT, CA_KEY], "nothing is left lying about");
}

#[test]
fn another_admin_gets_a_directory_and_nobody_elses_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::create(&ClusterName::parse("us-east").unwrap(), now()).unwrap();
    std::fs::write(dir.path().join(CA_CERT), ca.cert().pem()).unwrap();
    std::fs::write(dir.path().join(CA_KEY), ca.key_pem()).unwrap();
    let out = dir.path().join("bob");
    admin_certificate(dir.path(), Some("bob"), Some(&out)).unwrap();
    let leaf = Leaf::from_pem(&std::fs::read_to_string(out.join(ADMIN_CERT)).unwrap()).unwrap();
    assert_eq!(leaf.name, "admin-bob");
    let again = admin_certificate(dir.path(), Some("bob"), Some(&out)).unwrap_err().to_string();
    assert!(again.contains("is not overwritten") && again.contains("fix:"), "{again}");
    let none = admin_certificate(dir.path(), None, None).unwrap_err().to_string();
    assert!(none.contains("admin.crt does not exist"), "{none}");
    admin_certificate(&out, None, None).unwrap_err();
}
