//! A test that lives in a lab of its own.

use std::any::type_name;
use std::env;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;

use crate::enclave::{self, Inside};
use crate::{binaries, lab};

/// Labs can run side by side, but three clusters on two cores want the machine for themselves.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs `body` inside a new lab, as PID 1. To be called at once in a `#[test]` function, with a closure.
///
/// The test executable runs a second time, inside, with this test alone; there this calls `body`.
///
/// # Panics
/// When the scenario does not hold: that is how a test fails.
pub fn run<F: FnOnce() -> Result<()>>(body: F) {
    if let Some(inside) = Inside::current() {
        if let Err(error) = body() {
            panic!("{error:#}\n{}\nlogs: {}", lab::recent_logs(&inside.dir), inside.dir.display());
        }
        return;
    }
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let name = test_name(type_name::<F>());
    let exe = env::current_exe().expect("a test has an executable");
    let lab = binaries::find("hawser-lab").unwrap_or_else(|error| panic!("{error:#}"));
    let mut command = Command::new(lab);
    command.arg("inside").arg("--").arg(exe).args(["--exact", name, "--nocapture", "--test-threads=1"]);
    command.env("RUST_BACKTRACE", "0");
    let (text, success) = enclave::run_from_test(&mut command).unwrap_or_else(|error| panic!("{error:#}"));
    println!("{text}");
    assert!(success, "the scenario does not hold, see above");
    assert!(text.contains("test result: ok. 1 passed"), "{name} did not run inside of the lab");
}

/// Like [`run`], for scenarios with the product: its binaries must have been built.
///
/// # Panics
/// Like [`run`], and when a binary is missing.
pub fn run_with_product<F: FnOnce() -> Result<()>>(body: F) {
    binaries::check_product().unwrap_or_else(|error| panic!("{error:#}"));
    run(body);
}

/// `crate::module::test::{{closure}}` as the test harness names it.
fn test_name(closure: &str) -> &str {
    let path = closure.split("::{{closure}}").next().unwrap_or(closure);
    path.split_once("::").map_or(path, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_harness_names_a_test_without_its_crate() {
        assert_eq!(test_name("topology::remote::unreachable::{{closure}}"), "remote::unreachable");
        assert_eq!(test_name("topology::unreachable::{{closure}}"), "unreachable");
    }
}
