//! The crate graph: which floor each crate lives on, and what the lower floors may not import.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::verdict;

/// `architecture.md`, "The floors".
const FLOORS: &[(&str, u8)] = &[
    ("api", 1),
    ("cli", 4),
    ("clustermesh-apiserver", 4),
    ("clustermesh-apiserver/sources", 3),
    ("discovery", 1),
    ("discovery/net", 3),
    ("e2e", 5),
    ("ebpf", 3),
    ("ebpf/abi", 0),
    ("ebpf/logic", 1),
    ("ebpf/programs", 3),
    ("kvstore", 0),
    ("kvstore/etcd", 3),
    ("model", 0),
    ("model/wire", 1),
    ("node-agent", 4),
    ("node-agent/core", 2),
    ("pki", 1),
    ("telemetry", 3),
    ("tunnels", 1),
    ("tunnels/linux", 3),
    ("xtask", 5),
];

/// A crate of floors 0 to 2 that lists one of these has stopped being a core. (`api` holds generated types: tonic is theirs.)
const IO_CRATES: &[&str] = &[
    "aya",
    "hyper",
    "k8s-openapi",
    "kube",
    "libc",
    "nix",
    "rtnetlink",
    "rustls",
    "tokio",
    "tonic",
    "tracing",
    "tracing-subscriber",
];

/// Calls that a core may not make: its time and its randomness are arguments.
const IO_CALLS: &[&str] = &[
    "Instant::now",
    "SystemTime::now",
    "std::fs",
    "TcpStream",
    "UdpSocket",
    "std::thread::spawn",
    "println!",
];

pub(crate) fn check(root: &Path) -> Result<String> {
    let mut problems = Vec::new();
    let mut arrows = BTreeSet::new();
    for package in packages(root)? {
        judge(root, &package, &mut problems, &mut arrows)?;
    }
    compare_with_golden(root, &arrows, &mut problems)?;
    verdict("layers", &problems, format!("layers: {} arrows, all pointing down", arrows.len()))
}

/// A workspace member: its folder and what it depends on outside of tests.
struct Package {
    folder: String,
    internal: Vec<String>,
    external: Vec<String>,
}

fn judge(
    root: &Path,
    package: &Package,
    problems: &mut Vec<String>,
    arrows: &mut BTreeSet<String>,
) -> Result<()> {
    let floors: BTreeMap<_, _> = FLOORS.iter().copied().collect();
    let Some(&floor) = floors.get(package.folder.as_str()) else {
        problems.push(format!(
            "{}: on no floor; add it to xtask/src/layers.rs and architecture.md",
            package.folder
        ));
        return Ok(());
    };
    for target in &package.internal {
        arrows.insert(format!("{} -> {target}", package.folder));
        if floors.get(target.as_str()).is_none_or(|below| *below >= floor) {
            problems
                .push(format!("{} (floor {floor}) imports {target}, which is not below it", package.folder));
        }
    }
    if floor <= 2 && package.folder != "api" {
        for name in package.external.iter().filter(|name| IO_CRATES.contains(&name.as_str())) {
            problems.push(format!("{} is a core (floor {floor}) and lists {name}", package.folder));
        }
        io_calls(root, &package.folder, problems)?;
    }
    Ok(())
}

fn io_calls(root: &Path, folder: &str, problems: &mut Vec<String>) -> Result<()> {
    for file in crate::files(&root.join(folder).join("src"), ".rs")? {
        let text = fs::read_to_string(&file)?;
        let code = text.split("#[cfg(test)]").next().unwrap_or(&text);
        if file.file_name().is_some_and(|name| name == "tests.rs") {
            continue;
        }
        for (number, line) in code.lines().enumerate() {
            let line = line.split("//").next().unwrap_or(line);
            for call in IO_CALLS.iter().filter(|call| line.contains(**call)) {
                problems.push(format!("{}:{}: a core may not use {call}", file.display(), number + 1));
            }
        }
    }
    Ok(())
}

fn packages(root: &Path) -> Result<Vec<Package>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    packages.iter().map(|package| parse(root, package)).collect()
}

fn parse(root: &Path, package: &Value) -> Result<Package> {
    let manifest = package["manifest_path"].as_str().context("a package without a manifest")?;
    let mut found = Package {
        folder: relative(root, Path::new(manifest).parent().unwrap_or(root)),
        internal: vec![],
        external: vec![],
    };
    for dependency in package["dependencies"].as_array().context("a package without dependencies")? {
        if !dependency["kind"].is_null() {
            continue;
        }
        match dependency["path"].as_str() {
            Some(path) => found.internal.push(relative(root, Path::new(path))),
            None => found.external.push(dependency["name"].as_str().unwrap_or_default().to_owned()),
        }
    }
    Ok(found)
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned()
}

fn compare_with_golden(root: &Path, arrows: &BTreeSet<String>, problems: &mut Vec<String>) -> Result<()> {
    let path = root.join("xtask/layers.golden");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        let lines: Vec<_> = arrows.iter().map(String::as_str).collect();
        fs::write(&path, lines.join("\n") + "\n")?;
        return Ok(());
    }
    let golden: BTreeSet<String> =
        fs::read_to_string(&path).unwrap_or_default().lines().map(ToOwned::to_owned).collect();
    for arrow in arrows.difference(&golden) {
        problems
            .push(format!("new arrow: {arrow}\n    fix: if it is meant, UPDATE_EXPECT=1 cargo xtask layers"));
    }
    for arrow in golden.difference(arrows) {
        problems.push(format!("arrow is gone: {arrow}\n    fix: UPDATE_EXPECT=1 cargo xtask layers"));
    }
    Ok(())
}
