//! Two nodes that change keys, however slowly they hear of each other.

use proptest::prelude::*;

use super::*;

const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const WEAR: Wear = Wear { age: Duration::from_secs(3600), bytes: 1 << 30, rest: Duration::from_secs(60) };

fn keyring(epochs: &[u32]) -> Keyring {
    Keyring::parse(&epochs.iter().map(|epoch| format!("{epoch} {HEX}\n")).collect::<String>()).unwrap()
}

fn at(seconds: u64) -> Time {
    Time::from_millis(seconds * 1000)
}

fn of(text: &str) -> Generation {
    Generation::parse(text).unwrap()
}

fn stated(receiving: &Receiving) -> Vec<String> {
    receiving.stated(false).receives().map(|of| of.to_string()).collect()
}

fn all(receiving: &Receiving) -> Vec<String> {
    receiving.all().map(|of| of.to_string()).collect()
}

fn epochs(epochs: &[u32]) -> BTreeSet<Epoch> {
    epochs.iter().map(|epoch| Epoch::new(*epoch).unwrap()).collect()
}

#[test]
fn a_secret_comes_beside_the_old_one_which_goes_when_nobody_needs_it() {
    let mut own = Receiving::begin(&keyring(&[1]), at(0));
    assert_eq!(stated(&own), ["1.1"]);
    assert_eq!(own.handle_keyring(&keyring(&[1, 2]), at(10)), Ok(true));
    assert_eq!(stated(&own), ["1.1", "2.2"]);
    assert_eq!(own.handle_keyring(&keyring(&[1, 2]), at(11)), Ok(false));
    assert_eq!(own.handle_keyring(&keyring(&[2]), at(20)), Ok(true));
    assert_eq!(stated(&own), ["1.1", "2.2"], "who has the first alone can still send");
    let nothing = BTreeMap::new();
    own.handle_carried(&keyring(&[2]), &nothing, &epochs(&[1]), &WEAR, at(200));
    assert_eq!(all(&own), ["1.1", "2.2"], "a peer has nothing else");
    let came = |total| BTreeMap::from([(of("1.1"), Carried { most: total, total })]);
    own.handle_carried(&keyring(&[2]), &came(9), &epochs(&[]), &WEAR, at(210));
    assert_eq!(all(&own), ["1.1", "2.2"], "something came by it a moment ago");
    assert!(own.handle_carried(&keyring(&[2]), &came(9), &epochs(&[]), &WEAR, at(270)));
    assert_eq!((all(&own), stated(&own)), (vec!["2.2".into()], vec!["2.2".into()]));
}

#[test]
fn a_third_secret_waits_until_the_first_is_left() {
    let mut own = Receiving::begin(&keyring(&[1]), at(0));
    let refused = own.handle_keyring(&keyring(&[2, 3]), at(1)).unwrap_err();
    assert_eq!(refused.epoch, Epoch::FIRST);
    assert_eq!(all(&own), ["1.1"]);
}

#[test]
fn going_back_to_a_secret_never_goes_back_to_its_keys() {
    let mut own = Receiving::begin(&keyring(&[1]), at(0));
    let mut peer = Sending::default();
    let holds = |_: Epoch| true;
    assert_eq!(peer.handle_stated(&own.stated(false), holds), Some(None));
    let old_news = own.stated(false);
    own.handle_keyring(&keyring(&[1, 2]), at(1)).unwrap();
    assert_eq!(peer.handle_stated(&own.stated(false), holds), Some(Some(of("1.1"))));
    assert_eq!(peer.current(), Some(of("2.2")));
    assert_eq!(peer.handle_stated(&old_news, holds), None, "what was heard before changes nothing");
    own.handle_keyring(&keyring(&[1]), at(2)).unwrap();
    assert_eq!(stated(&own), ["1.3", "2.2"]);
    assert_eq!(peer.handle_stated(&own.stated(false), holds), Some(Some(of("2.2"))));
    assert_eq!(peer.current(), Some(of("1.3")));
    assert_eq!(Sending::import(&peer.export()), Some(peer));
}

