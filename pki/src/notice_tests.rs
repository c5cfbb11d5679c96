//! A peer's CAs change only by the word of one that is believed already.

use hawser_model::{ClusterName, Timestamp};

use super::*;
use crate::ca::Ca;
use crate::role::TrustStore;
use crate::rotation::Rotation;

fn now() -> Timestamp {
    Timestamp::parse("2026-11-21T04:00:00Z").unwrap()
}

fn name(text: &str) -> ClusterName {
    ClusterName::parse(text).unwrap()
}

fn ca(cluster: &str) -> Ca {
    Ca::create(&name(cluster), now()).unwrap()
}

fn copy(ca: &Ca) -> Ca {
    Ca::from_pem(&ca.cert().pem(), &ca.key_pem()).unwrap()
}

/// eu-west, which has admitted us-east by this CA, and ap-south.
fn west(of_east: &Ca, of_south: &Ca) -> TrustStore {
    let mut trust = TrustStore::new(name("eu-west"), ca("eu-west").cert().clone());
    trust.insert_peer(name("us-east"), of_east.cert().clone());
    trust.insert_peer(name("ap-south"), of_south.cert().clone());
    trust
}

#[test]
fn a_peer_follows_a_rotation_step_by_step() {
    let (old, south) = (ca("us-east"), ca("ap-south"));
    let mut trust = west(&old, &south);
    let settled = announce(&Authority::Settled(copy(&old)), now()).unwrap();
    assert_eq!(trust.heed(&name("us-east"), &settled), Ok(None), "nothing new");
    let mut authority = Authority::Changing(Rotation::start(old, now()).unwrap());
    while let Authority::Changing(rotation) = authority {
        let trusted = rotation.trusted();
        let authority_now = Authority::Changing(Rotation::from_json(&rotation.to_json()).unwrap());
        let notice = announce(&authority_now, now()).unwrap();
        if let Some(cas) = trust.heed(&name("us-east"), &notice).unwrap() {
            trust.insert_peer(name("us-east"), cas);
        }
        assert_eq!(trust.peer(&name("us-east")), Some(&trusted));
        assert_eq!(trust.heed(&name("us-east"), &notice), Ok(None));
        authority = rotation.advance().unwrap();
    }
}

#[test]
fn nobody_but_the_ca_that_is_believed_vouches() {
    let (old, south) = (ca("us-east"), ca("ap-south"));
    let trust = west(&old, &south);
    let impostor = Authority::Changing(Rotation::start(ca("us-east"), now()).unwrap());
    let forged = announce(&impostor, now()).unwrap();
    let refused = trust.heed(&name("us-east"), &forged).unwrap_err();
    assert!(matches!(refused, NoticeError::Signature { .. }), "{refused}");
    let rotation = Rotation::start(copy(&old), now()).unwrap();
    let good = announce(&Authority::Changing(rotation), now()).unwrap();
    let others_word = trust.heed(&name("ap-south"), &good).unwrap_err();
    assert!(matches!(others_word, NoticeError::Signature { .. }), "{others_word}");
    let changed = TrustNotice { cas: impostor.trusted().pem(), ..good.clone() };
    assert!(trust.heed(&name("us-east"), &changed).is_err());
    let later = TrustNotice { issued: Timestamp::from_unix(0), ..good.clone() };
    assert!(trust.heed(&name("us-east"), &later).is_err());
    assert_eq!(trust.heed(&name("nobody"), &good), Ok(None));
    // Who missed the overlap has to be connected anew: the new CA vouches for itself alone.
    let retired = Rotation::start(old, now()).unwrap().advance().and_then(|issue| match issue {
        Authority::Changing(rotation) => rotation.advance(),
        settled @ Authority::Settled(_) => Ok(settled),
    });
    let refused = trust.heed(&name("us-east"), &announce(&retired.unwrap(), now()).unwrap()).unwrap_err();
    assert!(refused.to_string().contains("hawser disconnect us-east"), "{refused}");
}

#[test]
fn a_peer_cannot_take_anothers_ca_for_its_own() {
    let (old, south) = (ca("us-east"), ca("ap-south"));
    let trust = west(&old, &south);
    for stolen in [&south.cert().pem(), &trust.own().pem()] {
        let cas = old.cert().pem() + stolen;
        let signature = old.sign_bytes(&canonical(&name("us-east"), &cas, now())).unwrap();
        let notice = TrustNotice { cas, issued: now(), signature };
        let refused = trust.heed(&name("us-east"), &notice).unwrap_err();
        assert!(matches!(refused, NoticeError::Shared { .. }), "{refused}");
    }
    for bad in [String::new(), "junk".into(), old.cert().pem().repeat(2), old.cert().pem().repeat(3)] {
        let signature = old.sign_bytes(&canonical(&name("us-east"), &bad, now())).unwrap();
        let notice = TrustNotice { cas: bad, issued: now(), signature };
        let refused = trust.heed(&name("us-east"), &notice).unwrap_err();
        assert!(matches!(refused, NoticeError::Ca { .. }), "{refused}");
    }
}
