//! The fuzz targets over the committed corpus and ten seconds of mutations.

#![allow(clippy::unwrap_used, reason = "a test; clippy exempts only test functions, not their helpers")]

#[path = "../../model/wire/tests/mutate/mod.rs"]
mod mutate;

use std::time::Duration;

use hawser_model::{ClusterName, NodeName, Timestamp};
use hawser_pki::fuzz::{fuzz_bundle, fuzz_certificate, fuzz_join};
use hawser_pki::{Bundle, Ca, JoinFile, TrustStore};
use mutate::{corpus, run};

const CRATE: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn no_bundle_breaks_the_reader() {
    let inputs = corpus(CRATE, "bundles");
    let now = Timestamp::from_unix(1_800_000_000);
    let reader = ClusterName::parse("eu-west").unwrap();
    let good = inputs.iter().filter(|text| Bundle::read(str::from_utf8(text).unwrap(), &reader, now).is_ok());
    assert_eq!(good.count(), 1, "the corpus holds one whole bundle");
    run(&inputs, Duration::from_secs(4), fuzz_bundle);
}

#[test]
fn no_join_file_or_token_breaks_the_reader() {
    let inputs = corpus(CRATE, "joins");
    let good = inputs.iter().filter(|text| JoinFile::from_yaml(str::from_utf8(text).unwrap()).is_ok());
    assert_eq!(good.count(), 1, "the corpus holds one whole join file");
    run(&inputs, Duration::from_secs(3), fuzz_join);
}

#[test]
fn no_certificate_or_request_breaks_the_parser() {
    let cluster = ClusterName::parse("us-east").unwrap();
    let ca = Ca::create(&cluster, Timestamp::from_unix(1_795_211_095)).unwrap();
    let mut trust = TrustStore::new(cluster, ca.cert().clone());
    trust.insert_peer(ClusterName::parse("eu-west").unwrap(), ca.cert().clone());
    let node = NodeName::parse("node-1").unwrap();
    run(&corpus(CRATE, "certificates"), Duration::from_secs(3), |der| {
        fuzz_certificate(&trust, &ca, &node, der);
    });
}
