//! Where the built binaries are: next to this one.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// `target/debug` of the build that this executable came from; tests sit one folder below, in `deps`.
pub fn dir() -> Result<PathBuf> {
    let exe = env::current_exe().context("finding the own executable")?;
    let dir = exe.parent().unwrap_or(Path::new("/"));
    Ok(if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir }.to_path_buf())
}

/// `target`.
pub fn target_dir() -> Result<PathBuf> {
    let dir = dir()?;
    Ok(dir.parent().unwrap_or(&dir).to_path_buf())
}

/// The path of a binary of this workspace.
pub fn find(name: &str) -> Result<PathBuf> {
    let path = dir()?.join(name);
    if !path.is_file() {
        bail!("{} is not built: {} does not exist\nfix: run `make build`", name, path.display());
    }
    Ok(path)
}

/// An error that names the first binary of the product that is not built.
pub fn check_product() -> Result<()> {
    ["clustermesh-apiserver", "hawser-node-agent", "hawser"].iter().try_for_each(|name| find(name).map(drop))
}
