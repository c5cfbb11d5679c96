//! Builds the kernel programs: a second cargo with the same compiler, its own target directory and nothing of this
//! cargo's environment.
//!
//! `RUSTC_BOOTSTRAP=1` (for `-Z build-std`, and for the inline assembly of aya-ebpf) applies to that second cargo alone.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

const PROGRAM: &str = "hawser-datapath";
const TARGET: &str = "bpfel-unknown-none";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let here = PathBuf::from(var("CARGO_MANIFEST_DIR")?);
    // A stale object must never meet new structs: the three crates are watched, not only the programs.
    for watched in ["abi", "logic", "programs"] {
        println!("cargo::rerun-if-changed={}", here.join(watched).join("src").display());
        println!("cargo::rerun-if-changed={}", here.join(watched).join("Cargo.toml").display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CARGO_HOME");

    let rustc = PathBuf::from(var("RUSTC")?);
    let path = path_with_linker()?;
    require_rust_src(&rustc)?;

    let out = PathBuf::from(var("OUT_DIR")?);
    let target_dir = out.join("bpf");
    let built = target_dir.join(TARGET).join("release").join(PROGRAM);
    // What a failed link leaves behind must not be taken for its result.
    let _ = fs::remove_file(&built);

    let mut cargo = Command::new(var("CARGO")?);
    clean(&mut cargo);
    cargo
        .current_dir(&here)
        .env("RUSTC", &rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("PATH", path)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&here, &out))
        .args(["build", "--quiet", "--package", "hawser-ebpf-programs", "--bin", PROGRAM])
        .args(["--release", "--target", TARGET, "-Z", "build-std=core", "--target-dir"])
        .arg(&target_dir);
    // Above one codegen unit the 512 octets of stack do not suffice; overflow checks are panics.
    for (setting, value) in [
        ("OPT_LEVEL", "3"),
        ("DEBUG", "2"),
        ("CODEGEN_UNITS", "1"),
        ("LTO", "true"),
        ("PANIC", "abort"),
        ("OVERFLOW_CHECKS", "false"),
        ("STRIP", "none"),
    ] {
        cargo.env(format!("CARGO_PROFILE_RELEASE_{setting}"), value);
    }
    let output = cargo.output().map_err(|error| format!("cannot start {cargo:?}: {error}"))?;
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        return Err(format!(
            "the kernel programs do not build ({}); the compiler's words are above",
            output.status
        ));
    }
    fs::copy(&built, out.join("hawser-datapath.o"))
        .map_err(|error| format!("the build left no {}: {error}", built.display()))?;
    Ok(())
}

/// Takes this cargo's (and clippy's) words to its own compilers away; keeps where toolchains and registries are.
fn clean(cargo: &mut Command) {
    const KEEP: [&str; 5] =
        ["CARGO_HOME", "CARGO_MAKEFLAGS", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN", "CARGO_TERM_COLOR"];
    const KEEP_PREFIXES: [&str; 4] = ["CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_"];
    for (name, _) in env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        let theirs = ["CARGO", "RUST", "CLIPPY", "DEP_"].iter().any(|prefix| text.starts_with(prefix))
            || ["OUT_DIR", "TARGET", "HOST", "OPT_LEVEL", "DEBUG", "PROFILE", "NUM_JOBS"].contains(&text);
        if theirs && !KEEP.contains(&text) && !KEEP_PREFIXES.iter().any(|prefix| text.starts_with(prefix)) {
            cargo.env_remove(&name);
        }
    }
}

/// `PATH` with cargo's own bin directory, where `make setup` puts the linker, at its end.
fn path_with_linker() -> Result<OsString, String> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let mut dirs: Vec<PathBuf> = env::var_os("PATH").iter().flat_map(env::split_paths).collect();
    dirs.extend(home.map(|home| home.join("bin")));
    if !dirs.iter().any(|dir| dir.join("bpf-linker").is_file()) {
        return Err("bpf-linker is neither in PATH nor in cargo's bin directory; fix: make setup".into());
    }
    env::join_paths(dirs).map_err(|error| format!("PATH cannot be extended: {error}"))
}

fn require_rust_src(rustc: &Path) -> Result<(), String> {
    let output = Command::new(rustc).args(["--print", "sysroot"]).output();
    let output = output.map_err(|error| format!("cannot start {}: {error}", rustc.display()))?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let core = sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml");
    if !core.is_file() {
        return Err(format!(
            "the source of core is missing ({}); fix: make setup, or rustup component add rust-src",
            core.display()
        ));
    }
    Ok(())
}

/// The same object from any directory: every path that gets into debug information is remapped.
fn rustflags(here: &Path, out: &Path) -> OsString {
    let mut flags = OsString::from("-Ctarget-cpu=v3\x1f-Cdebuginfo=2\x1f-Clink-arg=--btf");
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    for (from, to) in
        [(Some(here.to_owned()), "/hawser/ebpf"), (home, "/cargo"), (Some(out.to_owned()), "/out")]
    {
        let Some(from) = from else { continue };
        flags.push("\x1f--remap-path-prefix=");
        flags.push(from);
        flags.push("=");
        flags.push(to);
    }
    flags
}

fn var(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"))
}
