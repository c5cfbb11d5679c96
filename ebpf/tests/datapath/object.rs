//! What must not be in the object, and what the two worlds must agree on.

use std::collections::BTreeSet;

use hawser_ebpf_abi::HEALTH_FULL_WEIGHT;
use hawser_model::HealthWord;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/hawser-datapath.o"));

/// Byte loops instead of a few stores cost 20 ns each; a panic ends in a loop that the verifier refuses.
#[test]
fn nothing_calls_memset_memcpy_or_a_panic() {
    let object = object::File::parse(OBJECT).unwrap();
    let targets = object
        .sections()
        .filter(|section| !section.name().unwrap().starts_with(".debug"))
        .flat_map(|section| {
            let symbols = section.relocations().filter_map(|(_, relocation)| match relocation.target() {
                RelocationTarget::Symbol(index) => Some(index),
                _ => None,
            });
            symbols.collect::<Vec<_>>()
        });
    let names: BTreeSet<&str> =
        targets.map(|index| object.symbol_by_index(index).unwrap().name().unwrap()).collect();
    assert!(names.contains("pick_in_tier") && names.contains("services"), "relocations are read: {names:?}");
    let ours = [
        "HAS_XFRM",
        "LICENSE",
        "association",
        "draw_slice",
        "enter_about",
        "enter_back",
        "enter_begin",
        "enter_carry",
        "enter_choose",
        "enter_remember",
        "enter_settle",
        "enter_too_big",
        "held_backend",
        "held_in_slice",
        "left_link_header",
        "nat_begin",
        "nat_choose",
        "nat_finish",
        "pick_backend",
        "pick_in_tier",
        "pod_from_too_big",
        "pod_from_translated",
        "probe_slice",
        "tunnel_in_carried",
        "tunnel_in_judged",
    ];
    let known =
        |name: &&&str| name.is_empty() || ours.contains(*name) || hawser_ebpf_abi::map::ALL.contains(*name);
    let others: Vec<_> = names.iter().filter(|name| !known(name)).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn the_program_and_the_model_read_a_health_word_alike() {
    for raw in [0, 1, 64, 256, 257, 0xffff, 1 << 30, 1 << 30 | 256, 1 << 31, 1 << 31 | 256, u32::MAX] {
        let takes_new = hawser_ebpf_logic::weight_of(raw) > 0;
        assert_eq!(HealthWord::from_raw(raw).takes_new(), takes_new, "{raw:#x}");
    }
    assert_eq!(u32::from(HealthWord::FULL_WEIGHT), HEALTH_FULL_WEIGHT);
}
