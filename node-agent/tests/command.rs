//! The `hawser-node-agent` binary as a person meets it: help, exit codes, the configuration in effect.

use std::process::{Command, Output};

fn agent(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hawser-node-agent")).args(args).output().expect("the binary runs")
}

#[test]
fn help_shows_examples_and_is_no_error() {
    let output = agent(&["--help"]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("Examples:"));
}

#[test]
fn an_unknown_key_is_refused_before_anything_else() {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("agent.yaml");
    std::fs::write(&path, "node: node-1\nprot: 51871\n").expect("a file");
    let output = agent(&["--config", path.to_str().expect("a path of ours")]);
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("prot"), "{said}");
}

#[test]
fn the_configuration_in_effect_is_printed() {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("agent.yaml");
    std::fs::write(&path, "node: node-1\n").expect("a file");
    let output = agent(&["--config", path.to_str().expect("a path of ours"), "--check-config"]);
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("node-1") && said.contains("51871"), "{said}");
}
