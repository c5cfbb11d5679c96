//! Our end of the protocol against boringtun's, and against what the wire may bring.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use proptest::prelude::*;
use zeroize::Zeroizing;

use super::cookie::Jar;
use super::handshake::{self, Keys, Stamp};
use super::primitives::{Forged, Key, agree};
use super::session::{Session, at_counter};
use super::*;
use crate::PrivateKey;
use crate::clock::Millis;

const NOW: Millis = Millis(5_000_000);

fn private(seed: u8) -> PrivateKey {
    PrivateKey::from_bytes([seed; 32]).unwrap()
}

fn statics(own: &PrivateKey, peer: &PrivateKey) -> Key {
    agree(own.secret(), peer.public().as_bytes()).unwrap()
}

fn preshared(byte: u8) -> Key {
    Zeroizing::new([byte; 32])
}

/// boringtun with the private key `own`.
fn tunn(own: u8, peer: &PrivateKey, preshared: Option<[u8; 32]>) -> Tunn {
    let theirs = x25519::PublicKey::from(*peer.public().as_bytes());
    Tunn::new(x25519::StaticSecret::from([own; 32]), theirs, preshared, None, 7, None)
}

fn written(result: TunnResult<'_>) -> Vec<u8> {
    match result {
        TunnResult::WriteToNetwork(message) => message.to_vec(),
        other => panic!("{other:?}"),
    }
}

/// A ping's worth of IPv4.
fn packet() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    packet.extend([0xab; 12]);
    packet
}

fn sealed(session: &Session, packet: &[u8]) -> Vec<u8> {
    let mut message = vec![0; DATA_HEADER];
    message.extend(packet);
    message.extend([0; TAG]);
    session.seal(&mut message).unwrap();
    message
}

/// Opens and admits, as the engine does.
fn opened(session: &Session, message: &[u8]) -> Option<Vec<u8>> {
    let mut message = message.to_vec();
    let counter = session.open(&mut message).ok()?;
    let mut fresh = false;
    session.admit(&[counter], |counter| *counter, |_, is_fresh| fresh = is_fresh);
    fresh.then(|| message[DATA_HEADER..message.len() - TAG].to_vec())
}

fn both_ways(ours: &Session, theirs: &mut Tunn) {
    let mut out = [0; 2048];
    for _ in 0..3 {
        let message = sealed(ours, &packet());
        let TunnResult::WriteToTunnelV4(inner, _) = theirs.decapsulate(None, &message, &mut out) else {
            panic!("boringtun does not read us");
        };
        assert_eq!(inner, packet());
        let message = written(theirs.encapsulate(&packet(), &mut out));
        assert_eq!(opened(ours, &message).unwrap(), packet());
        assert_eq!(opened(ours, &message), None, "a replay");
    }
}

#[test]
fn boringtun_answers_our_handshake() {
    for secret in [None, Some([42; 32])] {
        let (ours, theirs) = (private(1), private(2));
        let mut boringtun = tunn(2, &ours, secret);
        let mut message = [0; INITIATION_LENGTH];
        let stamp = Stamp::after(Stamp::default(), SystemTime::now());
        let key = statics(&ours, &theirs);
        let initiated =
            handshake::initiate(&ours, &theirs.public(), &key, 0, 77, stamp, &mut message).unwrap();
        Jar::new(&theirs.public()).stamp(&mut message, NOW);
        let mut out = [0; 2048];
        let response = written(boringtun.decapsulate(None, &message, &mut out));
        assert_eq!((kind(&response), receiver(&response, Kind::Response)), (Some(Kind::Response), 77));
        let response = response.try_into().unwrap();
        let wrong = handshake::finish(&initiated, &ours, &preshared(3), &response);
        assert!(wrong.is_err(), "another preshared key");
        let keys =
            handshake::finish(&initiated, &ours, &preshared(secret.map_or(0, |key| key[0])), &response)
                .unwrap();
        let session = Session::new(keys, true, NOW).unwrap();
        let confirming = sealed(&session, &[]);
        assert!(matches!(boringtun.decapsulate(None, &confirming, &mut out), TunnResult::Done));
        both_ways(&session, &mut boringtun);
    }
}

