//! The `hawser` binary as a person meets it: help, exit codes, and a CA made once.

use std::process::{Command, Output};

fn hawser(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hawser")).args(args).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_shows_examples_and_is_no_error() {
    for args in
        [&["--help"][..], &["connect", "--help"], &["ca", "token", "--help"], &["service", "get", "--help"]]
    {
        let output = hawser(args);
        assert!(output.status.success(), "{args:?}");
        assert!(text(&output.stdout).contains("hawser "), "{args:?}: {}", text(&output.stdout));
    }
}

#[test]
fn bad_arguments_end_with_64() {
    for args in [&["conect"][..], &["status", "--output", "xml"], &["service", "get", "cart"]] {
        assert_eq!(hawser(args).status.code(), Some(64), "{args:?}");
    }
}

#[test]
fn a_ca_is_made_once_and_never_overwritten() {
    let place = tempfile::tempdir().expect("a directory");
    let pki = place.path().join("pki");
    let pki = pki.to_str().expect("a path of ours");
    let init =
        |cluster: &str, id: &str| hawser(&["--pki", pki, "ca", "init", "--cluster", cluster, "--id", id]);
    for (cluster, id, word) in [("Us_East", "1", "Us_East"), ("us-east", "0", "0"), ("us-east", "512", "512")]
    {
        let refused = init(cluster, id);
        assert_eq!(refused.status.code(), Some(64));
        assert!(text(&refused.stderr).contains(word), "{}", text(&refused.stderr));
    }
    assert!(init("us-east", "1").status.success());
    let first = std::fs::read(place.path().join("pki/ca.crt")).expect("a certificate");
    let again = init("us-east", "1");
    assert_eq!(again.status.code(), Some(64));
    assert!(text(&again.stderr).contains("fix:"), "{}", text(&again.stderr));
    assert_eq!(std::fs::read(place.path().join("pki/ca.crt")).expect("a certificate"), first);
}

#[test]
fn without_a_ca_the_refusal_names_the_file_and_the_fix() {
    let refused = hawser(&["--pki", "/nonexistent/pki", "ca", "bundle", "--for", "eu-west"]);
    assert_eq!(refused.status.code(), Some(64));
    let said = text(&refused.stderr);
    assert!(said.contains("/nonexistent/pki/ca.crt") && said.contains("fix:"), "{said}");
}

#[test]
fn a_cluster_on_cilium_is_described_whole_or_not_at_all() {
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join("c1");
    let path = file.to_str().expect("a path of ours");
    let all = [
        "connect",
        "--cilium",
        path,
        "--id",
        "7",
        "--pod-cidr",
        "10.7.0.0/16",
        "--node-cidr",
        "172.16.7.0/24",
    ];
    // What the file does not say has to be said.
    for missing in [3, 5, 7] {
        let args = [&all[..missing], &all[missing + 2..]].concat();
        let refused = hawser(&args);
        assert_eq!(refused.status.code(), Some(64), "{args:?}");
        assert!(text(&refused.stderr).contains(all[missing]), "{}", text(&refused.stderr));
    }
    assert_eq!(hawser(&["connect"]).status.code(), Some(64));
    assert_eq!(hawser(&["cilium", "config", "--out", path]).status.code(), Some(64), "for whom?");
    for (config, why) in [
        ("", "no etcd client configuration"),
        ("endpoints: [http://10.7.0.1:2379]", "https://"),
        (
            "endpoints: [https://10.7.0.1:2379]\ninsecure-skip-tls-verify: true",
            "insecure-skip-tls-verify is set",
        ),
        ("endpoints: [https://10.7.0.1:2379]", "--ca FILE"),
        (
            "endpoints: [https://10.7.0.1:2379]\ntrusted-ca-file: /var/lib/cilium/clustermesh/common-etcd-client-ca.crt",
            "common-etcd-client-ca.crt cannot be read",
        ),
    ] {
        std::fs::write(&file, config).expect("a file");
        let refused = hawser(&all);
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(64), "{said}");
        assert!(said.contains(why) && said.contains("fix:"), "{said}");
    }
}
