//! A rotation told from its beginning to both of its ends, and cut short everywhere between.

use std::collections::BTreeMap;

use hawser_model::{ClusterName, Timestamp};

use super::*;
use crate::name::UserName;
use crate::role::{Role, RoleError, TrustStore};

fn now() -> Timestamp {
    Timestamp::parse("2026-11-21T04:00:00Z").unwrap()
}

fn east() -> ClusterName {
    ClusterName::parse("us-east").unwrap()
}

fn ca() -> Ca {
    Ca::create(&east(), now()).unwrap()
}

/// The directory as `hawser ca init` leaves it.
fn directory(ca: &Ca) -> BTreeMap<&'static str, String> {
    [(CA_CERT, ca.cert().pem()), (CA_KEY, ca.key_pem())].into()
}

fn carry_out(directory: &mut BTreeMap<&'static str, String>, writes: &[Write]) {
    for write in writes {
        match write {
            Write::Put { name, text, .. } => drop(directory.insert(name, text.clone())),
            Write::Remove { name } => drop(directory.remove(name)),
        }
    }
}

fn read(directory: &BTreeMap<&'static str, String>) -> Authority {
    let file = |name: &str| directory.get(name).map(String::as_str);
    Authority::read(file(CA_CERT).unwrap(), file(CA_KEY).unwrap(), file(ROTATION)).unwrap()
}

/// Phase, issuer and trusted CAs.
fn state(authority: &Authority) -> (Option<Phase>, String, Vec<String>) {
    let fingerprints = authority.trusted().iter().map(|ca| ca.fingerprint()).collect();
    let phase = authority.rotation().map(Rotation::phase);
    (phase, authority.issuing().cert().fingerprint(), fingerprints)
}

fn rotation(authority: Authority) -> Rotation {
    match authority {
        Authority::Changing(rotation) => rotation,
        Authority::Settled(_) => panic!("no rotation"),
    }
}

fn copy(authority: &Authority) -> Authority {
    match authority {
        Authority::Settled(ca) => Authority::Settled(Ca::from_pem(&ca.cert().pem(), &ca.key_pem()).unwrap()),
        Authority::Changing(rotation) => {
            Authority::Changing(Rotation::from_json(&rotation.to_json()).unwrap())
        }
    }
}

#[test]
fn a_rotation_goes_from_one_ca_to_the_next_and_trust_overlaps() {
    let old = ca();
    let first = old.cert().fingerprint();
    let started = Rotation::start(old, now()).unwrap();
    let second = started.next().cert().fingerprint();
    let both = vec![first.clone(), second.clone()];
    let prepare = Authority::Changing(started);
    assert_eq!(state(&prepare), (Some(Phase::Prepare), first.clone(), both.clone()));
    let issue = rotation(prepare).advance().unwrap();
    assert_eq!(state(&issue), (Some(Phase::Issue), second.clone(), both.clone()));
    let retire = rotation(issue).advance().unwrap();
    assert_eq!(state(&retire), (Some(Phase::Retire), second.clone(), vec![second.clone()]));
    let refused = rotation(copy(&retire)).abort().unwrap_err();
    assert!(refused.to_string().contains("retire"), "{refused}");
    let settled = rotation(retire).advance().unwrap();
    assert_eq!(state(&settled), (None, second.clone(), vec![second]));
}

#[test]
fn a_rotation_is_called_off_while_the_old_ca_is_trusted() {
    for phases in 0..2 {
        let old = ca();
        let first = old.cert().fingerprint();
        let mut authority = Authority::Changing(Rotation::start(old, now()).unwrap());
        for _ in 0..phases {
            authority = rotation(authority).advance().unwrap();
        }
        let off = rotation(authority).abort().unwrap();
        let node = |issuer: &Ca, trusts: [&Ca; 2]| Member {
            kind: MemberKind::Agent,
            name: "node-1".into(),
            issuer: Some(issuer.cert().fingerprint()),
            trusts: trusts.iter().map(|ca| ca.cert().fingerprint()).collect(),
        };
        assert!(off.lacks(&node(off.next(), [off.old(), off.next()])).is_some());
        assert_eq!(off.lacks(&node(off.old(), [off.old(), off.next()])), None);
        let settled = off.advance().unwrap();
        assert_eq!(state(&settled), (None, first.clone(), vec![first]));
    }
}