#[test]
fn we_answer_boringtuns_handshake() {
    for secret in [None, Some([42; 32])] {
        let (ours, theirs) = (private(1), private(2));
        let mut boringtun = tunn(2, &ours, secret);
        let mut out = [0; 2048];
        let message: [u8; INITIATION_LENGTH] =
            written(boringtun.format_handshake_initiation(&mut out, false)).try_into().unwrap();
        let guard = cookie::Guard::new(&ours.public(), NOW).unwrap();
        guard.check(&message, "192.0.2.1:1".parse().unwrap(), NOW).unwrap();
        let opened = handshake::open(&ours, &message, 0).unwrap();
        assert_eq!(opened.claims, theirs.public());
        let verified = opened.verify(&statics(&ours, &theirs)).unwrap();
        assert!(verified.stamp > Stamp::default());
        let mut response = [0; RESPONSE_LENGTH];
        let key = preshared(secret.map_or(0, |key| key[0]));
        let keys = handshake::respond(verified, &key, 99, &mut response).unwrap();
        Jar::new(&theirs.public()).stamp(&mut response, NOW);
        let session = Session::new(keys, false, NOW).unwrap();
        let confirming = written(boringtun.decapsulate(None, &response, &mut out));
        assert_eq!(receiver(&confirming, Kind::Data), 99);
        assert_eq!(self::opened(&session, &confirming).unwrap(), b"");
        both_ways(&session, &mut boringtun);
    }
}

#[test]
fn a_stranger_who_claims_a_peers_key_is_found_out() {
    let (ours, theirs) = (private(1), private(2));
    let mut message = [0; INITIATION_LENGTH];
    // It knows both public keys, and not what the static ones agree on.
    let guess = Zeroizing::new([5; 32]);
    handshake::initiate(&theirs, &ours.public(), &guess, 0, 1, Stamp::default(), &mut message).unwrap();
    let opened = handshake::open(&ours, &message, 0).unwrap();
    assert_eq!(opened.claims, theirs.public());
    assert!(opened.verify(&statics(&ours, &theirs)).is_err());
}

#[test]
fn a_public_key_that_would_make_the_secret_zero_is_refused() {
    let ours = private(1);
    for low_order in [[0; 32], std::array::from_fn(|at| u8::from(at == 0))] {
        assert!(agree(ours.secret(), &low_order).is_err());
    }
}

#[test]
fn a_clock_that_goes_back_neither_panics_nor_makes_our_handshakes_look_like_replays() {
    let noon = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let mut last = Stamp::after(Stamp::default(), noon);
    for back in [0, 1, 3600, 1_900_000_000] {
        let now = noon.checked_sub(Duration::from_secs(back)).unwrap_or(UNIX_EPOCH);
        for _ in 0..100 {
            let next = Stamp::after(last, now);
            assert!(next > last);
            last = next;
        }
    }
    assert!(Stamp::after(last, noon + Duration::from_secs(60)) > last);
    let session = Session::new(keys(), true, NOW).unwrap();
    assert!(!session.is_over(Millis(0)) && !session.is_old(Millis(0)));
}

fn keys() -> Keys {
    Keys { local: 1, remote: 2, send: preshared(1), receive: preshared(1) }
}

#[test]
fn a_counter_is_64_bits_and_a_session_retires_before_it_would_repeat() {
    let session = Session::new(keys(), true, NOW).unwrap();
    at_counter(&session, u64::from(u32::MAX));
    let message = [sealed(&session, b"a"), sealed(&session, b"b")].map(|message| message[8..16].to_vec());
    assert_eq!(message[1], (u64::from(u32::MAX) + 1).to_le_bytes());
    assert!(!session.is_worn());
    at_counter(&session, REKEY_AFTER_MESSAGES);
    assert!(session.is_worn() && !session.is_over(NOW));
    at_counter(&session, REJECT_AFTER_MESSAGES - 1);
    sealed(&session, b"the last one");
    for _ in 0..20_000 {
        assert_eq!(session.seal(&mut [0; 64]), Err(Forged));
    }
    assert!(session.is_over(NOW), "and it never wraps");
}