#[test]
fn a_key_is_worn_by_its_age_or_by_what_it_carried() {
    let ring = keyring(&[1]);
    let mut own = Receiving::begin(&ring, at(0));
    let carried = |most| BTreeMap::from([(of("1.1"), Carried { most, total: most })]);
    assert!(!own.handle_carried(&ring, &carried(5), &epochs(&[1]), &WEAR, at(3599)));
    let mut by_age = own.clone();
    assert!(by_age.handle_carried(&ring, &carried(5), &epochs(&[1]), &WEAR, at(3600)));
    assert_eq!((all(&by_age), stated(&by_age)), (vec!["1.1".into(), "1.2".into()], vec!["1.2".into()]));
    assert!(own.handle_carried(&ring, &carried(1 << 30), &epochs(&[1]), &WEAR, at(3599)));
    assert_eq!(stated(&own), ["1.2"]);
    assert!(!own.handle_carried(&ring, &carried((1 << 30) + 1), &epochs(&[1]), &WEAR, at(3700)));
    assert!(own.handle_carried(&ring, &carried((1 << 30) + 1), &epochs(&[1]), &WEAR, at(3760)));
    assert_eq!(all(&own), ["1.2"], "in use or not, its epoch has a newer one");
}

#[test]
fn ciliums_keys_know_epochs_alone() {
    let cilium = |id: u8| format!("{id} rfc4106(gcm(aes)) {} 128\n", "00".repeat(20));
    let ring = Keyring::parse(&cilium(3)).unwrap();
    let mut own = Receiving::begin(&ring, at(0));
    assert!(!own.handle_carried(&ring, &BTreeMap::new(), &epochs(&[3]), &WEAR, at(1 << 20)));
    let both = Keyring::parse(&format!("{}{}", cilium(3), cilium(4))).unwrap();
    own.handle_keyring(&both, at(1 << 20)).unwrap();
    assert_eq!(stated(&own), ["3.0", "4.0"]);
    let mut peer = Sending::default();
    peer.handle_stated(&own.stated(false), |_| true);
    assert_eq!(peer.current(), Some(of("4.0")));
}

#[test]
fn what_a_successor_reads_is_what_was_written() {
    let mut own = Receiving::begin(&keyring(&[1]), at(7));
    own.handle_keyring(&keyring(&[1, 2]), at(9)).unwrap();
    own.handle_keyring(&keyring(&[2]), at(11)).unwrap();
    let again = Receiving::import(&own.export(), at(12)).unwrap();
    assert_eq!((again.export(), stated(&again)), (own.export(), stated(&own)));
    for broken in ["", "x", "1", "1 1.2:0:-", "2 1.2:0", "2 1.2:x:-"] {
        assert_eq!(Receiving::import(broken, at(0)), None, "{broken:?}");
    }
}

proptest! {
    /// Whatever the operator does, and however late the sender hears: it sends by nothing that is not received, and it begins
    /// no generation twice.
    #[test]
    fn nothing_is_sent_by_what_is_not_received(steps in prop::collection::vec((0u8..6, 1u32..4), 1..40)) {
        let (mut ring, mut now) = (keyring(&[1]), 0);
        let mut own = Receiving::begin(&ring, at(0));
        let mut peer = Sending::default();
        let mut heard = own.stated(false);
        let mut begun = BTreeSet::new();
        for (total, (step, epoch)) in (1..).zip(steps) {
            now += 20;
            match step {
                0 => ring = keyring(&[epoch]),
                1 => ring = keyring(&[epoch, epoch + 1]),
                2 => now += 4000,
                3 => heard = own.stated(false),
                _ => {}
            }
            // The file is read again and again.
            let _ = own.handle_keyring(&ring, at(now));
            if peer.handle_stated(&heard, |_| true).is_some() {
                prop_assert!(begun.insert(peer.current()), "{peer:?}");
            }
            let by = peer.current().unwrap();
            let carried = BTreeMap::from([(by, Carried { most: 1, total })]);
            own.handle_carried(&ring, &carried, &[by.epoch].into(), &WEAR, at(now));
            prop_assert!(own.contains(by), "{by} is sent by, and received are {:?}", all(&own));
            prop_assert!(own.end(false).is_some() && own.own.len() <= MOST_RECEIVED);
        }
    }
}
