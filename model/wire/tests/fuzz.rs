//! The fuzz targets over the committed corpus and ten seconds of mutations.

#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only test functions, not their helpers")]

mod mutate;

use std::time::Duration;

use hawser_wire::fuzz::{fuzz_key, fuzz_slice, fuzz_value};
use mutate::{corpus, run};

const CRATE: &str = env!("CARGO_MANIFEST_DIR");

/// Everything that Cilium's fixture holds, as `key NUL value`.
fn fixture() -> Vec<Vec<u8>> {
    let text = include_str!("../testdata/cilium-keyspace.txt");
    let lines: Vec<&str> = text.lines().collect();
    let pair = |pair: &[&str]| {
        let key = pair[0].strip_prefix("KEY   ")?;
        Some(format!("{key}\0{}", pair[1].strip_prefix("VALUE ")?).into_bytes())
    };
    lines.windows(2).filter_map(pair).collect()
}

#[test]
fn no_key_breaks_the_parser() {
    run(&corpus(CRATE, "keys"), Duration::from_secs(2), fuzz_key);
}

#[test]
fn no_value_breaks_the_decoder_and_what_decodes_survives_a_round_trip() {
    let inputs = [corpus(CRATE, "values"), fixture()].concat();
    run(&inputs, Duration::from_secs(5), fuzz_value);
}

#[test]
fn no_slice_breaks_the_decoder_and_what_decodes_survives_a_round_trip() {
    run(&corpus(CRATE, "slices"), Duration::from_secs(3), fuzz_slice);
}
