//! What can go wrong, by operation.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot make the pin directory {}: {source}. fix: is a bpffs mounted there, and is this root?", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error(
        "the pinned map {} has another shape ({found}) than this build's ({wanted}). \
         fix: `hawser-node-agent --remove`, then start it again",
        path.display()
    )]
    Shape { path: PathBuf, found: String, wanted: String },
    #[error(
        "the kernel refused the programs or maps: {0}. fix: the kernel must be 5.15 or newer, with BTF, and this must be root"
    )]
    Object(#[source] Box<aya::EbpfError>),
    #[error("the kernel refused program {program}: {source}")]
    Program { program: &'static str, source: Box<aya::programs::ProgramError> },
    #[error("the object holds no {what}; it was built from other sources. fix: build again")]
    Missing { what: &'static str },
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(transparent)]
    Attach(#[from] AttachError),
}

#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error(
        "map {map} is full at {size} entries; what is in it stays. fix: raise its size and restart the agent"
    )]
    Full { map: &'static str, size: u32 },
    #[error("map {map}: {source}")]
    Kernel { map: &'static str, source: Box<aya::maps::MapError> },
}

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("{program} cannot be attached to {to}: {source}")]
    Attach { program: &'static str, to: String, source: Box<aya::programs::ProgramError> },
    #[error("the link of {program} to {to} cannot be pinned: {reason}")]
    Pin { program: &'static str, to: String, reason: String },
    #[error("the pinned link {} cannot be {verb}: {source}", path.display())]
    Pinned { verb: &'static str, path: PathBuf, source: io::Error },
    #[error("interface {ifindex} is gone")]
    Interface { ifindex: u32 },
    #[error("cgroups below {} cannot be listed: {source}", path.display())]
    Cgroups { path: PathBuf, source: io::Error },
}

#[derive(Debug, thiserror::Error)]
#[error("{} cannot be removed: {source}", path.display())]
pub struct UninstallError {
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}
