//! Datagrams against those of another implementation (Python's `cryptography`, and draft-mcgrew-gcm-test-01), and against
//! whoever changes, repeats, cuts or invents them.

use hawser_tunnels::{EspKey, Sa};
use proptest::prelude::*;

use super::association::{Unopened, whole};
use super::*;
use crate::noise::window::SIZE;

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn sa(spi: u32, material: &[u8]) -> Sa {
    Sa { spi, key: EspKey::new(material).unwrap() }
}

/// 256 bits, 0 to 31, and a salt.
fn known(spi: u32) -> Sa {
    sa(spi, &[(0..32).collect::<Vec<u8>>(), hex("cafebabe")].concat())
}

fn pair() -> (Outbound, Inbound) {
    (Outbound::new(known(0x1234_5678), 0).unwrap(), Inbound::new(known(0x1234_5678), 0).unwrap())
}

fn v4(length: usize) -> Vec<u8> {
    let mut packet = vec![0x5a; length.max(20)];
    packet[0] = 0x45;
    packet
}

fn sealed(outbound: &Outbound, packet: &[u8]) -> Vec<u8> {
    let mut message = [&[0; HEADER][..], packet, &[0; OVERHEAD]].concat();
    let length = outbound.seal(&mut message, packet.len()).unwrap();
    assert!(length <= packet.len() + OVERHEAD);
    message.truncate(length);
    message
}

fn opened(inbound: &Inbound, datagram: &[u8]) -> Result<(u64, Vec<u8>), Unopened> {
    let mut datagram = datagram.to_vec();
    let (number, place) = inbound.open(&mut datagram)?;
    Ok((number, datagram[place].to_vec()))
}

fn fresh(inbound: &Inbound, number: u64) -> bool {
    let mut fresh = false;
    inbound.admit(&[number], |number| *number, |_, is| fresh = is);
    fresh
}

#[test]
fn datagrams_are_what_another_implementation_makes() {
    let ipv4 = [&[0x45, 0, 0, 21, 0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 0, 1, 10, 2, 0, 1][..], &[0x7f]].concat();
    let mut ipv6 = vec![0; 42];
    ipv6[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 2, 59, 64]);
    (ipv6[23], ipv6[39]) = (1, 2);
    ipv6[40..].copy_from_slice(b"hi");
    let short = sa(0x100, &[(0..16).collect::<Vec<u8>>(), hex("cafebabe")].concat());
    for (sa, before, packet, expected) in [
        (
            known(0x380a_056b),
            0,
            ipv4,
            "380a056b000000010000000000000001cd929a9169e62c213cb86a24a4653e66dc842417170aaf6b0923280429d0e7fe2250e0696e964877",
        ),
        (
            known(0x380a_056b),
            7 << 32 | 0x8000_0000,
            ipv6,
            "380a056b800000010000000780000001565455cf785cd20ef6be1a79e5ccea02059651a2d26a4753dc64ff5701f4b4684e0a1cd461ded5ab342626a838a6d1e0b0959031f8f346dcc79b4c10",
        ),
        (short, 1, Vec::new(), "00000100000000020000000000000002a8abbb46f91b78044c49e613f7f7ba651da08302"),
    ] {
        let datagram = sealed(&Outbound::new(sa.clone(), before).unwrap(), &packet);
        assert_eq!(datagram, hex(expected), "{sa:?}");
        assert_eq!(kind(&datagram), Some(Kind::Esp(sa.spi)));
        let inbound = Inbound::new(sa, before).unwrap();
        assert_eq!(opened(&inbound, &datagram), Ok((before + 1, packet)));
    }
}

/// Their trailers are not tunnel mode's, so only what is encrypted is looked at.
#[test]
fn the_drafts_datagrams_with_extended_numbers_decrypt() {
    let long = "abbccddef00112233445566778899aababbccddef00112233445566778899aab";
    for (key, salt, spi, number, iv, sealed, plain) in [
        (
            "4c80cdefbb5d10da906ac73c3613a634",
            "2e443b68",
            0x4321,
            0x8765_4321_0000_0000,
            "4956ed7e3b244cfe",
            "fecf537e729d5b07dc30df528dd22b768d1b98736696a6fd348509fa13ceac34cfa2436f14a3f3cf65925bf1f4a13c5d15b21e1884f5ff6247aeabb786b93bce61bc17d768fd9732459018148f6cbe722fd04796562dfdb4",
            "45000048699a000080114db7c0a80102c0a801010a9bf15638d301000001000000000000045f736970045f756470037369700963796265726369747902646b000021000101020201",
        ),
        (
            long,
            "73616c74",
            0x1740_5e67,
            0x156f_3126_dd0d_b99b,
            "616e640169766563",
            "f2d69ecdbd5a0d5b8d5ef38bad4da58d1f278fde98ef67549d524a3018d9a57ff4d3a31ce673119e451626c2415771e3b7eebca614c89b35",
            "45080028732c00004006e9f90a0106120a01038f06b88023dd6bafbecb71260250101f646d540001",
        ),
    ] {
        let material = [hex(key), hex(salt)].concat();
        let inbound = Inbound::new(sa(spi, &material), number - 1).unwrap();
        let header = [&spi.to_be_bytes()[..], &(number as u32).to_be_bytes(), &hex(iv)].concat();
        let mut datagram = [header, hex(sealed)].concat();
        assert_eq!(inbound.decrypt(&mut datagram), Ok((number, &hex(plain)[..])));
    }
}