/// kill -9 between any two file writes, and in the middle of the way back, too: what lies there is always one of the two
/// states, and writing the step again ends in the second.
#[test]
fn a_step_that_is_cut_short_anywhere_is_the_state_before_or_after_and_goes_on() {
    for off in [false, true] {
        let old = ca();
        let mut files = directory(&old);
        let mut before = Authority::Settled(Ca::from_pem(&old.cert().pem(), &old.key_pem()).unwrap());
        let mut after = Authority::Changing(Rotation::start(old, now()).unwrap());
        let mut aborted = false;
        loop {
            let writes = after.writes();
            for cut in 0..=writes.len() {
                let mut cut_short = files.clone();
                carry_out(&mut cut_short, &writes[..cut]);
                let found = read(&cut_short);
                let found_state = state(&found);
                assert!(found_state == state(&before) || found_state == state(&after), "{found_state:?}");
                // As the command does that comes next: what is there is written out, then the step is made again.
                carry_out(&mut cut_short, &found.writes());
                assert_eq!(state(&read(&cut_short)), found_state);
                carry_out(&mut cut_short, &writes);
                assert_eq!(state(&read(&cut_short)), state(&after));
            }
            carry_out(&mut files, &writes);
            before = copy(&after);
            after = match after {
                Authority::Settled(ca) => {
                    assert_eq!(files, directory(&ca), "nothing is left of the rotation");
                    break;
                }
                Authority::Changing(rotation) if off && !aborted && rotation.phase() == Phase::Issue => {
                    aborted = true;
                    Authority::Changing(rotation.abort().unwrap())
                }
                Authority::Changing(rotation) => rotation.advance().unwrap(),
            };
        }
        assert_eq!(aborted, off);
    }
}

#[test]
fn every_phase_says_of_whom_it_waits_for_what() {
    let (old, other) = (ca(), ca());
    let mut authority = Authority::Changing(Rotation::start(old, now()).unwrap());
    let fingerprint = |ca: &Ca| ca.cert().fingerprint();
    let mut told = Vec::new();
    while let Authority::Changing(rotation) = authority {
        let (old, next) = (fingerprint(rotation.old()), fingerprint(rotation.next()));
        let member = |kind, issuer: &str, trusts: &[&String]| Member {
            kind,
            name: "one".into(),
            issuer: Some(issuer.to_owned()),
            trusts: trusts.iter().map(|fingerprint| (*fingerprint).clone()).collect(),
        };
        let agent = |issuer: &str, trusts: &[&String]| member(MemberKind::Agent, issuer, trusts);
        let done = [
            rotation.lacks(&agent(&old, &[&old])),
            rotation.lacks(&agent(&old, &[&old, &next])),
            rotation.lacks(&agent(&next, &[&old, &next])),
            rotation.lacks(&agent(&next, &[&next])),
        ]
        .map(|lacks| lacks.is_none());
        told.push((rotation.phase(), done));
        // A peer shows certificates of its own CA.
        let peer = member(MemberKind::Peer, "its own", &[&old, &next]);
        assert_eq!(rotation.lacks(&peer).is_none(), rotation.phase() != Phase::Retire);
        let silent = member(MemberKind::Replica, &next, &[]);
        assert_eq!(rotation.lacks(&silent), Some("has not said which CAs it trusts"));
        let stranger = fingerprint(&other);
        assert!(rotation.lacks(&agent(&stranger, &[&stranger])).is_some());
        authority = rotation.advance().unwrap();
    }
    let expected = [
        (Phase::Prepare, [false, true, true, false]),
        (Phase::Issue, [false, false, true, true]),
        (Phase::Retire, [false, false, false, true]),
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_third_ca_makes_nobody_in_any_phase_and_the_old_one_nobody_after_the_last() {
    let (old, third) = (ca(), ca());
    let user = UserName::parse("jo").unwrap();
    let admin = |ca: &Ca| [ca.issue_admin(&user, now()).unwrap().cert.der];
    let (by_old, by_third) = (admin(&old), admin(&third));
    let mut trust = TrustStore::new(east(), old.cert().clone());
    let mut authority = Authority::Changing(Rotation::start(old, now()).unwrap());
    let mut last = false;
    loop {
        trust.set_own(authority.trusted());
        let phase = authority.rotation().map(Rotation::phase);
        let refused = trust.role(&by_third, now());
        assert!(matches!(refused, Err(RoleError::WrongCa { .. })), "{phase:?}: {refused:?}");
        let by_issuer = admin(authority.issuing());
        assert_eq!(trust.role(&by_issuer, now()), Ok(Role::Admin(user.clone())), "{phase:?}");
        let old_is_believed = matches!(phase, Some(Phase::Prepare | Phase::Issue));
        assert_eq!(trust.role(&by_old, now()).is_ok(), old_is_believed, "{phase:?}");
        if last {
            break;
        }
        authority = rotation(authority).advance().unwrap();
        last = authority.rotation().is_none();
    }
}

#[test]
fn what_is_no_rotation_is_refused_with_a_sentence() {
    let rotation = Rotation::start(ca(), now()).unwrap();
    let text = rotation.to_json();
    assert!(!format!("{rotation:?}").contains("PRIVATE"));
    for (bad, says) in [
        (String::new(), "rotation.json is not what"),
        (text.replace("prepare", "prepared"), "prepared"),
        (text.replace("started", "begun"), "begun"),
        (text.replace("-----BEGIN PRIVATE KEY-----", ""), "the old CA"),
    ] {
        let error = Rotation::from_json(&bad).map(drop).expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
    }
    let mut file: File = serde_json::from_str(&text).unwrap();
    file.next.certificate.clone_from(&file.old.certificate);
    file.next.key.clone_from(&file.old.key);
    let same = Rotation::from_json(&serde_json::to_string(&file).unwrap()).unwrap_err();
    assert!(matches!(same, RotationError::Unrelated), "{same}");
}
