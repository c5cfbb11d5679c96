//! A bundle is believed only as its cluster signed it, where it was meant for, while its CA lasts.

use std::time::Duration;

use super::*;

fn now() -> Timestamp {
    Timestamp::parse("2026-11-20T21:44:55Z").unwrap()
}

fn name(text: &str) -> ClusterName {
    ClusterName::parse(text).unwrap()
}

fn facts(text: &str) -> BundleFacts {
    BundleFacts {
        cluster: ClusterRef { name: name(text), id: ClusterId::new(1, ClusterIdWidth::Bits8).unwrap() },
        endpoints: vec![ServerUrl::parse("https://172.16.1.11:2379").unwrap()],
        pod_cidrs: vec!["10.1.0.0/16".parse().unwrap(), "fd00:1::/48".parse().unwrap()],
        node_cidrs: vec!["172.16.1.0/24".parse().unwrap()],
        width: ClusterIdWidth::Bits8,
        mesh: MeshPlan::default(),
        encryption: Encryption::Wireguard,
    }
}

fn bundle_of(text: &str) -> Bundle {
    let ca = Ca::create(&name(text), now()).unwrap();
    Bundle::create(&ca, name("eu-west"), facts(text), now()).unwrap()
}

fn read(text: &str) -> Result<Bundle, BundleError> {
    Bundle::read(text, &name("eu-west"), now())
}

#[test]
fn a_bundle_reads_as_it_was_written_whatever_the_cluster_is_called() {
    for odd in ["us-east", "null", "true", "1e3", "0", "no"] {
        let bundle = bundle_of(odd);
        assert_eq!(read(&bundle.to_yaml()).unwrap(), bundle, "{odd}");
    }
}

#[test]
fn the_text_may_be_laid_out_otherwise_but_not_changed() {
    let yaml = bundle_of("us-east").to_yaml();
    let block = "podCIDRs:\n  - 10.1.0.0/16\n  - 'fd00:1::/48'\n";
    let other = yaml.replace("podCIDRs: [\"10.1.0.0/16\", \"fd00:1::/48\"]\n", block);
    assert_ne!(other, yaml);
    assert!(read(&format!("# from the other team\n{other}")).is_ok());
    for (from, to) in [
        ("10.1.0.0/16", "10.9.0.0/16"),
        ("id: 1", "id: 2"),
        ("172.16.1.11", "172.16.1.66"),
        ("us-east", "us-west"),
        ("for: \"eu-west\"", "for: \"ap-south\""),
        ("encryption: wireguard", "encryption: ipsec"),
        ("maxConnectedClusters: 255", "maxConnectedClusters: 511"),
        ("21:44:55Z", "21:44:56Z"),
    ] {
        assert!(yaml.contains(from), "{from}");
        assert!(matches!(read(&yaml.replace(from, to)), Err(BundleError::Signature)), "{from} -> {to}");
    }
}

#[test]
fn another_ca_or_a_broken_signature_does_not_pass() {
    let (one, two) = (bundle_of("us-east"), bundle_of("us-east"));
    let swapped = Bundle { ca: two.ca.clone(), ..one.clone() };
    assert!(matches!(read(&swapped.to_yaml()), Err(BundleError::Signature)));
    for signature in [vec![], vec![0; 70], two.signature] {
        let broken = Bundle { signature, ..one.clone() };
        assert!(matches!(read(&broken.to_yaml()), Err(BundleError::Signature)));
    }
}

#[test]
fn a_bundle_for_somebody_else_is_refused_with_both_names() {
    let yaml = bundle_of("us-east").to_yaml();
    let error = Bundle::read(&yaml, &name("ap-south"), now()).unwrap_err();
    assert!(matches!(&error, BundleError::OtherReader { .. }), "{error}");
    assert!(error.to_string().contains("--for ap-south` at us-east"), "{error}");
}

#[test]
fn a_ca_out_of_its_time_is_refused() {
    let bundle = bundle_of("us-east");
    let yaml = bundle.to_yaml();
    let late = bundle.ca.not_after().plus(Duration::from_secs(1));
    let error = Bundle::read(&yaml, &name("eu-west"), late).unwrap_err();
    assert!(matches!(error, BundleError::CaExpired { .. }), "{error}");
    let early = bundle.ca.not_before().minus(Duration::from_secs(1));
    let error = Bundle::read(&yaml, &name("eu-west"), early).unwrap_err();
    assert!(matches!(error, BundleError::CaNotYetValid { .. }), "{error}");
}

#[test]
fn malformed_bundles_are_refused_with_a_sentence() {
    let yaml = bundle_of("us-east").to_yaml();
    for (text, why) in [
        (String::new(), "not readable"),
        ("x".repeat(70_000), "70000 bytes long, more than 65536"),
        ("{".repeat(1000), "not readable"),
        (yaml.replace("for:", "to:"), "unknown field"),
        (format!("{yaml}extra: 1\n"), "unknown field"),
        (yaml.replace("ClusterBundle", "Secret"), "this is a hawser.io/v1 Secret"),
        (yaml.replace("\"10.1.0.0/16\"", "\"10.1.0.1/16\""), "no CIDR without host bits"),
        (yaml.replace("[\"172.16.1.0/24\"]", "[]"), "nodeCIDRs has 0 entries"),
        (yaml.replace("https://172", "http://172"), "does not begin with https://"),
        (yaml.replace("id: 1", "id: 256"), "out of range 1..=255"),
        (yaml.replace("id: 1", "id: 0"), "out of range 1..=255"),
        (yaml.replace("name: \"us-east\"", "name: \"US\""), "may hold only lower-case"),
        (yaml.replace("BEGIN CERT", "BEGIN CART"), "no PEM text"),
        (yaml.replace("240.0.0.0/4", "240.0.0.0/9"), "/7 or wider"),
        (yaml.replace("encryption: wireguard", "encryption: none"), "neither wireguard nor ipsec"),
        (yaml.replace("for: \"eu-west\"", "for: &a \"eu-west\""), "not readable"),
    ] {
        let error = read(&text).unwrap_err().to_string();
        assert!(error.contains(why), "{why}: {error}");
    }
}

#[test]
fn a_bundle_is_made_only_by_the_clusters_own_ca_and_not_for_itself() {
    let ca = Ca::create(&name("us-east"), now()).unwrap();
    let other = Bundle::create(&ca, name("eu-west"), facts("ap-south"), now());
    assert!(matches!(other, Err(BundleError::OtherCa { .. })));
    let itself = Bundle::create(&ca, name("us-east"), facts("us-east"), now());
    assert!(matches!(itself, Err(BundleError::ForItself { .. })));
}

#[test]
fn the_fingerprint_is_sha_256_in_hex_pairs() {
    let print = bundle_of("us-east").fingerprint();
    assert_eq!(print.split(':').count(), 32);
    assert!(print.split(':').all(|pair| pair.len() == 2 && u8::from_str_radix(pair, 16).is_ok()), "{print}");
}