#[test]
fn what_the_port_carries_is_told_apart() {
    assert_eq!(kind(&[0xff]), Some(Kind::Keepalive));
    assert_eq!(kind(&[0; 200]), Some(Kind::Ike));
    assert_eq!(kind(&[0; 4]), Some(Kind::Ike));
    assert_eq!(kind(&[0, 0, 1, 0].repeat(9)), Some(Kind::Esp(256)));
    for nothing in [&[][..], &[0xfe], &[0xff, 0xff], &[1; 35], &[1; 38]] {
        assert_eq!(kind(nothing), None, "{nothing:?}");
    }
}

#[test]
fn a_dummy_is_authentic_and_nothing() {
    let (outbound, inbound) = pair();
    assert_eq!(opened(&inbound, &sealed(&outbound, &[])), Ok((1, Vec::new())));
}

#[test]
fn what_is_authentic_but_no_packet_of_tunnel_mode_is_refused() {
    let (outbound, inbound) = pair();
    // Sealed as it is: its own trailer says something else than the one behind it.
    let with_trailer = |padding: &[u8], length: u8, next: u8| {
        let text = [&v4(20)[..], padding, &[length, next]].concat();
        inbound_after_seal(&outbound, &inbound, &text)
    };
    assert_eq!(with_trailer(&[1, 2], 2, 4).map(|packet| packet.len()), Ok(20));
    assert_eq!(with_trailer(&[1, 2], 2, 41), Err(Unopened::Malformed), "of the other family");
    assert_eq!(with_trailer(&[1, 2], 2, 17), Err(Unopened::Malformed), "of transport mode");
    assert_eq!(with_trailer(&[1, 3], 2, 4), Err(Unopened::Malformed), "padding that is not numbered");
    assert_eq!(with_trailer(&[0, 0], 2, 4), Err(Unopened::Malformed));
    assert_eq!(with_trailer(&[1, 2], 200, 4), Err(Unopened::Malformed), "more padding than there is");
    assert_eq!(with_trailer(&[1, 2], 22, 4), Err(Unopened::Malformed), "nothing but padding");
    let much: Vec<u8> = (1..=254).collect();
    assert_eq!(with_trailer(&much, 254, 4).map(|packet| packet.len()), Ok(20), "as much as there may be");
}

/// Seals `text`, trailer and all, under the numbers of `outbound`.
fn inbound_after_seal(outbound: &Outbound, inbound: &Inbound, text: &[u8]) -> Result<Vec<u8>, Unopened> {
    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    let sa = outbound.sa();
    let number = u64::from_be_bytes(sealed(outbound, &[])[8..16].try_into().unwrap());
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, sa.key.aes()).unwrap());
    let nonce = [&sa.key.salt()[..], &number.to_be_bytes()].concat().try_into().unwrap();
    let bound = [&sa.spi.to_be_bytes()[..], &number.to_be_bytes()].concat();
    let mut text = text.to_vec();
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(bound), &mut text).unwrap();
    let header = [&sa.spi.to_be_bytes()[..], &(number as u32).to_be_bytes(), &number.to_be_bytes()].concat();
    opened(inbound, &[header, text].concat()).map(|(_, packet)| packet)
}

#[test]
fn numbers_go_on_past_four_billion_and_each_counts_once() {
    let start = u64::from(u32::MAX) - 2;
    let outbound = Outbound::new(known(300), start).unwrap();
    let inbound = Inbound::new(known(300), start).unwrap();
    let datagrams: Vec<Vec<u8>> = (0..SIZE + 10).map(|_| sealed(&outbound, &v4(40))).collect();
    // Out of order over the wrap: what is behind, from before it.
    for at in [5, 0, 4, 1, 3, 2, 9000, 8000, 8191, 10] {
        let Some(datagram) = datagrams.get(at) else { continue };
        let (number, _) = opened(&inbound, datagram).unwrap();
        assert_eq!(number, start + 1 + at as u64);
        assert!(fresh(&inbound, number) && !fresh(&inbound, number), "{at}");
    }
    let (last, _) = opened(&inbound, &datagrams[SIZE as usize + 9]).unwrap();
    assert!(fresh(&inbound, last));
    // A period behind by its lower half: taken for one ahead, whose tag it is not.
    assert_eq!(opened(&inbound, &datagrams[0]), Err(Unopened::Forged));
    assert_eq!(
        opened(&inbound, &datagrams[6]),
        Err(Unopened::Forged),
        "one that never came, and is too old now"
    );
}

