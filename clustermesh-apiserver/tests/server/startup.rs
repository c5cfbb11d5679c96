//! What stops the server before anything is changed: one sentence, both sides, the fix, and an exit code.

use std::fs;
use std::net::TcpListener;
use std::process::Output;
use std::time::Duration;

use crate::cluster::Cluster;
use hawser_pki::Ca;

fn refused(cluster: &Cluster, output: &Output, code: i32, says: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    let said: Vec<&str> = text.lines().filter(|line| line.starts_with("clustermesh-apiserver: ")).collect();
    assert_eq!(said.len(), 1, "one sentence: {text}");
    for word in says.iter().chain(&["fix:"]) {
        assert!(said[0].contains(word), "{word:?} is not in {text}");
    }
    assert!(!cluster.path("store").exists(), "a store was made");
}

#[test]
fn a_bad_configuration_is_refused() {
    let us = Cluster::new("us-east", 1);
    for (from, to, says) in [
        ("id: 1", "id: 300", &["cluster.id", "300", "255"][..]),
        ("store:", "stroe:", &["cluster.yaml:7", "stroe"]),
        ("embedded:", "redis:", &["redis:", "etcd://"]),
        ("172.16.1.0/24", "10.1.2.0/24", &["10.1.0.0/16", "10.1.2.0/24"]),
    ] {
        us.write_config(&us.config().replace(from, to));
        refused(&us, &us.command().output().unwrap(), 64, says);
    }
}

#[test]
fn a_ca_that_does_not_fit_is_refused() {
    let us = Cluster::new("us-east", 1);
    fs::write(us.path("pki/ca.key"), Cluster::new("us-east", 1).ca.key_pem()).unwrap();
    refused(&us, &us.command().output().unwrap(), 64, &["another key"]);
    let eu = Cluster::new("eu-west", 2);
    fs::write(us.path("pki/ca.crt"), eu.ca.cert().pem()).unwrap();
    fs::write(us.path("pki/ca.key"), eu.ca.key_pem()).unwrap();
    refused(&us, &us.command().arg("--check-config").output().unwrap(), 64, &["eu-west", "us-east"]);
    let old =
        Ca::create(us.ca.cluster(), crate::cluster::now().minus(Duration::from_secs(20 * 365 * 86_400)))
            .unwrap();
    fs::write(us.path("pki/ca.crt"), old.cert().pem()).unwrap();
    fs::write(us.path("pki/ca.key"), old.key_pem()).unwrap();
    refused(&us, &us.command().output().unwrap(), 64, &["us-east", "expired"]);
    fs::remove_file(us.path("pki/ca.key")).unwrap();
    refused(&us, &us.command().output().unwrap(), 64, &["ca.key", "hawser ca init --cluster us-east --id 1"]);
}

#[test]
fn a_port_in_use_is_named() {
    let us = Cluster::new("us-east", 1);
    let _other = TcpListener::bind(("127.0.0.1", us.port)).unwrap();
    refused(&us, &us.command().output().unwrap(), 1, &[&format!("127.0.0.1:{} is in use", us.port)]);
}

#[test]
fn check_config_says_that_it_is_good_and_changes_nothing() {
    let us = Cluster::new("us-east", 1);
    let output = us.command().arg("--check-config").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("good, for cluster us-east (id 1)"));
    assert!(!us.path("store").exists());
    assert_eq!(us.command().arg("--no-such-flag").output().unwrap().status.code(), Some(64));
    assert_eq!(us.command().arg("--help").output().unwrap().status.code(), Some(0));
}