#[test]
fn a_session_ends_after_three_minutes() {
    let session = Session::new(keys(), true, NOW).unwrap();
    assert!(!session.is_old(NOW + Duration::from_secs(119)));
    assert!(session.is_old(NOW + Duration::from_secs(120)));
    assert!(!session.is_over(NOW + Duration::from_secs(179)));
    assert!(session.is_over(NOW + Duration::from_secs(180)));
}

#[test]
fn a_successor_goes_on_with_other_counters_and_knows_what_was_seen() {
    let old = Session::new(keys(), false, NOW).unwrap();
    let sent: Vec<_> = (0..3).map(|n| sealed(&old, &[n])).collect();
    assert_eq!(opened(&old, &sent[0]), Some(vec![0]));
    assert_eq!(opened(&old, &sent[2]), Some(vec![2]));
    let mut text = Zeroizing::new(String::new());
    old.export(&mut text);
    let new = Session::import(&text).unwrap();
    assert_eq!((new.local, new.made, new.initiator, new.is_confirmed()), (old.local, NOW, false, false));
    assert_eq!((opened(&new, &sent[0]), opened(&new, &sent[2])), (None, None), "seen by its predecessor");
    assert_eq!(opened(&new, &sent[1]), Some(vec![1]));
    let counter = u64::from_le_bytes(sealed(&new, b"")[8..16].try_into().unwrap());
    assert!(
        (3..3 + 8192).contains(&counter),
        "never one that was used, and within a peer's window: {counter}"
    );
    for cut in 0..text.len() - 1 {
        let _ = Session::import(&text[..cut]);
    }
    assert!(Session::import("").is_none() && Session::import("1 2 3 zz").is_none());
}

#[test]
fn many_threads_seal_at_once_and_no_counter_is_used_twice() {
    const EACH: usize = 5000;
    let session = Session::new(keys(), true, NOW).unwrap();
    let mut counters: Vec<u64> = std::thread::scope(|scope| {
        let seal =
            || (0..EACH).map(|_| sealed(&session, b"x")[8..16].try_into().map(u64::from_le_bytes).unwrap());
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(move || seal().collect::<Vec<_>>())).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    counters.sort_unstable();
    assert_eq!(counters, (0..4 * EACH as u64).collect::<Vec<_>>());
}

proptest! {
    #[test]
    fn a_message_that_was_touched_does_not_open(packet in prop::collection::vec(any::<u8>(), 0..200), at: prop::sample::Index, bit in 0..8u8) {
        let session = Session::new(keys(), true, NOW).unwrap();
        let good = sealed(&session, &packet);
        let mut bad = good.clone();
        // The type and the receiver are read before the seal is; the nonce is part of it.
        let at = 8 + at.index(bad.len() - 8);
        bad[at] ^= 1 << bit;
        prop_assert!(session.open(&mut bad).is_err());
        prop_assert_eq!(opened(&session, &good), Some(packet));
    }

    #[test]
    fn no_handshake_message_panics(noise in prop::collection::vec(any::<u8>(), 0..200), of in 0..4u8) {
        let ours = private(1);
        let mut message = noise.clone();
        message.resize([INITIATION_LENGTH, RESPONSE_LENGTH, COOKIE_LENGTH, noise.len()][usize::from(of)], 0);
        let _ = kind(&message).map(|kind| receiver(&message, kind));
        let guard = cookie::Guard::new(&ours.public(), NOW).unwrap();
        let _ = guard.check(&message, "192.0.2.1:1".parse().unwrap(), NOW);
        if let Ok(message) = message.as_slice().try_into() {
            prop_assert!(handshake::open(&ours, message, 0).is_err());
        }
        let mut initiation = [0; INITIATION_LENGTH];
        let key = statics(&ours, &private(2));
        let initiated =
            handshake::initiate(&ours, &private(2).public(), &key, 0, 1, Stamp::default(), &mut initiation).unwrap();
        if let Ok(message) = message.as_slice().try_into() {
            prop_assert!(handshake::finish(&initiated, &ours, &preshared(0), message).is_err());
        }
        if let Ok(message) = message.as_slice().try_into() {
            let mut jar = Jar::new(&ours.public());
            jar.stamp(&mut initiation, NOW);
            prop_assert!(jar.take(message, NOW).is_err());
        }
        let session = Session::new(keys(), true, NOW).unwrap();
        prop_assert!(session.open(&mut message).is_err());
    }
}