#[test]
fn an_association_without_numbers_left_seals_nothing() {
    let end = crate::noise::REJECT_AFTER_MESSAGES;
    let outbound = Outbound::new(known(300), end - 1).unwrap();
    sealed(&outbound, &v4(40));
    assert!(outbound.is_over());
    let mut message = [0x45; 200];
    assert!(outbound.seal(&mut message, 40).is_err());
    assert_eq!(outbound.sequence(), end, "nothing is drawn");
}

#[test]
fn an_association_that_comes_back_takes_nothing_that_it_may_have_taken() {
    let (outbound, inbound) = pair();
    let old = sealed(&outbound, &v4(40));
    for _ in 0..100 {
        sealed(&outbound, &v4(40));
    }
    let (newest, _) = opened(&inbound, &sealed(&outbound, &v4(40))).unwrap();
    assert!(fresh(&inbound, newest));
    let again = Inbound::new(known(0x1234_5678), inbound.newest()).unwrap();
    let (number, _) = opened(&again, &old).unwrap();
    assert!(!fresh(&again, number));
    let further = Outbound::new(known(0x1234_5678), outbound.sequence()).unwrap();
    let (number, _) = opened(&again, &sealed(&further, &v4(40))).unwrap();
    assert!(number == newest + 1 && fresh(&again, number));
}

/// RFC 4303 appendix A2.2 in other words: of all numbers with this lower half, the smallest that is not below the window.
fn smallest_not_below(low: u32, newest: u64) -> Option<u64> {
    let bottom = newest.saturating_sub(SIZE - 1);
    let candidate = (bottom & !0xffff_ffff) | u64::from(low);
    let number = if candidate >= bottom { Some(candidate) } else { candidate.checked_add(1 << 32) };
    number.filter(|number| *number > 0)
}

fn number() -> impl Strategy<Value = u64> {
    let near = (0..1000u64, prop::collection::vec(0..2 * SIZE, 2));
    prop_oneof![
        any::<u64>(),
        near.prop_map(|(period, steps)| (period << 32).saturating_add(steps[0]).saturating_sub(steps[1])),
    ]
}

proptest! {
    #[test]
    fn the_upper_half_is_the_one_that_the_window_says(newest in number(), step in -20_000..20_000i64, low in any::<u32>()) {
        for low in [low, newest.wrapping_add_signed(step) as u32] {
            // Below the first period the definition has a case of its own: before the beginning is nothing.
            let beginning = newest < SIZE - 1 && low >= (newest as u32).wrapping_sub(SIZE as u32 - 1);
            let expected = if beginning { None } else { smallest_not_below(low, newest) };
            prop_assert_eq!(whole(low, newest), expected, "low {:#x} newest {:#x}", low, newest);
        }
        let ahead = newest.saturating_add_signed(step);
        if ahead > 0 && ahead + SIZE > newest && ahead < u64::MAX - 20_000 {
            prop_assert_eq!(whole(ahead as u32, newest), Some(ahead));
        }
    }

    #[test]
    fn every_packet_comes_out_as_it_went_in(length in 20..9000usize, v6 in any::<bool>(), start in number()) {
        let start = start.min(crate::noise::REJECT_AFTER_MESSAGES - 10);
        let (outbound, inbound) =
            (Outbound::new(known(300), start).unwrap(), Inbound::new(known(300), start).unwrap());
        let mut packet = v4(length);
        if v6 { packet[0] = 0x60; }
        let datagram = sealed(&outbound, &packet);
        prop_assert!(datagram.len().is_multiple_of(4));
        prop_assert_eq!(opened(&inbound, &datagram), Ok((start + 1, packet)));
    }

    #[test]
    fn a_bit_that_was_changed_anywhere_is_found(length in 20..200usize, at in any::<prop::sample::Index>(), bit in 0..8) {
        let (outbound, inbound) = pair();
        let mut datagram = sealed(&outbound, &v4(length));
        let at = at.index(datagram.len());
        datagram[at] ^= 1u8 << bit;
        // The SPI is looked up before.
        let known = kind(&datagram) == Some(Kind::Esp(0x1234_5678));
        prop_assert_eq!(known, at >= 4);
        if known {
            prop_assert_eq!(opened(&inbound, &datagram), Err(Unopened::Forged));
        }
    }

    #[test]
    fn nothing_that_comes_by_the_wire_is_more_than_refused(mut datagram in prop::collection::vec(any::<u8>(), 0..300), newest in number()) {
        let inbound = Inbound::new(known(300), newest).unwrap();
        let _ = kind(&datagram);
        prop_assert!(inbound.open(&mut datagram).is_err());
    }
}
